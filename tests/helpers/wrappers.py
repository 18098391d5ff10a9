"""Tensors that are not what their address says: subclasses, fake tensors, DTensors, the meta device."""

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._pytree import tree_map


class Wrapper(torch.Tensor):
    """A tensor without memory of its own, whose operations run on the one inside."""

    @staticmethod
    def __new__(cls, inner):
        options = {"dtype": inner.dtype, "device": inner.device, "strides": inner.stride()}
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, **options)

    def __init__(self, inner):
        self.inner = inner.detach()

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        args, kwargs = tree_map(unwrapped, (args, kwargs or {}))
        return tree_map(lambda x: cls(x) if type(x) is torch.Tensor else x, function(*args, **kwargs))


class Named(torch.Tensor):
    """A subclass with memory of its own, which changes nothing."""


def unwrapped(x):
    """The tensor inside a `Wrapper`, and anything else as it is."""
    return x.inner if isinstance(x, Wrapper) else x


def fake(tensor):
    return FakeTensorMode().from_tensor(tensor)


def distributed(tensor):
    """A DTensor of one rank, which speaks to nobody; `one_rank` is around it."""
    return DTensor.from_local(tensor, init_device_mesh("cpu", (1,)), [Replicate()], run_check=False)


def one_rank():
    """Be the only rank of a group, as a fixture: of the one that a command in this process has left, or a new one."""
    if dist.is_initialized():
        yield
        return
    dist.init_process_group("fake", rank=0, world_size=1, store=FakeStore())
    yield
    dist.destroy_process_group()


KINDS = {
    "wrapper": Wrapper,
    "named": lambda tensor: tensor.as_subclass(Named),
    "fake": fake,
    "distributed": distributed,
    "meta": lambda tensor: tensor.to("meta"),
}
