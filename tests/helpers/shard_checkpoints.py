"""What ranks save of an optimizer of DTensors, and what becomes of it where it is loaded."""

import copy
from itertools import combinations

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint import DefaultLoadPlanner
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

from fdpo_fast import AdamW8bit
from tests.helpers.shards import EVEN, OPTIONS, UNEVEN, made, mesh, same, stepped, whole


def resumes(folder, shapes, dtype, weights="plain"):
    """Saved by torch.distributed.checkpoint and loaded into a fresh optimizer, a run goes on as it would have."""
    with mesh():
        model, optimizer = made(shapes, dtype, weights=weights)
        stepped(model, optimizer, shapes, dtype, range(2))
        saved, states = get_state_dict(model, optimizer)
        dcp.save({"model": saved, "optimizer": states}, checkpoint_id=folder)
        stepped(model, optimizer, shapes, dtype, (2, 3))

        again, fresh = made(shapes, dtype, seed=77, lr=0.5, weights=weights)
        loaded(folder, again, fresh)
        assert fresh.param_groups[0]["seed"] == OPTIONS["seed"]
        stepped(again, fresh, shapes, dtype, (2, 3))
        assert same(model, again)
        for weight, other in zip(model.parameters(), again.parameters(), strict=True):
            for name, value in optimizer.state[weight].items():
                back = fresh.state[other][name]
                assert torch.equal(whole(value), whole(back)) if isinstance(value, DTensor) else value == back, name


def loaded(folder, model, optimizer, planner=None):
    weights, states = get_state_dict(model, optimizer)
    content = {"model": weights, "optimizer": states}
    dcp.load(content, checkpoint_id=folder, planner=planner)
    set_state_dict(model, optimizer, model_state_dict=content["model"], optim_state_dict=content["optimizer"])


def begins_low_bytes(folder, of_before):
    """24-bit weights go on from a checkpoint of plain ones, or of before there was the option, with bytes of zero."""
    dtype = torch.bfloat16
    with mesh():
        model, optimizer = made(EVEN, dtype)
        stepped(model, optimizer, EVEN, dtype, range(2))
        weights, states = get_state_dict(model, optimizer)
        if of_before:
            for group in states["param_groups"]:
                del group["weights"]
        dcp.save({"model": weights, "optimizer": states}, checkpoint_id=folder)

        again, fresh = made(EVEN, dtype, seed=77, weights="bf16+8")
        loaded(folder, again, fresh, DefaultLoadPlanner(allow_partial_load=True))
        assert same(model, again)
        alone, reference = made(EVEN, dtype, split=False)
        stepped(alone, reference, EVEN, dtype, range(2))
        assert same(again, alone)
        assert fresh.param_groups[0]["weights"] == ("bf16+8" if of_before else "plain")  # as saved, where it was
        for by in (fresh, reference):
            by.param_groups[0]["weights"] = "bf16+8"
        stepped(again, fresh, EVEN, dtype, (2, 3))
        stepped(alone, reference, EVEN, dtype, (2, 3))
        assert same(again, alone)
        for weight, other in zip(again.parameters(), alone.parameters(), strict=True):
            assert torch.equal(whole(fresh.state[weight]["low"]), reference.state[other]["low"])


def takes_no_low_bytes(folder):
    """An optimizer of plain weights asks a checkpoint for no low bytes: 24-bit weights begin anew at zero."""
    dtype = torch.bfloat16
    with mesh():
        model, optimizer = made(EVEN, dtype, weights="bf16+8")
        stepped(model, optimizer, EVEN, dtype, range(2))
        weights, states = get_state_dict(model, optimizer)
        dcp.save({"model": weights, "optimizer": states}, checkpoint_id=folder)
        again, fresh = made(EVEN, dtype)
        loaded(folder, again, fresh)
        for weight in model.parameters():
            optimizer.state[weight]["low"].zero_()
        stepped(model, optimizer, EVEN, dtype, (2,))
        stepped(again, fresh, EVEN, dtype, (2,))
        assert same(model, again)
        for weight, other in zip(model.parameters(), again.parameters(), strict=True):
            assert torch.equal(whole(optimizer.state[weight]["low"]), whole(fresh.state[other]["low"]))


def saves(folder, shapes):
    with mesh():
        model, optimizer = made(shapes, torch.float32)
        stepped(model, optimizer, shapes, torch.float32, range(2))
        weights, states = get_state_dict(model, optimizer)
        dcp.save({"model": weights, "optimizer": states}, checkpoint_id=folder)


def refuses_other_ranks(folder, shapes, says):
    """States that were split over another number of ranks are not taken for this one's."""
    with mesh():
        model, optimizer = made(shapes, torch.float32)
        with pytest.raises((ValueError, dcp.api.CheckpointException), match=says):
            loaded(folder, model, optimizer)


def both_ways(folder):
    """fully_shard around tensor parallelism, whose placement is one of its own: all parts have their own bits."""
    with mesh():
        grid = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))

        def made():
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(300, 40, bias=False)).bfloat16()
            nn.init.constant_(model[0].weight, 0.75)
            parallelize_module(model, grid["tensor"], {"0": ColwiseParallel()})
            fully_shard(model, mesh=grid["data"])
            return model, AdamW8bit(model.parameters(), lr=1e-4, min_8bit_size=0, seed=5)

        def step(model, optimizer, times):
            for _ in range(times):
                model[0].weight.grad = torch.ones_like(model[0].weight)
                optimizer.step()

        model, optimizer = made()
        step(model, optimizer, 1)
        parts = whole(model[0].weight).chunk(4)
        assert not any(torch.equal(a, b) for a, b in combinations(parts, 2))
        assert optimizer.state[model[0].weight]["absmax1"].shape == (4 * 12,)  # 3000 elements on each rank
        weights, states = get_state_dict(model, optimizer)
        dcp.save({"model": weights, "optimizer": states}, checkpoint_id=folder)
        step(model, optimizer, 2)
        again, fresh = made()
        loaded(folder, again, fresh)
        step(again, fresh, 2)
        assert same(model, again)


def gathered():
    """Whole states that were gathered from parts go back to as many ranks, and not into a whole parameter."""
    with mesh():
        shapes, whole_states = [(2, 500)], StateDictOptions(full_state_dict=True)
        model, optimizer = made(shapes, torch.float32)
        stepped(model, optimizer, shapes, torch.float32, range(2))
        weights, states = get_state_dict(model, optimizer, options=whole_states)
        assert not isinstance(states["state"]["weights.0"]["state1"], DTensor)
        _, reference = made(shapes, torch.float32, split=False)
        with pytest.raises(ValueError, match="were split as '0:2', it is split as 'a whole'"):
            reference.load_state_dict(
                {"state": {0: states["state"]["weights.0"]}, "param_groups": reference.state_dict()["param_groups"]}
            )
        again, fresh = made(shapes, torch.float32)
        set_state_dict(again, fresh, model_state_dict=weights, optim_state_dict=states, options=whole_states)
        for trained, by in ((model, optimizer), (again, fresh)):
            stepped(trained, by, shapes, torch.float32, (2, 3))
        assert same(model, again)


def own_state_dict():
    """The optimizer's own state_dict of a rank goes on on that rank, and can be copied."""
    with mesh():
        model, optimizer = made(UNEVEN, torch.float32)
        stepped(model, optimizer, UNEVEN, torch.float32, range(2))
        weights, states = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
        stepped(model, optimizer, UNEVEN, torch.float32, (2, 3))
        again, fresh = made(UNEVEN, torch.float32)
        again.load_state_dict(weights)
        fresh.load_state_dict(states)
        stepped(again, fresh, UNEVEN, torch.float32, (2, 3))
        assert same(model, again)


def takes_copies():
    """Two optimizers that share a state dict do not step each other's states, unless they are told to take them."""
    with mesh():
        model, optimizer = made(EVEN, torch.bfloat16, weights="bf16+8")
        stepped(model, optimizer, EVEN, torch.bfloat16, range(2))
        before = copy.deepcopy(optimizer.state_dict()["state"])
        for wanted in (True, False):
            again, fresh = made(EVEN, torch.bfloat16, weights="bf16+8")
            fresh.load_state_dict(optimizer.state_dict(), copy=wanted)
            stepped(again, fresh, EVEN, torch.bfloat16, (5,))
            for number, state in optimizer.state_dict()["state"].items():
                for name in ("state1", "absmax1", "state2", "absmax2", "low"):
                    kept = torch.equal(state[name].to_local(), before[number][name].to_local())
                    assert kept == wanted, (number, name)
