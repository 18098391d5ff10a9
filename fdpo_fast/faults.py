"""What ends a command without being the user's mistake: a refusal of the machine, or a slip of ours."""

from __future__ import annotations

import errno
import os
import resource
import sys
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

_ROOM = "make room there"
_LARGER = "allow larger files (`ulimit -f unlimited`), or name a place on another disk"
_RIGHTS = "give it the rights, or name another place"
_IN_THE_WAY = "move what has that name"
REMEDIES = {
    errno.ENOSPC: _ROOM,
    errno.EDQUOT: _ROOM,
    errno.EFBIG: _LARGER,
    errno.EMFILE: "allow more open files (`ulimit -n 65536`)",
    errno.ENFILE: "let the machine open more files (fs.file-max)",
    errno.EROFS: "name a place that can be written",
    errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS,
    errno.EIO: "its disk may be failing: look after it",
    errno.ESTALE: "its disk has been away: try again",
    errno.EEXIST: _IN_THE_WAY,
    errno.EISDIR: _IN_THE_WAY,
    errno.ENOTDIR: _IN_THE_WAY,
}
"""The errors by which a machine refuses, whatever program asks, and what to do about each."""
_BY_LENGTH = sorted(REMEDIES, key=lambda number: -len(os.strerror(number)))  # one's words begin another's
_OF_TORCH = ("inline_container", "PytorchStreamWriter", "iostream error", "unexpected pos")
"""What torch says of a file that it could not write to its end, whose error it does not keep."""


def of_machine(error: BaseException, place: Path | None = None) -> str | None:
    """Say what the machine has refused, where, and what to do; None where the error is of another kind.

    Libraries tell it in errors of their own, in words or behind others. `place` is where it was if no error says so.
    """
    for cause in _causes(error):
        number = cause.errno if isinstance(cause, OSError) else None
        if number not in REMEDIES:
            number = next((one for one in _BY_LENGTH if os.strerror(one) in str(cause)), None)
        # of a file that was to take another's place that other's name
        where = getattr(cause, "filename2", None) or getattr(cause, "filename", None) or place
        at = f": {where}" if where else ""
        if number is not None:
            return f"{os.strerror(number)}{at}; {REMEDIES[number]}"
        if any(words in str(cause) for words in _OF_TORCH):
            if resource.getrlimit(resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY:
                return f"a file was not written to its end, as one beyond the limit of its size{at}; {_LARGER}"
            return f"a file was not written to its end, as on a full disk{at}; {_ROOM}"
    return None


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an error and those behind it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def ask_to_report(command: str, version: str) -> None:
    """Let the traceback that is about to end this process be followed by what to do with it."""
    before = sys.excepthook

    def shown(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
        before(kind, error, traceback)
        print(_words(command, version, error), file=sys.stderr)

    sys.excepthook = shown


def _words(command: str, version: str, error: BaseException) -> str:
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return f"{command}: there is too little memory: `fdpo plan` says which settings fit"
    return f"{command}: this is a mistake of fdpo_fast {version}, not yours: please report it with the lines above"
