"""The trainer: `deepspeed fdpo_fast/train.py --config configs/digits_js.json`.

Also `fdpo train --config ...` and plain `python fdpo_fast/train.py ...` for one process. The work is in
`training.trainer`.
"""

from __future__ import annotations

import os
import shutil
import sys
from contextlib import suppress
from pathlib import Path

if __name__ == "__main__":
    # A script's folder comes first on the path, where our `data`, `models`, `config` would hide other packages.
    sys.path[0:1] = []
    sys.path.append(str(Path(__file__).resolve().parent.parent))

from fdpo_fast import cli, faults, signals
from fdpo_fast.config.errors import UserError
from fdpo_fast.config.run import Config
from fdpo_fast.files import clear_partial, made
from fdpo_fast.training import trackers
from fdpo_fast.training.lock import DATA_PAGE, LOCK, at_work, gone


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and train; a mistake in the input ends the process with one sentence."""
    cli.main(["train", *(sys.argv[1:] if arguments is None else arguments)])


def start(config: Config, resume: bool | str, dry_run: bool) -> None:
    """Check what can be checked at once, then train; a dry run prints the configuration instead."""
    config.accumulation(int(os.environ.get("WORLD_SIZE", 1)))  # set by the launcher
    if dry_run:
        print(config.dumps(), end="")
        return
    trackers.check(config.log)
    folder = Path(config.train.output_dir).expanduser()
    check_output(folder, resume)
    with at_work(folder):
        if signals.speaks():
            for own in ("samples", "checkpoints"):
                clear_partial(folder / own, alone=True)
        train(config, resume)


def check_output(folder: Path, resume: bool | str) -> None:
    """Make a run's folder; UserError where it cannot be made, or holds another run that is not to be resumed.

    The first rank alone looks into it: what the others find may be its own already.
    """
    made(folder, "train.output_dir")
    if not signals.speaks():
        return
    try:
        clear_partial(folder)
        check_kinds(folder)
        there = [path.name for path in folder.iterdir()]
    except OSError as error:
        raise UserError(f"train.output_dir '{folder}' cannot be used: {error.strerror}") from None
    if not resume and any(name not in (LOCK, DATA_PAGE) for name in there):
        raise UserError(f"train.output_dir '{folder}' is not empty: pass --resume to go on, or name another folder")


FOLDERS, FILES = ("checkpoints", "export", "samples"), ("config.json", "data.json", "metrics.jsonl")


def check_kinds(folder: Path) -> None:
    """Raise UserError where something in a run's folder has the name of what the run writes, and is of another kind."""
    for name in (*FOLDERS, *FILES):
        path = folder / name
        fits = path.is_dir() if name in FOLDERS else path.is_file()
        if (os.path.lexists(path) and not fits) or (name == "export" and path.is_symlink()):  # a link is not replaced
            kind = "folder" if name in FOLDERS else "file"
            raise UserError(f"{path} is in the way of the {kind} of that name, which the run writes: move it")


OPENED = ("config.json", "data.json", "metrics.jsonl", "tensorboard", "wandb", "samples")
"""What a run writes before it has taken a step."""


def train(config: Config, resume: bool | str) -> None:
    """Run a configuration to its last step and export the policy. Collective over the launcher's ranks.

    A new run that fails before it has taken a step leaves nothing in its folder, where the next one would be refused.
    """
    from fdpo_fast.training.trainer import Trainer

    trainer = None
    try:
        signals.check()
        trainer = Trainer(config, resume)
        trainer.run()
    except BaseException as error:
        folder = Path(config.train.output_dir).expanduser()
        if signals.speaks() and not resume and not (trainer and trainer.began):
            for path in (folder / name for name in OPENED):
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    with suppress(OSError):
                        path.unlink(missing_ok=True)
        if trainer and not isinstance(error, UserError) and (refused := faults.of_machine(error, folder)):
            raise UserError(f"{refused}; {trainer.safe()}") from None
        if trainer and isinstance(error, (OSError, RuntimeError)) and not folder.is_dir():
            raise UserError(gone(folder)) from None
        raise


if __name__ == "__main__":
    main()
