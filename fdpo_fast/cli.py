"""The command line: `fdpo COMMAND --config FILE`."""

from __future__ import annotations

import argparse
import sys
from importlib import import_module

COMMANDS = {
    "train": ("fdpo_fast.train", "align a pipeline (one process; `deepspeed fdpo_fast/train.py` for more)"),
    "cache": ("fdpo_fast.cache", "latents, text embeddings and reference errors, ahead of training; `cache verify`"),
    "data": ("fdpo_fast.check", "`data check`: pairs, ties, duplicates, sizes, and every row that cannot be used"),
    "plan": ("fdpo_fast.plan", "GPU and host memory, disk, and the rung of the ladder that fits, before a run"),
    "calibrate": ("fdpo_fast.calibrate", "the beta and ratio_scale that suit a model and its pairs"),
    "sample": ("fdpo_fast.evaluate.sample", "the same captions and noise through base and policies"),
    "evaluate": ("fdpo_fast.evaluate.evaluate", "scores, win rates and diversity of what was sampled"),
    "compare": ("fdpo_fast.evaluate.compare", "a grid of divergences and strengths from one cache, and its report"),
    "report": ("fdpo_fast.evaluate.report", "a page about a run, also while it trains"),
    "demo": ("fdpo_fast.demo", "before and after of a finished digits run: table and pictures"),
}


def main(arguments: list[str] | None = None) -> None:
    """Hand the arguments behind the command's name to its module."""
    parser = argparse.ArgumentParser(
        prog="fdpo",
        description="Preference alignment of diffusion models under any f-divergence.",
        epilog="\n".join(f"  {name:8} {text}" for name, (_, text) in COMMANDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS)
    arguments = sys.argv[1:] if arguments is None else arguments
    command = parser.parse_args(arguments[:1]).command
    try:
        module = import_module(COMMANDS[command][0])
    except ModuleNotFoundError as error:
        sys.exit(f"fdpo {command} needs the package '{error.name}': pip install 'fdpo_fast[train,eval]'")
    module.main(arguments[1:])


if __name__ == "__main__":
    main()
