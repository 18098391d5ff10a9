"""How often each timestep is drawn: beside diffusers' sampling, on every backend, and uniformly to the bit."""

import pytest
import torch
from diffusers.training_utils import compute_density_for_timestep_sampling
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chi2

from fdpo_fast import add_noise, draws, pair_draw
from fdpo_fast.densities import MODE_AT_MOST, WORDS, cosmap, cumulative, logit_normal, mode, some, within
from fdpo_fast.noise import timesteps
from tests.helpers.backends import FUSED

DRAWS = 10**6


def many(count=DRAWS):
    return draws(5, torch.arange(count), 0)


def surprise(counts, wanted):
    """The probability of counts that are further off, by the chi-squared test; cells of few are put together."""
    order = wanted.argsort()
    groups = (wanted[order].cumsum(0) / 25).floor().long()
    got, want = (torch.zeros(int(groups.max()) + 1).double().index_add_(0, groups, x[order]) for x in (counts, wanted))
    keep = want > 5
    statistic = ((got - want).square() / want)[keep].sum().item()
    return chi2.sf(statistic, int(keep.sum()) - 1)


@pytest.mark.parametrize(
    ("weights", "scheme", "options"),
    [
        (logit_normal(1000), "logit_normal", {"logit_mean": 0.0, "logit_std": 1.0}),
        (logit_normal(1000, 0.0, 0.5), "logit_normal", {"logit_mean": 0.0, "logit_std": 0.5}),
        (mode(1000), "mode", {"mode_scale": 1.29}),
        (mode(1000, -0.7), "mode", {"mode_scale": -0.7}),
    ],
    ids=str,
)
def test_draws_are_as_often_as_diffusers_has_them(weights, scheme, options):
    """Its u counts from most noise down; the densities here are symmetric, but for a mean that is not 0."""
    theirs = compute_density_for_timestep_sampling(
        scheme, DRAWS, generator=torch.Generator().manual_seed(0), **({"logit_mean": 0, "logit_std": 1} | options)
    )
    counts = torch.bincount((theirs.double() * 1000).long(), minlength=1000).flip(0).double()
    probable = weights / weights.sum() * DRAWS
    assert surprise(counts, probable) > 1e-3  # diffusers' own draws fit our weights
    ours = torch.bincount(timesteps(many(), 1000, cumulative(weights)), minlength=1000).double()
    assert surprise(ours, probable) > 1e-3


def test_a_mean_above_zero_is_more_noise():
    """SD3, section 3.1: 'biasing towards ... the noise' for a positive location of the logit."""
    weights = logit_normal(1000, 1.0)
    z = torch.randn(DRAWS, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    counts = torch.bincount((torch.sigmoid(z + 1) * 1000).long().clamp(max=999), minlength=1000).double()
    assert surprise(counts, weights * DRAWS) > 1e-3
    assert weights[500:].sum() > 0.8


def test_cosmap_is_its_definition():
    v = torch.rand(DRAWS, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    u = 1 - 1 / (torch.tan(torch.pi / 2 * v) + 1)
    counts = torch.bincount((u * 1000).long().clamp(max=999), minlength=1000).double()
    assert surprise(counts, cosmap(1000) * DRAWS) > 1e-3


@pytest.mark.parametrize("make", [logit_normal, mode, cosmap])
@pytest.mark.parametrize("steps", [1, 2, 1000])
def test_all_of_the_words_are_given_out(make, steps):
    weights = make(steps)
    assert weights.sum().item() == pytest.approx(1, abs=1e-12)
    table = cumulative(weights)
    assert (table.diff() >= 0).all()
    assert table[-1] == WORDS


@given(steps=st.integers(1, 4000), scale=st.floats(1e-30, 1e30))
def test_equal_weights_are_uniform_to_the_bit(steps, scale):
    drawn = many(500)
    table = cumulative(torch.full((steps,), scale, dtype=torch.float64))
    assert table.tolist() == [-(-(i + 1) * WORDS // steps) for i in range(steps)]
    assert torch.equal(timesteps(drawn, steps, table), timesteps(drawn, steps))


@given(st.lists(st.floats(0, 1e3), min_size=1, max_size=40).filter(any))
def test_what_has_no_weight_is_never_drawn(weights):
    counts = torch.bincount(timesteps(many(2000), len(weights), cumulative(weights)), minlength=len(weights))
    assert all(weight or not count for weight, count in zip(weights, counts.tolist(), strict=True))


def test_a_range_and_a_few():
    drawn = timesteps(many(20_000), 1000, cumulative(within(1000, (0, 200))))
    assert (drawn.min(), drawn.max()) == (0, 199)
    turbo = timesteps(many(20_000), 1000, cumulative(some(1000, [249, 499, 749, 999])))
    found, counts = turbo.unique(return_counts=True)
    assert found.tolist() == [249, 499, 749, 999]
    assert (counts - 5000).abs().max() < 300


@pytest.mark.parametrize(("backend", "device"), [*FUSED, ("eager", "cpu")])
@pytest.mark.parametrize("steps", [1, 4, 999, 1000])
def test_every_backend_draws_the_same_timesteps(backend, device, steps):
    drawn, latents = many(400), torch.ones(800, 4, dtype=torch.float32)
    table, line = cumulative(logit_normal(steps)), torch.linspace(0, 1, steps, dtype=torch.float32)
    want, eps = pair_draw(5, torch.arange(400), 0, (4,), num_train_timesteps=steps, density=table)
    noisy, got = add_noise(
        *(x.to(device) for x in (latents, drawn, 1 - line, line)), density=table.to(device), backend=backend
    )
    assert torch.equal(got.cpu(), want)
    t = line[want][:, None]
    torch.testing.assert_close(noisy.cpu(), ((1 - t) + t * eps).repeat(2, 1), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("density", "error", "says"),
    [
        (torch.ones(10), TypeError, "must be an int64 tensor"),
        ([1] * 10, TypeError, "must be an int64 tensor"),
        (torch.ones(9, dtype=torch.int64), ValueError, r"has shape \(9,\): give one number a timestep, \(10,\)"),
        (torch.ones(10, dtype=torch.int64, device="meta"), ValueError, "density is on meta"),
    ],
)
def test_a_table_that_does_not_fit_is_refused(density, error, says):
    latents, table = torch.zeros(4, 3, dtype=torch.float32), torch.ones(10, dtype=torch.float32)
    with pytest.raises(error, match=says):
        add_noise(latents, many(2), table, table, density=density)
    with pytest.raises(error, match=says):
        pair_draw(0, 0, 0, (3,), num_train_timesteps=10, density=density)


@pytest.mark.parametrize("weights", [[], [0.0, 0.0], [1.0, -1.0], [1.0, float("nan")], [[1.0]], [float("inf")]])
def test_weights_that_are_none_are_refused(weights):
    with pytest.raises(ValueError, match="weights must be"):
        cumulative(weights)


def test_a_mode_that_turns_back_has_no_density():
    assert (mode(1000, MODE_AT_MOST) >= 0).all()
