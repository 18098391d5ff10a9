"""`fdpo train`: align a pipeline."""

from __future__ import annotations

import json

from fdpo_fast.commands.common import (
    Commands,
    add_config,
    check_model,
    given,
    imports,
    read_config,
    say_next,
    warn_of_deepspeed,
)
from fdpo_fast.config.errors import UserError


def add(commands: Commands) -> None:
    """Add the parser of `fdpo train`."""
    parser = commands.add_parser(
        "train",
        help="align a pipeline (one process; `deepspeed fdpo_fast/train.py` for more)",
        description="Align a pipeline.",
    )
    add_config(parser)
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in train.output_dir")
    parser.add_argument(
        "--resume-from", dest="resume", metavar="step-N", help="go on from that checkpoint in train.output_dir"
    )
    parser.add_argument("--dry-run", action="store_true", help="print the resolved config and stop")
    parser.set_defaults(
        run=run, left="what is cached stays, and --resume goes on from the last checkpoint, if there is one"
    )


def run(config_file: str, overrides: list[str], resume: bool | str, dry_run: bool) -> None:
    """Check the configuration, then train."""
    if resume == "":
        raise UserError("--resume-from '' names no checkpoint: give one, such as step-000100, or --resume alone")
    config = read_config(config_file, overrides)
    warn_of_deepspeed(config)
    check_model(config)
    with imports():
        from fdpo_fast.train import start
    start(config, resume, dry_run)
    if not dry_run:
        own = json.dumps(config.log.prompts or ["a cat", "a red car"])
        captions = [] if config.evaluate.prompts else ["--set", f"evaluate.prompts={own}"]
        say_next("fdpo", "sample", *given(config_file, overrides), *captions)
