"""The trainer in this process, where only what comes of it counts."""

import copy
import io
import os
import signal
import subprocess
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from unittest.mock import patch

import torch
from safetensors.torch import load_file

from fdpo_fast import train as trainer
from fdpo_fast.config.run import Config
from fdpo_fast.training.records import read_records


@contextmanager
def as_found():
    """Within the block the environment, handlers of signals and threads may change; behind it they are as before."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    threads = torch.get_num_threads()
    try:
        with patch.dict(os.environ):
            yield
    finally:
        torch.set_num_threads(threads)
        for number, handler in handlers.items():
            signal.signal(number, handler)


def run(raw):
    """Train in this process; returns the records."""
    config = Config.model_validate(raw)
    with as_found():
        trainer.check_output(Path(config.train.output_dir), resume=False)
        trainer.train(config, resume=False)
    return read_records(Path(config.train.output_dir))


def called(arguments):
    """Run the trainer's `main` in this process, on one thread, and return what a process would: code and output."""
    said, refused, code = io.StringIO(), io.StringIO(), 0
    with as_found(), redirect_stdout(said), redirect_stderr(refused):
        torch.set_num_threads(1)
        try:
            trainer.main(arguments)
        except SystemExit as end:
            code = 1
            print(end.code, file=refused)
    return subprocess.CompletedProcess(arguments, code, said.getvalue(), refused.getvalue())


def weights(raw):
    """The exported weights of what was trained."""
    return weights_in(Path(raw["train"]["output_dir"]) / "export")


def weights_in(pipeline):
    """The weights of a pipeline's denoiser."""
    names = ("unet", "transformer")
    (file,) = (file for name in names for file in pipeline.glob(f"{name}/diffusion_pytorch_model.safetensors"))
    return load_file(file)


def run_of(raw, folder, optimizer="adamw8bit", dtype="bf16", **deepspeed):
    raw = copy.deepcopy(raw)
    raw["train"] |= {"output_dir": str(folder), "pairs_per_micro_batch": 2}
    raw["optimizer"]["type"] = optimizer
    raw["model"]["dtype"] = dtype
    return raw | {"deepspeed": deepspeed}
