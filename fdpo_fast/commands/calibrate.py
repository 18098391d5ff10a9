"""`fdpo calibrate`: the beta and ratio_scale that suit a model and its pairs."""

from __future__ import annotations

import math
from pathlib import Path

from fdpo_fast.commands.common import (
    Commands,
    add_config,
    check_model,
    given,
    imports,
    output_file,
    read_config,
    say_next,
    training,
)
from fdpo_fast.config.errors import UserError


def add(commands: Commands) -> None:
    """Add the parser of `fdpo calibrate`."""
    parser = commands.add_parser(
        "calibrate",
        help="the beta and ratio_scale that suit a model and its pairs",
        description="How far the errors move, and the strengths that suit.",
    )
    add_config(parser)
    parser.add_argument("--pairs", type=int, default=256, help="pairs to measure on (default 256)")
    parser.add_argument("--steps", type=int, default=20, help="optimizer steps of the trial (default 20)")
    parser.add_argument(
        "--policy", type=Path, metavar="FOLDER", help="a finished run, or an exported pipeline, instead of a trial"
    )
    parser.add_argument("--median-u", type=float, default=1.0, help="asked for: median |u| (default 1)")
    parser.add_argument("--weight", type=float, default=0.4, help="asked for: median gradient weight (default 0.4)")
    parser.add_argument("--json", dest="json_file", type=output_file, metavar="FILE", help="write the figures")
    parser.set_defaults(run=run, left="what is cached stays, and the same command measures anew")


def run(
    config_file: str,
    overrides: list[str],
    pairs: int,
    steps: int,
    policy: Path | None,
    median_u: float,
    weight: float,
    json_file: Path | None,
) -> None:
    """Measure the drift of a trial and print the strengths that give what was asked for."""
    config = read_config(config_file, overrides)
    if not 0 < weight < 0.5:
        raise UserError(f"--weight {weight} must lie between 0 and 0.5, its value without any preference")
    if min(pairs, steps) < 1 or not 0 < median_u < math.inf:
        raise UserError("--pairs, --steps and --median-u must be positive")
    if config.loss.type != "sigmoid":
        raise UserError(f"the gradient weight of loss.type '{config.loss.type}' is not sigmoid(-z): set 'sigmoid'")
    check_model(config)
    with imports():
        from fdpo_fast.compare.calibrate import Aim, calibrate
    figures = calibrate(config, Aim(pairs, steps, policy, median_u, weight), json_file)
    found = [f"loss.{key}={figures[key]:.4g}" for key in ("beta", "ratio_scale")]
    say_next(*training(), *given(config_file, [*overrides, *found]))
