"""Scorers ready to judge images: loaded where there is something to score, and held to a finite score an image."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from fdpo_fast.config.errors import UserError
from fdpo_fast.config.evaluation import Measure
from fdpo_fast.data.pairs import short
from fdpo_fast.evaluate.plugins import fault, named
from fdpo_fast.evaluate.scorers import SCORERS
from fdpo_fast.files import stamp

KEY = "evaluate.scorers"


@dataclass(frozen=True)
class Tool:
    """A scorer, or a measure of diversity, by its name."""

    name: str
    about: str
    """Its checkpoint in words."""
    files: list
    """What tells another function, or other weights, behind the same name without reading them."""
    load: Callable[[], Callable]

    @cached_property
    def judge(self) -> Callable:
        """The loaded tool, which stays in memory."""
        return self.load()

    @property
    def identity(self) -> dict[str, Any]:
        """Return JSON that changes when its figures may."""
        return {"measure": self.name, "checkpoint": self.about, "files": self.files}


def tool(entry: Measure, kind: str, ours: dict, device: torch.device) -> Tool:
    """Find what a configuration's entry names among ours, or a function of the user's. Raises UserError for neither."""
    if entry.name not in ours:
        function = named(entry.name, ours, kind, entry.options)
        about = json.dumps(entry.options) if entry.options else "yours"
        return Tool(entry.name, about, _files(entry), lambda: function)
    about = entry.model or ours[entry.name].published
    return Tool(entry.name, about, _files(entry), lambda: ours[entry.name](about, device))


def judges(scorers: Sequence[Measure], device: torch.device, key: str = KEY) -> list[Tool]:
    """Return the scorers that are the value of a key. Raises UserError where there is none, or one is not known."""
    if not scorers:
        raise UserError(f"{key} is empty: name at least one that judges")
    return [tool(entry, key, SCORERS, device) for entry in scorers]


def try_out(tools: Sequence[Tool], key: str = KEY) -> None:
    """Load each tool and let it go again, as its weights may not be there; the UserError names it.

    What costs hours before it comes to a tool asks this first.
    """
    for one in tools:
        try:
            one.load()
        except Exception as error:  # from the user's function, or any library
            raise UserError(f"{key} '{one.name}' cannot be loaded: {fault(error, one.name)}") from None


def scored(judge: Callable, images: list[Image.Image], captions: list[str], batch: int) -> np.ndarray:
    """Score images by their captions, `batch` at a time: [n] float64.

    Raises UserError where there is not one score for each image, or one is not finite.
    """
    parts = [np.empty(0)]
    for at in range(0, len(images), batch):
        some = images[at : at + batch]
        figures = judge(some, captions[at : at + batch])
        try:
            numbers = torch.as_tensor(figures).detach().cpu().double()
        except (TypeError, ValueError, RuntimeError):
            raise UserError(f"gave {short(figures)} in place of {len(some)} scores") from None
        parts.append(numbers.numpy().reshape(-1))
        if len(parts[-1]) != len(some):
            raise UserError(f"gave {len(parts[-1])} scores for {len(some)} images")
    scores = np.concatenate(parts)
    if not np.isfinite(scores).all():
        at = int(np.flatnonzero(~np.isfinite(scores))[0])
        raise UserError(f"gave {scores[at]} for an image of {captions[at][:60]!r}, and is to give finite scores")
    return scores


def judged(judge: Tool, images: list[Image.Image], captions: list[str], batch: int) -> np.ndarray:
    """Score images as `scored` does; whatever goes wrong, the UserError names the scorer."""
    try:
        return scored(judge.judge, images, captions, batch)
    except Exception as error:  # from the user's function, or any library
        raise UserError(f"{KEY} '{judge.name}': {fault(error, judge.name)}") from None


def _files(entry: Measure) -> list:
    weights = Path(entry.model or "").expanduser()
    files = sorted(weights.rglob("*")) if entry.model and weights.is_dir() else [weights] if weights.is_file() else []
    return [stamp(path) for path in (*files, *_modules(entry))]


def _modules(entry: Measure) -> Iterator[Path]:
    for name in (entry.name, entry.model or ""):
        module = sys.modules.get(name.partition(":")[0]) if ":" in name else None
        if module and module.__file__:
            yield Path(module.__file__)
