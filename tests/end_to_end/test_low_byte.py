"""Training with 24-bit weights: a byte beside each bf16 weight, under any ZeRO stage, in checkpoints and in exports."""

import math
from pathlib import Path

import pytest
import torch

from fdpo_fast.optim.low_byte import joined, split
from tests.helpers.training import run_of, weights

MASTERS = {"enabled": True, "bf16_master_weights_and_grads": True}


def wide(raw, folder, stage=0, ranks=1, device=None, kept="bf16+8", **train):
    section = {"stage": stage, "stage3_param_persistence_threshold": 100, "sub_group_size": 100_000}
    if device:
        section["offload_optimizer"] = {"device": device}
        if stage == 3:
            section["offload_param"] = {"device": device}
    raw = run_of(raw, folder, bf16=MASTERS if stage else {"enabled": False}, zero_optimization=section)
    raw["train"] |= {"pairs_per_micro_batch": 2 // ranks, **train}
    raw["optimizer"] |= {"weights": kept, "lr": 1e-4}
    return raw


def inside(raw, folder, **options):
    raw = wide(raw, folder, pairs_per_step=2, step_in_backward=True, **options)
    raw["optimizer"]["clipping"] = "per_parameter"
    return raw | {"deepspeed": {}}


def newest(raw):
    return Path(raw["train"]["output_dir"]) / "checkpoints/step-000006"


def lows_in(state):
    return [own["low"] for own in state["state"].values()]


def marked(*case):
    return pytest.param(*case, marks=[] if case in ((0, None, 1), (2, "cpu", 1)) else pytest.mark.slow)


CASES = [marked(*case) for case in [(0, None, 1), (0, None, 2), (1, "cpu", 1), (2, None, 1), (3, None, 1)]]
CASES += [marked(stage, "cpu", ranks) for stage in (2, 3) for ranks in (1, 2)]


@pytest.mark.parametrize(("stage", "device", "ranks"), CASES)
def test_a_resumed_run_is_the_same_run(raw_config, launch, read_metrics, tmp_path, stage, device, ranks):
    runs = []
    for name, steps in (("whole", [6]), ("parts", [3, 6])):
        raw = wide(raw_config, tmp_path / name, stage, ranks, device)
        for part, until in enumerate(steps):
            raw["train"]["max_steps"] = until
            launch(raw, *(["--resume"] if part else []), ranks=ranks)
        assert all(math.isfinite(record["loss"]) for record in read_metrics(raw))
        runs.append(weights(raw))
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    lows = torch.cat([split(weight, None)[1].flatten() for weight in runs[0].values()])
    assert all(torch.equal(joined(*split(weight, None)), weight) for weight in runs[0].values())  # 24 bits, no more
    assert (lows != 0).float().mean() > 0.5


@pytest.mark.parametrize("stage", [0, pytest.param(1, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)])
def test_the_export_is_what_the_optimizer_has(raw_config, launch, tmp_path, stage):
    raw = wide(raw_config, tmp_path / "run", stage)
    launch(raw)
    exported = weights(raw)
    (file,) = newest(raw).glob("*mp_rank_00_model_states.pt")
    module = torch.load(file, weights_only=False)
    names = [name for shapes in module["param_shapes"] or [module["module"]] for name in shapes if name in exported]
    if stage == 0:
        lows, held = lows_in(module["optimizer"]), [module["module"][name] for name in names]
        assert all(torch.equal(exported[n], joined(w, low)) for n, w, low in zip(names, held, lows, strict=True))
        return
    (file,) = newest(raw).glob("*zero_pp_rank_0_mp_rank_00_optim_states.pt")
    state = torch.load(file, weights_only=False)["optimizer_state_dict"]
    own = state.get("base_optimizer_state") or state["optimizer_state_dict"]
    flat = torch.cat(lows_in(own))
    bytes_of = torch.cat([split(exported[name], None)[1].flatten() for name in names])
    if stage == 3:  # a sub-group after the other, in the same order
        assert flat.numel() == bytes_of.numel()
    assert torch.equal(flat[: bytes_of.numel()], bytes_of)
    assert not flat[bytes_of.numel() :].any()


@pytest.mark.slow
@pytest.mark.parametrize("stage", [0, 2, 3])
def test_the_average_is_of_24_bits(raw_config, launch, tmp_path, stage):
    """One that forgets at once is the weights, which bf16 does not hold."""
    ends = []
    for name, decay in (("weights", None), ("average", 1e-9)):
        raw = wide(raw_config, tmp_path / name, stage, ranks=2 if stage else 1, ema_decay=decay)
        launch(raw, ranks=2 if stage else 1)
        ends.append(weights(raw))
    for name in ends[0]:
        torch.testing.assert_close(ends[1][name], ends[0][name], rtol=2**-22, atol=1e-9)


def test_steps_inside_backward_resume(raw_config, launch, tmp_path):
    ends = []
    for name, steps in (("whole", [6]), ("parts", [3, 6])):
        raw = inside(raw_config, tmp_path / name)
        for part, until in enumerate(steps):
            raw["train"]["max_steps"] = until
            launch(raw, *(["--resume"] if part else []))
        ends.append(weights(raw))
    assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])


@pytest.mark.parametrize("stage", [0, pytest.param(2, marks=pytest.mark.slow), pytest.param(3, marks=pytest.mark.slow)])
def test_a_checkpoint_of_plain_weights_goes_on_with_24_bits_and_back(raw_config, launch, tmp_path, stage):
    raw = wide(raw_config, tmp_path / "run", stage, kept="plain", max_steps=2)
    del raw["optimizer"]["weights"]
    launch(raw)
    raw["train"]["max_steps"] = 4
    raw["optimizer"]["weights"] = "bf16+8"
    said = launch(raw, "--resume").stdout
    assert 'optimizer.weights: "plain" -> "bf16+8"' in said
    assert any(not torch.equal(weight.bfloat16().float(), weight) for weight in weights(raw).values())
    raw["train"]["max_steps"] = 6
    raw["optimizer"]["weights"] = "plain"
    launch(raw, "--resume")
    assert all(torch.equal(weight.bfloat16().float(), weight) for weight in weights(raw).values())
