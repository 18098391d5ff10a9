"""The stages, in the order of their worth: who has fewer minutes than all of them take sees the first ones."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

TRAINER = ("deepspeed", "diffusers", "pydantic", "transformers", "peft", "pyarrow")
"""Packages that the trainer needs."""


@dataclass(frozen=True)
class Stage:
    """One of the measurements, a process of its own.

    about: a sentence. module: of this package; its `ready(lab, **options)` does the imports and returns the work.
    seconds: after which it is stopped. needs: packages. rehearsed: False where it would take a rehearsal too long.
    """

    name: str
    about: str
    module: str
    seconds: float
    options: dict[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    rehearsed: bool = True

    @property
    def missing(self) -> list[str]:
        """Packages it needs that are not installed."""
        return [package for package in self.needs if not find_spec(package)]

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-m", "benchmarks.gpu.stage", self.name]


def _train(name: str, about: str, seconds: float = 60, rehearsed: bool = True, **options: Any) -> Stage:
    about = f"the trainer on SDXL at 1024 x 1024: {about}"
    return Stage(f"train-{name}", about, "train", seconds, options, TRAINER, rehearsed)


def _rival(kind: str, about: str, seconds: float, needs: tuple[str, ...] = ()) -> Stage:
    return Stage(f"rival-{kind}", about, "rival", seconds, {"kind": kind}, ("diffusers", "transformers", *needs))


STAGES = (
    Stage("probe", "versions, driver and clocks; what the card copies and multiplies at most", "probe", 45),
    Stage("tests", "pytest -m gpu", "gpu_tests", 240, needs=("pytest", *TRAINER)),
    _train("A", "rung A", rung="A"),
    Stage("optimizers", "AdamW8bit and others on SDXL's tensors", "optimizers", 75, needs=("diffusers",)),
    _train("B", "rung B", rung="B"),
    _rival("lean", "a step by the leanest means that libraries offer", 60, ("bitsandbytes",)),
    Stage("loss", "the loss by CUDA graphs beside the published expression, its torch.compile and a copy", "loss", 90),
    _train("A-off", "rung A without checkpointing", rung="A", checkpointing="off"),
    _train("C", "rung C", 90, rung="C", timed=3),
    _rival("published", "a step as the published scripts take it", 75),
    _train("D", "rung D", 120, rung="D", timed=3),
    _train("A-per_block", "rung A, transformer blocks computed again", rung="A", checkpointing="per_block"),
    _train("A-off-4-pairs", "four pairs at a time", rung="A", checkpointing="off", pairs=4),
    _train(
        "A-off-channels_last", "activations laid out by channel last",
        rung="A", checkpointing="off", changes=("model.channels_last=true",),
    ),
    _train(
        "A-off-cuda_graphs", "forward and backward a launch each", rehearsed=False,
        rung="A", checkpointing="off", changes=("model.cuda_graphs=true",),
    ),
    Stage("encoding", "`fdpo cache` with SDXL's VAE at 1024 x 1024, by dtype and compiled", "encoding", 90,
          needs=(*TRAINER, "PIL")),
    _train("A-lora", "LoRA", rung="A", changes=("model.train=lora",)),
    Stage("torchao", "torchao's AdamW8bit, which compiles first", "optimizers", 90, {"compiled": True},
          ("diffusers", "torchao"), rehearsed=False),
    _train(
        "A-off-compile", "the UNet compiled", 170, rehearsed=False,
        rung="A", checkpointing="off", changes=("model.compile=true",),
    ),
)  # fmt: skip


def chosen(names: str | None) -> list[Stage]:
    """The stages of a comma-separated list, in their own order; None: all. ValueError for a name that is none."""
    if names is None:
        return list(STAGES)
    wanted, known = set(filter(None, names.split(","))), [stage.name for stage in STAGES]
    if unknown := sorted(wanted - set(known)):
        raise ValueError(f"there is no stage {', '.join(unknown)}: the stages are {', '.join(known)}")
    if not wanted:
        raise ValueError(f"--only names no stage: the stages are {', '.join(known)}")
    return [stage for stage in STAGES if stage.name in wanted]
