"""Strengths in other conventions, checked by executing each code's own expression."""

import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import logsigmoid

from fdpo_fast import alpha, fdpo_loss
from fdpo_fast.scales import CONVENTIONS, alpha_from_trl, convert, ratio_scale
from tests.helpers.published import FLOW_TRAINERS, as_batched, official, sd15_script, sdxl_script, tensors

N = 4 * 8 * 8  # elements of a sample of `tensors`


def paper(pred, ref, target, beta):
    """The pseudo-code of arXiv 2311.12908: squared norms."""
    (model_w, model_l), (ref_w, ref_l) = ((x - target).flatten(1).norm(dim=1).pow(2).chunk(2) for x in (pred, ref))
    inside_term = -1 * beta * ((model_w - ref_w) - (model_l - ref_l))
    return -1 * inside_term.sigmoid().log().mean()


def flow(pred, ref, target, beta):
    """SD3.5-style recipes: `target` is the velocity, noise minus latent."""
    (model_w, model_l), (ref_w, ref_l) = (((x - target) ** 2).mean(dim=(1, 2, 3)).chunk(2) for x in (pred, ref))
    return -logsigmoid(-0.5 * beta * ((model_w - model_l) - (ref_w - ref_l))).mean()


def trainer(name, pred, ref, target, beta):
    return FLOW_TRAINERS[name](*as_batched(name, pred, ref, target), beta)


def ours(pred, ref, target, beta):
    return fdpo_loss(pred, ref, target, divergence="reverse_kl", beta=1.0, ratio_scale=beta)[0]


PUBLISHED = {
    "diffusion_dpo": lambda *x: official(*x)[0],
    "diffusers_sdxl": lambda *x: sdxl_script(*x)[0],
    "diffusers_sd15": lambda *x: sd15_script(*x)[0],
    "paper": paper,
    "flow": flow,
    **{name: partial(trainer, name) for name in FLOW_TRAINERS},
    "fdpo_fast": ours,
}


def loss_and_gradient(name, beta):
    pred, ref, target = tensors(torch.float64)
    loss = PUBLISHED[name](pred.requires_grad_(), ref, target, beta)
    return loss.detach(), torch.autograd.grad(loss, pred)[0]


def test_every_convention_is_executed():
    assert PUBLISHED.keys() == CONVENTIONS.keys()


@pytest.mark.parametrize("target", CONVENTIONS)
@pytest.mark.parametrize("source", CONVENTIONS)
def test_a_converted_strength_gives_the_same_loss(source, target):
    beta = 5.0 if CONVENTIONS[source].sums else 1500.0
    want, want_grad = loss_and_gradient(source, beta)
    got, got_grad = loss_and_gradient(target, convert(beta, source, target, elements=N))
    assert abs(want.item() - math.log(2)) > 1e-3  # far enough from where any strength gives the same
    torch.testing.assert_close(got, want, rtol=1e-11, atol=0)
    torch.testing.assert_close(got_grad, want_grad, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("beta", [0.1, 1.0, 40.0])
@pytest.mark.parametrize("source", CONVENTIONS)
def test_ratio_scale_stands_beside_beta(source, beta):
    beta_dpo = 5.0 if source == "paper" else 1500.0
    want, want_grad = loss_and_gradient(source, beta_dpo)
    pred, ref, target = tensors(torch.float64)
    scale = ratio_scale(beta_dpo, source, beta=beta, elements=N)
    loss, _ = fdpo_loss(pred.requires_grad_(), ref, target, divergence="reverse_kl", beta=beta, ratio_scale=scale)
    torch.testing.assert_close(loss.detach(), want, rtol=1e-11, atol=0)
    torch.testing.assert_close(torch.autograd.grad(loss, pred)[0], want_grad, rtol=1e-10, atol=1e-14)


def test_the_defaults_of_other_codes_are_one_strength():
    """Of noise; those of flows are what each of their trainers ships with."""
    defaults = {name: row.default for name, row in CONVENTIONS.items() if row.default and row.default != 1}
    scales = {name: ratio_scale(beta, name) for name, beta in defaults.items()}
    assert scales == {
        **dict.fromkeys(("diffusion_dpo", "diffusers_sdxl", "diffusers_sd15"), 2500),
        **{"longcat": 2000, "flow_grpo": 50, "verl_omni": 1000, "flow_factory": 1000},
    }
    assert ratio_scale(CONVENTIONS["simpletuner"].default, "simpletuner", elements=65536) == 32768


def test_known_numbers():
    assert convert(5000, "diffusion_dpo", "diffusers_sd15") == 2500
    assert convert(5000, "diffusion_dpo", "paper", elements=16384) == 2500 / 16384  # SD1.5 at 512 x 512
    assert convert(1, "paper", "diffusion_dpo", elements=65536) == 131072  # SDXL at 1024 x 1024
    assert ratio_scale(2000, "flow", beta=4.0) == 250


betas, sizes, names = st.floats(1e-6, 1e9), st.integers(1, 10**7), st.sampled_from(sorted(CONVENTIONS))


@given(betas, names, names, sizes)
def test_there_and_back(beta, source, target, elements):
    there = convert(beta, source, target, elements=elements)
    assert convert(there, target, source, elements=elements) == pytest.approx(beta, rel=1e-14)


@given(betas, names, names, names, sizes)
def test_a_detour_changes_nothing(beta, source, between, target, elements):
    detour = convert(convert(beta, source, between, elements=elements), between, target, elements=elements)
    assert detour == pytest.approx(convert(beta, source, target, elements=elements), rel=1e-14)


@given(st.floats(0.01, 0.99), st.floats(-3, 3))
def test_alpha_from_trl_gives_trls_link(a, u):
    link = alpha(alpha_from_trl(a))
    x = torch.tensor(u, dtype=torch.float64).exp()
    torch.testing.assert_close(link(x.log()), (x ** (a - 1) - 1) / (a - 1), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: convert(1, "trl", "paper"), ValueError, "source is an unknown convention 'trl': use one of diff"),
        (lambda: convert(1, "paper", "SDXL"), ValueError, "target is an unknown convention 'SDXL': use one of diff"),
        (lambda: ratio_scale(1, "sdxl"), ValueError, "unknown convention 'sdxl'"),
        (lambda: convert(1, "paper", "flow"), ValueError, "one of 'paper' and 'flow' sums .* pass elements"),
        (lambda: ratio_scale(1, "paper"), ValueError, "one of 'paper' and 'fdpo_fast' sums .* pass elements"),
        (lambda: convert(0, "flow", "flow"), ValueError, "beta must be positive and finite, got 0: pass"),
        (lambda: convert(-5000.0, "flow", "flow"), ValueError, "beta must be positive and finite, got -5000.0"),
        (lambda: convert(math.inf, "flow", "flow"), ValueError, "beta must be positive and finite, got inf"),
        (lambda: convert(math.nan, "flow", "flow"), ValueError, "beta must be positive and finite, got nan"),
        (lambda: convert("5000", "flow", "flow"), TypeError, "beta must be a number, got str"),
        (lambda: convert(True, "flow", "flow"), TypeError, "beta must be a number, got bool"),
        (lambda: convert(1, "flow", "flow", elements=0), ValueError, "elements must be at least 1, got 0"),
        (lambda: convert(1, "paper", "flow", elements=1.5), TypeError, "elements must be a whole number, got 1.5"),
        (lambda: convert(1, "paper", "flow", elements=True), TypeError, "elements must be a whole number, got True"),
        (lambda: ratio_scale(1, "flow", beta=0.0), ValueError, "beta must be positive and finite, got 0.0"),
        (lambda: ratio_scale(1, "flow", beta=None), TypeError, "beta must be a number, got NoneType"),
        (lambda: alpha_from_trl(1.0), ValueError, "strictly between 0 and 1, got 1.0: its limits are 'forward_kl'"),
        (lambda: alpha_from_trl(math.nan), ValueError, "strictly between 0 and 1, got nan"),
        (lambda: alpha_from_trl("0.5"), TypeError, "TRL's alpha must be a number between 0 and 1, got str"),
    ],
)
def test_refusals(call, error, words):
    with pytest.raises(error, match=words) as caught:
        call()
    assert "\n" not in str(caught.value)
