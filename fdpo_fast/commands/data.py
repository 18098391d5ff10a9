"""`fdpo data check`: what is in a source of pairs."""

from __future__ import annotations

from pathlib import Path

from fdpo_fast.commands.common import Commands, add_config, given, imports, output_file, read_config, say_next


def add(commands: Commands) -> None:
    """Add the parser of `fdpo data check`."""
    parser = commands.add_parser(
        "data check",
        help="pairs, ties, duplicates, sizes, and every row that cannot be used",
        description="Read every row as caching would, say what is in it, and write a page to look at it.",
    )
    add_config(parser)
    parser.add_argument(
        "--json",
        dest="json_file",
        type=output_file,
        metavar="FILE",
        help="write everything, each refused row included",
    )
    parser.add_argument(
        "--page", type=output_file, metavar="FILE", help="write the page there, not to train.output_dir/data.html"
    )
    parser.set_defaults(run=check, left="the same command starts anew")


def check(config_file: str, overrides: list[str], json_file: Path | None, page: Path | None) -> None:
    """Count over the source of a configuration."""
    config = read_config(config_file, overrides)
    with imports():
        from fdpo_fast.report.data import check
    check(config, json_file, page)
    say_next("fdpo", "plan", *given(config_file, overrides))
