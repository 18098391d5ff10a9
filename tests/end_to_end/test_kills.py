"""kill -9 at random moments of every cache stage and of training with checkpoints: resumed, the same files."""

import copy
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers import ROOT
from tests.helpers.pictures import files, noisy_jpeg, write

KILLS = 20
STAGES = {"pairs": 0.03, "latents": 0.4, "text": 0.4, "reference": 0.4}
"""Within how many seconds of its start a stage is killed; that of pairs is over in half a second."""


@pytest.fixture
def raw(tiny_config, tmp_path):
    """Enough pairs and captions that each stage lasts for seconds."""
    rows = [(f"picture {i}", noisy_jpeg(2 * i), noisy_jpeg(2 * i + 1), float(i % 2)) for i in range(160)]
    raw = tiny_config("sdxl", write(tmp_path / "pairs.parquet", rows))
    raw["data"] |= {"shard_rows": 4, "encode_batch": 2}
    return raw


def start(path, module, *arguments):
    return subprocess.Popen(
        [sys.executable, "-m", module, *arguments, "--config", str(path)],
        cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )


def kill_after(process, sign, delay):
    """SIGKILL `delay` seconds after `sign` is printed; False where the process ended before."""
    for line in process.stdout:
        if sign in line:
            time.sleep(delay)
            break
    alive = process.poll() is None
    if alive:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process.stdout.close()
    return alive


def finish(process):
    process.stdout.read()
    assert process.wait() == 0
    process.stdout.close()


def content(folder):
    """Files by name, without the locks, which are empty."""
    return {name: data for name, data in files(folder).items() if not name.endswith(".lock")}


@pytest.mark.slow
def test_caches(raw, write_config, tmp_path):
    whole = copy.deepcopy(raw)
    whole["data"]["cache_dir"] = str(tmp_path / "whole")
    finish(start(write_config(whole), "fdpo_fast.cli", "cache"))
    path = write_config(raw)
    chance, killed = random.Random(0), dict.fromkeys(STAGES, 0)  # noqa: S311
    for kill in range(KILLS):
        stage, patience = list(STAGES.items())[kill * len(STAGES) // KILLS]
        if kill_after(start(path, "fdpo_fast.cli", "cache"), f"caching {stage}", chance.uniform(0, patience)):
            killed[stage] += 1
    print(killed)
    assert all(count >= 2 for count in killed.values())
    finish(start(path, "fdpo_fast.cli", "cache"))
    ours, theirs = content(tmp_path / "cache"), content(tmp_path / "whole")
    assert ours.keys() == theirs.keys()
    assert all(ours[name] == theirs[name] for name in theirs)


@pytest.mark.slow
def test_checkpoints(raw, write_config, tmp_path):
    raw["train"] |= {"max_steps": 60, "checkpoint_every": 2, "ema_decay": 0.9}
    raw["log"]["every"] = 1
    whole = copy.deepcopy(raw)
    whole["train"]["output_dir"] = str(tmp_path / "whole")
    finish(start(write_config(whole), "fdpo_fast.train"))
    path = write_config(raw)
    chance, alive = random.Random(1), 0  # noqa: S311
    for _ in range(8):
        alive += kill_after(start(path, "fdpo_fast.train", "--resume"), "data:", chance.uniform(0.3, 2.5))
    assert alive >= 6
    finish(start(path, "fdpo_fast.train", "--resume"))
    exports = [content(Path(folder) / "export") for folder in (tmp_path / "run", tmp_path / "whole")]
    assert exports[0] == exports[1]
    assert not list((tmp_path / "run").rglob("*.partial"))
