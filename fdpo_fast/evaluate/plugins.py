"""Measures by name: ours, or a function of the user's own."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any, TypeVar

from fdpo_fast.config.errors import UserError

Tool = TypeVar("Tool")


def named(name: str, ours: dict[str, Tool], key: str, options: dict[str, Any] | None = None) -> Tool | Callable:
    """Return the tool of that name, or what `module:function` names with `options` as its keyword arguments.

    Raises UserError that says what is wrong with the name.
    """
    if name in ours:
        return ours[name]
    module, colon, function = name.partition(":")
    if not colon:
        raise UserError(f"{key} has no '{name}': use {', '.join(ours)}, or a function of yours as 'module:function'")
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)  # a console script does not look there by itself
    try:
        found = getattr(import_module(module), function)
    except ImportError as error:
        raise UserError(f"{key} '{name}': {error}") from None
    except AttributeError:
        raise UserError(f"{key} '{name}': the module {module} has no '{function}'") from None
    if not callable(found):
        raise UserError(f"{key} '{name}' is no function, but {type(found).__name__}")
    return partial(found, **(options or {}))
