"""The drop-in against what other codes publish: their expressions, executed beside ours on the same tensors.

Inputs are rounded to the dtype under test first; the expressions are then evaluated in float64, so that both sides are
judged by the truth. Where a script casts to float32, `dtype` stands for that cast.
"""

import math

import pytest
import torch
import torch.nn.functional as F  # noqa: N812

from fdpo_fast import alpha, fdpo_loss, log_ratio_loss
from fdpo_fast.ops import cpp
from fdpo_fast.scales import alpha_from_trl, ratio_scale
from tests.helpers.published import PAIRS, SHAPE, official, script_errors, sd15_script, sdxl_script, tensors

needs_cpp = pytest.mark.skipif(bool(cpp.missing), reason=f"needs {cpp.missing}")
BACKENDS = [
    pytest.param("eager", torch.float64, id="eager-float64"),
    pytest.param("eager", torch.float32, id="eager-float32"),
    pytest.param("cpp", torch.float32, id="cpp-float32", marks=needs_cpp),
]
# Of the loss relative to itself, and of the gradient relative to its largest element.
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}


def compare(published, backend, dtype, **options):
    """Loss and gradient of `published(pred, ref, target)` and of ours; returns what else either reports."""
    pred, ref, target = tensors(dtype)
    theirs, ours = (pred.to(d, copy=True).requires_grad_() for d in (torch.float64, dtype))
    want, *reported = published(theirs, ref.double(), target.double())
    loss, stats = fdpo_loss(ours, ref, target, backend=backend, **options)
    want.backward()
    loss.backward()
    assert loss.item() == pytest.approx(want.item(), rel=TOLERANCE[dtype])
    scale = theirs.grad.abs().max().item()
    torch.testing.assert_close(ours.grad.double(), theirs.grad, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype] * scale)
    return reported, stats


@pytest.mark.parametrize(("backend", "dtype"), BACKENDS)
@pytest.mark.parametrize("beta", [1.0, 2500.0])
def test_diffusers_sdxl_script(beta, backend, dtype):
    (accuracy,), stats = compare(
        lambda *x: sdxl_script(*x, beta_dpo=5000),
        backend, dtype, divergence="reverse_kl", beta=beta, ratio_scale=ratio_scale(5000, "diffusers_sdxl", beta=beta),
    )  # fmt: skip
    assert 0.5 / PAIRS < accuracy < 1
    assert stats.accuracy.item() == pytest.approx(accuracy.item(), rel=1e-6)


@pytest.mark.parametrize(("backend", "dtype"), BACKENDS)
def test_official_script(backend, dtype):
    (accuracy, logged), stats = compare(
        lambda *x: official(*x, beta_dpo=5000),
        backend, dtype, divergence="reverse_kl", beta=1.0, ratio_scale=ratio_scale(5000, "diffusion_dpo"),
    )  # fmt: skip
    # The one place where ours reports another number: a tie counts nothing there and 0.5 here. One pair in PAIRS ties.
    assert stats.margin.eq(0).sum() == 1
    assert stats.accuracy.item() == pytest.approx(accuracy.item() + 0.5 / PAIRS, rel=1e-6)
    model_mse, ref_mse = (torch.cat([stats[f"{e}_w"], stats[f"{e}_l"]]).mean().item() for e in ("error", "ref_error"))
    assert model_mse == pytest.approx(logged["model_mse"].item(), rel=1e-6)
    assert ref_mse == pytest.approx(logged["ref_mse"].item(), rel=1e-6)


@pytest.mark.parametrize(("backend", "dtype"), BACKENDS)
@pytest.mark.parametrize("loss_type", ["sigmoid", "hinge", "ipo"])
def test_diffusers_sd15_script(loss_type, backend, dtype):
    # beta = beta_dpo makes ratio_scale one: the ipo of the script wants that, the others do not mind
    (accuracy,), stats = compare(
        lambda *x: sd15_script(*x, beta_dpo=2500, loss_type=loss_type),
        backend, dtype, divergence="reverse_kl", loss_type=loss_type,
        beta=2500, ratio_scale=ratio_scale(2500, "diffusers_sd15", beta=2500),
    )  # fmt: skip
    assert stats.accuracy.item() == pytest.approx(accuracy.item(), rel=1e-6)


@pytest.mark.parametrize("backend", ["eager", pytest.param("cpp", marks=needs_cpp)])
@pytest.mark.parametrize("half", [torch.bfloat16, torch.float16])
def test_a_script_in_float32_on_half_precision_predictions(half, backend):
    # as the diffusers scripts run: rounding the mean errors to float32 moves their logits by some 1e-4
    pred, ref, target = tensors(half)
    theirs, ours = pred.clone().requires_grad_(), pred.clone().requires_grad_()
    want, _ = sdxl_script(theirs, ref, target, beta_dpo=5000, dtype=torch.float32)
    loss, _ = fdpo_loss(ours, ref, target, divergence="reverse_kl", beta=1.0, ratio_scale=2500.0, backend=backend)
    want.backward()
    loss.backward()
    assert loss.item() == pytest.approx(want.item(), abs=2e-4)
    scale = theirs.grad.abs().max().item()
    eps = torch.finfo(half).eps
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=eps, atol=eps * scale)


# f-DPO (Wang et al., arXiv 2309.16240), from log p_theta / p_ref of the preferred and of the dispreferred sample on.
F_DPO = {
    "reverse_kl": lambda u_w, u_l: u_w - u_l,
    "forward_kl": lambda u_w, u_l: -torch.exp(-u_w) - -torch.exp(-u_l),
    "jensen_shannon": lambda u_w, u_l: (math.log(2) - F.softplus(-u_w)) - (math.log(2) - F.softplus(-u_l)),
    "alpha": lambda u_w, u_l: -torch.exp(-0.5 * u_w) / 0.5 - -torch.exp(-0.5 * u_l) / 0.5,
}


@pytest.mark.parametrize(("backend", "dtype"), BACKENDS)
@pytest.mark.parametrize("name", F_DPO)
def test_f_dpo(name, backend, dtype):
    def published(pred, ref, target):
        (model_w, model_l), (ref_w, ref_l) = (script_errors(x, target, torch.float64) for x in (pred, ref))
        u_w, u_l = -200 * (model_w - ref_w), -200 * (model_l - ref_l)
        return (-F.logsigmoid(3.0 * F_DPO[name](u_w, u_l)).mean(),)

    compare(published, backend, dtype, divergence=name, beta=3.0, ratio_scale=200.0)


@pytest.mark.parametrize(("backend", "dtype"), BACKENDS)
def test_gradient_of_forward_kl_in_closed_form(backend, dtype):
    """f-DPO's gradient, -beta sigmoid(-z) (f''(x_w) x_w grad u_w - f''(x_l) x_l grad u_l) with x = e^u and, for
    f = -log, f''(x) x = 1 / x; and here grad u = -ratio_scale * 2 (p - t) / N.
    """
    beta, scale = 3.0, 200.0
    pred, ref, target = tensors(dtype)
    ours = pred.clone().requires_grad_()
    loss, _ = fdpo_loss(ours, ref, target, divergence="forward_kl", beta=beta, ratio_scale=scale, backend=backend)
    loss.backward()
    pred, ref, target = pred.double(), ref.double(), target.double()
    u = -scale * ((pred - target).square() - (ref - target).square()).flatten(1).mean(dim=1)
    x_w, x_l = u.exp().chunk(2)
    z = beta * (-1 / x_w - -1 / x_l)
    by_u = -beta * torch.sigmoid(-z).repeat(2) * torch.cat([1 / x_w, -1 / x_l]) / PAIRS
    want = (by_u * -scale * 2 / math.prod(SHAPE)).view(-1, 1, 1, 1) * (pred - target)
    atol = TOLERANCE[dtype] * want.abs().max().item()
    torch.testing.assert_close(ours.grad.double(), want, rtol=TOLERANCE[dtype], atol=atol)


def log_probabilities():
    """What a language-model trainer has: policy chosen, policy rejected, reference chosen, reference rejected."""
    generator = torch.Generator().manual_seed(0)
    reference = torch.randn(2, 6, generator=generator, dtype=torch.float64) - 40
    policy = reference + torch.randn(2, 6, generator=generator, dtype=torch.float64)
    return (*(x.clone().requires_grad_() for x in policy), *reference)


def trl_loss(logits, beta, loss_type="sigmoid", label_smoothing=0.0):
    """The losses of TRL's DPO trainer on its logits."""
    e = label_smoothing
    kept, flipped = F.logsigmoid(beta * logits), F.logsigmoid(-beta * logits)
    losses = {
        "sigmoid": -kept * (1 - e) - flipped * e,
        "robust": (-kept * (1 - e) + flipped * e) / (1 - 2 * e),
        "hinge": torch.relu(1 - beta * logits),
        "ipo": (logits - 1 / (2 * beta)) ** 2,
    }
    return losses[loss_type].mean()


def compare_log_ratios(logits, beta=0.7, divergence="reverse_kl", **options):
    """`logits(policy_chosen, policy_rejected, ref_chosen, ref_rejected)` under TRL's losses, and ours from u on."""
    policy_chosen, policy_rejected, ref_chosen, ref_rejected = log_probabilities()
    theirs = logits(policy_chosen, policy_rejected, ref_chosen, ref_rejected)
    want = trl_loss(theirs, beta, **options)
    got, margin = log_ratio_loss(
        policy_chosen - ref_chosen, policy_rejected - ref_rejected, divergence=divergence, beta=beta, **options
    )
    assert got.item() == pytest.approx(want.item(), rel=1e-12)
    torch.testing.assert_close(margin, beta * theirs.detach(), rtol=1e-11, atol=1e-12)
    want_grad = torch.autograd.grad(want, (policy_chosen, policy_rejected), retain_graph=True)
    got_grad = torch.autograd.grad(got, (policy_chosen, policy_rejected))
    torch.testing.assert_close(got_grad, want_grad, rtol=1e-11, atol=1e-14)


def trl_logits(policy_chosen, policy_rejected, ref_chosen, ref_rejected):
    return (policy_chosen - policy_rejected) - (ref_chosen - ref_rejected)


@pytest.mark.parametrize(
    ("loss_type", "label_smoothing"),
    [("sigmoid", 0.0), ("sigmoid", 0.1), ("robust", 0.0), ("robust", 0.1), ("hinge", 0.0), ("ipo", 0.0)],
)
def test_trl_losses(loss_type, label_smoothing):
    compare_log_ratios(trl_logits, loss_type=loss_type, label_smoothing=label_smoothing)


def test_trl_jensen_shannon():
    def logits(policy_chosen, policy_rejected, ref_chosen, ref_rejected):
        chosen_logratios, rejected_logratios = policy_chosen - ref_chosen, policy_rejected - ref_rejected
        plain = trl_logits(policy_chosen, policy_rejected, ref_chosen, ref_rejected)
        return plain - (F.softplus(chosen_logratios) - F.softplus(rejected_logratios))

    compare_log_ratios(logits, divergence="jensen_shannon")


def test_trl_forward_kl():
    compare_log_ratios(lambda c, r, ref_c, ref_r: torch.exp(ref_r - r) - torch.exp(ref_c - c), divergence="forward_kl")


@pytest.mark.parametrize("a", [0.1, 0.5, 0.7])
def test_trl_alpha(a):
    def logits(policy_chosen, policy_rejected, ref_chosen, ref_rejected):
        coefficient = 1 / (a - 1)  # TRL >= 0.29: f'(x) = (x^(a-1) - 1) / (a - 1), its constant left out
        chosen_scores = coefficient * torch.exp((a - 1) * (policy_chosen - ref_chosen))
        return chosen_scores - coefficient * torch.exp((a - 1) * (policy_rejected - ref_rejected))

    compare_log_ratios(logits, divergence=alpha(alpha_from_trl(a)))


@pytest.mark.parametrize("a", [0.1, 0.5, 0.7])
def test_alpha_of_earlier_trl(a):
    # and of f-DPO's own code: our coefficient
    compare_log_ratios(
        lambda c, r, ref_c, ref_r: (torch.exp((r - ref_r) * -a) - torch.exp((c - ref_c) * -a)) / a, divergence=alpha(a)
    )
