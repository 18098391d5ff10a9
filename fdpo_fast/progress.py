"""What is said while one waits: a bar on a terminal, elsewhere a line now and then; and words that keep clear of it."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import Any, TextIO, TypeAlias

from tqdm import tqdm

FIRST, PAUSE = 5.0, 30.0
"""Seconds between two lines: at first, and once a minute or two have passed."""


def progress(
    items: Iterable | None = None,
    *,
    desc: str,
    total: int | None = None,
    initial: int = 0,
    unit: str = "it",
    leave: bool = True,
    show: bool = True,
) -> Bar:
    """Return a bar over `items`, or one to be updated by hand, on the standard error; an idle one without `show`.

    Without `leave` nothing stays of a bar; of lines, those that were written.
    """
    if total is None and isinstance(items, Sized):
        total = len(items)
    if show and not sys.stderr.isatty():
        return Lines(items, desc, total, initial, unit, leave)
    return tqdm(items, desc=desc, total=total, initial=initial, unit=unit, leave=leave, disable=not show)


def say(*words: object, file: TextIO | None = None) -> None:
    """Print words on a line of their own, at once, also while a bar is on the terminal."""
    tqdm.write(" ".join(map(str, words)), file=file)
    (file or sys.stdout).flush()


@contextmanager
def waiting(words: str, *, show: bool = True) -> Iterator[None]:
    """Say what the block is at where it takes longer than `FIRST` seconds, and that it still is, every `PAUSE`."""
    done = threading.Event()

    def watch() -> None:
        start, pause, text = time.monotonic(), FIRST, words
        while not done.wait(pause):
            say(text)
            pause, text = PAUSE, f"still {words}: {time.monotonic() - start + PAUSE:.0f} s"

    if show:
        threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        done.set()


class Lines:
    """A bar of tqdm for files: a line every few seconds, then twice a minute, where there is news; and the last."""

    def __init__(
        self, items: Iterable | None, desc: str, total: int | None, initial: int, unit: str, leave: bool
    ) -> None:
        self.items, self.leave = items, leave
        self.look = {"prefix": desc, "total": total, "initial": initial, "unit": unit, "ncols": 0}
        self.n: float = initial
        self.postfix = ""
        self.start = self.told_at = time.monotonic()
        self.told: tuple[float, str] | None = None

    def __iter__(self) -> Iterator[Any]:
        assert self.items is not None
        for item in self.items:
            yield item
            self.update()
        self.close()

    def __enter__(self) -> Lines:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def update(self, n: float = 1) -> None:
        """Count `n` more as done."""
        self.n += n
        now = time.monotonic()
        if now - self.told_at >= min(PAUSE, max(FIRST, (now - self.start) / 4)):
            self._tell(now)

    def set_postfix_str(self, text: str, refresh: bool = True) -> None:
        """Say `text` behind the figures from now on; news, even where nothing is done meanwhile."""
        self.postfix = text
        if refresh:
            self.update(0)

    def close(self) -> None:
        """Write the last line, unless it is there already."""
        if self.leave or self.told:
            self._tell(time.monotonic())

    def _tell(self, now: float) -> None:
        if self.told == (self.n, self.postfix):
            return
        self.told, self.told_at = (self.n, self.postfix), now
        line = tqdm.format_meter(self.n, elapsed=now - self.start, postfix=self.postfix, **self.look)
        print(line, file=sys.stderr, flush=True)


Bar: TypeAlias = tqdm | Lines
