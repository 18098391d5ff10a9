"""AdamW8bit against bitsandbytes, against float64 formulas, and against itself on other backends."""

import copy
import math
from functools import partial

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fdpo_fast import AdamW8bit
from fdpo_fast.ops import cpp
from fdpo_fast.ops.constants import STATE_BLOCK
from fdpo_fast.optim import eager
from fdpo_fast.optim.codebook import LEAST_M, LEAST_V, dynamic_map
from tests.helpers.backends import FUSED
from tests.helpers.optimizers import BACKENDS, DTYPES, OPTIONS, parameter, resumed, start, stepped

bitsandbytes = pytest.importorskip("bitsandbytes")


def test_the_map_is_that_of_bitsandbytes():
    from bitsandbytes.functional import create_dynamic_map

    for signed in (True, False):
        assert torch.equal(dynamic_map(signed).values, create_dynamic_map(signed=signed))


@pytest.mark.parametrize("signed", [True, False])
def test_reference_codes_are_the_nearest_values(signed):
    values = dynamic_map(signed).values.double()
    torch.manual_seed(0)
    x = torch.cat([10.0 ** -(torch.rand(20_000, dtype=torch.float32) * 8), torch.rand(20_000, dtype=torch.float32)])[
        : 156 * STATE_BLOCK
    ]
    x = x * torch.where(torch.rand(x.shape, dtype=torch.float32) < 0.5, -1, 1) if signed else x
    x[::STATE_BLOCK] = 1.0
    codes, absmax = eager.encode(x, signed)
    assert torch.equal(absmax, torch.ones_like(absmax))
    above_the_end = x.abs() > values[127 + LEAST_M if signed else LEAST_V]
    nearest = (x.double()[:, None] - values).abs().amin(1)
    apart = (x.double() - values[codes.int()]).abs()
    assert torch.allclose(apart[above_the_end], nearest[above_the_end], rtol=0, atol=2.0**-22)  # of a tie
    at_the_end = codes[~above_the_end].int()
    assert set(at_the_end.tolist()) == ({127 - LEAST_M, 127 + LEAST_M} if signed else {LEAST_V})
    assert eager.encode(torch.tensor([0.0, 1.0], dtype=torch.float32), signed)[0][0] == (127 if signed else LEAST_V)


@pytest.mark.parametrize(("backend", "device"), FUSED)
@pytest.mark.parametrize("signed", [True, False])
def test_lines_give_the_maps_values(backend, device, signed):
    """A step that keeps the states as they are (beta = 1 would be refused, so a gradient of 0 and beta near 1)."""
    codes = torch.arange(256, dtype=torch.uint8).repeat(16)
    p = parameter(torch.zeros(4096, device=device, dtype=torch.float32))
    optimizer = AdamW8bit([p], backend=backend, betas=(1 - 1e-7, 1 - 1e-7))
    stepped(optimizer, p, torch.zeros(4096, dtype=torch.float32))
    state = optimizer.state[p]
    name, other = ("state1", "state2") if signed else ("state2", "state1")
    state[name].copy_(codes)
    state[other].fill_(0)
    for which in ("absmax1", "absmax2"):
        state[which].fill_(1.0)
    stepped(optimizer, p, torch.zeros(4096, dtype=torch.float32))
    least = {126: 127 - LEAST_M, 128: 127 + LEAST_M} if signed else dict.fromkeys(range(LEAST_V), LEAST_V)
    assert state[name].tolist() == [least.get(code, code) for code in codes.tolist()]


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_one_step_agrees_with_bitsandbytes(backend, device, dtype):
    start_at, state_dict, grad = start(50_000, dtype)
    ours = parameter(start_at.to(device))
    optimizer = resumed(state_dict, ours, backend=backend, rounding="nearest")
    stepped(optimizer, ours, grad)
    theirs = parameter(start_at)
    rival = bitsandbytes.optim.AdamW8bit([theirs], **OPTIONS)
    rival.load_state_dict(copy.deepcopy(state_dict))
    stepped(rival, theirs, grad)
    for name in ("state1", "state2"):
        apart = (optimizer.state[ours][name].cpu().int() - rival.state[theirs][name].int()).abs()
        assert (apart <= 1).float().mean() >= 0.999
        assert apart.max() <= 2
    for name in ("absmax1", "absmax2"):
        torch.testing.assert_close(optimizer.state[ours][name].cpu(), rival.state[theirs][name], rtol=1e-6, atol=0)
    step = {torch.float32: 1e-6, torch.bfloat16: 2**-7, torch.float16: 2**-10}[dtype]
    torch.testing.assert_close(ours.cpu().float(), theirs.float(), rtol=step, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [100, 5000])
def test_states_go_to_bitsandbytes_and_back(dtype, n):
    torch.manual_seed(0)
    initial, grads = torch.randn(n).to(dtype), [torch.randn(n) for _ in range(9)]
    makers = {
        "ours": lambda p: AdamW8bit([p], **OPTIONS, rounding="nearest"),
        "theirs": lambda p: bitsandbytes.optim.AdamW8bit([p], **OPTIONS),
    }
    ends = {}
    for order in (("ours",) * 3, ("theirs",) * 3, ("ours", "theirs", "ours"), ("theirs", "ours", "theirs")):
        p, states = parameter(initial), None
        for part, name in enumerate(order):
            optimizer = makers[name](p)
            if states:
                optimizer.load_state_dict(copy.deepcopy(states))
            stepped(optimizer, p, *grads[3 * part : 3 * part + 3])
            states = optimizer.state_dict()
        assert optimizer.state[p]["step"] == 9
        assert optimizer.state[p]["state1"].dtype == (torch.uint8 if n >= 4096 else torch.float32)
        ends[order] = p.detach().float()
    want = ends["theirs", "theirs", "theirs"]
    moved = (want - initial.float()).abs().mean()
    for end in ends.values():
        assert (end - want).abs().mean() < 0.02 * moved


@pytest.mark.parametrize(("backend", "device"), FUSED)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("grad_dtype", DTYPES)
@pytest.mark.parametrize("n", [300, 5000])
def test_error_against_float64(backend, device, dtype, grad_dtype, n):
    start_at, state_dict, grad = start(n, dtype)
    state = state_dict["state"][0]
    m, v = state["state1"].double(), state["state2"].double()
    if "absmax1" in state:
        m = eager.decode(state["state1"], state["absmax1"], True).double()
        v = eager.decode(state["state2"], state["absmax2"], False).double()
    g, (b1, b2), t = grad.to(grad_dtype).double(), OPTIONS["betas"], state["step"] + 1
    m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
    update = (m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + OPTIONS["eps"])
    want = start_at.double() * (1 - OPTIONS["lr"] * OPTIONS["weight_decay"]) - OPTIONS["lr"] * update
    errors = {}
    for name, where in ((backend, device), ("eager", "cpu")):
        p = parameter(start_at.to(where), grad_dtype)
        stepped(resumed(state_dict, p, backend=name, rounding="nearest"), p, grad)
        errors[name] = (p.detach().cpu().double() - want).abs().max().item()
    assert errors[backend] <= 2 * errors["eager"]


@pytest.mark.parametrize("kernels", list(cpp.KERNELS))
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_instruction_set_gives_the_same_bits(kernels, dtype, monkeypatch):
    start_at, state_dict, grad = start(10_007, dtype)
    results = []
    for name in ("portable", kernels):
        monkeypatch.setattr(cpp, "active", cpp.KERNELS[name])
        p = parameter(start_at)
        optimizer = resumed(state_dict, p, backend="cpp")
        stepped(optimizer, p, grad, -grad)
        results.append([p.detach(), *(optimizer.state[p][s] for s in ("state1", "state2", "absmax1", "absmax2"))])
    assert all(torch.equal(*pair) for pair in zip(*results, strict=True))


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_a_resumed_run_is_the_same_run(backend, device):
    torch.manual_seed(0)
    shapes = [(70, 70), (33,), (5, 1001)]
    initial = [torch.randn(shape).bfloat16().to(device) for shape in shapes]
    grads = [[torch.randn(shape, device=device).bfloat16() for shape in shapes] for _ in range(4)]

    def run(parameters, optimizer, grads):
        for of_step in grads:
            for p, grad in zip(parameters, of_step, strict=True):
                p.grad = grad
            optimizer.step()

    whole = [parameter(p) for p in initial]
    optimizer = AdamW8bit(whole, seed=3, backend=backend)
    run(whole, optimizer, grads)
    parts = [parameter(p) for p in initial]
    first = AdamW8bit(parts, seed=3, backend=backend)
    run(parts, first, grads[:2])
    second = AdamW8bit(parts, backend=backend)  # the seed is in the state dict
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    run(parts, second, grads[2:])
    assert all(torch.equal(*pair) for pair in zip(whole, parts, strict=True))


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_a_copy_is_written_beside_the_master(backend, device):
    torch.manual_seed(0)
    p, small = (
        parameter(torch.randn(5003, device=device, dtype=torch.float32)),
        parameter(torch.randn(17, device=device, dtype=torch.float32)),
    )
    optimizer = AdamW8bit([p, small], backend=backend)
    copies = [torch.empty_like(x, dtype=torch.bfloat16) for x in (p, small)]
    for x, mirrored in zip((p, small), copies, strict=True):
        optimizer.keep_copy(x, mirrored)
        x.grad = torch.randn_like(x)
    optimizer.step()
    assert torch.equal(copies[0], p.bfloat16())
    assert torch.equal(copies[1], small.bfloat16())
    with pytest.raises(ValueError, match="a copy must be bfloat16"):
        optimizer.keep_copy(p, torch.empty(5003, dtype=torch.float32))


def test_channels_last_parameters_keep_their_layout():
    torch.manual_seed(0)
    values, grad = torch.randn(16, 32, 3, 3, dtype=torch.float32), torch.randn(16, 32, 3, 3, dtype=torch.float32)
    plain = parameter(values)
    strided = parameter(values.to(memory_format=torch.channels_last))
    stepped(AdamW8bit([plain]), plain, grad)
    optimizer = AdamW8bit([strided])
    stepped(optimizer, strided, grad.to(memory_format=torch.channels_last))
    assert torch.equal(plain, strided)
    assert strided.is_contiguous(memory_format=torch.channels_last)


SPECIAL = [0.0, -0.0, 1e-45, -1e-40, 1e-38, 3e38, -3e38, math.inf, -math.inf, math.nan, 1e-20, 1e19, 1.0]


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    n=st.sampled_from([1, 2, 255, 256, 257, 511, 1023, 4096, 4097]),
    specials=st.lists(st.tuples(st.integers(0, 300), st.sampled_from(SPECIAL)), max_size=4),
    dtype=st.sampled_from(DTYPES),
    lr=st.sampled_from([0.0, 1e-8, 1e-3, 1e30]),
)
def test_odd_values_stay_in_their_block(backend, device, n, specials, dtype, lr):
    torch.manual_seed(n)
    values, plain = torch.randn(n).to(dtype), torch.randn(n)
    odd = plain.clone()
    places = {at % n for at, _ in specials}
    for at, value in specials:
        odd[at % n] = value
    ends = []
    for grad in (plain, odd):
        p = parameter(values.to(device), torch.float32)
        optimizer = AdamW8bit([p], lr=lr, min_8bit_size=0, backend=backend, rounding="nearest")
        stepped(optimizer, p, grad, grad, grad)
        state = optimizer.state[p]
        assert state["absmax1"].isfinite().all()
        assert state["absmax2"].isfinite().all()
        ends.append((p.detach().cpu(), state["state1"].cpu(), state["state2"].cpu()))
    elsewhere = torch.ones(n, dtype=torch.bool)
    for at in places:
        elsewhere[at // STATE_BLOCK * STATE_BLOCK : at // STATE_BLOCK * STATE_BLOCK + STATE_BLOCK] = False
    for ours, theirs in zip(*ends, strict=True):
        torch.testing.assert_close(ours[elsewhere], theirs[elsewhere], rtol=0, atol=0, equal_nan=True)
    if 0 < lr < 1:
        keeps = torch.tensor([at not in places for at in range(n)])
        assert ends[1][0][keeps].isfinite().all()


def test_least_squares_ends_where_adamw_ends():
    torch.manual_seed(0)
    a = torch.randn(3000, 1024, dtype=torch.float32) / 32
    b = a @ torch.randn(1024, dtype=torch.float32) + 0.5 * torch.randn(3000, dtype=torch.float32)
    ends = []
    for make in (torch.optim.AdamW, partial(AdamW8bit, min_8bit_size=0)):
        x = parameter(torch.zeros(1024, dtype=torch.float32))
        optimizer = make([x], lr=1e-2, weight_decay=0.0)
        for _ in range(1000):
            residual = a @ x.detach() - b
            stepped(optimizer, x, 2 / 3000 * residual @ a)
        ends.append(residual.square().mean().item())
    assert ends[1] == pytest.approx(ends[0], rel=0.02)


def test_state_is_two_bytes_and_a_bit():
    p = parameter(torch.zeros(1 << 20, dtype=torch.float32))
    optimizer = AdamW8bit([p])
    stepped(optimizer, p, torch.ones(1 << 20, dtype=torch.float32))
    tensors = [value for value in optimizer.state[p].values() if isinstance(value, torch.Tensor)]
    assert sum(t.numel() * t.element_size() for t in tensors) <= 2.04 * p.numel()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"lr": -1.0}, "lr must not be negative"),
        ({"betas": (0.9, 1.0)}, "betas must be two numbers"),
        ({"rounding": "up"}, "unknown rounding 'up'"),
        ({"backend": "cuda"}, "unknown backend 'cuda'"),
        ({"seed": -1}, "seed must lie in"),
    ],
)
def test_refusals(options, says):
    with pytest.raises(ValueError, match=says):
        AdamW8bit([parameter(torch.zeros(3))], **options)


def test_refused_tensors_and_states():
    with pytest.raises(TypeError, match="parameters must be float32, bfloat16 or float16"):
        AdamW8bit([parameter(torch.zeros(3, dtype=torch.float64))])
    _, states, _ = start(5000)
    other = AdamW8bit([parameter(torch.zeros(6000, dtype=torch.float32))])
    with pytest.raises(ValueError, match="does not fit a tensor of shape"):
        other.load_state_dict(states)
