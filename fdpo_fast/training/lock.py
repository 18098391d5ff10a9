"""The lock on the folder of a run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from fdpo_fast import signals
from fdpo_fast.config.errors import UserError
from fdpo_fast.locks import FolderLock

LOCK = "lock"
"""In a run's folder: held while one is at work there."""
DATA_PAGE = "data.html"
"""In a run's folder: the page about its data, which may be there before the run is."""


@contextmanager
def at_work(folder: Path) -> Iterator[None]:
    """Hold the folder of a run, on the first rank, until the block or the process ends; an empty one goes with it.

    Raises UserError where another run holds it. A command of a comparison waits for one of the comparison before, which
    may be about to end.
    """
    lock, patience = FolderLock(folder, LOCK), signals.GRACE if signals.FOLLOWED in os.environ else 0.0
    try:
        if signals.speaks():
            try:
                lock.acquire(patience)
            except BlockingIOError:
                raise UserError(f"another run is at work in {folder}: wait for it, or end it") from None
            except OSError as error:
                raise UserError(
                    f"{folder} cannot be written: {error.strerror}; name another train.output_dir"
                ) from None
        try:
            yield
        finally:
            with suppress(OSError):  # of a folder that cannot go, as one that something is mounted on
                if lock.held and [path.name for path in folder.iterdir()] == [LOCK]:
                    (folder / LOCK).unlink()
                    folder.rmdir()
    finally:
        lock.release()


def gone(folder: Path) -> str:
    """Say that the folder of a run is not there any more."""
    return (
        f"train.output_dir '{folder}' has been moved or deleted under the run: put it back and go on with --resume, or "
        "start anew"
    )
