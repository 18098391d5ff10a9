"""Targets that no tensor holds: on_noise * e + on_data * x_0 of drawn noise, on every backend, beside float64."""

import numpy as np
import pytest
import torch

from fdpo_fast import Target, fdpo_loss, pair_draw
from fdpo_fast.noise import normals
from tests.helpers.backends import FUSED
from tests.helpers.loss import FLOW, KNOBS, mixed

SHAPES = [(4, 9, 7), (16, 20, 16), (2, 4100), (5,)]


def by_definition(pred, ref, target, beta=KNOBS["beta"], ratio_scale=KNOBS["ratio_scale"]):
    """Losses of pairs in halves under Jensen-Shannon, and the gradient of their mean, in float64 and by numpy alone."""
    pairs, shape = len(pred) // 2, pred.shape[1:]
    _, noise = pair_draw(7, torch.arange(pairs) + 11, torch.arange(pairs) % 3, tuple(shape))
    p, x, e = (value.double().numpy() for value in (pred, target.data, torch.cat([noise, noise])))
    on_noise, on_data = (np.tile(row.double().numpy(), 2).reshape(-1, *[1] * len(shape)) for row in target.on)
    t = on_noise * e + on_data * x
    axes = tuple(range(1, p.ndim))
    r = ref.double().numpy()
    ref_error = r if r.ndim == 1 else np.mean((r - t) ** 2, axes)
    u = -ratio_scale * (np.mean((p - t) ** 2, axes) - ref_error)
    h, slope = np.log(2) - np.logaddexp(0, -u), 1 / (1 + np.exp(u))
    z = beta * (h[:pairs] - h[pairs:])
    outer = -beta / (1 + np.exp(z)) / pairs
    by_u = np.concatenate([outer * slope[:pairs], -outer * slope[pairs:]])
    grad = by_u.reshape(-1, *[1] * len(shape)) * -ratio_scale * 2 / np.prod(shape) * (p - t)
    return np.logaddexp(0, -z), grad


@pytest.mark.parametrize(("backend", "device"), [*FUSED, ("eager", "cpu")])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("errors", [False, True])
def test_losses_and_gradients_are_those_of_the_definition(backend, device, shape, errors):
    angle = torch.linspace(0.1, 1.5, 5, dtype=torch.float32)  # v-prediction: cos e - sin x_0
    for on in (FLOW, torch.stack([angle.cos(), -angle.sin()])):
        pred, ref, target = mixed(5, shape, on=on)
        if errors:
            ref = 0.01 + 0.001 * torch.arange(10, dtype=torch.float64)
        losses, want = by_definition(pred, ref, target)
        given = pred.to(device).requires_grad_()
        there = Target(*(part.to(device) for part in target))
        loss, _ = fdpo_loss(given, ref.to(device), there, backend=backend, reduction="none", **KNOBS)
        np.testing.assert_allclose(loss.detach().cpu(), losses, rtol=2e-6)
        (grad,) = torch.autograd.grad(loss.mean(), given)
        np.testing.assert_allclose(grad.cpu(), want, rtol=2e-5, atol=2e-6 * np.abs(want).max())


@pytest.mark.parametrize(("backend", "device"), FUSED)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("layout", ["halves", "interleaved"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_it_is_the_loss_of_the_tensor_that_it_stands_for(backend, device, dtype, layout, channels_last):
    pred, ref, target = mixed(3, (4, 8, 9), (dtype, dtype, dtype))
    order = torch.tensor([0, 3, 1, 4, 2, 5])
    if layout == "interleaved":
        pred, ref, target = pred[order], ref[order], target._replace(data=target.data[order])
    if channels_last:
        last = torch.channels_last
        pred, target = (
            pred.contiguous(memory_format=last),
            target._replace(data=target.data.contiguous(memory_format=last)),
        )
    eps = normals(target.draws, pred[0].numel(), "eager").view(3, *pred.shape[1:])
    both = torch.stack([eps, eps], 1).flatten(0, 1) if layout == "interleaved" else eps.repeat(2, 1, 1, 1)
    whole = both - target.data.float()
    options = KNOBS | {"layout": layout, "backend": backend}
    found = []
    for of in (Target(*(part.to(device) for part in target)), whole.to(device)):
        given = pred.to(device).requires_grad_()
        loss, stats = fdpo_loss(given, ref.to(device), of, **options)
        (grad,) = torch.autograd.grad(loss, given)
        assert grad.stride() == given.stride()
        found.append((loss.detach(), stats.margin, grad.float()))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=2e-5 if ours.dim() < 2 else torch.finfo(dtype).eps, atol=1e-6)


@pytest.mark.parametrize(("backend", "device"), FUSED)
def test_shares_of_one_and_nothing_are_noise_and_data_to_the_bit(backend, device):
    pred, ref, target = mixed(4, (4, 8, 8))
    pred, ref, drawn, data = (x.to(device) for x in (pred, ref, target.draws, target.data))
    for on, alone in ((torch.tensor([[1.0], [0.0]]), drawn), (torch.tensor([[0.0], [1.0]]), data)):
        got = fdpo_loss(pred, ref, Target(drawn, data, on.expand(2, 4).to(device)), backend=backend, **KNOBS)
        want = fdpo_loss(pred, ref, alone, backend=backend, **KNOBS)
        assert torch.equal(got[0], want[0])
        assert all(torch.equal(a, b) for a, b in zip(got[1].values(), want[1].values(), strict=True))


@pytest.mark.parametrize(("backend", "device"), FUSED)
def test_it_is_compiled_batched_and_linked_by_a_callable(backend, device):
    pred, ref, target = mixed(2, (4, 8, 8))
    target, ref = Target(*(part.to(device) for part in target)), ref.to(device)

    def value(link, run):
        given = pred.to(device).requires_grad_()
        loss, _ = run(given, ref, target, backend=backend, **KNOBS | {"divergence": link}, reduction="none")
        ones = torch.eye(2, device=device, dtype=torch.float32)
        batched = torch.autograd.grad(loss, given, ones, retain_graph=True, is_grads_batched=True)[0]
        (grad,) = torch.autograd.grad(loss.sum(), given)
        torch.testing.assert_close(batched.sum(0), grad)
        return loss.detach(), grad

    def jensen_shannon(u):
        return torch.log(torch.tensor(2.0, dtype=torch.float32)) + torch.nn.functional.logsigmoid(u)

    want = value("jensen_shannon", fdpo_loss)
    torch.testing.assert_close(value(jensen_shannon, fdpo_loss), want, rtol=1e-5, atol=1e-7)
    compiled = torch.compile(fdpo_loss, backend="aot_eager")
    given = pred.to(device).requires_grad_()
    loss, _ = compiled(given, ref, target, backend=backend, **KNOBS, reduction="none")
    (grad,) = torch.autograd.grad(loss.sum(), given)
    assert torch.equal(loss.detach(), want[0])
    assert torch.equal(grad, want[1])


@pytest.mark.parametrize("name", ["draws", "data", "on"])
def test_memory_that_was_freed_is_a_sentence(name):
    pred, ref, target = mixed(2, (4, 8, 8))
    part = getattr(target, name).clone()
    part.untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="has no memory: it was freed"):
        fdpo_loss(pred, ref, target._replace(**{name: part}), backend="cpp", **KNOBS)
