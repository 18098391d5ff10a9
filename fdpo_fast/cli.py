"""The command line: `fdpo COMMAND --config FILE`."""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

COMMANDS = {
    "train": "align a pipeline (one process; `deepspeed fdpo_fast/train.py` for more)",
    "cache": "latents, text embeddings and reference errors, ahead of training; `cache verify`",
    "data": "`data check`: pairs, ties, duplicates, sizes, and every row that cannot be used",
    "plan": "GPU and host memory, disk, time, and the rung of the ladder that fits, before a run",
    "calibrate": "the beta and ratio_scale that suit a model and its pairs",
    "sample": "the same captions and noise through base and policies",
    "evaluate": "scores, win rates and diversity of what was sampled",
    "compare": "a grid of divergences and strengths from one cache, and its report",
    "report": "a page about a run, also while it trains",
    "demo": "before and after of a finished digits run: table and pictures",
}
SECOND_WORDS = {"cache": ("verify", False), "data": ("check", True)}
"""By command, the word that makes another command of it, and whether it must be there."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command that the arguments name."""
    parser = argparse.ArgumentParser(
        prog="fdpo",
        description="Preference alignment of diffusion models under any f-divergence.",
        epilog="\n".join(f"  {name:8} {text}" for name, text in COMMANDS.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("command", choices=COMMANDS)
    arguments = sys.argv[1:] if arguments is None else arguments
    ranks = [word for word in arguments[:1] if word.startswith("--local_rank=")]  # DeepSpeed's launcher puts it first
    name, *behind = arguments[len(ranks) :] or [""]
    run(parser.parse_args([name] if name else []).command, behind + ranks)


def run(name: str, arguments: list[str] | None = None) -> None:
    """Run a command with the arguments behind its name, by default those of the process."""
    arguments = sys.argv[1:] if arguments is None else arguments
    word, required = SECOND_WORDS.get(name, (None, False))
    if word and arguments[:1] == [word]:
        name, arguments = f"{name} {word}", arguments[1:]
    elif required and arguments[:1] in (["-h"], ["--help"]):
        name = f"{name} {word}"
    elif required:
        sys.exit(f"fdpo {name}: the command is `fdpo {name} {word} --config FILE`")
    with installed(name):
        from fdpo_fast.commands import table
    table.run(name, arguments)


@contextmanager
def installed(name: str) -> Iterator[None]:
    """Within the block of imports a package that is missing ends the process with what to install.

    Nor is garbage looked for: imports make millions of objects that stay, and going through them costs a second.
    """
    gc.disable()
    try:
        yield
    except ModuleNotFoundError as error:
        sys.exit(f"fdpo {name} needs the package '{error.name}': pip install 'fdpo_fast[train,eval]'")
    finally:
        gc.enable()


if __name__ == "__main__":
    main()
