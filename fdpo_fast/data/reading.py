"""Bytes from a disk or a network that may be gone for a moment: tried again, and never taken for a fault of the data.

What is wrong with a file itself costs a row of the data. What is wrong with the way to it does not: after a few seconds
of trying, the work stops with the place, and goes on from there when it is started again.
"""

from __future__ import annotations

import errno
import io
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from fdpo_fast.config.errors import UserError
from fdpo_fast.progress import say

PAUSES = (0.2, 0.5, 1.0, 2.0, 4.0)
"""Seconds between two tries."""
OF_A_NAME = (errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOTDIR, errno.EINVAL)
"""Errors that are of a name, whatever the state of its disk."""
T = TypeVar("T")


class UnusableError(ValueError):
    """What is stored cannot be used; the message says why."""


class UnreachableError(UserError):
    """What is stored may be good, but the way to it is broken."""


def patiently(read: Callable[[], T], name: str) -> T:
    """Call `read` until it succeeds; UnreachableError, with the name, where it fails a few seconds long.

    A UserError or UnusableError of `read` passes at once.
    """
    for pause in (*PAUSES, None):
        try:
            return read()
        except UserError:
            raise
        except UnusableError:
            raise
        except Exception as error:  # each file system and its network library has exceptions of its own
            words = getattr(error, "strerror", None) or str(error) or type(error).__name__
            if pause is None:
                raise UnreachableError(
                    f"{name} cannot be read ({words}), tried for {sum(PAUSES):.0f} s: nothing is lost; when it can be "
                    "read again, the same command goes on"
                ) from None
            if pause == PAUSES[1]:
                say(f"{name} cannot be read ({words}): trying again")
            time.sleep(pause)
    raise AssertionError


def status(path: Path | str) -> os.stat_result | None:
    """Return what the disk says of a path; None where nothing is there, or can be under such a name.

    Raises UnreachableError where that cannot be told for a few seconds.
    """

    def read() -> os.stat_result | None:
        try:
            return os.stat(path)
        except ValueError:  # a name that no file can have
            return None
        except OSError as error:
            if error.errno in (errno.ENOENT, *OF_A_NAME):
                return None
            raise

    return patiently(read, printable(str(path)))


def is_folder(path: Path | str) -> bool:
    """Say whether a path is a folder."""
    found = status(path)
    return found is not None and stat.S_ISDIR(found.st_mode)


def is_file(path: Path | str) -> bool:
    """Say whether a path is a regular file."""
    found = status(path)
    return found is not None and stat.S_ISREG(found.st_mode)


def is_dangling(path: Path | str) -> bool:
    """Say whether a path is a link to nothing."""
    own = patiently(lambda: os.lstat(path), printable(str(path)))
    return stat.S_ISLNK(own.st_mode) and status(path) is None


Seen = tuple[int, int]
"""Size and time of change of a file: they tell another content without reading it."""


def look(path: Path) -> Seen:
    """Return what tells the content of a file; UnreachableError where that cannot be had for a few seconds."""
    return patiently(lambda: _seen(path.stat()), str(path))


def _seen(status: os.stat_result) -> Seen:
    return status.st_size, status.st_mtime_ns


def unchanged(status: os.stat_result, seen: Seen | None) -> None:
    """Raise OSError where a file is not what it was when it was `seen`: it may be so again in a moment."""
    if seen is not None and _seen(status) != seen:
        raise OSError(errno.ESTALE, "it has changed since the source was opened")


def read_file(path: Path, name: str, seen: Seen | None = None) -> bytes:
    """Read a file that was there before, as it was when it was `seen`.

    Raises UnusableError for what is no regular file, UnreachableError where it cannot be read for a few seconds.
    """

    def read() -> bytes:
        try:
            status = path.stat()
            if not stat.S_ISREG(status.st_mode):
                raise UnusableError("it is no regular file")
            unchanged(status, seen)
            content = path.read_bytes()
            unchanged(path.stat(), seen)
            return content
        except (OSError, ValueError) as error:  # ValueError: a name that no file can have
            if isinstance(error, OSError) and error.errno not in OF_A_NAME:
                raise
            raise UnusableError(getattr(error, "strerror", None) or str(error)) from None

    return patiently(read, name)


class PatientFile(io.RawIOBase):
    """A file for reading that is opened anew where reading fails.

    Raises UnreachableError where that does not help.
    """

    def __init__(self, open_file: Callable[[], io.IOBase], name: str, size: int) -> None:
        super().__init__()
        self._open, self._name, self._size = open_file, name, size
        self._file: io.IOBase | None = None
        self._at = 0

    def readable(self) -> bool:
        """Say that it can be read."""
        return True

    def seekable(self) -> bool:
        """Say that any place in it can be read."""
        return True

    def tell(self) -> int:
        """Return the place of the next byte."""
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a place, from the start, from here or from the end."""
        self._at = (0, self._at, self._size)[whence] + offset
        return self._at

    def read(self, size: int = -1) -> bytes:
        """Read `size` bytes, or all to the end."""
        count = self._size - self._at if size is None or size < 0 else size

        def read() -> bytes:
            try:
                if self._file is None:
                    self._file = self._open()
                self._file.seek(self._at)
                return self._file.read(count)
            except Exception:
                self._file = None
                raise

        content = patiently(read, self._name)
        self._at += len(content)
        return content

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def]
        """Fill a buffer; returns how many bytes there were."""
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)


def text(content: bytes) -> str:
    """Decode text that is UTF-8, or says by its first bytes that it is UTF-16; UnusableError where it is neither.

    Line ends are made one kind, as by reading in text mode.
    """
    wide = content.startswith((b"\xff\xfe", b"\xfe\xff"))
    try:
        found = content.decode("utf-16" if wide else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UnusableError(not_utf8(error)) from None
    return found.replace("\r\n", "\n").replace("\r", "\n")


def not_utf8(error: UnicodeDecodeError) -> str:
    """Say where bytes are not UTF-8, and what they may be."""
    byte = error.object[error.start]
    return f"byte {byte:#04x} at {error.start} is not {error.encoding.upper()}, as of Windows-1252: save it as UTF-8"


def printable(name: str) -> str:
    """Return a name, or what a library says, as text that is safe on a terminal.

    Bytes that are no UTF-8, and signs that command a terminal, are written in hexadecimal.
    """
    decoded = os.fsencode(name).decode("utf-8", "backslashreplace")
    return "".join(sign if sign.isprintable() else sign.encode("unicode_escape").decode() for sign in decoded)
