"""The lock on the folder of a run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from fdpo_fast.config.errors import UserError

LOCK = "lock"
"""In a run's folder: held while one is at work there."""


@contextmanager
def at_work(folder: Path) -> Iterator[None]:
    """Hold the folder of a run, on the first rank, until the block or the process ends.

    Raises UserError where another run holds it.
    """
    lock = FileLock(folder / LOCK)
    if int(os.environ.get("RANK", 0)) == 0:
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise UserError(f"another run is at work in {folder}: wait for it, or end it") from None
    try:
        yield
    finally:
        lock.release()
