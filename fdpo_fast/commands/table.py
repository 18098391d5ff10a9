"""The commands: their options, what can be checked at once, and where their work is.

Nothing heavy is imported before the command line and the configuration are known to be right.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from fdpo_fast import models
from fdpo_fast.cli import installed
from fdpo_fast.config.errors import UserError
from fdpo_fast.config.load import load
from fdpo_fast.config.run import Config
from fdpo_fast.evaluate.prompts import read_prompts
from fdpo_fast.memory.cards import CARDS

# --- what an option may be --------------------------------------------------------------------------------------


def output_file(text: str) -> Path:
    """The path of a file to be written at the end; ArgumentTypeError where none could lie there."""
    path = Path(text).expanduser().absolute()
    if not path.parent.is_dir():
        raise ArgumentTypeError(f"'{text}': the folder {path.parent} does not exist")
    if not text or (path.exists() and not path.is_file()):
        raise ArgumentTypeError(f"'{text}' is not the name of a file")
    return path


def size(text: str) -> float:
    """Bytes of "24GB", "24GiB" or "24": makers of memory mean GiB by GB."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:GB|GiB|G)?", text.strip(), re.IGNORECASE)
    if not found or not float(found[1]):
        raise ArgumentTypeError(f"'{text}' is not of the form 24GB")
    return float(found[1]) * 2**30


def rate(text: str) -> float:
    """TFLOP/s."""
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0 < found < math.inf:
        raise ArgumentTypeError(f"'{text}' is not a positive number")
    return found


def count(text: str) -> int:
    """A number of GPUs."""
    if not text.isdigit() or not int(text):
        raise ArgumentTypeError(f"'{text}' is not a positive number")
    return int(text)


# --- options and checks of each ---------------------------------------------------------------------------------


def _no_options(parser: ArgumentParser) -> None:
    pass


def _no_check(config: Config, options: Namespace) -> None:
    pass


def _model(config: Config, options: Namespace) -> None:
    models.check(config.model)


def _train(parser: ArgumentParser) -> None:
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in train.output_dir")
    parser.add_argument("--dry-run", action="store_true", help="print the resolved config and stop")


def _verify(parser: ArgumentParser) -> None:
    parser.add_argument("--pairs", type=int, default=16, help="size of the sample (default 16)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample")


def _verify_check(config: Config, options: Namespace) -> None:
    if options.pairs < 1:
        raise UserError(f"--pairs must be at least 1, got {options.pairs}")
    _model(config, options)


def _data(parser: ArgumentParser) -> None:
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write everything, each refused row included")


def _plan(parser: ArgumentParser) -> None:
    parser.add_argument("--gpu", type=size, metavar="24GB", help="memory of one GPU")
    parser.add_argument("--host", type=size, metavar="32GB", help="memory of the machine")
    parser.add_argument(
        "--gpus", type=count, default=1, metavar="N", help="GPUs of the machine, a rank each (default 1)"
    )
    parser.add_argument("--tflops", type=rate, metavar="T", help="what your GPU sustains, for seconds per step")
    parser.add_argument("--card", choices=CARDS, metavar="NAME", help=f"your GPU, one of: {', '.join(CARDS)}")
    parser.add_argument(
        "--json",
        nargs="?",
        const=True,
        type=output_file,
        metavar="FILE",
        help="write the figures; no FILE: print them alone",
    )


def _plan_check(config: Config, options: Namespace) -> None:
    config.accumulation(options.gpus)
    _model(config, options)


def _calibrate(parser: ArgumentParser) -> None:
    parser.add_argument("--pairs", type=int, default=256, help="pairs to measure on (default 256)")
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps of the trial (default 20)")
    parser.add_argument("--policy", type=Path, metavar="FOLDER", help="an exported pipeline instead of a trial")
    parser.add_argument("--median-u", type=float, default=1.0, help="asked for: median |u| (default 1)")
    parser.add_argument("--weight", type=float, default=0.4, help="asked for: median gradient weight (default 0.4)")
    parser.add_argument("--json", type=output_file, metavar="FILE", help="write the figures")


def _calibrate_check(config: Config, options: Namespace) -> None:
    if not 0 < options.weight < 0.5:
        raise UserError(f"--weight {options.weight} must lie between 0 and 0.5, its value without any preference")
    if min(options.pairs, options.steps) < 1 or not 0 < options.median_u < math.inf:
        raise UserError("--pairs, --steps and --median-u must be positive")
    if config.loss.type != "sigmoid":
        raise UserError(f"the gradient weight of loss.type '{config.loss.type}' is not sigmoid(-z): set 'sigmoid'")
    _model(config, options)


def _sample(parser: ArgumentParser) -> None:
    parser.add_argument(
        "--checkpoint",
        action="append",
        metavar="[NAME=]PATH",
        help="a run's folder, an exported pipeline, a checkpoint or a hub name; several are drawn under their names "
        "(default: train.output_dir)",
    )
    parser.add_argument("--prompts", help="file of captions (txt, tsv, csv, json, jsonl, parquet)")
    parser.add_argument("--output", type=Path, help="folder of the images (default: evaluation in train.output_dir)")
    parser.add_argument("--no-base", action="store_true", help="leave out the base")
    parser.add_argument("--no-policy", action="store_true", help="draw with the base alone")


def _sample_check(config: Config, options: Namespace) -> None:
    read_prompts(options.prompts or config.evaluate.prompts)
    _model(config, options)


def _evaluate(parser: ArgumentParser) -> None:
    parser.add_argument("--images", type=Path, help="folder of `fdpo sample` (default: evaluation in train.output_dir)")


def _compare(parser: ArgumentParser) -> None:
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, sharing GPUs or cores (default 1)")
    parser.add_argument("--report-only", action="store_true", help="evaluate and report the runs that are finished")


def _compare_check(config: Config, options: Namespace) -> None:
    if config.compare is None:
        raise UserError(f"{options.config} has no section 'compare': see configs/digits_sweep.json")
    if options.jobs < 1:
        raise UserError(f"--jobs must be at least 1, got {options.jobs}")


def _report(parser: ArgumentParser) -> None:
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="train.output_dir of the run")


def _report_check(config: None, options: Namespace) -> None:
    options.run = options.run.expanduser()
    if not (options.run / "config.json").is_file():
        raise UserError(f"{options.run} is no run: it has no config.json")


def _demo(parser: ArgumentParser) -> None:
    parser.add_argument("--images", type=int, default=64, help="images per caption (default 64)")


def _demo_check(config: Config, options: Namespace) -> None:
    export = Path(config.train.output_dir) / "export"
    if not export.is_dir():
        raise UserError(f"there is no {export}: run `fdpo train --config {options.config}` first")


# --- the table, and how it is run -------------------------------------------------------------------------------


class Command(NamedTuple):
    description: str
    work: str
    """"module:function" of the configuration and the options."""
    options: Callable[[ArgumentParser], None] = _no_options
    check: Callable[[Config, Namespace], None] = _no_check
    """Raises UserError for what is wrong at first sight."""
    configured: bool = True
    """Whether it takes a configuration; else the work is given None."""


COMMANDS = {
    "train": Command("Align a pipeline.", "train:start", _train, _model),
    "cache": Command("Fill the caches of a configuration.", "cache.verify:fill", check=_model),
    "cache verify": Command(
        "Check every checksum, and recompute a sample from images and models.",
        "cache.verify:verify",
        _verify,
        _verify_check,
    ),
    "data check": Command("Read every row as caching would, and say what is in it.", "data.check:check", _data),
    "plan": Command("What a run takes of GPU, host, disk and time.", "memory.plan:show", _plan, _plan_check),
    "calibrate": Command(
        "How far the errors move, and the strengths that suit.",
        "compare.calibrate:calibrate",
        _calibrate,
        _calibrate_check,
    ),
    "sample": Command("Draw the same captions from base and policy.", "evaluate.sample:sample", _sample, _sample_check),
    "evaluate": Command("Score what `fdpo sample` has drawn.", "evaluate.score:evaluate", _evaluate),
    "compare": Command("Train, sample and evaluate a grid of runs.", "compare.crew:compare", _compare, _compare_check),
    "report": Command("A page about a run.", "report.show:report", _report, _report_check, configured=False),
    "demo": Command("Before and after on the embedded digits.", "digits.demo:demo", _demo, _demo_check),
}


def parser(name: str) -> ArgumentParser:
    """The argument parser of a command."""
    command = COMMANDS[name]
    made = ArgumentParser(prog=f"fdpo {name}", description=command.description)
    if command.configured:
        made.add_argument("--config", required=True, help="JSON file of the run")
        made.add_argument(
            "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override (JSON value)"
        )
        made.add_argument("--local_rank", type=int, default=0, help=argparse.SUPPRESS)  # the launcher passes it
    command.options(made)
    return made


def run(name: str, arguments: list[str]) -> None:
    """Parse, check, then do the work; a mistake in the input ends the process with one sentence."""
    command, options = COMMANDS[name], parser(name).parse_args(arguments)
    try:
        config = load(options.config, options.set) if command.configured else None
        command.check(config, options)
        module, _, function = command.work.partition(":")
        with installed(name):
            work = getattr(import_module(f"fdpo_fast.{module}"), function)
        work(config, options)
    except UserError as error:
        sys.exit(f"fdpo {name}: {error}")
