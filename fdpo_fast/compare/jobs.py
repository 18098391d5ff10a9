"""Our commands as processes, several at a time: their share of the machine, their logs, and how they end."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from contextlib import suppress
from itertools import count
from pathlib import Path
from queue import Queue

import torch

from fdpo_fast import signals
from fdpo_fast.config.errors import UserError
from fdpo_fast.progress import Bar


class Crew:
    """Runs our commands, several at a time, each on its share of the GPUs or of the cores."""

    def __init__(self, logs: Path, jobs: int) -> None:
        self.logs, self.jobs = logs, jobs
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        self.gpus = [visible[n] if visible[0] else str(n) for n in range(torch.cuda.device_count())]
        self.places: Queue[int] = Queue()
        for place in range(jobs):
            self.places.put(place)
        self.running: set[subprocess.Popen] = set()
        self.stopped = False
        logs.mkdir(parents=True, exist_ok=True)

    def run(self, bar: Bar, log: str, *commands: tuple[str, list[str]]) -> None:
        """Run commands of ours one after the other, with the last line of their output behind the figures of a bar.

        Each such call has a log of its own. Raises UserError, with what its end was, where a command fails.
        """
        place = self.places.get()
        path = _new(self.logs, log)
        try:
            for name, arguments in commands:
                if self.stopped:
                    raise UserError("stopped")
                self._run(bar, log, path, place, name, arguments)
        finally:
            self.places.put(place)

    def _run(self, bar: Bar, log: str, path: Path, place: int, name: str, arguments: list[str]) -> None:
        command, environment = [sys.executable], os.environ | {signals.FOLLOWED: str(os.getpid())}
        mine = self.gpus[place :: self.jobs] or self.gpus[place % max(1, len(self.gpus)) :][:1]
        if mine:
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(mine)
        else:
            environment["OMP_NUM_THREADS"] = str(max(1, torch.get_num_threads() // self.jobs))  # of ours, if told
        if len(mine) > 1:
            command += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(len(mine))]
        with path.open("a") as output:
            process = subprocess.Popen(  # noqa: S603
                [*command, "-m", "fdpo_fast.cli", name, *arguments],
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                start_new_session=True,  # Ctrl-C is for us, who pass it on once: a second signal would kill
            )
            self.running.add(process)
            try:
                code = _ended(process, path, bar)
            except BaseException:  # Ctrl-C, which it has not heard
                process.terminate()
                process.wait()
                raise
            finally:
                self.running.discard(process)
        if code:
            raise UserError(f"{name} of {log} failed: {_reason(path, name, code)} (all of it: {path})")

    def stop(self) -> None:
        """End the commands that run, for good; training keeps a checkpoint."""
        self.stopped = True
        for process in list(self.running):
            process.terminate()
        for process in list(self.running):
            process.wait()


def _new(logs: Path, name: str) -> Path:
    """Make a log that no start before has written to, nor writes to any more: a second one of a name has a number."""
    for number in count(1):
        path = logs / (f"{name}.txt" if number == 1 else f"{name}-{number}.txt")
        with suppress(FileExistsError):
            path.touch(exist_ok=False)
            return path
    raise AssertionError


_BAR = re.compile(r"\d+/\S+ \[\d+:\d\d|\d+\S+ \[\d+:\d\d")
_EXCEPTION = re.compile(r"[A-Za-z_][\w.]*(Error|Exception|Interrupt|Exit)\b(: |$)")
_OF_THE_LAUNCHER = "torch.distributed.elastic"


def _reason(log: Path, name: str, code: int) -> str:
    """Say why a command failed: our own sentence, the last exception or the last words of its log, and a signal."""
    lines = [line for line in _lines(log, 1 << 18) if not _BAR.search(line) and _OF_THE_LAUNCHER not in line]
    own = [line for line in lines if line.startswith(f"fdpo {name}: ")]
    raised = [line for line in lines if _EXCEPTION.match(line)]
    said = next((found[-1] for found in (own, raised, lines) if found), "nothing was said")
    return f"ended by {signal.Signals(-code).name}; the last of it was: {said}" if code < 0 else said


def _ended(process: subprocess.Popen, log: Path, bar: Bar) -> int:
    """Return the exit status of a process once it has ended; meanwhile a bar shows what it says."""
    while True:
        with suppress(subprocess.TimeoutExpired):
            return process.wait(timeout=2)
        bar.set_postfix_str(f"{log.stem}: {_last_line(log)[:80]}")


def _last_line(log: Path) -> str:
    """Return the last line of a log that says something."""
    return next(reversed(_lines(log, 1 << 12)), "")


def _lines(log: Path, size: int) -> list[str]:
    """Return the lines at the end of a log, in so many bytes, that say something."""
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - size))
        return [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
