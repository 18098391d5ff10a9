"""Whether other programs take the cores while something is timed on them."""

from __future__ import annotations

import os
import time

SHORTEST = 0.25
"""Seconds over which the system's counters, which go in steps of 10 ms, can be compared."""

ENOUGH = 0.1
"""The share of the cores from which on other programs disturb."""


class Neighbours:
    """Which rounds of a measurement other programs disturbed.

    A thread that was put off for another program holds up all that wait for it at the end of a parallel loop, for a
    slice of the scheduler: a call of 20 such loops gets 50 times slower, one of a single loop hardly, and a median over
    a few seconds does not see past it.
    """

    patience = 60.0
    """Seconds that a session waits for a quiet machine, altogether."""

    def __init__(self) -> None:
        self.disturbed: set[int] = set()
        self._judged, self._last = 0, False
        self._cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        self._mark = self._now()

    def judge(self, rounds: int, *, final: bool = False) -> bool:
        """Judge what is not judged yet of the first `rounds` rounds; whether they were disturbed.

        A time too short to tell by is judged together with the rounds that follow, or at last like those before.
        """
        disturbed = self._taken()
        if disturbed is None and not final:
            return False
        self._last = self._last if disturbed is None else disturbed
        if self._last:
            self.disturbed.update(range(self._judged, rounds))
        self._judged = rounds
        return self._last

    def wait(self) -> None:
        """Until the others are done, or patience is."""
        busy = True
        while busy and Neighbours.patience > 0:
            self._mark = self._now()
            time.sleep(2 * SHORTEST)
            Neighbours.patience -= 2 * SHORTEST
            busy = self._taken()

    def _taken(self) -> bool | None:
        """Whether others took the cores since the last answer; None where that is too short ago."""
        (start, busy_before), (end, busy) = self._mark, self._now()
        if end - start < SHORTEST:
            return None
        self._mark = end, busy
        return busy - busy_before > ENOUGH * (end - start) * len(self._cores) > 0

    def _now(self) -> tuple[float, float]:
        """The time, and the seconds that others have run so far; 0 where the system does not tell."""
        try:
            with open("/proc/stat") as counters:
                by_name = {name: list(map(int, ticks)) for name, *ticks in map(str.split, counters)}
            # user, nice, system, irq, softirq, steal: all but the idle ones
            ticks = sum(sum(by_name[f"cpu{core}"][i] for i in (0, 1, 2, 5, 6, 7)) for core in self._cores)
        except (OSError, KeyError, IndexError):
            return time.perf_counter(), 0.0
        return time.perf_counter(), ticks / os.sysconf("SC_CLK_TCK") - time.process_time()
