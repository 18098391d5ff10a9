"""Commands of ours as processes: none outlives the comparison, and each says why it failed."""

import signal
import subprocess
import sys
import time

import psutil
import pytest

from benchmarks import launcher
from fdpo_fast.compare.jobs import Crew, _new, _reason
from fdpo_fast.progress import progress
from fdpo_fast.signals import FOLLOWED
from fdpo_fast.training.lock import at_work
from tests.helpers import ROOT

CREW = """
import sys
from pathlib import Path
from fdpo_fast.compare.jobs import Crew
from fdpo_fast.progress import progress

with progress(desc="runs", total=1) as bar:
    Crew(Path(sys.argv[2]), 1).run(bar, "a", ("train", ["--config", sys.argv[1]]))
"""
LAUNCHER = f"""
import os, subprocess, sys

command = [*{launcher.TORCHRUN!r}, "--standalone", "--nproc_per_node", "2", "-m", "fdpo_fast.cli", "train", "--config"]
with open(sys.argv[2] + "/a.txt", "w") as log:
    subprocess.run([*command, sys.argv[1]], stdout=log, stderr=log, env=os.environ | {{"{FOLLOWED}": str(os.getpid())}})
"""


def until(happened, what, patience=300):
    end = time.monotonic() + patience
    while not (found := happened()):
        assert time.monotonic() < end, what
        time.sleep(0.1)
    return found


@pytest.mark.parametrize("script", [CREW, pytest.param(LAUNCHER, marks=pytest.mark.slow)], ids=["alone", "launcher"])
def test_a_kill_that_nobody_hears_ends_all_and_leaves_a_checkpoint(raw_config, write_config, tmp_path, script):
    raw_config["train"] |= {"max_steps": 100_000, "checkpoint_every": 100_000, "pairs_per_micro_batch": 2}
    raw_config["log"]["every"] = 1
    logs = tmp_path / "logs"
    logs.mkdir()
    parent = psutil.Popen(
        [sys.executable, "-c", script, str(write_config(raw_config)), str(logs)],
        cwd=ROOT,
        env=launcher.environment(threads=1),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    records = tmp_path / "run/metrics.jsonl"
    family = []
    try:
        until(lambda: records.is_file() and records.stat().st_size, "no step")
        family = parent.children(recursive=True)
        assert family
        parent.kill()  # it stays a zombie, whose number is still there
        _, alive = psutil.wait_procs(family, timeout=40)
        assert not alive, (logs / "a.txt").read_text()
    finally:
        for process in (parent, *family):
            if process.is_running():
                process.kill()
        parent.wait()
    assert "--resume goes on from step-" in (logs / "a.txt").read_text()
    assert (tmp_path / "run/checkpoints/latest").is_file()
    with at_work(tmp_path / "run"):
        pass


LOGS = {
    "fdpo train: the disk is full": "fdpo train: the disk is full\ntrain:  10% 3/30 [00:02<00:10, 1.1it/s, loss 0.6]\n",
    "ValueError: no": "Traceback (most recent call last):\n  File\nValueError: no\ntrain: 3it [00:02, 1.1it/s]\n",
    "fdpo train: no folder": "fdpo train: no folder\nE1127 torch.distributed.elastic.multiprocessing failed\nfoo\n"
    "torch.distributed.elastic.multiprocessing.errors.ChildFailedError: \n",
    "torch.OutOfMemoryError: all gone": "loading the base\ntorch.OutOfMemoryError: all gone\n  in a frame\n",
    "loading the base": "loading the base\ncaching pairs: 100% 30/30 [00:00<00:00, 563.68 rows/s]\n",
    "nothing was said": "\n \n",
}


@pytest.mark.parametrize(("words", "log"), LOGS.items())
def test_the_reason_is_the_last_error_and_no_bar(tmp_path, words, log):
    (tmp_path / "a.txt").write_text(log)
    assert _reason(tmp_path / "a.txt", "train", 1) == words
    assert _reason(tmp_path / "a.txt", "train", -signal.SIGKILL) == f"ended by SIGKILL; the last of it was: {words}"


def test_every_start_has_a_log_of_its_own(tmp_path):
    assert [_new(tmp_path, "alpha0.3").name for _ in range(3)] == ["alpha0.3.txt", "alpha0.3-2.txt", "alpha0.3-3.txt"]
    assert _new(tmp_path, "b").name == "b.txt"


def test_a_run_waits_for_one_of_the_comparison_before(tmp_path, monkeypatch):
    script = f"""
import sys, time
from pathlib import Path
from fdpo_fast.training.lock import at_work
with at_work(Path({str(tmp_path)!r})):
    print("at work", flush=True)
    time.sleep(1)
"""
    other = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, cwd=ROOT)
    assert other.stdout.readline()
    monkeypatch.setenv(FOLLOWED, "1")
    with at_work(tmp_path):
        assert other.wait(timeout=1) == 0
    other.stdout.close()


@pytest.mark.parametrize(("jobs", "threads"), [(1, "6"), (2, "3"), (9, "1")])
def test_commands_share_out_the_threads_that_were_given(tmp_path, monkeypatch, jobs, threads):
    """A crew within a crew has its share of a share, whatever the machine has."""
    started = []

    class Started(subprocess.Popen):
        def __init__(self, *arguments, env, **options):
            started.append(env["OMP_NUM_THREADS"])
            super().__init__(*arguments, env=env, **options)

    monkeypatch.setattr(subprocess, "Popen", Started)
    monkeypatch.setattr("torch.get_num_threads", lambda: 6)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    with progress(total=1, desc="keys") as bar:
        Crew(tmp_path, jobs).run(bar, "keys", ("config", ["--explain", "loss.beta"]))
    assert started == [threads]
