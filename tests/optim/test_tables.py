"""What the optimizer remembers from step to step: whatever changes in between must be seen, to equal bits."""

import copy

import pytest
import torch

from fdpo_fast import AdamW8bit
from fdpo_fast.optim import triton
from fdpo_fast.optim.update import Rule, Update, Updates
from tests.helpers.backends import FUSED
from tests.helpers.optimizers import parameter

SIZES = (520, 40, 512)
# Multiplications by powers of two alone, so that every backend has the same numbers to round.
OPTIONS = {"lr": 2.0**-10, "betas": (0.5, 0.5), "eps": 2.0**-20, "weight_decay": 0.0, "seed": 5}


class Run:
    """An optimizer over parameters in bfloat16 whose gradients are other tensors at every step."""

    def __init__(self, backend, device, dtype=torch.bfloat16):
        generator = torch.Generator().manual_seed(0)
        values = [torch.randn(size, generator=generator).to(dtype).to(device) for size in SIZES]
        self.parameters = [parameter(value) for value in values]
        groups = [{"params": self.parameters[:2]}, {"params": self.parameters[2:]}]
        self.optimizer, self.device = AdamW8bit(groups, **OPTIONS, min_8bit_size=256, backend=backend), device
        self.step()

    def step(self, grads=None, kept=False):
        for number, p in enumerate(self.parameters):
            sign = torch.ones(p.shape, device=p.device)
            sign.view(-1)[:: number + 2] = -1
            if kept:
                p.grad.copy_(sign)
            else:
                p.grad = sign.to(getattr(p, "grad_dtype", None) or p.dtype)
        if grads:
            grads(self)
        self.optimizer.step()

    def state(self, number=0):
        return self.optimizer.state[self.parameters[number]]


def nothing(run):
    pass


def weights_elsewhere(run):
    for p in run.parameters:
        p.data = p.data.clone()


def one_weight_elsewhere(run):
    run.parameters[2].data = run.parameters[2].data.clone()


def resized(run):
    p, own = run.parameters[0], run.state()
    p.grad, p.data = None, p.data[:264].clone()
    for name in ("state1", "state2"):
        own[name] = own[name][:264].clone()
    for name in ("absmax1", "absmax2"):
        own[name] = own[name][:2].clone()


def state_replaced(name):
    def change(run):
        run.state()[name] = run.state()[name].clone()

    return change


def state_moved_in_place(name):
    def change(run):
        run.state()[name].data = run.state()[name].data.clone()

    return change


def states_loaded(run):
    run.optimizer.load_state_dict(copy.deepcopy(run.optimizer.state_dict()))


def state_dict_replaced(run):
    run.optimizer.state[run.parameters[0]] = copy.deepcopy(dict(run.state()))


def group_changed(run):
    run.optimizer.param_groups[1] |= {"lr": 2.0**-8, "seed": 2**64 - 7, "betas": (0.25, 0.5), "first_element": 64}


def rounding_changed(run):
    run.optimizer.param_groups[0]["rounding"] = "nearest"


def group_added(run):
    p = parameter(torch.ones(77, dtype=torch.bfloat16, device=run.device))
    run.parameters.append(p)
    run.optimizer.add_param_group({"params": [p], "lr": 2.0**-7})


def parameter_exchanged(run):
    p = parameter(run.parameters[0].detach().clone())
    run.optimizer.state[p] = run.optimizer.state.pop(run.parameters[0])
    run.parameters[0] = run.optimizer.param_groups[0]["params"][0] = p


def wide_gradients(run):
    parameter(torch.zeros(1, dtype=torch.bfloat16), torch.float32)  # skips where there are none
    for p in run.parameters:
        p.grad, p.grad_dtype = None, torch.float32


def without_a_gradient(run):
    return lambda run: setattr(run.parameters[1], "grad", None)


def strided_gradient(run):
    def grads(run):
        p = run.parameters[0]
        p.grad = torch.stack((p.grad, -p.grad), 1)[:, 0]

    return grads


def unaligned_gradient(run):
    def grads(run):
        p = run.parameters[2]
        p.grad = torch.cat((p.grad[:1], p.grad))[1:]

    return grads


CHANGES = [
    nothing, weights_elsewhere, one_weight_elsewhere, resized, states_loaded, state_dict_replaced, group_changed,
    rounding_changed, group_added, parameter_exchanged, wide_gradients, without_a_gradient, strided_gradient,
    unaligned_gradient,
]  # fmt: skip
NAMES = ("state1", "state2", "absmax1", "absmax2")


@pytest.mark.parametrize(("backend", "device"), FUSED)
@pytest.mark.parametrize(
    "change",
    [
        *(pytest.param(change, id=change.__name__) for change in CHANGES),
        *(pytest.param(state_replaced(name), id=f"{name} replaced") for name in NAMES),
        *(pytest.param(state_moved_in_place(name), id=f"{name} moved in place") for name in NAMES),
    ],
)
def test_changes_between_steps_are_seen(backend, device, change):
    runs = [Run(backend, device), Run("eager", "cpu")]
    for run in runs:
        run.step()
        run.step(change(run))
        run.step(kept=change is not without_a_gradient)
    ours, theirs = runs
    for p, q in zip(ours.parameters, theirs.parameters, strict=True):
        assert torch.equal(p.cpu(), q)
        states = ours.optimizer.state[p], theirs.optimizer.state[q]
        assert states[0]["step"] == states[1]["step"]
        for name in NAMES:
            assert (name in states[0]) == (name in states[1])
            if name in states[0]:
                assert torch.equal(states[0][name].cpu(), states[1][name]), name


@pytest.mark.parametrize(("backend", "device"), FUSED)
def test_a_copy_that_came_later_is_written(backend, device):
    run = Run(backend, device, torch.float32)
    mirrored = torch.zeros(SIZES[0], dtype=torch.bfloat16, device=device)
    run.optimizer.keep_copy(run.parameters[0], mirrored)
    run.step()
    assert torch.equal(mirrored, run.parameters[0].bfloat16())
    other = torch.zeros_like(mirrored)
    run.optimizer.keep_copy(run.parameters[0], other)
    run.step()
    assert torch.equal(other, run.parameters[0].bfloat16())
    assert not torch.equal(other, mirrored)


def test_what_does_not_fit_is_refused_before_anything_moves():
    run = Run("cpp", "cpu")
    before = [p.detach().clone() for p in run.parameters]

    def smaller(run):
        run.parameters[2].grad.resize_(7)

    with pytest.raises(ValueError, match=r"the gradient of parameter 2 has shape \(7,\), the parameter \(512,\)"):
        run.step(smaller)
    run.state(1)["state2"] = torch.zeros(39)
    with pytest.raises(ValueError, match="the states of parameter 1 are not those of AdamW8bit"):
        run.step()
    assert all(map(torch.equal, before, run.parameters))
    assert run.state(0)["step"] == 1


def test_a_table_is_written_anew_only_where_something_has_changed(triton_device):
    run = Run("triton", triton_device)
    run.step(kept=True)
    sent = []

    def staged(words, device):
        sent.append(len(words))
        return real(words, device)

    real, triton.staged = triton.staged, staged
    try:
        run.step(kept=True)
        assert sent == [2 * 7]  # the two groups' numbers: no table of addresses
        sent.clear()
        run.parameters[0].grad = run.parameters[0].grad.clone()
        run.step(kept=True)
        assert 12 in sent  # that of the only tensor of its kind that is not a multiple of 16
    finally:
        triton.staged = real


@pytest.mark.gpu
def test_many_tables_on_their_way_do_not_mix(triton_device):
    """Steps are asked for faster than a busy device takes them: staged numbers must lie still until they are copied."""
    rule = Rule.of({**OPTIONS, "rounding": "nearest", "first_element": 0, "seed": 0}, 1)
    stepper, updates = triton.Stepper(), []
    for number in range(200):
        data, grad = torch.zeros(256, device=triton_device), torch.full((256,), float(number + 1), device=triton_device)
        m, v = torch.zeros_like(data), torch.zeros_like(data)
        updates.append(Updates.of([Update(data, grad, m, v, None, None, None, None, 0, rule)]))
    torch.cuda._sleep(200_000_000)
    for of_one in updates:
        stepper(of_one)
    torch.cuda.synchronize()
    for number, of_one in enumerate(updates):
        assert (of_one.tensors[2][0] == 0.5 * (number + 1)).all()
