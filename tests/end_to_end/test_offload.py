"""ZeRO with bf16 masters: the same steps from fewer bytes."""

import json
import math
from unittest.mock import patch

import pytest
import torch

from fdpo_fast.config.run import Config
from fdpo_fast.memory.ladder import RUNGS, on_rung
from fdpo_fast.optim import zero as ours
from tests.helpers.training import run_of, weights

BF16 = {"enabled": True, "bf16_master_weights_and_grads": True}


def lean(raw, folder, stage, ranks, optimizer="adamw8bit", device="cpu"):
    """Two micro-batches a step on each rank, and an average of the weights."""
    section = {"stage": stage, "stage3_param_persistence_threshold": 100, "sub_group_size": 100_000}
    if device:
        section["offload_optimizer"] = {"device": device}
        if stage == 3:
            section["offload_param"] = {"device": device}
    raw = run_of(raw, folder, optimizer, bf16=BF16, zero_optimization=section)
    raw["train"] |= {"pairs_per_micro_batch": 2 // ranks, "ema_decay": 0.5}
    raw["optimizer"]["max_grad_norm"] = 0.1
    return raw


def marked(*case):
    return pytest.param(*case, marks=[] if case == (2, "cpu", 1) else pytest.mark.slow)


CASES = [marked(*case) for case in [(1, "cpu", 1), (2, None, 1), (3, None, 1)]]
CASES += [marked(stage, "cpu", ranks) for stage in (2, 3) for ranks in (1, 2)]


@pytest.mark.parametrize(("stage", "device", "ranks"), CASES)
def test_a_resumed_run_is_the_same_run(raw_config, launch, read_metrics, tmp_path, stage, device, ranks):
    runs = []
    for name, steps in (("whole", [6]), ("parts", [3, 6])):
        raw = lean(raw_config, tmp_path / name, stage, ranks, device=device)
        for part, until in enumerate(steps):
            raw["train"]["max_steps"] = until
            launch(raw, *(["--resume"] if part else []), ranks=ranks)
        assert all(math.isfinite(record["loss"]) for record in read_metrics(raw))
        runs.append(weights(raw))
    assert all(torch.equal(runs[0][name], runs[1][name]) for name in runs[0])
    assert all(weight.isfinite().all() for weight in runs[0].values())


def test_groups_of_parameters_are_small_before_they_are_flat(raw_config, launch, read_metrics, tmp_path):
    """Each is a master of its own, which a resumed run finds again."""
    with patch.object(ours, "GROUP", 2_000), patch.object(ours, "grouped", wraps=ours.grouped) as grouped:
        test_a_resumed_run_is_the_same_run(raw_config, launch, read_metrics, tmp_path, 2, "cpu", 1)
    assert grouped.call_count == 3
    with patch.object(ours, "GROUP", 10):
        sizes = [[p.numel() for p in group["params"]] for group in ours.grouped(map(torch.empty, (4, 6, 1, 11, 9)))]
    assert sizes == [[4, 6], [1], [11], [9]]


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n == "D" else pytest.mark.slow) for n in RUNGS])
def test_every_rung_trains(raw_config, launch, read_metrics, tmp_path, name):
    raw = run_of(raw_config, tmp_path / name)
    launch(json.loads(on_rung(Config.model_validate(raw), name, 1).dumps()))
    records = read_metrics(raw)
    assert len(records) == 6
    assert all(math.isfinite(record["loss"]) for record in records)
    assert all(("grad_norm" in record) == (name != "B") for record in records)
    assert records[-1]["margin"] != 0


def checked(share):
    """`share` with a look at what came of it."""

    def look(zero):
        share(zero)
        if hasattr(zero, "fp32_partitioned_groups_flat"):
            masters, flat = zero.fp32_partitioned_groups_flat, zero.fp16_partitioned_groups_flat
            assert len(masters) > 1
            assert {storage(master.grad) for master in masters} == {storage(zero.grad_partitions_flat_buffer)}
            assert [master.data_ptr() for master in masters] == [weights.data_ptr() for weights in flat]
        else:
            (master,) = zero.single_partition_of_fp32_groups
            (buffer,) = zero.param_buffer_of_bit16_for_cpu_offload_groups
            assert storage(master) == storage(buffer) == storage(zero.bit16_groups_flat[0])
        print("checked")

    return look


def storage(tensor):
    return tensor.untyped_storage().data_ptr()


def watched(split):
    """`split` with a look at the weights: they are never moved together, and lie where they are offloaded to."""

    def look(module, settings, device):
        before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
        with patch.object(torch.nn.Module, "to", side_effect=AssertionError("moved as a whole")):
            split(module, settings, device)
        for name, parameter in module.named_parameters():
            assert parameter.numel() == 0
            assert parameter.ds_tensor.device.type == "cpu"
            assert torch.equal(parameter.ds_tensor[: before[name].numel()], before[name].flatten())
        print("split")

    return look


@pytest.mark.parametrize("stage", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_shared_memory_gives_the_same_weights(raw_config, launch, tmp_path, monkeypatch, stage):
    ends = {}
    monkeypatch.setattr(ours, "split", watched(ours.split))
    for name, (where, change) in {
        "checked": ("share", checked(ours.share)),
        "apart": ("_alias", lambda *_: None),
    }.items():
        raw = lean(raw_config, tmp_path / name, stage, 1)
        with patch.object(ours, where, change):
            said = launch(raw).stdout.split()
        assert ("checked" in said) == (name == "checked")
        assert ("split" in said) == (stage == 3)
        ends[name] = weights(raw)
    assert all(torch.equal(ends["checked"][name], ends["apart"][name]) for name in ends["apart"])
