"""`fdpo report`: a page about a run, also while it trains."""

from __future__ import annotations

from pathlib import Path

from fdpo_fast.commands.common import Commands, imports
from fdpo_fast.config.errors import UserError


def add(commands: Commands) -> None:
    """Add the parser of `fdpo report`."""
    parser = commands.add_parser(
        "report", help="a page about a run, also while it trains", description="A page about a run."
    )
    parser.add_argument("folder", type=Path, metavar="RUN_DIR", help="train.output_dir of the run")
    parser.set_defaults(run=run, left="the same command starts anew")


def run(folder: Path) -> None:
    """Write the page of the run in a folder."""
    folder = folder.expanduser()
    if not (folder / "config.json").is_file():
        raise UserError(f"{folder} is no run: it has no config.json")
    with imports():
        from fdpo_fast.report.show import report
    report(folder)
