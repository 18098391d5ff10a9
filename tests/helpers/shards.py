"""What ranks do to an optimizer of DTensors, each beside the same optimizer of whole tensors."""

from contextlib import contextmanager

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

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
