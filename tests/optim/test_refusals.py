"""What AdamW8bit refuses at a step, before anything has moved, and what it takes beside it."""

import copy
from functools import partial

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fdpo_fast import AdamW8bit
from tests.helpers.optimizers import BACKENDS, parameter
from tests.helpers.wrappers import Named, Wrapper, fake

N = 5000


def freed(tensor):
    tensor = tensor.clone()
    tensor.untyped_storage().resize_(0)
    return tensor


def strided(tensor):
    return torch.stack([tensor, tensor], 1)[:, 0]


def fresh(device="cpu", dtype=torch.float32):
    generator = torch.Generator("cpu").manual_seed(0)
    return parameter(torch.randn(N, generator=generator, dtype=torch.float32).to(device, dtype))


class Pair:
    """Two parameters behind a step, of which the second gets something that is wrong."""

    def __init__(self, backend, device):
        self.parameters = [fresh(device), fresh(device)]
        for p in self.parameters:
            p.grad = torch.ones_like(p)
        self.optimizer = AdamW8bit(self.parameters, backend=backend)
        self.optimizer.step()

    @property
    def state(self):
        return self.optimizer.state[self.parameters[1]]

    def refuses(self, error, says="", step=None):
        good = self.parameters[0]
        weights = [p.detach().clone() for p in self.parameters]
        before = copy.deepcopy(self.optimizer.state[good])
        with pytest.raises(error, match=says):
            (step or self.optimizer.step)()
        assert all(torch.equal(*pair) for pair in zip(self.parameters, weights, strict=True))
        for name, value in self.optimizer.state[good].items():
            same = torch.equal if isinstance(value, torch.Tensor) else int.__eq__
            assert same(value, before[name]), name


STATES = {
    "meta": lambda t: t.to("meta"),
    "fake": fake,
    "wrapper": Wrapper,
    "bfloat16": torch.Tensor.bfloat16,
    "half": torch.Tensor.half,
    "double": torch.Tensor.double,
    "int": torch.Tensor.int,
    "shorter": lambda t: t[:-1].clone(),
    "longer": lambda t: torch.cat([t, t[:1]]),
    "empty": lambda t: t[:0].clone(),
    "strided": strided,
    "expanded": lambda t: t[:1].expand(len(t)),
    "sparse": torch.Tensor.to_sparse,
    "freed": freed,
    "list": torch.Tensor.tolist,
    "None": lambda t: None,
    "negated": lambda t: torch._neg_view(t.float()),
}


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("name", ["state1", "state2", "absmax1", "absmax2"])
@pytest.mark.parametrize("kind", [*STATES, "missing"])
def test_a_state_that_is_none(backend, device, name, kind):
    pair = Pair(backend, device)
    state = pair.state.pop(name)
    if kind != "missing":
        pair.state[name] = STATES[kind](state)
    pair.refuses(ValueError, "states|the state of parameter 1 has no memory")
    pair.state[name] = state
    pair.optimizer.step()
    assert [pair.optimizer.state[p]["step"] for p in pair.parameters] == [2, 2]


@pytest.mark.parametrize("step", [None, 1.0, [1], torch.tensor(1), torch.tensor([1.0, 2.0], dtype=torch.float32)])
def test_a_step_that_is_no_int(step):
    pair = Pair("cpp", "cpu")
    pair.state["step"] = step
    pair.refuses(ValueError, r"a parameter's state counts its steps by \w+, not int")


def test_single_states_are_looked_at_too():
    p = parameter(torch.ones(100, dtype=torch.float32))
    optimizer = AdamW8bit([p])
    p.grad = torch.ones_like(p)
    optimizer.step()
    good = optimizer.state[p]["state2"]
    for kind in ("meta", "bfloat16", "shorter", "freed", "list"):
        optimizer.state[p]["state2"] = STATES[kind](good)
        with pytest.raises(ValueError, match="state"):
            optimizer.step()


GRADIENTS = {
    "another shape of as many": (lambda g: g.reshape(50, 100), ValueError, "has shape"),
    "longer": (lambda g: torch.cat([g, g]), ValueError, "has shape"),
    "double": (torch.Tensor.double, TypeError, "gradients must be dense"),
    "int": (torch.Tensor.int, TypeError, "gradients must be dense"),
    "complex": (torch.Tensor.cfloat, TypeError, "gradients must be dense"),
    "float8": (lambda g: g.to(torch.float8_e4m3fn), TypeError, "gradients must be dense"),
    "sparse": (torch.Tensor.to_sparse, TypeError, "gradients must be dense"),
    "compressed": (lambda g: g.reshape(50, 100).to_sparse_csr(), TypeError, "gradients must be dense"),
    "meta": (lambda g: g.to("meta"), ValueError, "gradient of parameter 1"),
    "fake": (fake, TypeError, "is a FakeTensor, which wraps others"),
    "wrapper": (Wrapper, TypeError, "is a Wrapper, which wraps others"),
    "freed": (freed, ValueError, "the gradient of parameter 1 has no memory"),
}


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("kind", list(GRADIENTS))
@pytest.mark.parametrize("whole", [True, False])
def test_a_gradient_that_is_none(backend, device, kind, whole):
    pair, (make, error, says) = Pair(backend, device), GRADIENTS[kind]
    good, bad = pair.parameters
    grad = make(torch.ones_like(bad))
    step = partial(pair.optimizer.step_by, {good: torch.ones_like(good), bad: grad})
    if whole:
        step = None
        if hasattr(bad, "grad_dtype"):
            bad.grad_dtype = None
        try:
            bad.grad = grad
        except (RuntimeError, TypeError):
            return  # torch itself does not let it be a parameter's gradient
    pair.refuses(error, says, step)


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize(
    "make",
    [lambda g: g.as_subclass(Named), strided, lambda g: g[:1].expand(N), lambda g: torch._neg_view(-g)],
    ids=["subclass", "strided", "expanded", "negated"],
)
def test_gradients_that_lie_otherwise_are_taken(backend, device, make):
    one, other = (Pair(backend, device) for _ in range(2))
    grad = torch.full((N,), 0.5, dtype=torch.float32, device=device)
    for pair, grads in ((one, [grad, make(grad)]), (other, [grad, grad])):
        for p, of in zip(pair.parameters, grads, strict=True):
            p.grad = of
        pair.optimizer.step()
    assert torch.equal(one.parameters[1], other.parameters[1])


def test_a_parameter_that_is_moved_to_another_dtype():
    pair = Pair(None, "cpu")
    pair.parameters[1].data = pair.parameters[1].data.double()
    pair.parameters[1].grad = torch.ones_like(pair.parameters[1])
    pair.refuses(TypeError, "parameters must be float32, bfloat16 or float16, got torch.float64")


def test_a_backend_that_takes_no_such_device_counts_no_step():
    pair = Pair("cpp", "cpu")
    pair.optimizer._backend = "nowhere"
    pair.refuses(ValueError, "unknown backend")


def test_parameters_without_memory():
    for made in (
        torch.nn.Parameter(torch.ones(3, dtype=torch.float32, device="meta")),
        torch.nn.Parameter(Wrapper(torch.ones(3, dtype=torch.float32))),
    ):
        optimizer = AdamW8bit([made])
        made.grad = torch.ones_like(made)
        with pytest.raises(TypeError, match="has no memory of its own to step"):
            optimizer.step()
        assert not optimizer.state
    with FakeTensorMode():
        p = torch.nn.Parameter(torch.ones(3, dtype=torch.float32))
        p.grad = torch.ones_like(p)
        with pytest.raises(TypeError, match="has no memory of its own to step"):
            AdamW8bit([p]).step()


FROZEN = [torch.uint8, torch.int8, torch.float8_e4m3fn, torch.float64, torch.bool]


@pytest.mark.parametrize("dtype", FROZEN)
def test_frozen_parameters_of_other_dtypes_are_left_alone(dtype):
    """Those of quantised weights, which torch takes into a group as well."""
    p, frozen = fresh(), torch.nn.Parameter(torch.ones(7, dtype=torch.float32).to(dtype), requires_grad=False)
    optimizer = AdamW8bit([frozen, p])
    p.grad = torch.ones_like(p)
    before = p.detach().clone()
    optimizer.step()
    assert not torch.equal(p, before)
    assert frozen not in optimizer.state or not optimizer.state[frozen]
    assert (frozen.float() == 1).all()
    optimizer.add_param_group({"params": [torch.nn.Parameter(frozen.clone(), requires_grad=False)]})
    optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float8_e4m3fn, torch.complex64])
def test_others_that_need_a_gradient_are_refused(dtype):
    with pytest.raises(TypeError, match="parameters must be float32, bfloat16 or float16"):
        AdamW8bit([torch.nn.Parameter(torch.ones(7, dtype=torch.float32).to(dtype))])
    thawed = torch.nn.Parameter(torch.ones(7, dtype=torch.float32).to(dtype), requires_grad=False)
    optimizer = AdamW8bit([thawed])
    thawed.requires_grad_()
    thawed.grad = torch.ones(7, dtype=torch.float32).to(dtype)
    with pytest.raises(TypeError, match="must be"):
        optimizer.step()


def test_several_optimizers_share_bits_unless_their_seeds_differ():
    """One for each parameter, as hooks inside backward are often written."""
    ends = []
    for seed in (0, 0, 1):
        p = parameter(torch.full((N,), 0.75, dtype=torch.bfloat16))
        optimizer = AdamW8bit([p], lr=1e-4, seed=seed)
        p.grad = torch.ones_like(p)
        optimizer.step()
        ends.append(p.detach())
    assert torch.equal(ends[0], ends[1])
    assert not torch.equal(ends[0], ends[2])
    assert "need a seed each" in " ".join(AdamW8bit.__doc__.split())
