"""Tensors that are made once and kept for the process, whatever is going on when they are first asked for."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, wraps
from typing import TypeVar

import torch
from torch.utils._python_dispatch import _disable_current_modes

Made = TypeVar("Made")


def once(make: Callable[..., Made]) -> Callable[..., Made]:
    """Keep what a function returns, by its arguments, and run it outside all modes.

    A table that was made under fake tensors, under make_fx or in inference mode would be of that kind for good.
    """

    @cache
    @wraps(make)
    def made(*arguments: object) -> Made:
        with _disable_current_modes(), torch.inference_mode(False), torch.no_grad():
            return make(*arguments)

    return made
