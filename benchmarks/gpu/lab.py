"""What the stages share: where they may write, the sizes they take, a clock, and lines of results that are on disk."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

import torch

from benchmarks.common.device import CUDA, DEVICE

if TYPE_CHECKING:
    from torch import nn

RESULTS = "results.jsonl"

Work = Callable[[], None]
"""What is left of a stage once its imports are done."""


def write_line(folder: Path, device: str, rehearsal: bool, **row: Any) -> None:
    """Append a line to the folder's results and wait until the disk has it; floats keep seven digits."""
    row = {key: float(f"{value:.7g}") if isinstance(value, float) else value for key, value in row.items()}
    row |= {"device": device, "rehearsal": rehearsal, "at": round(time.time(), 1)}
    with (folder / RESULTS).open("a") as file:
        file.write(json.dumps(row) + "\n")
        file.flush()
        os.fsync(file.fileno())


@dataclass(frozen=True)
class Lab:
    """Where a stage works.

    stage: its name. out: the folder of results. scratch: a folder that goes when all stages are over, for nothing
    large. device: its name, for the lines. rehearse: everything tiny and on the host, no figure means anything.
    """

    stage: str
    out: Path
    scratch: Path
    device: str
    rehearse: bool

    @property
    def preset(self) -> str:
        """Of `fdpo_fast.models.presets`: what stands for SDXL."""
        return "tiny_sdxl" if self.rehearse else "sdxl"

    @property
    def side(self) -> int:
        """Of the latents: 1024 x 1024 pixels, or next to nothing."""
        return 16 if self.rehearse else 128

    def line(self, **row: Any) -> None:
        """A line of results, on disk at once."""
        write_line(self.out, self.device, self.rehearse, stage=self.stage, **row)

    def unet(self, dtype: torch.dtype, seed: int = 0) -> nn.Module:
        """SDXL's UNet with random weights, made on the device itself: the same ones for the same seed."""
        from diffusers import UNet2DConditionModel

        from fdpo_fast.models import presets

        torch.manual_seed(seed)
        with torch.device(DEVICE), presets.default_dtype(dtype):
            return UNet2DConditionModel(**presets.unet_config(self.preset))


class Timer:
    """Seconds between marks that cost nothing to set: events on a GPU, the clock on the host."""

    def __init__(self) -> None:
        self.marks: list[Any] = []

    def mark(self) -> None:
        if CUDA:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.marks.append(event)
        else:
            self.marks.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """From each mark to the next; waits for the last."""
        if CUDA:
            torch.cuda.synchronize()
            return [a.elapsed_time(b) / 1e3 for a, b in zip(self.marks, self.marks[1:], strict=False)]
        return [b - a for a, b in zip(self.marks, self.marks[1:], strict=False)]


def seconds(call: Callable[[], object], warm: int = 3, rounds: int = 10) -> tuple[float, float]:
    """Medians of a call: on the device's clock, and until the call returns to the host."""
    for _ in range(warm):
        call()
    device, host = [], []
    for _ in range(rounds):
        if CUDA:
            torch.cuda.synchronize()
        timer = Timer()
        timer.mark()
        before = time.perf_counter()
        call()
        host.append(time.perf_counter() - before)
        timer.mark()
        device += timer.seconds()
    return median(device), median(host)


def sentence(error: BaseException) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {error}".replace("\n", " ")[:300]


@contextmanager
def reported(lab: Lab, **row: Any) -> Iterator[None]:
    """A rival that fails is a result as well: the block's error becomes a line, and the stage goes on."""
    try:
        yield
    except Exception as error:  # whatever another library may raise
        lab.line(**row, error=sentence(error))
