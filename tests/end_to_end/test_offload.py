"""ZeRO with bf16 masters: the same steps from fewer bytes."""

import json
import math
import os
import subprocess
import sys

import pytest
import torch

from fdpo_fast.config.run import Config
from fdpo_fast.memory.ladder import RUNGS, on_rung
from tests.helpers import ROOT
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


@pytest.mark.parametrize("name", [pytest.param(n, marks=[] if n == "D" else pytest.mark.slow) for n in RUNGS])
def test_every_rung_trains(raw_config, launch, read_metrics, tmp_path, name):
    raw = run_of(raw_config, tmp_path / name)
    launch(json.loads(on_rung(Config.model_validate(raw), name, 1).dumps()))
    records = read_metrics(raw)
    assert len(records) == 6
    assert all(math.isfinite(record["loss"]) for record in records)
    assert all(("grad_norm" in record) == (name != "B") for record in records)
    assert records[-1]["margin"] != 0


# Run in a process of its own: training, in which `share` is what the first line makes of it.
SCRIPT = """
import sys
from unittest.mock import patch
import torch
from fdpo_fast import train
from fdpo_fast.optim import zero as ours

share, own_split = ours.share, ours.split

def checked(zero):
    share(zero)
    storage = lambda tensor: tensor.untyped_storage().data_ptr()
    if hasattr(zero, "fp32_partitioned_groups_flat"):
        masters, flat = zero.fp32_partitioned_groups_flat, zero.fp16_partitioned_groups_flat
        assert len(masters) > 1
        assert {storage(master.grad) for master in masters} == {storage(zero.grad_partitions_flat_buffer)}
        assert [master.data_ptr() for master in masters] == [weights.data_ptr() for weights in flat]
    else:
        master, = zero.single_partition_of_fp32_groups
        buffer, = zero.param_buffer_of_bit16_for_cpu_offload_groups
        assert storage(master) == storage(buffer) == storage(zero.bit16_groups_flat[0])
    print("checked")

def split(module, settings, device):
    # weights are never moved together, and lie where they are offloaded to
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    with patch.object(torch.nn.Module, "to", side_effect=AssertionError("moved as a whole")):
        own_split(module, settings, device)
    for name, parameter in module.named_parameters():
        assert parameter.numel() == 0 and parameter.ds_tensor.device.type == "cpu"
        assert torch.equal(parameter.ds_tensor[: before[name].numel()], before[name].flatten())
    print("split")

def apart(zero):
    ours._be = lambda tensor, other: None
    share(zero)

ours.split = split
ours.share = {"checked": checked, "apart": apart}[sys.argv.pop(1)]
train.main(sys.argv[1:])
"""


@pytest.mark.parametrize("stage", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_shared_memory_gives_the_same_weights(raw_config, write_config, tmp_path, stage):
    ends = {}
    for name in ("checked", "apart"):
        raw = lean(raw_config, tmp_path / name, stage, 1)
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, name, "--config", str(write_config(raw))],
            cwd=ROOT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert ("checked" in done.stdout.split()) == (name == "checked")
        assert ("split" in done.stdout.split()) == (stage == 3)
        ends[name] = weights(raw)
    assert all(torch.equal(ends["checked"][name], ends["apart"][name]) for name in ends["apart"])
