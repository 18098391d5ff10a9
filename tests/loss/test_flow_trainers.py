"""Flow matching: our loss is that of published trainers at a converted strength, and that of the definition."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import logsigmoid

from fdpo_fast import Target, add_noise, draws, fdpo_loss, pair_draw
from fdpo_fast.scales import CONVENTIONS, ratio_scale
from tests.helpers.backends import FUSED
from tests.helpers.divergences import F
from tests.helpers.loss import FLOW, as_tensor, mixed
from tests.helpers.published import FLOW_LAYOUTS, FLOW_TRAINERS, as_batched

PAIRS, SHAPE = 5, (16, 8, 8)
N = math.prod(SHAPE)
STRENGTH = 1500.0
BETAS = {"longcat": 1500.0, "flow_grpo": 3000.0, "verl_omni": 3000.0, "flow_factory": 3000.0, "simpletuner": 3000 / N}
"""What each trainer would have to be given for logits of STRENGTH times a difference of mean squares."""

trainer = pytest.mark.parametrize("name", FLOW_TRAINERS)
backend_and_device = pytest.mark.parametrize(("backend", "device"), [*FUSED, ("eager", "cpu")])


def by_formula(pred, ref, target):
    """Loss and gradient by numpy in float64: -log sigmoid(STRENGTH (gain_w - gain_l)), averaged over the pairs.

    gain: how far a sample's mean squared error is below the reference's.
    """
    p, r, t = (x.double().numpy() for x in (pred, ref, target))
    gain = np.mean((r - t) ** 2 - (p - t) ** 2, axis=(1, 2, 3))
    logit = STRENGTH * (gain[:PAIRS] - gain[PAIRS:])
    by_gain = STRENGTH / (1 + np.exp(logit)) / PAIRS
    factor = np.concatenate([by_gain, -by_gain]) * 2 / N
    return np.logaddexp(0, -logit).mean(), factor.reshape(-1, 1, 1, 1) * (p - t)


def by_the_trainer(name, pred, ref, target):
    """Loss and gradient of what a trainer computes, in float64 by autograd, in its own order of the batch."""
    pred = pred.double().requires_grad_()
    loss = FLOW_TRAINERS[name](pred, ref, target, BETAS[name])
    return loss.detach(), torch.autograd.grad(loss, pred)[0]


def test_every_trainer_of_flows_is_here():
    assert [name for name in CONVENTIONS if name in FLOW_TRAINERS] == list(BETAS) == list(FLOW_TRAINERS)


@trainer
def test_a_trainer_computes_the_formula(name):
    pred, ref, target = mixed(PAIRS, SHAPE)
    whole = as_tensor(target)
    loss, grad = by_formula(pred, ref, whole)
    assert abs(loss - math.log(2)) > 0.01  # far enough from where any strength gives the same
    got, got_grad = by_the_trainer(name, *as_batched(name, pred, ref, whole))
    (want_grad,) = as_batched(name, torch.from_numpy(grad))
    assert got.item() == pytest.approx(loss, rel=1e-12)
    torch.testing.assert_close(got_grad, want_grad, rtol=1e-10, atol=1e-15)


@trainer
@backend_and_device
@pytest.mark.parametrize("form", ["draws and latents", "a tensor"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("errors", [False, True])
def test_ours_is_the_trainers(name, backend, device, form, dtype, errors):
    """Predictions and latents as they are rounded; errors: of the reference, stored in place of its predictions."""
    pred, ref, target = mixed(PAIRS, SHAPE, (dtype,) * 3)
    pred, ref, latents, whole = as_batched(name, pred, ref, target.data, as_tensor(target))
    loss, grad = by_the_trainer(name, pred, ref, whole)
    given = ((ref.double() - whole) ** 2).mean((1, 2, 3)) if errors else ref
    forms = {"draws and latents": target._replace(data=latents), "a tensor": Target(data=whole.float())}
    there = Target(*(None if part is None else part.to(device) for part in forms[form]))
    policy = pred.to(device).requires_grad_()
    scale = ratio_scale(BETAS[name], name, beta=3.0, elements=N)
    got, _ = fdpo_loss(
        policy, given.to(device), there, divergence="reverse_kl", beta=3.0, ratio_scale=scale,
        layout=FLOW_LAYOUTS[name], backend=backend,
    )  # fmt: skip
    assert got.item() == pytest.approx(loss.item(), rel=1e-5)
    (got_grad,) = torch.autograd.grad(got, policy)
    rtol = max(2e-5, torch.finfo(dtype).eps)
    torch.testing.assert_close(got_grad.cpu().double(), grad, rtol=rtol, atol=2e-6 * grad.abs().max().item())


@trainer
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ours_is_the_trainers_as_it_runs(name, dtype):
    """With its own casts to float32, of a target that it forms in the dtype of its latents."""
    pred, ref, target = mixed(PAIRS, SHAPE, (dtype,) * 3)
    noise = as_tensor(target._replace(on=torch.tensor([[1.0], [0.0]]).expand(2, PAIRS))).to(dtype)
    pred, ref, flow = as_batched(name, pred, ref, noise - target.data)
    assert flow.dtype == dtype
    theirs, ours = (pred.clone().requires_grad_() for _ in range(2))
    want = FLOW_TRAINERS[name](theirs, ref, flow, BETAS[name], dtype=torch.float32)
    scale = ratio_scale(BETAS[name], name, elements=N)
    got, _ = fdpo_loss(ours, ref, flow, divergence="reverse_kl", beta=1.0, ratio_scale=scale, layout=FLOW_LAYOUTS[name])
    assert got.item() == pytest.approx(want.item(), rel=2e-4)  # theirs subtracts means of float32 squares
    (grad,), (want_grad,) = torch.autograd.grad(got, ours), torch.autograd.grad(want, theirs)
    rtol = max(1e-3, torch.finfo(dtype).eps)
    torch.testing.assert_close(grad, want_grad, rtol=rtol, atol=1e-5 * want_grad.abs().max().item())


# --- a rectified flow from its definition -----------------------------------------------------------------------

STEPS, SHIFT = 1000, 3.0
FLOW_KNOBS = {"beta": 2.0, "ratio_scale": 4.0}


def shares(u):
    """The share of noise at a time u, shifted as SD3 shifts it."""
    return SHIFT * u / (1 + (SHIFT - 1) * u)


def denoiser(weight, noisy, sigma):
    """A denoiser of one matrix [channels, channels] and what it is told of the noise."""
    return torch.einsum("ij,bjhw->bihw", weight, noisy) + sigma.view(-1, 1, 1, 1)


def defined(name, weight, ref_weight, latents, ids, visits):
    """Loss and gradient of one step in float64: x_t = (1 - s) x_0 + s e, its target e - x_0, the link f' by autograd.

    The loss is -log sigmoid(beta (f'(x_w) - f'(x_l))) with x = exp(-ratio_scale (error - ref_error)).
    """
    index, noise = pair_draw(7, ids, visits, tuple(latents.shape[1:]), num_train_timesteps=STEPS)
    s = shares((index.double() + 1) / STEPS).repeat(2)
    share, e, x_0 = s.view(-1, 1, 1, 1), noise.double().repeat(2, 1, 1, 1), latents.double()
    x_t, velocity = (1 - share) * x_0 + share * e, e - x_0
    weight = weight.double().requires_grad_()
    error, ref_error = (
        (denoiser(w, x_t, s) - velocity).square().mean((1, 2, 3)) for w in (weight, ref_weight.double())
    )
    ratio = torch.exp(-FLOW_KNOBS["ratio_scale"] * (error - ref_error))
    (link,) = torch.autograd.grad(F[name](ratio).sum(), ratio, create_graph=True)
    link_w, link_l = link.chunk(2)
    loss = -logsigmoid(FLOW_KNOBS["beta"] * (link_w - link_l)).mean()
    return loss.detach(), torch.autograd.grad(loss, weight)[0], ratio.detach().log()


@pytest.mark.parametrize("name", F)
@backend_and_device
def test_a_step_is_that_of_the_definition(name, backend, device):
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(2 * PAIRS, *SHAPE, generator=generator, dtype=torch.float32)
    first, change = (torch.randn(16, 16, generator=generator, dtype=torch.float32) for _ in range(2))
    ref_weight = 0.1 * first
    weight = ref_weight + 0.05 * change
    ids, visits = torch.arange(PAIRS) + 3, torch.arange(PAIRS) % 2
    want, want_grad, log_ratio = defined(name, weight, ref_weight, latents, ids, visits)
    assert 0.1 < log_ratio.abs().max() < 5

    drawn, x_0 = draws(7, ids, visits).to(device), latents.to(device)
    sigmas = shares((torch.arange(STEPS, dtype=torch.float64) + 1) / STEPS).float().to(device)
    noisy, index = add_noise(x_0, drawn, 1 - sigmas, sigmas, backend=backend)
    sigma, policy = sigmas[index].repeat(2), weight.to(device).requires_grad_()
    pred, ref = denoiser(policy, noisy, sigma), denoiser(ref_weight.to(device), noisy, sigma)
    target = Target(drawn, x_0, FLOW.expand(2, PAIRS).to(device))
    loss, stats = fdpo_loss(pred, ref, target, divergence=name, backend=backend, **FLOW_KNOBS)
    assert loss.item() == pytest.approx(want.item(), rel=1e-5)
    got_ratio = torch.cat([stats.log_ratio_w, stats.log_ratio_l]).cpu().double()
    torch.testing.assert_close(got_ratio, log_ratio, rtol=1e-5, atol=1e-5)
    (grad,) = torch.autograd.grad(loss, policy)
    torch.testing.assert_close(grad.cpu().double(), want_grad, rtol=1e-4, atol=1e-5 * want_grad.abs().max().item())
