"""The trainer on every rung of the memory ladder, on the GPU and (slowly) on the CPU: tiny models, bfloat16."""

import json
import math
import subprocess
import sys

import pytest
import torch

from benchmarks import launcher
from benchmarks.full_sdxl import config, prepare
from fdpo_fast.training.records import read_records
from tests.helpers import ROOT
from tests.helpers.training import called, weights_in

DEVICES = [pytest.param("cpu", marks=pytest.mark.slow), pytest.param("cuda", marks=pytest.mark.gpu)]
STEPS = 4


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Make a preset's pipeline with a tiny denoiser, and pairs that are encoded, once."""
    root = tmp_path_factory.mktemp("bases")

    def make(preset):
        if not (root / preset).exists():
            prepare(preset, root / preset)
        return root / preset

    return make


def called_deterministically(words):
    """Run the trainer in this process as `deterministic_train.py` does in its own."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        return called(words)
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.fixture
def train(base, tmp_path):
    """Run the trainer on a device and return (records, exported weights); `ranks`: under DeepSpeed's launcher."""

    def run(device, rung, name, *words, preset="tiny_sdxl", ranks=0, check=True, **changes):
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        raw = config(preset, base(preset), folder, rung)
        raw["train"] |= {"max_steps": STEPS, "checkpoint_every": 2, "keep_checkpoints": 2}
        raw["train"]["pairs_per_step"] = max(1, ranks)
        for path, value in changes.items():
            section, key = path.split("__")
            raw[section][key] = value
        file = folder / "config.json"
        file.write_text(json.dumps(raw))
        words = ["--config", str(file), *words]
        if device == "cpu" and not ranks and not torch.cuda.is_available():
            done = called_deterministically(words)
        else:
            start = launcher.deepspeed(ranks) if ranks else [sys.executable]
            env = launcher.environment(threads=1) | {"CUBLAS_WORKSPACE_CONFIG": ":4096:8"}
            if device == "cpu":
                env["CUDA_VISIBLE_DEVICES"] = ""
            done = subprocess.run(
                [*start, "tests/helpers/deterministic_train.py", *words],
                cwd=ROOT, env=env, capture_output=True, text=True, timeout=300,
            )  # fmt: skip
        if not check:
            return done
        assert done.returncode == 0, done.stdout + done.stderr
        return read_records(folder / "run"), weights_in(folder / "run/export")

    return run


def same(ours, theirs):
    """Whether two exports are equal, bit for bit."""
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)


def starts_at_the_reference(records):
    """Check that policy and reference are the same weights at the first step."""
    assert records[0]["margin"] == 0
    assert records[0]["loss"] == pytest.approx(math.log(2), abs=1e-7)
    assert all(math.isfinite(record["loss"]) for record in records)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("preset", ["tiny_sdxl", "tiny_sd3", "tiny_flux", "tiny_z_image"])
@pytest.mark.parametrize("rung", "ABCD")
def test_a_rung_starts_at_the_reference_and_resumes_the_same(train, base, device, preset, rung):
    records, whole = train(device, rung, "whole", preset=preset)
    starts_at_the_reference(records)
    assert records[-1]["optimizer/noise"] > 1  # so small a rate is rounded to whole steps
    assert not same(whole, weights_in(base(preset)))
    train(device, rung, "parts", preset=preset, train__max_steps=2)
    again, resumed = train(device, rung, "parts", "--resume", preset=preset)
    assert [record["step"] for record in again] == list(range(STEPS))
    assert same(resumed, whole)
    if device == "cuda":
        assert records[-1]["memory_gib"] > 0


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("max_norm", [0.0, 0.01])
def test_the_step_inside_backward_is_the_step_after_it(train, device, max_norm):
    """With a global norm that is bounded, which takes a second backward, too."""
    plain = {"optimizer__max_grad_norm": max_norm, "optimizer__clipping": "global"}
    records, after = train(device, "A", "after", **plain)
    others, inside = train(device, "B", "inside", **plain)
    assert [record["loss"] for record in others] == [record["loss"] for record in records]
    if max_norm:
        assert min(record["grad_norm"] for record in records) > max_norm
        assert [record["grad_norm"] for record in others] == [record["grad_norm"] for record in records]
    assert same(inside, after)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rung", "ABC")
def test_weights_that_stand_still_are_warned_of(train, device, rung):
    records, _ = train(device, rung, "still", optimizer__rounding="nearest")
    told = [words for record in records for words in record.get("warnings", []) if "stand still" in words]
    assert len(told) == 1
    assert records[-1]["optimizer/lost"] > 0.5


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("rung", "AB")
def test_steps_that_are_not_finite_are_skipped_and_end_the_run(train, device, rung):
    done = train(device, rung, "broken", check=False, optimizer__lr=1e38)
    assert done.returncode != 0
    assert "gradients were not finite" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    "ranks",
    [
        1,
        pytest.param(
            2, marks=pytest.mark.skipif(torch.cuda.device_count() == 1, reason="NCCL wants a GPU for each rank")
        ),
    ],
)
def test_ranks_under_the_launcher_take_the_same_steps(train, device, ranks):
    # in float32, since bfloat16 weights are rounded by place in a rank's part, and so tiny a model feels each
    plain = {
        "model__dtype": "fp32",
        "optimizer__type": "adamw",
        "deepspeed__bf16": {"enabled": False},
        "deepspeed__zero_optimization": {"stage": 2},
        "train__pairs_per_step": 2,
    }
    alone, _ = train(device, "A", "alone", **plain)
    records, _ = train(device, "A", "ranks", ranks=ranks, **plain)
    starts_at_the_reference(records)
    for ours, theirs in zip(records, alone, strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("change", ["model__compile", "model__channels_last"])
def test_other_kernels_start_at_the_reference(train, change):
    starts_at_the_reference(train("cuda", "A", "run", **{change: True})[0])


@pytest.mark.gpu
@pytest.mark.parametrize("changes", [{}, {"train__pairs_per_step": 4}, {"model__train": "lora"}])
def test_cuda_graphs_are_the_module_itself(train, changes):
    plain, exported = train("cuda", "A", "plain", **changes)
    changes = changes | {"model__cuda_graphs": True, "model__gradient_checkpointing": "off"}
    graphed, ours = train("cuda", "A", "graphs", **changes)
    starts_at_the_reference(graphed)
    assert [record["loss"] for record in graphed] == [record["loss"] for record in plain]
    assert same(ours, exported)
