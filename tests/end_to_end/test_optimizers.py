"""The optimizers in the trainer: ZeRO stages, offload, resume, steps that are skipped, steps inside backward."""

import math

import pytest
import torch

from tests.helpers.training import run_of, weights


def zero(stage, offload):
    return {"stage": stage} | ({"offload_optimizer": {"device": "cpu"}} if offload else {})


CASES = [
    pytest.param(stage, offload, ranks, marks=[] if (stage, offload, ranks) == (2, True, 1) else pytest.mark.slow)
    for stage in (0, 1, 2, 3)
    for offload in (False, True)
    for ranks in (1, 2)
    if stage or not offload
]


@pytest.mark.parametrize(("stage", "offload", "ranks"), CASES)
def test_a_resumed_run_is_the_same_run(raw_config, launch, tmp_path, stage, offload, ranks):
    whole = run_of(raw_config, tmp_path / "whole", zero_optimization=zero(stage, offload))
    launch(whole, ranks=ranks)
    parts = run_of(raw_config, tmp_path / "parts", zero_optimization=zero(stage, offload))
    parts["train"]["max_steps"] = 3
    launch(parts, ranks=ranks)
    parts["train"]["max_steps"] = 6
    launch(parts, "--resume", ranks=ranks)
    ours, theirs = weights(parts), weights(whole)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.slow
@pytest.mark.parametrize(("stage", "offload"), [(0, False), (1, True), (2, True), (3, True)])
def test_cpu_adam_stays_selectable(raw_config, launch, read_metrics, tmp_path, stage, offload):
    raw = run_of(raw_config, tmp_path / "run", "cpu_adam", zero_optimization=zero(stage, offload))
    launch(raw)
    assert all(math.isfinite(record["loss"]) for record in read_metrics(raw))


def test_steps_inside_backward_train_like_plain_ones(raw_config, launch, read_metrics, tmp_path):
    """bf16 weights without a master: the same bits, since the same gradients meet the same random bits."""
    ends = {}
    for name, inside, bf16 in (("inside", True, {}), ("plain", False, {"bf16": {"enabled": False}})):
        raw = run_of(raw_config, tmp_path / name, **bf16)
        raw["train"] |= {"pairs_per_micro_batch": 4, "step_in_backward": inside}
        raw["optimizer"]["max_grad_norm"] = 0
        launch(raw)
        assert all(math.isfinite(record["loss"]) for record in read_metrics(raw))
        ends[name] = weights(raw)
    assert all(torch.equal(ends["inside"][name], ends["plain"][name]) for name in ends["plain"])


@pytest.mark.slow
def test_steps_inside_backward_on_two_ranks_and_resumed(raw_config, launch, tmp_path):
    runs = []
    for name, steps in (("whole", [6]), ("parts", [3, 6])):
        raw = run_of(raw_config, tmp_path / name)
        raw["train"] |= {"step_in_backward": True}
        raw["optimizer"]["clipping"] = "per_parameter"
        for part, until in enumerate(steps):
            raw["train"]["max_steps"] = until
            launch(raw, *(["--resume"] if part else []), ranks=2)
        runs.append(weights(raw))
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])


@pytest.mark.parametrize("inside", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_ten_steps_without_a_finite_gradient_end_the_run(raw_config, launch, tmp_path, inside):
    raw = run_of(raw_config, tmp_path / "run")
    raw["train"] |= {"max_steps": 2, "checkpoint_every": 1, "pairs_per_micro_batch": 4, "step_in_backward": inside}
    raw["optimizer"]["clipping"] = "per_parameter" if inside else "global"
    launch(raw)
    raw["train"]["max_steps"] = 40
    raw["optimizer"]["lr"] = 1e38  # the next step destroys the weights, and the one behind it sees that
    raw["log"]["every"] = 4
    done = launch(raw, "--resume", check=False)
    assert done.returncode != 0
    assert "step 12: gradients were not finite for 10 steps in a row" in done.stderr
    assert "the last good checkpoint is" in done.stderr
    assert "checkpoints/step-000002" in done.stderr
    assert done.stdout.count("steps skipped so far, their gradients were not finite") == 3
    raw["optimizer"]["lr"] = 1e-4
    raw["train"]["max_steps"] = 4
    launch(raw, "--resume")
    assert all(weight.isfinite().all() for weight in weights(raw).values())


def test_a_run_that_ends_broken_is_not_exported(raw_config, launch, tmp_path):
    raw = run_of(raw_config, tmp_path / "run")
    raw["train"]["max_steps"] = 4
    raw["optimizer"]["lr"] = 1e38
    done = launch(raw, check=False)
    assert done.returncode != 0
    assert "step 3: gradients were not finite for 3 steps in a row" in done.stderr
    assert not (tmp_path / "run/export").exists()
