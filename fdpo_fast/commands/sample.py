"""`fdpo sample`: the same captions and noise through base and policies."""

from __future__ import annotations

from pathlib import Path

from fdpo_fast.commands.common import Commands, add_config, check_model, given, imports, read_config, say_next


def add(commands: Commands) -> None:
    """Add the parser of `fdpo sample`."""
    parser = commands.add_parser(
        "sample",
        help="the same captions and noise through base and policies",
        description="Draw the same captions from base and policy.",
    )
    add_config(parser)
    parser.add_argument(
        "--checkpoint",
        dest="checkpoints",
        action="append",
        metavar="[NAME=]PATH",
        help="a run's folder, an exported pipeline, a checkpoint or a hub name; several are drawn under their names "
        "(default: train.output_dir)",
    )
    parser.add_argument("--prompts", help="file of captions (txt, tsv, csv, json, jsonl, parquet)")
    parser.add_argument("--output", type=Path, help="folder of the images (default: evaluation in train.output_dir)")
    parser.add_argument("--no-base", dest="base", action="store_false", help="leave out the base")
    parser.add_argument("--no-policy", dest="policy", action="store_false", help="draw with the base alone")
    parser.set_defaults(run=run, left="the same command goes on behind the images that are drawn")


def run(
    config_file: str,
    overrides: list[str],
    checkpoints: list[str] | None,
    prompts: str | None,
    output: Path | None,
    base: bool,
    policy: bool,
) -> None:
    """Draw the captions with the base, unless it is left out, and with every policy."""
    config = read_config(config_file, overrides)
    with imports():
        from fdpo_fast.evaluate.prompts import read_prompts
    captions = read_prompts(prompts or config.evaluate.prompts)
    check_model(config)
    with imports():
        from fdpo_fast.evaluate.sample import sample
    if not policy:
        checkpoints = []
    elif not checkpoints:
        checkpoints = [config.train.output_dir]
    sample(config, captions, checkpoints, output, base)
    images = ["--images", str(output)] if output else []
    say_next("fdpo", "evaluate", *given(config_file, overrides), *images)
