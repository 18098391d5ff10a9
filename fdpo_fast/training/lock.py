"""The lock on the folder of a run."""

from __future__ import annotations

import errno
import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from fdpo_fast import signals
from fdpo_fast.config.errors import UserError

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
    lock, patience = FileLock(folder / LOCK), signals.GRACE if signals.FOLLOWED in os.environ else 0.0
    with ExitStack() as held:
        if signals.speaks():
            try:
                held.enter_context(_itself(folder, time.monotonic() + patience))
                lock.acquire(timeout=patience)
            except (Timeout, BlockingIOError):
                raise UserError(f"another run is at work in {folder}: wait for it, or end it") from None
            except OSError as error:
                raise UserError(
                    f"{folder} cannot be written: {error.strerror}; name another train.output_dir"
                ) from None
        try:
            yield
        finally:
            with suppress(OSError):  # of a folder that cannot go, as one that something is mounted on
                if lock.is_locked and [path.name for path in folder.iterdir()] == [LOCK]:
                    (folder / LOCK).unlink()
                    folder.rmdir()
            lock.release()


@contextmanager
def _itself(folder: Path, until: float) -> Iterator[None]:
    """Lock the folder itself, which no file that is deleted frees; BlockingIOError where another holds it `until` then.

    NFS locks files alone: there the one called `lock` is all that there is.
    """
    place = os.open(folder, os.O_RDONLY)
    try:
        while not _is_locked(place, last=time.monotonic() >= until):
            time.sleep(0.1)
        yield
    finally:
        os.close(place)


def _is_locked(place: int, last: bool) -> bool:
    """Say whether a folder could be locked, or cannot be at all; at the `last` time raise instead of saying no."""
    try:
        fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        if last:
            raise
        return False
    except OSError as error:
        if error.errno not in (errno.EBADF, errno.EINVAL, errno.ENOLCK, errno.ENOTSUP):
            raise
    return True


def gone(folder: Path) -> str:
    """Say that the folder of a run is not there any more."""
    return (
        f"train.output_dir '{folder}' has been moved or deleted under the run: put it back and go on with --resume, or "
        "start anew"
    )
