"""Where models run that are not trained: whole on a GPU as far as there is room, by parts beyond."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from diffusers.hooks import apply_group_offloading
from torch import nn

SHARE = 2 / 3
"""How much of a device's free memory text encoders may take; the rest is for what is computed there."""


class Size(NamedTuple):
    """How large a text encoder is, in elements or bytes."""

    whole: int
    part: int
    """The largest of its layers; this and the next are there where the encoder runs by parts."""

    @classmethod
    def of(cls, encoder: nn.Module, itemsize: int | None = None) -> Size:
        """Measure an encoder in bytes: those of its weights, or of as many elements of `itemsize` bytes."""

        def size(parameters: Iterable[nn.Parameter]) -> int:
            return sum(p.numel() * (itemsize or p.element_size()) for p in parameters)

        layers = (size(layer.parameters(recurse=False)) for layer in encoder.modules())
        return cls(size(encoder.parameters()), max(layers))  # layers may share weights, which are there once


def whole(sizes: Mapping[str, Size], free: float) -> set[str]:
    """Name the encoders that go to a device whole where so many bytes are free: the largest first, while they fit."""
    room, names = SHARE * free, set()
    for name in sorted(sizes, key=lambda name: sizes[name].whole, reverse=True):
        if sizes[name].whole <= room:
            room -= sizes[name].whole
            names.add(name)
    return names


class Held(NamedTuple):
    """The bytes that encoders take while they run."""

    device: int
    host: int


def held(sizes: Mapping[str, Size], free: float) -> Held:
    """Return what encoders take at most where so many bytes of a device are free."""
    there = whole(sizes, free)
    others = [size for name, size in sizes.items() if name not in there]
    on_device = sum(sizes[name].whole for name in there) + 2 * max((size.part for size in others), default=0)
    return Held(on_device, sum(size.whole for size in others))


def place(components: Mapping[str, Any], names: Iterable[str], device: torch.device) -> None:
    """Make those of the named components that are modules run on a device: whole where there is room, else by parts.

    Whoever lets go of them calls `collect`.
    """
    encoders = {name: components[name] for name in names if isinstance(components.get(name), nn.Module)}
    there = whole({name: Size.of(encoder) for name, encoder in encoders.items()}, _free(device))
    for name, encoder in encoders.items():
        if name in there:
            encoder.to(device)
        else:
            by_parts(encoder, device)


def by_parts(module: nn.Module, device: torch.device) -> None:
    """Make a module run on a device and stay on the host: a layer's weights come when it is their turn."""
    # pinned layer by layer: torch would keep a whole pinned model, rounded up, until the process ends
    streams = {"use_stream": True, "record_stream": True, "low_cpu_mem_usage": True} if device.type == "cuda" else {}
    apply_group_offloading(module, device, torch.device("cpu"), offload_type="leaf_level", **streams)


def collect() -> None:
    """Free modules that nobody holds any more: those that run by parts refer to themselves."""
    gc.collect()


def _free(device: torch.device) -> float:
    if device.type != "cuda":
        return math.inf
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]
