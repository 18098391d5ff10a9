"""The step under torch.compile and tracers, parameters that are views, and hooks around what is loaded."""

import copy

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from fdpo_fast import AdamW8bit
from tests.helpers.optimizers import BACKENDS, OPTIONS, parameter

SIZES = (5000, 33, 700)


class Run:
    def __init__(self, backend=None, device="cpu", dtype=torch.bfloat16):
        generator = torch.Generator("cpu").manual_seed(0)
        drawn = [torch.randn(size, generator=generator, dtype=torch.float32) for size in SIZES]
        self.parameters = [parameter(values.to(device, dtype)) for values in drawn]
        self.optimizer = AdamW8bit(self.parameters, **OPTIONS, min_8bit_size=512, backend=backend)

    def take(self, step, times=5):
        for time in range(times):
            for number, p in enumerate(self.parameters):
                p.grad = torch.full_like(p, 1.0 + time + number)
            step()
        return self

    def equals(self, other):
        assert all(torch.equal(*pair) for pair in zip(self.parameters, other.parameters, strict=True))
        for p, q in zip(self.parameters, other.parameters, strict=True):
            state, want = self.optimizer.state[p], other.optimizer.state[q]
            assert state["step"] == want["step"]
            assert torch.equal(state["state1"], want["state1"])


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_a_compiled_step_is_the_step(backend, device):
    want = Run(backend, device)
    want.take(want.optimizer.step)
    compiled = Run(backend, device)
    compiled.take(torch.compile(compiled.optimizer.step, backend="aot_eager")).equals(want)
    around = Run(backend, device)

    @torch.compile(backend="aot_eager")
    def train():
        around.optimizer.step()
        around.optimizer.zero_grad()

    around.take(train).equals(want)
    by_parameter = Run(backend, device)

    @torch.compile(backend="aot_eager")
    def one_by_one():
        for p in by_parameter.parameters:
            by_parameter.optimizer.step_parameter(p)

    by_parameter.take(one_by_one).equals(want)


def test_a_compiled_step_under_inductor_is_the_step():
    want, compiled = Run(), Run()
    want.take(want.optimizer.step)
    compiled.take(torch.compile(compiled.optimizer.step)).equals(want)


def test_a_whole_graph_of_a_step_is_refused():
    run = Run()
    with pytest.raises(torch._dynamo.exc.Unsupported):
        run.take(torch.compile(run.optimizer.step, fullgraph=True, backend="aot_eager"), 1)


def test_make_fx_is_refused():
    run = Run()
    grads = [torch.ones_like(p) for p in run.parameters]

    def step(*grads):
        run.optimizer.step_by(dict(zip(run.parameters, grads, strict=True)))

    with pytest.raises(RuntimeError, match="make_fx does not see"):
        make_fx(step)(*grads)
    with pytest.raises(RuntimeError, match="make_fx does not see"):
        make_fx(lambda grad: run.optimizer.step() or grad)(grads[0])
    assert not run.optimizer.state


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_counters_of_operations_change_nothing(backend, device):
    want, counted = Run(backend, device), Run(backend, device)
    want.take(want.optimizer.step)
    with FlopCounterMode(display=False):
        counted.take(counted.optimizer.step)
    counted.equals(want)


VIEWS = {
    "negated": lambda x: torch._neg_view(-x),
    "transposed": lambda x: x.t().contiguous().t(),
    "strided": lambda x: torch.stack([x, x], -1)[..., 0],
}


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("view", list(VIEWS))
@pytest.mark.parametrize("later", [False, True])
def test_a_parameter_that_is_a_view_takes_every_step(backend, device, dtype, view, later):
    generator = torch.Generator("cpu").manual_seed(0)
    values = torch.randn(80, 70, generator=generator, dtype=torch.float32).to(device, dtype)
    parameters = [parameter(values), parameter(values if later else torch.empty_like(values))]
    optimizers = [AdamW8bit([p], **OPTIONS, backend=backend) for p in parameters]
    for step in range(4):
        if step == (1 if later else 0):  # from then on it lies otherwise
            odd = parameters[1]
            odd.data = VIEWS[view](odd.data.clone() if later else values)
            assert odd.is_neg() or not odd.is_contiguous()
            address = odd.data_ptr()
        for p, optimizer in zip(parameters, optimizers, strict=True):
            p.grad = torch.full_like(values, 1.0 + step).view(80, 70)
            before = p.detach().clone()
            optimizer.step()
            assert not torch.equal(p, before)
        assert torch.equal(*parameters), step
    assert odd.data_ptr() == address


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_a_parameter_that_becomes_a_view_at_its_address(backend, device):
    """Nothing but the strides or the sign says that it is another."""
    values = torch.arange(1.0, 4901.0, dtype=torch.float32, device=device).view(70, 70)
    for change in (torch._neg_view, torch.t):
        p, q = parameter(values), parameter(change(values.clone()))
        optimizer, other = (AdamW8bit([x], **OPTIONS, backend=backend) for x in (p, q))
        grad = torch.linspace(-1, 1, 4900, dtype=torch.float32, device=device).view(70, 70)
        p.grad = grad.clone()
        optimizer.step()
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        address = p.data_ptr()
        p.data = change(p.data)
        assert p.data_ptr() == address
        with torch.no_grad():
            q.copy_(p)
        for _ in range(3):
            p.grad, q.grad = grad.clone(), grad.clone()
            optimizer.step()
            other.step()
            assert torch.equal(p, q)


def test_hooks_see_the_states_and_change_them():
    run, saved = Run(), None
    run.take(run.optimizer.step, 2)
    saved = copy.deepcopy(run.optimizer.state_dict())
    fresh, seen = Run(), []

    def before(optimizer, state_dict):
        seen.append(sorted(state_dict["state"][0]))
        assert all(isinstance(state["state1"], torch.Tensor) for state in state_dict["state"].values())
        changed = copy.deepcopy(state_dict)
        changed["state"][0]["step"] = 7
        changed["state"][1]["state1"] += 1
        return changed

    def after(optimizer):
        seen.append(optimizer.state[fresh.parameters[0]]["step"])
        optimizer.state[fresh.parameters[2]]["step"] = 9

    fresh.optimizer.register_load_state_dict_pre_hook(before)
    fresh.optimizer.register_load_state_dict_post_hook(after)
    fresh.optimizer.load_state_dict(saved)
    assert seen == [sorted(saved["state"][0]), 7]
    states = [fresh.optimizer.state[p] for p in fresh.parameters]
    assert [state["step"] for state in states] == [7, 2, 9]
    assert torch.equal(states[1]["state1"], saved["state"][1]["state1"] + 1)
    assert states[0]["state1"].dtype == torch.uint8
    fresh.take(fresh.optimizer.step, 1)


def test_a_hook_in_place_is_taken_and_a_refused_load_leaves_no_hook():
    run, fresh = Run(), Run()
    run.take(run.optimizer.step, 1)
    handle = fresh.optimizer.register_load_state_dict_pre_hook(lambda _, states: states["state"][0].update(step=5))
    fresh.optimizer.load_state_dict(copy.deepcopy(run.optimizer.state_dict()))
    assert fresh.optimizer.state[fresh.parameters[0]]["step"] == 5
    handle.remove()
    wrong = copy.deepcopy(run.optimizer.state_dict())
    del wrong["state"][0]["state2"]
    with pytest.raises(ValueError, match="the saved state2 of parameter 0 does not fit"):
        fresh.optimizer.load_state_dict(wrong)
    assert not fresh.optimizer._optimizer_load_state_dict_pre_hooks
    fresh.optimizer.load_state_dict(run.optimizer.state_dict())
    assert fresh.optimizer.state[fresh.parameters[0]]["step"] == 1


def test_hooks_around_a_step_are_called():
    run, seen = Run(), []
    run.optimizer.register_step_pre_hook(lambda *_: seen.append("before"))
    run.optimizer.register_step_post_hook(lambda *_: seen.append("after"))
    run.take(run.optimizer.step, 2)
    assert seen == ["before", "after"] * 2
