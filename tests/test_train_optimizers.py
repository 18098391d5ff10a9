"""The optimizers in the trainer: ZeRO stages, offload, resume, steps that are skipped, steps inside backward."""

import copy
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from fdpo_fast import AdamW8bit
from fdpo_fast.config.errors import UserError
from fdpo_fast.config.load import load
from fdpo_fast.optim.finite import SkipNonFinite
from fdpo_fast.optim.in_backward import StepInBackward


def weights(raw):
    return load_file(Path(raw["train"]["output_dir"]) / "export/unet/diffusion_pytorch_model.safetensors")


def run_of(raw, folder, optimizer="adamw8bit", dtype="bf16", **deepspeed):
    raw = copy.deepcopy(raw)
    raw["train"] |= {"output_dir": str(folder), "pairs_per_micro_batch": 2}
    raw["optimizer"]["type"] = optimizer
    raw["model"]["dtype"] = dtype
    return raw | {"deepspeed": deepspeed}


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


class Agree:
    def __call__(self, tensor):
        return tensor


@pytest.mark.parametrize("make", [torch.optim.AdamW, AdamW8bit])
def test_the_guard_skips_and_counts(make):
    p = torch.nn.Parameter(torch.ones(5000))
    optimizer = make([p], lr=0.1)
    guard = SkipNonFinite(optimizer, Agree())
    for bad in (False, True, True, False, True):
        p.grad = torch.full((5000,), 1.0)
        if bad:
            p.grad[17] = math.nan
        before, grad = p.detach().clone(), p.grad
        optimizer.step()
        guard.end_step(0)
        assert torch.equal(p, before) == bad
        assert p.grad is grad
    assert (guard.skipped, guard.in_a_row) == (3, 1)
    guard.end_step(1)  # DeepSpeed skipped one by itself
    guard.end_step(1)
    assert (guard.skipped, guard.in_a_row) == (4, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_guard_tells_large_gradients_from_infinite_ones(dtype):
    p = torch.nn.Parameter(torch.ones(5000, dtype=dtype))
    optimizer = torch.optim.SGD([p], lr=1e-8)
    guard = SkipNonFinite(optimizer, Agree())
    for value, bad in ((6e4, False), (math.inf, True), (-math.inf, True), (math.nan, True)):
        for place in (0, 17, 4999):
            p.grad = torch.full((5000,), 6e4, dtype=dtype)  # their norm has no place in float16
            p.grad[place] = value
            optimizer.step()
            assert guard.end_step(0) == bad


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("max_norm", [0.0, 0.3, 1e6])
def test_the_guard_clips_the_global_norm(dtype, max_norm):
    torch.manual_seed(0)
    ours = [torch.nn.Parameter(torch.zeros(n, dtype=dtype)) for n in (5000, 7, 300)]
    for p in ours:
        p.grad = torch.randn(p.shape).to(dtype)
    grads = [p.grad.double() for p in ours]
    norm = torch.cat(grads).norm().item()
    optimizer = torch.optim.SGD(ours, lr=1.0)
    guard = SkipNonFinite(optimizer, Agree(), max_norm)
    optimizer.step()
    assert guard.norm.item() == pytest.approx(norm, rel=2e-3 if dtype == torch.bfloat16 else 1e-6)
    factor = min(1.0, max_norm / norm) if max_norm else 1.0
    for p, grad in zip(ours, grads, strict=True):
        rtol = 1e-2 if dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(-p.detach().double(), factor * grad, rtol=rtol, atol=1e-9)


def test_inside_backward_a_gradient_lives_for_its_turn_only():
    torch.manual_seed(0)
    model = torch.nn.Sequential(*(torch.nn.Linear(64, 64, bias=False) for _ in range(4)))
    plain = copy.deepcopy(model)
    alive = []
    inside = StepInBackward(AdamW8bit(model.parameters(), lr=1e-2), model.parameters(), 0.5, Agree())
    for p in model.parameters():
        p.register_post_accumulate_grad_hook(
            lambda _: alive.append(sum(q.grad is not None for q in model.parameters()))
        )
    optimizer, x = AdamW8bit(plain.parameters(), lr=1e-2), torch.randn(8, 64)
    for _ in range(3):
        model(x).square().sum().backward()
        plain(x).square().sum().backward()
        for p in plain.parameters():
            torch.nn.utils.clip_grad_norm_([p], 0.5)
        optimizer.step()
        optimizer.zero_grad()
    assert alive == [0] * 12
    assert not inside.bad()
    for ours, theirs in zip(model.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    (model(x) * math.inf).sum().backward()
    assert inside.bad()
    assert all(p.isfinite().all() for p in model.parameters())


INSIDE = ["train.step_in_backward=true", "optimizer.type=adamw8bit", "optimizer.clipping=per_parameter"]


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        ([*INSIDE, "optimizer.clipping=global"], "cannot clip the global norm"),
        ([*INSIDE, "optimizer.type=adamw"], "needs optimizer.type 'adamw8bit'"),
        ([*INSIDE, "deepspeed.zero_optimization.stage=2"], "needs ZeRO stage 0"),
        ([*INSIDE, "deepspeed.bf16.enabled=true"], "has no fp32 master"),
        ([*INSIDE, "train.pairs_per_micro_batch=2"], "cannot accumulate"),
        (["optimizer.clipping=per_parameter"], "needs train.step_in_backward"),
    ],
)
def test_refusals(raw_config, write_config, overrides, says):
    raw_config["model"]["dtype"] = "bf16"
    with pytest.raises(UserError, match=says) as caught:
        load(write_config(raw_config), overrides).accumulation(1)
    assert "\n" not in str(caught.value)
