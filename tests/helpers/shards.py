"""What ranks do to an optimizer of DTensors, each beside the same optimizer of whole tensors."""

import copy
from contextlib import contextmanager
from itertools import combinations

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module

from fdpo_fast import AdamW8bit

OPTIONS = {"lr": 1e-2, "weight_decay": 0.1, "seed": 3}
EVEN = [(24, 256), (1536,), (96, 16)]  # parts are multiples of 256 elements on two ranks and on three
UNEVEN = [(4, 2000), (1, 5000), (7, 9), (2,)]  # on three ranks: 2, 2, 0 rows; all on the first; 3, 3, 1; one each, none


@contextmanager
def mesh():
    """The ranks, that gloo binds together."""
    dist.init_process_group("gloo")
    try:
        yield init_device_mesh("cpu", (dist.get_world_size(),))
    finally:
        dist.destroy_process_group()


class Weights(nn.Module):
    """A model of tensors with the given shapes."""

    def __init__(self, shapes, dtype):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        drawn = [torch.randn(shape, generator=generator, dtype=torch.float32).to(dtype) for shape in shapes]
        self.weights = nn.ParameterList(drawn)

    def forward(self, x):
        return sum((weight.float() * x).square().sum() for weight in self.weights)


def gradients(shapes, dtype, step):
    generator = torch.Generator().manual_seed(100 + step)
    return [torch.randn(shape, generator=generator, dtype=torch.float32).to(dtype) for shape in shapes]


def stepped(model, optimizer, shapes, dtype, steps):
    """Step with the gradients of each of `steps`, which lie as their parameters do."""
    for step in steps:
        for weight, grad in zip(model.parameters(), gradients(shapes, dtype, step), strict=True):
            whole = isinstance(weight, DTensor)
            weight.grad = distribute_tensor(grad, weight.device_mesh, weight.placements) if whole else grad
        optimizer.step()


def made(shapes, dtype, split=True, **options):
    model = Weights(shapes, dtype)
    if split:
        fully_shard(model)
    return model, AdamW8bit(model.parameters(), **OPTIONS | {"min_8bit_size": 512} | options)


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def same(model, other):
    return all(torch.equal(whole(a), whole(b)) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def steps_as_whole(dtype, backend, weights="plain"):
    """Parts that are multiples of 256: weights and states are those of the optimizer that has no ranks, bit for bit."""
    with mesh():
        model, optimizer = made(EVEN, dtype, backend=backend, weights=weights)
        alone, reference = made(EVEN, dtype, split=False, backend=backend, weights=weights)
        stepped(model, optimizer, EVEN, dtype, range(3))
        stepped(alone, reference, EVEN, dtype, range(3))
        assert all(isinstance(weight, DTensor) for weight in model.parameters())
        assert same(model, alone)
        for weight, other in zip(model.parameters(), alone.parameters(), strict=True):
            state, want = optimizer.state[weight], reference.state[other]
            assert (state["step"], want["step"], want["state1"].dtype) == (3, 3, torch.uint8)
            assert state.keys() - {"shards"} == want.keys() - {"qmap1", "qmap2"}
            for name in want.keys() - {"step", "qmap1", "qmap2"}:
                assert torch.equal(whole(state[name]), want[name]), name


def trains():
    """A forward and a backward of fully_shard, whose gradients are those of one rank where all have the same data."""
    with mesh():
        model, optimizer = made(EVEN, torch.float32)
        alone, reference = made(EVEN, torch.float32, split=False)
        for step in range(3):
            for trained, by in ((model, optimizer), (alone, reference)):
                trained(0.5 + step).backward()
                by.step()
                by.zero_grad()
        assert same(model, alone)


def uneven(dtype, weights="plain"):
    """Parts of any size, some empty: the moments are near those of the whole, and all steps are counted."""
    with mesh():
        model, optimizer = made(UNEVEN, dtype, weights=weights)
        alone, reference = made(UNEVEN, dtype, split=False, weights=weights)
        start = Weights(UNEVEN, dtype)
        stepped(model, optimizer, UNEVEN, dtype, range(4))
        stepped(alone, reference, UNEVEN, dtype, range(4))
        empty = [weight.to_local().numel() == 0 for weight in model.parameters()]
        assert any(empty) == (dist.get_rank() > 0)
        rows = zip(model.parameters(), alone.parameters(), start.parameters(), strict=True)
        for weight, want, before in rows:
            state = optimizer.state[weight]
            assert (state["step"], "low" in state) == (4, weights != "plain")  # on ranks without elements too
            got, moved = whole(weight).float(), (want.float() - before.float()).abs().mean()
            assert (got - want.float()).abs().mean() < 0.05 * moved + (0.01 if dtype == torch.bfloat16 else 0)
        bits = [whole(weight)[:1].flatten()[:8] for weight in model.parameters()]
        assert all(torch.isfinite(row).all() for row in bits)


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


def loaded(folder, model, optimizer):
    weights, states = get_state_dict(model, optimizer)
    content = {"model": weights, "optimizer": states}
    dcp.load(content, checkpoint_id=folder)
    set_state_dict(model, optimizer, model_state_dict=content["model"], optim_state_dict=content["optimizer"])


def saves(folder, shapes):
    with mesh():
        model, optimizer = made(shapes, torch.float32)
        stepped(model, optimizer, shapes, torch.float32, range(2))
        weights, states = get_state_dict(model, optimizer)
        dcp.save({"model": weights, "optimizer": states}, checkpoint_id=folder)
        torch.save(optimizer.state_dict(), f"{folder}/own{dist.get_rank()}.pt")


def refuses_other_ranks(folder, shapes, says):
    """States that were split over another number of ranks are not taken for this one's."""
    with mesh():
        model, optimizer = made(shapes, torch.float32)
        with pytest.raises((ValueError, dcp.api.CheckpointException), match=says):
            loaded(folder, model, optimizer)


def refuses():
    """Gradients and parameters that lie otherwise over the ranks, and states that were not split."""
    with mesh() as ranks:
        shape = (8, 100)
        model, optimizer = made([shape], torch.float32)
        (weight,) = model.parameters()
        before = whole(weight).clone()
        for grad in (
            distribute_tensor(torch.ones(shape), ranks, [Replicate()]),
            distribute_tensor(torch.ones(shape), ranks, [Shard(1)]),
            DTensor.from_local(torch.ones(shape), ranks, [Partial()]),
        ):
            with pytest.raises(ValueError, match=r"the gradient of parameter 0 lies as .*, the parameter as"):
                optimizer.step_by({weight: grad})
        assert torch.equal(whole(weight), before)
        assert not optimizer.state[weight]
        summed = nn.Parameter(DTensor.from_local(torch.ones(shape), ranks, [Partial()]))
        with pytest.raises(ValueError, match="must be split or repeated over ranks, not summed up"):
            AdamW8bit([summed])

        plain = nn.Parameter(torch.ones(shape))
        alone = AdamW8bit([plain])
        with pytest.raises(TypeError, match="the gradient of parameter 0 is a DTensor, which wraps others"):
            alone.step_by({plain: distribute_tensor(torch.ones(shape), ranks, [Shard(0)])})
        with pytest.raises(ValueError, match="lies as a whole, the parameter as"):
            optimizer.step_by({weight: torch.ones(shape)})

        plain.grad = torch.ones(shape)
        alone.step()
        with pytest.raises(ValueError, match="were split as 'a whole', it is split as '0:2'"):
            optimizer.load_state_dict(alone.state_dict())
        stepped(model, optimizer, [shape], torch.float32, range(1))
        with pytest.raises(ValueError, match="the saved states of parameter 0"):
            alone.load_state_dict(optimizer.state_dict())


def columns(backend, kept="plain"):
    """Split by columns as tensor parallelism does: each part by itself, with bits that no other part has."""
    with mesh() as ranks:
        values, grad = torch.zeros(64, 32).bfloat16(), torch.ones(64, 32).bfloat16()
        weight = nn.Parameter(distribute_tensor(values, ranks, [Shard(1)]))
        options = OPTIONS | {"lr": 1e-4, "min_8bit_size": 0, "weights": kept}
        optimizer = AdamW8bit([weight], **options, backend=backend)
        for _ in range(3):
            weight.grad = distribute_tensor(grad, ranks, [Shard(1)])
            optimizer.step()
        state = optimizer.state[weight]
        assert state["state1"].placements == (Shard(1),)
        assert state["absmax1"].shape == (8,)
        left, right = whole(state["low"] if kept != "plain" else weight).chunk(2, 1)
        assert not torch.equal(left, right)  # the same numbers, rounded by other bits
        alone = nn.Parameter(torch.zeros(64, 16).bfloat16())
        reference = AdamW8bit([alone], **options, backend=backend)
        for _ in range(3):
            alone.grad = torch.ones(64, 16).bfloat16()
            reference.step()
        assert torch.equal(left, reference.state[alone]["low"] if kept != "plain" else alone)

        repeated = nn.Parameter(distribute_tensor(torch.ones(600), ranks, [Replicate()]))
        optimizer = AdamW8bit([repeated], min_8bit_size=0)
        repeated.grad = distribute_tensor(torch.ones(600), ranks, [Replicate()])
        optimizer.step()
        assert optimizer.state[repeated]["absmax1"].shape == (3,)
        assert (whole(repeated) < 1).all()


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
