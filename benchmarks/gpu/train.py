"""The trainer itself (fdpo_fast/train.py) on SDXL's UNet at full size and 1024 x 1024: seconds, memory, arithmetic.

Random weights, made on the GPU; latents, text embeddings and reference errors lie ready as in any run. What is measured
stands beside what `fdpo plan` says of the same configuration, which its own functions are asked for.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch
from torch import nn

from benchmarks.common.device import CUDA, forget_peaks, gpu_memory, synchronize
from benchmarks.full_sdxl import config, prepare
from benchmarks.gpu.cards import peak_tflops
from benchmarks.gpu.lab import Lab, Timer, Work
from benchmarks.gpu.patches import without_disks
from fdpo_fast import train as trainer
from fdpo_fast.config.load import load
from fdpo_fast.config.run import Config
from fdpo_fast.memory.account import GIB
from fdpo_fast.memory.needs import needs
from fdpo_fast.memory.trace import flops, trace
from fdpo_fast.models.architecture import read_architecture
from fdpo_fast.training.records import read_records

PAIRS = 8
"""In the data set."""


def ready(
    lab: Lab, rung: str, checkpointing: str = "full", pairs: int = 1, changes: Sequence[str] = (), timed: int = 6
) -> Work:
    """Import what the trainer does, and draw up the plan: neither needs the GPU. timed: steps that count."""
    import deepspeed  # noqa: F401

    import fdpo_fast.models.sdxl
    import fdpo_fast.training.trainer  # noqa: F401

    run = Run(lab, configuration(lab, rung, checkpointing, pairs, changes), *((1, 2) if lab.rehearse else (2, timed)))
    plan = planned(run.config)
    about = {"rung": rung, "checkpointing": checkpointing, "pairs": pairs, "changes": ",".join(changes)}
    return lambda: lab.line(what="train", **about, **run.measure(plan["tflop_per_step"]), **plan)


def configuration(lab: Lab, rung: str, checkpointing: str, pairs: int, changes: Sequence[str]) -> Config:
    """Of a run on a rung of the ladder; `changes` are `section.key=value`."""
    base = lab.scratch / f"base_{lab.preset}_{lab.side}"
    if not (base / "pairs.parquet").exists():  # it is written last
        prepare(lab.preset, base, lab.side, pairs=PAIRS, weights=False)
    folder = lab.scratch / lab.stage
    folder.mkdir()
    made = config(lab.preset, base, folder, rung, lab.side)
    made["model"]["gradient_checkpointing"] = checkpointing
    made["train"] |= {"pairs_per_step": pairs, "pairs_per_micro_batch": pairs}
    file = folder / "config.json"
    file.write_text(json.dumps(made))
    return load(file, list(changes))


def planned(config: Config) -> dict[str, float]:
    """What `fdpo plan` says of a step: GiB in tensors and in all on the GPU, TFLOP."""
    architecture = read_architecture(config.model)
    traced = trace(config, architecture)
    total = needs(config, architecture, traced, 1)
    return {
        "parameters": traced.trained,
        "plan_gib": total.gpu_tensors / GIB,
        "plan_total_gib": total.gpu_total / GIB,
        "plan_fullest_in": total.fullest[0],
        "tflop_per_step": flops(config, architecture) / 1e12,
    }


@dataclass
class Run:
    """A run of the trainer, some steps to warm up and some that count.

    The start (caches of reference errors, engine, first steps) and the steps after it have peaks of memory each.
    """

    lab: Lab
    config: Config
    warm: int
    timed: int

    def __post_init__(self) -> None:
        last = self.warm + self.timed
        train = self.config.train.model_copy(update={"max_steps": last})
        log = self.config.log.model_copy(update={"every": last})
        self.config = self.config.model_copy(update={"train": train, "log": log})
        self.timer, self.start = Timer(), {}

    def measure(self, tflop: float) -> dict[str, float]:
        """Seconds a step, TFLOP/s, its share of the card's peak, memory in the steps and up to them, first losses."""
        folder = Path(self.config.train.output_dir)
        trainer.check_output(folder, resume=False)
        with without_disks(self._unet, self._after_step):
            trainer.train(self.config, resume=False)
        steps, records = self.timer.seconds(), read_records(folder)
        took, peak = median(steps), peak_tflops(self.lab.device)
        return {
            "seconds_per_step": took,
            "seconds_per_pair": took / self.config.train.pairs_per_step,
            "fastest": min(steps),
            "slowest": max(steps),
            "tflops": tflop / took,
            "mfu": tflop / took / peak if peak else None,
            "first_loss": records[0]["loss"],
            "first_margin": records[0]["margin"],
            "last_loss": records[-1]["loss"],
            **gpu_memory(),
            **{f"start_{key}": value for key, value in self.start.items()},
        }

    def _unet(self, dtype: torch.dtype) -> nn.Module:
        if CUDA:  # what the run before it took of the allocator is not this one's
            torch.cuda.empty_cache()
        return self.lab.unet(dtype)

    def _after_step(self, step: int) -> None:
        if step + 1 == self.warm:
            synchronize()
            self.start = gpu_memory()
            forget_peaks()
        if step + 1 >= self.warm:
            self.timer.mark()
