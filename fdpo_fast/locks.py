"""Locks on folders, which end with the process that holds them."""

from __future__ import annotations

import errno
import fcntl
import math
import os
import time
from pathlib import Path

from filelock import FileLock, Timeout


class FolderLock:
    """A lock on a folder itself, which no file that is deleted frees, and on a file in it, which NFS knows as well."""

    def __init__(self, folder: Path, file: str) -> None:
        self._folder, self._file, self._place = folder, FileLock(folder / file), -1

    @property
    def held(self) -> bool:
        """Whether this object holds the lock."""
        return self._file.is_locked

    def acquire(self, patience: float = math.inf) -> None:
        """Take the lock; BlockingIOError where another holds it that many seconds long."""
        until = time.monotonic() + patience
        self._place = os.open(self._folder, os.O_RDONLY)
        try:
            while not _is_locked(self._place, last=time.monotonic() >= until):
                time.sleep(0.1)
            self._file.acquire(timeout=-1 if math.isinf(patience) else max(0.0, until - time.monotonic()))
        except BaseException as error:
            self.release()
            if isinstance(error, Timeout):
                raise BlockingIOError(errno.EWOULDBLOCK, os.strerror(errno.EWOULDBLOCK)) from None
            raise

    def release(self) -> None:
        """Give the lock back, where it is held."""
        self._file.release()
        if self._place >= 0:
            os.close(self._place)
            self._place = -1


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
