"""Shared fixtures: the embedded pipeline made with a handful of steps, and a run configuration over it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import hypothesis
import pytest
import torch

from benchmarks import launcher
from tests.helpers import RECIPE, ROOT, TOLD

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # read by Triton at its import

# How long a case takes is the machine's business, and no test's. The same cases are drawn every time, so that what
# fails is the change at hand; `--hypothesis-profile explore` draws others.
hypothesis.settings.register_profile("explore", deadline=None)
hypothesis.settings.register_profile("same", deadline=None, derandomize=True)
hypothesis.settings.load_profile("same")

# Tiny tensors gain nothing from threads, which wait for one another by spinning; what may depend on them sets them.
torch.set_num_threads(1)


def pytest_addoption(parser):
    parser.addoption("--record", action="store_true", help="record the golden curves of this machine")
    parser.addoption("--default-dtype", metavar="NAME", help="torch's default dtype in all tests, such as bfloat16")


def pytest_configure(config):
    if name := config.getoption("--default-dtype"):
        torch.set_default_dtype(getattr(torch, name))


@pytest.hookimpl(tryfirst=True)  # before `-m` chooses
def pytest_collection_modifyitems(items):
    """What runs on the GPU where there is one belongs to `-m gpu`; where there is none, that lane says so."""
    cuda = torch.cuda.is_available()
    for item in items:
        if cuda and "triton_device" in getattr(item, "fixturenames", ()):
            item.add_marker("gpu")
        elif not cuda and item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(autouse=True)
def environment():
    """What a test leaves in the environment, such as a rank's number, would be another's launcher."""
    with patch.dict(os.environ):
        yield


@pytest.fixture
def triton_device():
    """Where Triton kernels run: a GPU, or the CPU under the interpreter."""
    return "cuda" if torch.cuda.is_available() else "cpu"


@pytest.fixture(scope="session")
def cache_dir(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def embedded_folder(cache_dir):
    from fdpo_fast.config.schema import DigitsRecipe
    from fdpo_fast.digits.dataset import embedded

    return embedded("digits", DigitsRecipe(**RECIPE), cache_dir)


@pytest.fixture
def raw_config(embedded_folder, cache_dir, tmp_path):
    """A valid configuration as a dict, six steps of four pairs on the embedded pipeline."""
    return {
        "model": {"family": "sd", "base": "digits", "dtype": "fp32"},
        "data": {
            "source": "digits",
            "resolution": 32,
            "cache_dir": str(cache_dir),
            "caption_dropout": 0.2,
            "shard_rows": 16,
            "digits": RECIPE,
        },
        "reference": {"visits": 2},
        "loss": {"divergence": "jensen_shannon", "beta": 1.0, "ratio_scale": 200.0},
        "optimizer": {"lr": 1e-4},
        "train": {
            "output_dir": str(tmp_path / "run"),
            "max_steps": 6,
            "pairs_per_step": 4,
            "pairs_per_micro_batch": 4,
            "checkpoint_every": 3,
        },
        "log": {"every": 2, "tensorboard": False},
    }


@pytest.fixture
def write_config(tmp_path):
    def write(raw):
        path = tmp_path / "config.json"
        path.write_text(json.dumps(raw))
        return path

    return write


@pytest.fixture
def launch(write_config, tmp_path):
    """Run the trainer; returns the finished process, with its output.

    Where only what comes of it counts, one rank runs in this process and several are forked; `own_process` starts it
    as a user does, several ranks through the deepspeed launcher.
    """

    def run(raw, *arguments, ranks=1, own_process=False, check=True):
        from tests.helpers.ranks import forked
        from tests.helpers.training import called

        words = ["--config", str(write_config(raw)), *arguments]
        if own_process:
            start = launcher.deepspeed(ranks) if ranks > 1 else [sys.executable]
            done = subprocess.run(
                [*start, "fdpo_fast/train.py", *words],
                cwd=ROOT,
                env=launcher.environment(threads=1),
                capture_output=True,
                text=True,
                timeout=300,
            )
        else:
            done = called(words) if ranks == 1 else forked(ranks, words, tmp_path / "said")
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    return run


@pytest.fixture
def command(write_config, capsys):
    """Run `fdpo NAME --config ...` in this process; returns what it printed."""
    from fdpo_fast.cli import main

    def run(raw, *words):
        with patch.dict(os.environ):
            main([*words, "--config", str(write_config(raw))])
        return capsys.readouterr().out

    return run


@pytest.fixture
def plan(command):
    """Run `fdpo plan` in this process; returns what it printed."""
    return lambda raw, *options: command(raw, "plan", *options)


@pytest.fixture(scope="session")
def pipelines(tmp_path_factory):
    """Tiny pipelines with random weights, by family."""
    from fdpo_fast.models import FAMILIES
    from fdpo_fast.models.presets import build

    root = tmp_path_factory.mktemp("pipelines")
    return {name: build(f"tiny_{name}", root / name) for name in FAMILIES}


@pytest.fixture
def tiny_config(pipelines, tmp_path):
    """Make a configuration over a tiny pipeline and a source of pairs: six steps of four pairs."""

    def make(family, source):
        return {
            "model": {"family": family, "base": str(pipelines[family]), "dtype": "fp32", **TOLD.get(family, {})},
            "data": {
                "source": str(source),
                "resolution": 64,
                "cache_dir": str(tmp_path / "cache"),
                "caption_dropout": 0.2,
                "shard_rows": 7,
                "encode_batch": 4,
            },
            "reference": {"visits": 2},
            "loss": {"divergence": "jensen_shannon", "beta": 1.0, "ratio_scale": 200.0},
            "optimizer": {"lr": 1e-3},
            "train": {
                "output_dir": str(tmp_path / "run"),
                "max_steps": 6,
                "pairs_per_step": 4,
                "pairs_per_micro_batch": 4,
                "checkpoint_every": 3,
            },
            "log": {"every": 2, "tensorboard": False},
        }

    return make


@pytest.fixture
def read_metrics():
    def read(raw):
        lines = (Path(raw["train"]["output_dir"]) / "metrics.jsonl").read_text().splitlines()
        return [json.loads(line) for line in lines]

    return read
