"""The trainer in this process, where only what comes of it counts."""

import copy
import os
import signal
from pathlib import Path
from unittest.mock import patch

from safetensors.torch import load_file

from fdpo_fast import train as trainer
from fdpo_fast.config.run import Config
from fdpo_fast.training.metrics import read_records


def run(raw):
    """Train in this process; returns the records."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    config = Config.model_validate(raw)
    try:
        with patch.dict(os.environ):
            trainer.check_output(Path(config.train.output_dir), resume=False)
            trainer.train(config, resume=False)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return read_records(Path(config.train.output_dir))


def weights(raw):
    return load_file(Path(raw["train"]["output_dir"]) / "export/unet/diffusion_pytorch_model.safetensors")


def run_of(raw, folder, optimizer="adamw8bit", dtype="bf16", **deepspeed):
    raw = copy.deepcopy(raw)
    raw["train"] |= {"output_dir": str(folder), "pairs_per_micro_batch": 2}
    raw["optimizer"]["type"] = optimizer
    raw["model"]["dtype"] = dtype
    return raw | {"deepspeed": deepspeed}
