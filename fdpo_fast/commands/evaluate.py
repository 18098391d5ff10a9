"""`fdpo evaluate`: scores, win rates and diversity of what was sampled."""

from __future__ import annotations

from pathlib import Path

from fdpo_fast.commands.common import Commands, add_config, imports, read_config, say_next


def add(commands: Commands) -> None:
    """Add the parser of `fdpo evaluate`."""
    parser = commands.add_parser(
        "evaluate",
        help="scores, win rates and diversity of what was sampled",
        description="Score what `fdpo sample` has drawn.",
    )
    add_config(parser)
    parser.add_argument("--images", type=Path, help="folder of `fdpo sample` (default: evaluation in train.output_dir)")
    parser.set_defaults(run=run, left="the same command goes on behind the measures that are done")


def run(config_file: str, overrides: list[str], images: Path | None) -> None:
    """Score the images of a folder by the measures of a configuration."""
    config = read_config(config_file, overrides)
    with imports():
        from fdpo_fast.evaluate.score import evaluate
    evaluate(config, images)
    say_next("fdpo", "report", config.train.output_dir)
