"""Takes the stages in turn, each in its box of time; while one is at work the next one does its imports."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.common import device
from benchmarks.gpu.lab import write_line
from benchmarks.gpu.stages import Stage

SMALLEST = 10.0
"""Seconds below which a stage is not begun."""
PATIENCE = 3
"""How much longer a stage may take in a rehearsal, whose machine may be any."""


def run(stages: list[Stage], seconds: float, out: Path, rehearse: bool) -> bool:
    """Take the stages within `seconds`, each with the lines it writes to `out`; whether none has failed."""
    out.mkdir(parents=True, exist_ok=True)
    name = "rehearsal on the CPU" if rehearse else device.name()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))  # so that the stages end with the runner
    with TemporaryDirectory(prefix="fdpo_gpu_") as scratch:
        return Runner(out, Path(scratch), name, rehearse).take(stages, time.monotonic() + seconds)


class Runner:
    """The runner's part of a session: processes, their logs and their ends.

    out: for lines and logs. scratch: the stages' own. device: its name. rehearse: everything tiny, on the host.
    """

    def __init__(self, out: Path, scratch: Path, device: str, rehearse: bool) -> None:
        self.out, self.scratch, self.device, self.rehearse = out, scratch, device, rehearse
        self.processes: dict[str, subprocess.Popen] = {}
        """Those at work and waiting, by stage."""
        (out / "logs").mkdir(exist_ok=True)

    def take(self, stages: list[Stage], end: float) -> bool:
        """The stages in turn, until the monotonic clock says `end`; whether none has failed."""
        runnable, sound = self._with_all_they_need(stages), True
        try:
            for number, stage in enumerate(runnable):
                if (left := end - time.monotonic()) < SMALLEST:
                    self._line(stage, skipped=f"only {max(left, 0):.0f} s are left")
                    continue
                process, began = self._started(stage), time.monotonic()
                with suppress(BrokenPipeError):  # it has ended already, and its status says how
                    process.stdin.write("\n")
                    process.stdin.flush()
                if number + 1 < len(runnable):
                    self._started(runnable[number + 1])  # its imports; it waits for its turn
                box = stage.seconds * (PATIENCE if self.rehearse else 1)
                sound &= self._finish(stage, process, min(box, left), began)
        finally:
            for process in self.processes.values():
                kill(process)
        return sound

    def _with_all_they_need(self, stages: Iterable[Stage]) -> list[Stage]:
        """Those that can run here; a line with a sentence for each of the others."""
        runnable = []
        for stage in stages:
            if missing := stage.missing:
                words = f"the package{'s' * (len(missing) > 1)} {', '.join(missing)}, not installed"
                self._line(stage, skipped=f"needs {words}")
            elif self.rehearse and not stage.rehearsed:
                self._line(stage, skipped="compiles for longer than a rehearsal may take")
            else:
                runnable.append(stage)
        return runnable

    def _started(self, stage: Stage) -> subprocess.Popen:
        """The stage's process, which waits for its turn."""
        if stage.name in self.processes:
            return self.processes[stage.name]
        words = [*stage.command, "--out", self.out, "--scratch", self.scratch, "--device", self.device]
        env = os.environ | {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
        if self.rehearse:
            # what is tiny gains nothing from threads, and loses much where others want the cores
            words, env = [*words, "--rehearse"], env | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
        with self._log(stage).open("w") as log:
            self.processes[stage.name] = subprocess.Popen(
                list(map(str, words)), stdin=subprocess.PIPE, stdout=log, stderr=subprocess.STDOUT, text=True,
                env=env, start_new_session=True, cwd=Path(__file__).parents[2],
            )  # fmt: skip
        return self.processes[stage.name]

    def _log(self, stage: Stage) -> Path:
        return self.out / "logs" / f"{stage.name}.txt"

    def _finish(self, stage: Stage, process: subprocess.Popen, seconds: float, began: float) -> bool:
        """Wait for a stage as long as it may take, then write down how it ended."""
        how: dict[str, Any] = {"status": "done"}
        try:
            if process.wait(seconds):
                how = {"status": "failed", "why": last_words(self._log(stage))}
        except subprocess.TimeoutExpired:
            how = {"status": "stopped", "why": f"it had {seconds:.0f} s"}
        kill(self.processes.pop(stage.name))  # whatever it has started goes with it
        self._line(stage, **how, seconds=round(time.monotonic() - began, 1))
        return how["status"] != "failed"

    def _line(self, stage: Stage, **row: Any) -> None:
        write_line(self.out, self.device, self.rehearse, stage=stage.name, what="end", **row)
        print(f"{stage.name}: " + ", ".join(f"{key} {value}" for key, value in row.items()), flush=True)


def kill(process: subprocess.Popen) -> None:
    """End a stage and everything in its group."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdin.close()


def last_words(log: Path) -> str:
    """The last line that says anything: of a traceback, the error."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:300] if lines else "it said nothing"
