"""What a process hears of terminals, launchers and batch systems: Ctrl-C, signals to end, and whether it speaks."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
ECHO = 1.0
"""Seconds within which a repeated signal is the same wish: a launcher passes on what the terminal has sent as well."""


def speaks() -> bool:
    """Say whether this process speaks for its run: its launcher calls it the first of the ranks, or there is none."""
    return os.environ.get("RANK", "0") == "0"


class Stopped(KeyboardInterrupt):
    """A command was asked to stop by a signal; its words say what is left, where that is not what it always is."""

    def __init__(self, number: int, words: str = "") -> None:
        super().__init__(words)
        self.number = number

    @property
    def status(self) -> int:
        """Return the exit status that shells give a program that a signal has ended."""
        return 128 + self.number


_asked: list[float] = []
"""When this process was asked to stop, since a block last began that listens."""


def is_first() -> bool | None:
    """Note a signal, and say whether it is the first to ask; None for an echo of it."""
    _asked.append(time.monotonic())
    if len(_asked) == 1:
        return True
    return None if _asked[-1] - _asked[0] < ECHO else False


@contextmanager
def handled_by(handler: Callable[[int, object], None]) -> Iterator[None]:
    """Let a handler take the signals within the block, but for those that were ignored, as under `nohup`."""
    before = {number: signal.getsignal(number) for number in ENDING}
    _asked.clear()
    try:
        for number in ENDING:
            if before[number] != signal.SIG_IGN:
                signal.signal(number, handler)
        yield
    finally:
        for number, old in before.items():
            if old is not None:  # one of C's, which Python cannot put back
                signal.signal(number, old)


def ignore() -> None:
    """Let nothing of the kind end the process any more, which is at its end: an echo would take its exit status."""
    for number in ENDING:
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def raised() -> Iterator[None]:
    """Raise `Stopped` at a signal within the block; at a second one end the process, whatever it is doing.

    A library that is being imported may make another error of it, or none: the block ends as one that was stopped all
    the same, at that error or at the next `check`.
    """

    def handle(number: int, frame: object) -> None:
        first = is_first()
        if first:
            _raised.append(number)
            raise Stopped(number)
        if first is False:
            os._exit(128 + number)

    _raised.clear()
    try:
        with handled_by(handle):
            yield
    except Exception:
        check()
        raise


_raised: list[int] = []
"""The signal that `Stopped` was raised for."""


def check() -> None:
    """Raise `Stopped` where it was raised before, and somebody kept it from ending what goes on."""
    if _raised:
        raise Stopped(_raised[0]) from None


FOLLOWED = "FDPO_ENDS_WITH"
"""In the environment: the number of the process for which this one works, and which it does not outlive."""
GRACE = 60.0
"""Seconds that a process has to stop in, as behind a step and its checkpoint, once nobody waits for it."""


def follow() -> None:
    """Ask this process to stop, as SIGTERM does, once the one it works for is gone, even by a kill that nobody hears.

    A launcher between the two hands the environment on, though no file that is open.
    """
    if number := os.environ.get(FOLLOWED):
        threading.Thread(target=_follow, args=(int(number),), daemon=True).start()


def _follow(number: int) -> None:
    import psutil

    with suppress(psutil.NoSuchProcess):
        followed = psutil.Process(number)
        while followed.is_running() and followed.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.5)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os._exit(128 + signal.SIGTERM)
