"""`fdpo compare`: a grid of divergences and strengths from one cache, and its report."""

from __future__ import annotations

from fdpo_fast.commands.common import Commands, add_config, imports, read_config
from fdpo_fast.config.errors import UserError


def add(commands: Commands) -> None:
    """Add the parser of `fdpo compare`."""
    parser = commands.add_parser(
        "compare",
        help="a grid of divergences and strengths from one cache, and its report",
        description="Train, sample and evaluate a grid of runs.",
    )
    add_config(parser)
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, sharing GPUs or cores (default 1)")
    parser.add_argument("--report-only", action="store_true", help="evaluate and report the runs that are finished")
    parser.set_defaults(run=run, left="the same command goes on where it was")


def run(config_file: str, overrides: list[str], jobs: int, report_only: bool) -> None:
    """Run what is missing of the grid, unless only the report is asked for, and report on what is finished."""
    config = read_config(config_file, overrides)
    if config.compare is None:
        raise UserError(f"{config_file} has no section 'compare': see configs/digits_sweep.json")
    if jobs < 1:
        raise UserError(f"--jobs must be at least 1, got {jobs}")
    with imports():
        from fdpo_fast.compare.crew import compare
    compare(config, jobs, report_only)
