"""The lock on the folder of a run."""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from fdpo_fast.config.errors import UserError
from fdpo_fast.signals import speaks

LOCK = "lock"
"""In a run's folder: held while one is at work there."""
DATA_PAGE = "data.html"
"""In a run's folder: the page about its data, which may be there before the run is."""


@contextmanager
def at_work(folder: Path) -> Iterator[None]:
    """Hold the folder of a run, on the first rank, until the block or the process ends; an empty one goes with it.

    Raises UserError where another run holds it.
    """
    lock = FileLock(folder / LOCK)
    with ExitStack() as held:
        if speaks():
            try:
                held.enter_context(_itself(folder))
                lock.acquire(timeout=0)
            except (Timeout, BlockingIOError):
                raise UserError(f"another run is at work in {folder}: wait for it, or end it") from None
        try:
            yield
        finally:
            with suppress(OSError):  # of a folder that cannot go, as one that something is mounted on
                if lock.is_locked and [path.name for path in folder.iterdir()] == [LOCK]:
                    (folder / LOCK).unlink()
                    folder.rmdir()
            lock.release()


@contextmanager
def _itself(folder: Path) -> Iterator[None]:
    """Lock the folder itself, of which nobody deletes the lock by deleting a file; BlockingIOError where it is held.

    NFS locks files alone: there the one called `lock` is all that there is.
    """
    place = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOTSUP):
                raise
        yield
    finally:
        os.close(place)
