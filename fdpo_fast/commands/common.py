"""What the commands share: options, kinds of values, the configuration, and imports of packages that may be missing."""

from __future__ import annotations

import argparse
import gc
import re
import shlex
import sys
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from fdpo_fast import signals
from fdpo_fast.config.errors import near
from fdpo_fast.memory.cards import CARDS

if TYPE_CHECKING:
    from fdpo_fast.config.run import Config

Commands: TypeAlias = "argparse._SubParsersAction[ArgumentParser]"
"""What `fdpo`'s parser keeps the commands' parsers in."""


class MissingPackageError(Exception):
    """A package that a command needs, by name, is not installed."""


@contextmanager
def imports() -> Iterator[None]:
    """Raise MissingPackageError where an import within the block finds no package.

    Nor is garbage looked for: imports make millions of objects that stay, and going through them costs a second.
    """
    gc.disable()
    try:
        yield
        signals.check()
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "fdpo_fast":  # a slip of ours, and no package to install
            raise
        raise MissingPackageError(error.name) from None
    finally:
        gc.enable()


def add_config(parser: ArgumentParser, required: bool = True) -> None:
    """Give a parser the options that `read_config` takes, and the one that launchers pass."""
    parser.add_argument(
        "--config", dest="config_file", required=required, metavar="CONFIG", help="JSON file of the run"
    )
    parser.add_argument(
        "--set",
        dest="overrides",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="override (JSON value)",
    )
    parser.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)


def read_config(config_file: str, overrides: list[str]) -> Config:
    """The configuration of `--config` and `--set`. Raises UserError with one sentence per mistake."""
    with imports():
        from fdpo_fast.config.load import load
    return load(config_file, overrides)


def given(config_file: str, overrides: list[str]) -> list[str]:
    """Return the words of `--config` and `--set`, for another command."""
    return ["--config", config_file, *(word for override in overrides for word in ("--set", override))]


def say_next(*words: str) -> None:
    """Say, once for all ranks, by which command one goes on."""
    if signals.speaks():
        print(f"next: {shlex.join(words)}")


def training() -> list[str]:
    """Return the words that train on all GPUs of this machine."""
    import torch

    return ["deepspeed", "--module", "fdpo_fast.train"] if torch.cuda.device_count() > 1 else ["fdpo", "train"]


def warn_of_deepspeed(config: Config) -> None:
    """Say on stderr, once for all ranks, which keys of the section `deepspeed` are none that it knows."""
    from fdpo_fast.config.deepspeed_keys import unknown

    if signals.speaks():
        for sentence in unknown(config.deepspeed):
            print(f"warning: {sentence}", file=sys.stderr)


def check_model(config: Config) -> None:
    """Raise UserError where the model section of a configuration can name no pipeline."""
    with imports():
        from fdpo_fast import models

        models.check(config.model)


def card(text: str) -> str:
    """The name of a card in CARDS, however it is spelled; ArgumentTypeError for another."""
    names = {_bare(name): name for name in CARDS}
    if (found := names.get(_bare(text))) is None:
        nearest = near(_bare(text), names)
        ask = f"did you mean '{names[nearest]}'?" if nearest else f"use one of {', '.join(CARDS)}, or --gpu"
        raise ArgumentTypeError(f"'{text}' is no card that we know: {ask}")
    return found


def _bare(name: str) -> str:
    return re.sub(r"nvidia|geforce|[^a-z0-9]", "", name.lower())


def size(text: str) -> float:
    """Bytes of "24GB", "24GiB" or "24": makers of memory mean GiB by GB."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:GB|GiB|G)?", text.strip(), re.IGNORECASE)
    if not match or not float(match[1]):
        raise ArgumentTypeError(f"'{text}' is not of the form 24GB")
    return float(match[1]) * 2**30


def count(text: str) -> int:
    """A number of GPUs; ArgumentTypeError where it is not a positive integer."""
    if not text.isdigit() or not int(text):
        raise ArgumentTypeError(f"'{text}' is not a positive number")
    return int(text)


def output_file(text: str) -> Path:
    """The path of a file to be written at the end; ArgumentTypeError where none could lie there."""
    path = Path(text).expanduser().absolute()
    if not path.parent.is_dir():
        raise ArgumentTypeError(f"'{text}': the folder {path.parent} does not exist")
    if not text or (path.exists() and not path.is_file()):
        raise ArgumentTypeError(f"'{text}' is not the name of a file")
    return path
