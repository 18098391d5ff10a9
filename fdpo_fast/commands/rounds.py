"""`fdpo rounds`: draw by the policy, rank, train, and again."""

from __future__ import annotations

import sys
from pathlib import Path

from fdpo_fast.commands.common import Commands, add_config, imports, read_config
from fdpo_fast.config.errors import UserError


def add(commands: Commands) -> None:
    """Add the parser of `fdpo rounds`."""
    parser = commands.add_parser(
        "rounds",
        help="rounds of drawing by the policy, ranking by scorers, and training",
        description="Train on pairs that the policy itself draws and scorers rank, round by round.",
    )
    add_config(parser)
    parser.set_defaults(run=run, left="the same command goes on where it was")


def run(config_file: str, overrides: list[str]) -> None:
    """Run what is missing of all rounds, and write a page about them; status 1, at the end, where a measure failed."""
    config = read_config(config_file, overrides)
    if config.rounds is None:
        raise UserError(f"{config_file} has no section 'rounds': see configs/digits_rounds.json")
    with imports():
        from fdpo_fast.compare.rounds import rounds
        from fdpo_fast.report.rounds import verdict, write_rounds
    made = rounds(config, config.rounds)
    page = write_rounds(config, made, Path(config.train.output_dir).expanduser())
    print("\n".join(made.report.markdown()))
    drift = "; ".join(f"{name} {found}" for name, found in made.drift.items())
    print("", f"drift from the base: {drift or 'not measured, of a single image a caption'}", sep="\n")
    print(*verdict(config.rounds, made.report), sep="\n")
    print(f"\npage: {page}")
    if made.report.failures:
        sys.exit("\n".join(f"fdpo rounds: {failure}" for failure in made.report.failures))
