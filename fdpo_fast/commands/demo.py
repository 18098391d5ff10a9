"""`fdpo demo`: before and after of a finished digits run."""

from __future__ import annotations

from pathlib import Path

from fdpo_fast.commands.common import Commands, add_config, imports, read_config
from fdpo_fast.config.errors import UserError


def add(commands: Commands) -> None:
    """Add the parser of `fdpo demo`."""
    parser = commands.add_parser(
        "demo",
        help="before and after of a finished digits run: table and pictures",
        description="Before and after on the embedded digits.",
    )
    add_config(parser)
    parser.add_argument("--images", type=int, default=64, help="images per caption (default 64)")
    parser.set_defaults(run=run, left="the same command starts anew")


def run(config_file: str, overrides: list[str], images: int) -> None:
    """Compare the base and the export of a run on the digits."""
    config = read_config(config_file, overrides)
    export = Path(config.train.output_dir).expanduser() / "export"
    if not export.is_dir():
        raise UserError(f"there is no {export}: run `fdpo train --config {config_file}` first")
    with imports():
        from fdpo_fast.digits.demo import demo
    demo(config, images)
