"""24-bit weights: what a bfloat16 and its low byte mean, how steps round to them, on every backend."""

import math

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fdpo_fast import AdamW8bit
from fdpo_fast.ops import cpp
from fdpo_fast.optim.low_byte import joined, split
from tests.helpers.backends import FUSED
from tests.helpers.fuzz_steps import differing, run
from tests.helpers.optimizers import BACKENDS, parameter, start, stepped

WIDE = {"weights": "bf16+8"}
UNIT = 2.0**-15
"""The step of 24-bit weights in [1, 2)."""


def value_of(p, optimizer):
    return joined(p.detach(), optimizer.state[p]["low"]).cpu()


def every_bfloat16():
    return torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)


def test_all_pairs_are_24_bits_and_come_back():
    """Read by numpy as (h 2^8 + l) 2^8, whatever the bfloat16 and the byte; split again they are themselves."""
    weights = every_bfloat16()
    high = weights.view(torch.int16).numpy().view(np.uint16).astype(np.int64)
    for byte in range(-128, 128):
        low = torch.full(weights.shape, byte, dtype=torch.int8)
        values = joined(weights, low)
        want = ((high * 256 + byte) * 256 % 2**32).astype(np.uint32).view(np.float32)
        alone = np.isnan(want)  # 0 with less than nothing, infinity with more, and NaN
        assert np.array_equal(values.numpy()[~alone], want[~alone])
        assert np.array_equal(values.numpy()[alone], weights.float().numpy()[alone], equal_nan=True)
        for bits in (None, *(torch.full(weights.shape, most, dtype=torch.int32) for most in (0, 255))):
            again, byte_again = split(values, bits)
            kept = torch.from_numpy(~alone)
            assert torch.equal(again.view(torch.int16)[kept], weights.view(torch.int16)[kept])
            assert torch.equal(byte_again[kept], low[kept])
            assert torch.equal(again[~kept].float().nan_to_num(7.0), weights[~kept].float().nan_to_num(7.0))
            assert not byte_again[~kept].any()


def floats(count, seed=0):
    """Floats of all exponents, with infinities, NaN, zeros and the largest."""
    words = np.random.default_rng(seed).integers(0, 2**32, count, dtype=np.uint32)
    values = torch.from_numpy(words.view(np.float32).copy())
    most = torch.finfo(torch.float32).max
    values[:7] = torch.tensor([0.0, -0.0, math.inf, -math.inf, math.nan, most, -most], dtype=torch.float32)
    return values


def test_the_bfloat16_is_the_nearest_to_the_whole():
    """As torch rounds it, but for ties, which go away from zero."""
    values = floats(1_000_000)
    for bits in (None, torch.randint(0, 256, values.shape, dtype=torch.int32)):
        weights, low = split(values, bits)
        whole = joined(weights, low)
        even, tie = whole.bfloat16(), low == -128
        assert 0 < tie.sum() < 5000
        assert torch.equal(weights[~tie].nan_to_num(7.0), even[~tie].nan_to_num(7.0))
        tied = whole[tie].double()
        assert (weights[tie].double().abs() > tied.abs()).all()
        finite = weights[tie].isfinite()
        below = (tied * 2 - weights[tie].double())[finite]  # as far on the other side
        assert torch.equal(below, below.bfloat16().double())


def test_rounding_to_nearest_is_to_even():
    values = floats(1_000_000, 1)
    values = values[values.isfinite() & (values.abs() < 3e38) & (values.abs() > 1e-37)]
    whole = joined(*split(values, None)).double()
    mantissa, exponent = np.frexp(values.double().numpy())
    want = np.ldexp(np.rint(mantissa * 2.0**16), exponent - 16)  # numpy's rint is to even
    assert np.array_equal(whole.numpy(), want)


def test_all_bytes_together_leave_the_value_itself():
    """The mean over the 256 random bytes is the float32, exactly: rounding has no bias, in the last bit neither."""
    values = floats(20_000, 2)
    values = values[values.isfinite() & (values.abs() < 3e38)]
    total = torch.zeros(values.shape, dtype=torch.float64)
    for byte in range(256):
        total += joined(*split(values, torch.full(values.shape, byte, dtype=torch.int32))).double()
    assert torch.equal(total / 256, values.double())


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_steps_round_without_bias(backend, device, sign):
    n, share = 40_000, 0.3
    p = parameter(torch.full((n,), sign, dtype=torch.bfloat16, device=device))
    optimizer = AdamW8bit([p], lr=share * UNIT, betas=(0.0, 0.0), eps=1e-30, weight_decay=0.0, backend=backend, **WIDE)
    stepped(optimizer, p, torch.full((n,), -sign, dtype=torch.float32))
    up = (value_of(p, optimizer).double() - sign) * sign / UNIT
    assert set(up.tolist()) == {0.0, 1.0}
    sigma = math.sqrt(share * (1 - share) / n)
    assert abs(up.mean() - share) < 5 * sigma
    for place in range(16):  # of a counter's block
        assert abs(up[place::16].mean() - share) < 5 * sigma * 4
    pairs = up.view(-1, 16)
    apart = torch.corrcoef(pairs.T).fill_diagonal_(0.0).abs().max()
    assert apart < 5 * math.sqrt(16 / n)  # no two take the same bits


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
def test_a_step_is_the_formula_to_its_last_bit(backend, device, rounding):
    """Of AdamW in float64 behind two steps: half a unit of 24 bits to nearest, a whole one with random bits.

    Float32 adds a few of its own last places: of the weight before, and of the update.
    """
    n, options = 4000, {"lr": 3e-3, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}
    torch.manual_seed(0)
    begun, grads = torch.randn(n).bfloat16(), torch.randn(2, n).bfloat16()
    p = parameter(begun.to(device))
    optimizer = AdamW8bit([p], **options, min_8bit_size=n + 1, backend=backend, rounding=rounding, **WIDE)
    m = v = torch.zeros(n, dtype=torch.float64)
    (b1, b2), lr = options["betas"], options["lr"]
    for t, grad in enumerate(grads.double(), 1):
        before = begun.double() if t == 1 else value_of(p, optimizer).double()
        stepped(optimizer, p, grad)
        m, v = b1 * m + (1 - b1) * grad, b2 * v + (1 - b2) * grad * grad
        update = (m / (1 - b1**t)) / ((v / (1 - b2**t)).sqrt() + options["eps"])
        want = before * (1 - lr * options["weight_decay"]) - lr * update
        got = value_of(p, optimizer)
        unit = torch.from_numpy(np.ldexp(1.0, np.frexp(want.numpy())[1] - 16))
        most, apart = 0.5 if rounding == "nearest" else 1.0, (got.double() - want).abs()
        assert (apart <= most * unit + 2.0**-22 * (before.abs() + lr * update.abs())).all()
        assert (apart / unit).quantile(0.99) > 0.8 * most
        away = optimizer.state[p]["low"].cpu() == -128
        assert torch.equal(p.detach().cpu()[~away], got.bfloat16()[~away])


@pytest.mark.parametrize(("backend", "device", "runs"), [(*case, 60) for case in FUSED[:1]])
def test_every_backend_leaves_the_same_bits(backend, device, runs):
    for seed in range(runs):
        of = run(seed)
        if of.start.dtype != torch.float16:
            assert not differing(of._replace(options=of.options | WIDE), backend, device), seed


@pytest.mark.parametrize("kernels", list(cpp.KERNELS))
def test_every_instruction_set_leaves_the_bits_of_eager(kernels, monkeypatch):
    monkeypatch.setattr(cpp, "active", cpp.KERNELS[kernels])
    for seed in range(1000, 1040):
        of = run(seed)
        if of.start.dtype == torch.bfloat16:
            assert not differing(of._replace(options=of.options | WIDE), "cpp"), seed


@pytest.mark.parametrize(("backend", "device"), FUSED)
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    sizes=st.lists(st.sampled_from([1, 15, 16, 17, 255, 256, 257, 1000, 2049]), min_size=1, max_size=4),
    first=st.integers(0, 2**40).map(lambda n: 16 * n),
    seed=st.integers(0, 2**64 - 1),
    rounding=st.sampled_from(["stochastic", "nearest"]),
    least=st.sampled_from([0, 256, 4096]),
    inside=st.booleans(),
    dtype=st.sampled_from([torch.bfloat16, torch.bfloat16, torch.float32]),
)
def test_buckets_leave_the_bits_of_eager(backend, device, sizes, first, seed, rounding, least, inside, dtype):
    """Many parameters at once, at any place of a larger tensor, some of them without a low byte, by step and step_by.

    Exact inputs, so that the interpreter of Triton, too, has the same numbers to round.
    """
    options = {"lr": 2.0**-14, "betas": (0.5, 0.5), "eps": 2.0**-20, "weight_decay": 0.0, "rounding": rounding}
    ends = []
    for name, where in ((backend, device), ("eager", "cpu")):
        torch.manual_seed(len(sizes))
        kinds = [dtype if number == 1 else torch.bfloat16 for number in range(len(sizes))]
        parameters = [parameter(torch.randn(size).to(kind).to(where)) for size, kind in zip(sizes, kinds, strict=True)]
        group = {"params": parameters, "first_element": first, "seed": seed, **WIDE}
        optimizer = AdamW8bit([group], **options, min_8bit_size=least, backend=name)
        for _ in range(2):
            grads = {p: (torch.randint(0, 2, p.shape) * 2 - 1).to(where, p.dtype) for p in parameters}
            if inside:
                optimizer.step_by(grads)
            else:
                for p, grad in grads.items():
                    p.grad = grad
                optimizer.step()
        for p in parameters:
            assert ("low" in optimizer.state[p]) == (p.dtype == torch.bfloat16)
        states = [optimizer.state[p].get(key) for p in parameters for key in ("low", "state1", "state2", "absmax1")]
        ends.append([t.detach().cpu() for t in (*parameters, *states) if t is not None])
    assert all(map(torch.equal, *ends))


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_a_split_tensor_is_rounded_like_the_whole(backend, device):
    torch.manual_seed(0)
    values, grad, cut = torch.randn(16_384).bfloat16(), torch.randn(16_384), 8192
    whole = parameter(values.to(device))
    stepped(by := AdamW8bit([whole], backend=backend, **WIDE), whole, grad)
    weights, lows = [], []
    for first, part in ((0, slice(None, cut)), (cut, slice(cut, None))):
        p = parameter(values[part].to(device))
        optimizer = AdamW8bit([{"params": [p], "first_element": first}], backend=backend, **WIDE)
        weights.append(stepped(optimizer, p, grad[part]).detach())
        lows.append(optimizer.state[p]["low"])
    assert torch.equal(torch.cat(weights), whole)
    assert torch.equal(torch.cat(lows), by.state[whole]["low"])


def test_updates_far_below_a_step_of_bfloat16_follow_float32_with_little_noise():
    n, steps, lr = 16_384, 1000, 1e-3 * 2**-8
    ends = {}
    for name, dtype, options in (
        ("float32", torch.float32, {}),
        ("bfloat16", torch.bfloat16, {}),
        ("24 bits", torch.bfloat16, WIDE),
    ):
        p = parameter(torch.full((n,), 0.75).to(dtype))
        optimizer = AdamW8bit([p], lr=lr, weight_decay=0.0, **options)
        stepped(optimizer, p, *(torch.ones(n) for _ in range(steps)))
        ends[name] = (value_of(p, optimizer) if options else p.detach()).double() - 0.75
    moved = ends["float32"].mean().item()
    assert moved == pytest.approx(-steps * lr, rel=0.01)
    assert ends["24 bits"].mean().item() == pytest.approx(moved, rel=0.002)
    noise = {name: (end - moved).std().item() for name, end in ends.items()}
    assert noise["bfloat16"] > 0.5 * 2**-8
    assert noise["24 bits"] == pytest.approx(noise["bfloat16"] / 16, rel=0.3)  # sqrt(2^8): of steps 2^8 smaller


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_what_is_no_number_has_no_low_byte(backend, device):
    begun = torch.ones(600, dtype=torch.bfloat16, device=device)
    begun[3], begun[300] = math.inf, math.nan
    p = parameter(begun)
    optimizer = AdamW8bit([p], lr=3e-4, min_8bit_size=0, backend=backend, **WIDE)
    grad = torch.randn(600, dtype=torch.float32)
    grad[7] = math.nan
    stepped(optimizer, p, grad, torch.randn(600, dtype=torch.float32))
    low = optimizer.state[p]["low"]
    bad = ~p.detach().isfinite()
    assert bad[[3, 7, 300]].all()
    assert not low[bad].any()
    assert low[~bad].any()


@pytest.mark.parametrize(("backend", "device"), BACKENDS)
def test_weights_that_were_set_to_zero_stay_numbers(backend, device):
    start_at, _, grad = start(5000, torch.bfloat16, device)
    p = parameter(start_at)
    optimizer = AdamW8bit([p], backend=backend, **WIDE)
    stepped(optimizer, p, grad)
    assert (optimizer.state[p]["low"] < 0).any()
    for zero in (0.0, -0.0):
        p.data.fill_(zero)
        assert value_of(p, optimizer).isfinite().all()
        stepped(optimizer, p, grad)
        assert p.isfinite().all()
        assert p.abs().max() < 0.01


def test_channels_last_parameters_keep_their_layout():
    torch.manual_seed(0)
    values, grad = torch.randn(16, 32, 3, 3).bfloat16(), torch.randn(16, 32, 3, 3)
    plain, strided = parameter(values), parameter(values.to(memory_format=torch.channels_last))
    stepped(by := AdamW8bit([plain], **WIDE), plain, grad, grad)
    stepped(other := AdamW8bit([strided], **WIDE), strided, *(2 * [grad.to(memory_format=torch.channels_last)]))
    assert torch.equal(plain, strided)
    assert torch.equal(by.state[plain]["low"], other.state[strided]["low"])
    assert strided.is_contiguous(memory_format=torch.channels_last)
