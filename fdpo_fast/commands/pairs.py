"""`fdpo pairs`: pairs of a model and captions alone, ranked by scorers."""

from __future__ import annotations

import json
from pathlib import Path

from fdpo_fast.commands.common import (
    Commands,
    add_config,
    check_model,
    count,
    given,
    imports,
    read_config,
    say_next,
    training,
)


def add(commands: Commands) -> None:
    """Add the parser of `fdpo pairs`."""
    parser = commands.add_parser(
        "pairs",
        help="pairs drawn by the model itself and ranked by scorers",
        description="Draw captions by the base and policies, rank the images by evaluate.scorers, and write pairs.",
    )
    add_config(parser)
    parser.add_argument("--prompts", help="file of captions (default: evaluate.prompts)")
    parser.add_argument("--output", type=Path, metavar="FOLDER", help="folder of the pairs (default: pairs in "
                        "train.output_dir)")  # fmt: skip
    parser.add_argument("--images-per-prompt", type=count, metavar="K", help="in place of evaluate.images_per_prompt")
    parser.add_argument(
        "--policy",
        dest="policies",
        action="append",
        default=[],
        metavar="NAME=PATH",
        help="draw by a run, an exported pipeline, a checkpoint or a hub name, too; may be given several times",
    )
    parser.add_argument("--no-base", dest="base", action="store_false", help="leave out the base")
    parser.set_defaults(run=run, left="the same command goes on behind what is drawn and scored")


def run(
    config_file: str,
    overrides: list[str],
    prompts: str | None,
    output: Path | None,
    images_per_prompt: int | None,
    policies: list[str],
    base: bool,
) -> None:
    """Make a folder of pairs of the captions."""
    config = read_config(config_file, overrides)
    with imports():
        from fdpo_fast.evaluate.prompts import read_prompts
    captions = read_prompts(prompts or config.evaluate.prompts)
    check_model(config)
    with imports():
        from fdpo_fast.evaluate.feedback.make import READ_AS, make
    if images_per_prompt:
        config = config.replace({"evaluate.images_per_prompt": images_per_prompt})
    folder = (output or Path(config.train.output_dir) / "pairs").expanduser()
    make(config, captions, policies, folder, base)
    keys = {"data.source": str(folder)}
    now = {key: getattr(config.data, key.removeprefix("data.")) for key in READ_AS}
    keys |= {key: json.dumps(to) for key, to in READ_AS.items() if now[key] not in (to, "auto")}
    words = (word for key, value in keys.items() for word in ("--set", f"{key}={value}"))
    say_next(*training(), *given(config_file, overrides), *words)
