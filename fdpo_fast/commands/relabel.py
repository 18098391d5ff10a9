"""`fdpo relabel`: pairs that are there, judged anew by scorers."""

from __future__ import annotations

from pathlib import Path

from fdpo_fast.commands.common import (
    Commands,
    add_config,
    given,
    imports,
    output_file,
    read_config,
    say_next,
    training,
)


def add(commands: Commands) -> None:
    """Add the parser of `fdpo relabel`."""
    parser = commands.add_parser(
        "relabel",
        help="existing pairs judged anew by scorers, into a file of labels",
        description="Judge every pair of data.source by evaluate.scorers, and say how far they agree with its labels.",
    )
    add_config(parser)
    parser.add_argument(
        "--output", type=output_file, required=True, metavar="FILE", help="file of labels to write, for data.labels"
    )
    parser.set_defaults(run=run, left="the same command goes on behind the pairs that are judged")


def run(config_file: str, overrides: list[str], output: Path) -> None:
    """Write the labels of a configuration's source."""
    config = read_config(config_file, overrides)
    with imports():
        from fdpo_fast.evaluate.feedback.relabel import relabel
    relabel(config, output)
    say_next(*training(), *given(config_file, overrides), "--set", f"data.labels={output}")
