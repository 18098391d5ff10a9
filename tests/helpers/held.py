"""What the trainer's steps hold on the host, and what the plan says of it: `python -m tests.helpers.held RUNS FOUND`.

RUNS has the configurations of a run, and of a tiny one before it, which loads the code. It is a process of its own,
whose libraries keep nothing for later (`plan_accuracy.ENVIRONMENT`): of a fork only the pages that it touches count.
"""

import gc
import json
import subprocess
import sys
from pathlib import Path

import psutil

from benchmarks import launcher
from benchmarks.plan_accuracy import ENVIRONMENT, predicted
from tests.helpers import ROOT

STEPS = 2


def held(raw: dict, tiny: dict, scratch: Path) -> dict[str, float]:
    """Bytes "predicted" of a run's steps, and "measured"."""
    runs, found = scratch / "runs.json", scratch / "found.json"
    runs.write_text(json.dumps([raw, tiny]))
    command = [sys.executable, "-m", "tests.helpers.held", str(runs), str(found)]
    env = launcher.environment(threads=1) | ENVIRONMENT
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(found.read_text())


def main(runs: str, found: str) -> None:
    raw, tiny = json.loads(Path(runs).read_text())
    need, _ = predicted(raw)
    before, _ = _steps(tiny)
    _, peak = _steps(raw)
    Path(found).write_text(json.dumps({"predicted": need, "measured": peak - before}))


def _steps(raw: dict) -> tuple[int, int]:
    """Take the steps of a run; returns the bytes that are resident behind it, and their most during the steps."""
    from fdpo_fast.config.run import Config
    from fdpo_fast.train import check_output
    from fdpo_fast.training.trainer import Trainer

    config = Config.model_validate(raw)
    check_output(Path(config.train.output_dir), resume=False)
    trainer = Trainer(config, resume=False)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    for step in range(STEPS):
        trainer.end_step(step, trainer.train_step(step))
    status = Path("/proc/self/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    del trainer
    gc.collect()
    return psutil.Process().memory_info().rss, 1024 * peak


if __name__ == "__main__":
    main(*sys.argv[1:])
