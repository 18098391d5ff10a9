"""What the commands share: `--config` with overrides, and one sentence for a mistake in the input."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

from fdpo_fast import config as configuration
from fdpo_fast.config import Config, ConfigError


def parser(name: str, description: str) -> argparse.ArgumentParser:
    """An argument parser with the options of every command that takes a configuration."""
    made = argparse.ArgumentParser(prog=f"fdpo {name}", description=description)
    made.add_argument("--config", required=True, help="JSON file of the run")
    made.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override (JSON value)")
    made.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)  # the launcher passes it
    return made


def output_file(text: str) -> Path:
    """The path of a file to be written at the end; ArgumentTypeError where none could lie there."""
    path = Path(text).expanduser().absolute()
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"'{text}': the folder {path.parent} does not exist")
    if not text or (path.exists() and not path.is_file()):
        raise argparse.ArgumentTypeError(f"'{text}' is not the name of a file")
    return path


def run(options: argparse.Namespace, name: str, work: Callable[[Config, argparse.Namespace], None]) -> None:
    """Load the configuration and do the work; a mistake in the input ends the process with one sentence."""
    try:
        work(configuration.load(options.config, options.set), options)
    except ValueError as error:
        if isinstance(error, ConfigError) or _ours(error):
            sys.exit(f"fdpo {name}: {error}")
        raise


def _ours(error: ValueError) -> bool:
    """Raised by our own check of the input, not from deep inside a library."""
    trace = error.__traceback__
    while trace.tb_next:
        trace = trace.tb_next
    return Path(trace.tb_frame.f_code.co_filename).is_relative_to(Path(__file__).parent)
