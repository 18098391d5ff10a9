"""Measures by name: ours, or a function of the user's own."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
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
    if not colon or not all(part.isidentifier() for part in (*module.split("."), function)):
        raise UserError(f"{key} has no '{name}': use {', '.join(ours)}, or a function of yours as 'module:function'")
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)  # a console script does not look there by itself
    try:
        content = import_module(module)
    except Exception as error:  # what the user's module does when it is read
        raise UserError(f"{key} '{name}': {fault(error, name)}") from None
    if not hasattr(content, function):
        where = getattr(content, "__file__", None) or "which has no file"
        raise UserError(f"{key} '{name}': the module {module} ({where}) has no '{function}'")
    found = getattr(content, function)
    if not callable(found):
        raise UserError(f"{key} '{name}' is no function, but {type(found).__name__}")
    return partial(found, **(options or {}))


def fault(error: Exception, name: str) -> str:
    """Say in one line what went wrong in a tool; where it is a function of the user's, with kind, file and line.

    name: that of the tool.
    """
    words = (str(error).splitlines() or [type(error).__name__])[0]
    module, colon, _ = name.partition(":")
    if not colon or isinstance(error, UserError):
        return words
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg} ({error.filename}, line {error.lineno})"
    own = tuple(module.split("."))
    ends = (own, (*own, "__init__"))
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if any(Path(frame.filename).with_suffix("").parts[-len(end) :] == end for end in ends)
    ]
    place = f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""
    return words if isinstance(error, ImportError) and not frames else f"{type(error).__name__}: {words}{place}"
