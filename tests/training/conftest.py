"""A run with checkpoints, which is gone on with."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture
def run(raw_config, launch, tmp_path, tmp_path_factory):
    """A run of six steps with checkpoints behind 2, 4 and 6, an average, and its configuration; trained once."""
    raw_config["train"] |= {"checkpoint_every": 2, "keep_checkpoints": 3, "ema_decay": 0.5, "pairs_per_micro_batch": 2}
    raw_config["log"]["every"] = 1
    kept, folder = tmp_path_factory.getbasetemp() / "resumption", Path(raw_config["train"]["output_dir"])
    if not kept.exists():
        launch(raw_config)
        shutil.copytree(folder, kept)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(kept, folder)
    return raw_config


@pytest.fixture
def checkpoints(run):
    return Path(run["train"]["output_dir"]) / "checkpoints"


@pytest.fixture
def refused(run, launch):
    """Resume, with options, and return the sentence in which that ends; nothing in the run's folder has changed."""

    def refuse(*options, ranks=1):
        folder = Path(run["train"]["output_dir"])
        before = sorted(path for path in folder.rglob("*") if path.name != "lock")
        done = launch(run, *(options or ["--resume"]), ranks=ranks, check=False)
        assert done.returncode != 0
        lines = [line for line in done.stderr.splitlines() if line.startswith("fdpo train: ")]
        assert len(lines) == ranks
        assert len(set(lines)) == 1
        assert "Traceback" not in done.stderr
        assert sorted(path for path in folder.rglob("*") if path.name != "lock") == before
        return lines[0]

    return refuse
