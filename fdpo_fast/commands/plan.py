"""`fdpo plan`: what a run takes of GPU, host, disk and time."""

from __future__ import annotations

import math
from argparse import ArgumentTypeError
from pathlib import Path
from typing import Literal

from fdpo_fast.commands.common import (
    Commands,
    add_config,
    card,
    check_model,
    count,
    given,
    imports,
    output_file,
    read_config,
    say_next,
    size,
    warn_of_deepspeed,
)
from fdpo_fast.memory.cards import CARDS


def add(commands: Commands) -> None:
    """Add the parser of `fdpo plan`."""
    parser = commands.add_parser(
        "plan",
        help="GPU and host memory, disk, time, and the rung of the ladder that fits, before a run",
        description="What a run takes of GPU, host, disk and time.",
    )
    add_config(parser)
    parser.add_argument("--gpu", type=size, metavar="24GB", help="memory of one GPU")
    parser.add_argument("--host", type=size, metavar="32GB", help="memory of the machine")
    parser.add_argument(
        "--gpus", type=count, default=1, metavar="N", help="GPUs of the machine, a rank each (default 1)"
    )
    parser.add_argument("--tflops", type=rate, metavar="T", help="what your GPU sustains, for seconds per step")
    parser.add_argument(
        "--card", type=card, choices=CARDS, metavar="NAME", help=f"your GPU, one of: {', '.join(CARDS)}"
    )
    parser.add_argument(
        "--json",
        dest="json_file",
        nargs="?",
        const=True,
        type=output_file,
        metavar="FILE",
        help="write the figures; no FILE: print them alone",
    )
    parser.set_defaults(run=run, left="nothing was written")


def run(
    config_file: str,
    overrides: list[str],
    gpu: float | None,
    host: float | None,
    gpus: int,
    tflops: float | None,
    card: str | None,
    json_file: Path | Literal[True] | None,
) -> None:
    """Draw up the plan of a configuration on a machine."""
    config = read_config(config_file, overrides)
    config.accumulation(gpus)
    warn_of_deepspeed(config)
    check_model(config)
    with imports():
        from fdpo_fast.memory import plan
    if card and not gpu:
        gpu = CARDS[card].memory * 2.0**30
    machine = plan.Machine(gpus, gpu, host, tflops, card)
    if json_file is True:
        plan.show(config, config_file, machine, as_json=True)
    else:
        plan.show(config, config_file, machine, json_file)
        say_next("fdpo", "calibrate", *given(config_file, overrides))


def rate(text: str) -> float:
    """A rate in TFLOP/s; ArgumentTypeError where it is not positive and finite."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise ArgumentTypeError(f"'{text}' is not a positive number")
    return value
