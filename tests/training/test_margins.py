"""Quantiles of margins, gradient weights and the share of saturated pairs, against their definitions."""

import copy
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fdpo_fast import DIVERGENCES
from fdpo_fast.loss.options import LossOptions
from fdpo_fast.training.margins import QUANTILES, GradientWeight, Margins, Steepness
from fdpo_fast.training.metrics import Metrics
from tests.helpers.preserving import link_of
from tests.helpers.training import run

BETA = 0.7


def sigmoid(gap):
    return torch.nn.functional.softplus(-BETA * gap)


LOSSES = {
    ("sigmoid", 0.0): sigmoid,
    ("sigmoid", 0.1): lambda gap: 0.9 * sigmoid(gap) + 0.1 * sigmoid(-gap),
    ("robust", 0.1): lambda gap: (0.9 * sigmoid(gap) - 0.1 * sigmoid(-gap)) / 0.8,
    ("hinge", 0.0): lambda gap: (1 - BETA * gap).clamp(min=0),
    ("ipo", 0.0): lambda gap: (gap - 1 / (2 * BETA)) ** 2,
}


@pytest.mark.parametrize("target", [0.0, 0.8])
@pytest.mark.parametrize("kind", LOSSES)
@given(st.lists(st.floats(-30, 30), min_size=1, max_size=8))
def test_gradient_weights_are_slopes_over_that_at_the_reference(kind, target, gaps):
    loss_type, smoothing = kind
    options = LossOptions(
        beta=BETA, ratio_scale=1.0, loss_type=loss_type, label_smoothing=smoothing, margin=target
    )  # fmt: skip
    gap = torch.tensor([*gaps, 0.0], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(LOSSES[kind](gap - target / BETA).sum(), gap)
    found = GradientWeight(options)(BETA * gap.detach())
    torch.testing.assert_close(found, slope.abs() / slope[-1].abs())
    assert found[-1] == 1


def test_a_sigmoid_is_saturated_past_its_twentieth():
    """2 sigmoid(-z) = 0.05 at z = log 39."""
    weight = GradientWeight(LossOptions(beta=2.0, ratio_scale=1.0))
    at = torch.tensor(39.0, dtype=torch.float64).log()
    below, above = weight(torch.stack([at - 1e-6, at + 1e-6])).tolist()
    assert below > 0.05 > above


@pytest.mark.parametrize("clip", [None, 2.0])
@pytest.mark.parametrize("name", DIVERGENCES)
@given(st.lists(st.tuples(st.floats(-6, 6), st.floats(-6, 6)), min_size=1, max_size=8))
def test_a_sample_is_steep_where_its_link_is_ten_times_as_steep_as_at_the_reference(name, clip, log_ratios):
    """By automatic derivatives of f'(e^u), of f as it is published."""
    u = torch.tensor([*log_ratios, (0.0, 0.0)], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(link_of(name, clip)(u).sum(), u)
    options = LossOptions(divergence=name, beta=1.0, ratio_scale=1.0, clip_log_ratio=clip)
    found = Steepness(options.link)(*u.detach().float().T)
    near = (slope / slope[-1, 0] / 10 - 1).abs().min(dim=1).values < 1e-5
    want = (slope > 10 * slope[-1, 0]).double().mean(1)
    assert torch.equal(found[~near], want[~near])


@pytest.mark.parametrize(
    ("name", "from_u"), [("forward_kl", -math.log(10)), ("jeffreys", -math.log(19)), ("reverse_kl", -math.inf)]
)
def test_where_samples_are_steep(name, from_u):
    steepness = Steepness(LossOptions(divergence=name, beta=1.0, ratio_scale=1.0).link)
    u = torch.linspace(-8, 8, 161, dtype=torch.float64)
    assert torch.equal(steepness(u, torch.zeros_like(u)), 0.5 * (u < from_u))


@pytest.mark.parametrize(("ranks", "micro"), [(1, 4), (1, 2), pytest.param(2, 2, marks=pytest.mark.slow)])
def test_a_run_writes_what_its_pairs_are(raw_config, launch, monkeypatch, read_metrics, ranks, micro):
    """Of all pairs since the last write; the margins are taken down beside the run, on the first rank."""
    seen, add = [], Metrics.add

    def taking_down(metrics, losses, stats, fed):
        seen.append(stats.margin.double().clone())
        add(metrics, losses, stats, fed)

    monkeypatch.setattr(Metrics, "add", taking_down)
    raw_config["train"] |= {"max_steps": 6, "checkpoint_every": 6, "pairs_per_micro_batch": 4 if ranks == 1 else 2}
    raw_config["log"]["every"] = 3
    raw_config["optimizer"]["lr"] = 1e-3
    launch(raw_config)
    margins = torch.cat(seen).view(2, 12)
    raw = copy.deepcopy(raw_config)
    raw["train"] |= {"output_dir": raw["train"]["output_dir"] + "_again", "pairs_per_micro_batch": micro}
    launch(raw, ranks=ranks)
    found = read_metrics(raw)
    assert [step for step, record in enumerate(found) if "margin/q50" in record] == [2, 5]
    for record, own in zip((found[2], found[5]), margins, strict=True):
        at = sorted(own.tolist())
        for name, share in QUANTILES.items():
            place = share * 11
            low = int(place)
            expected = at[low] + (place - low) * (at[min(low + 1, 11)] - at[low])
            assert record[name] == pytest.approx(expected, rel=2e-3, abs=1e-6)
    weights = 2 * torch.sigmoid(-margins)
    for step, own in enumerate(weights.view(6, 4)):
        assert found[step]["gradient_weight"] == pytest.approx(own.mean().item(), rel=2e-3)
        assert found[step]["saturated"] == (own < 0.05).double().mean()
    assert found[0]["gradient_weight"] == 1.0


def test_a_margin_that_is_none_shows(raw_config):
    run(raw_config)  # leaves a process group of one
    margins = Margins()
    margins.add(torch.tensor([1.0, float("nan")]))
    assert all(value != value for value in margins.quantiles().values())
    margins.add(torch.tensor([1.0, 3.0]))
    assert margins.quantiles()["margin/q50"] == 2.0
