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


def check_folder(file: Path | None) -> None:
    """Raise ConfigError where a file to be written at the end has no folder to lie in."""
    if file and not file.expanduser().absolute().parent.is_dir():
        raise ConfigError(f"--json '{file}': the folder {file.parent} does not exist")


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
