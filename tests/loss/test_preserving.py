"""`winner_preserving`: the gradient of the dispreferred sample, by formulas in float64; and what such a step is for.

Random calls draw the options of `test_first_aid` too.
"""

from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fdpo_fast import DIVERGENCES, Target, draws, fdpo_loss
from fdpo_fast.noise import eager_normals
from tests.helpers.backends import FUSED
from tests.helpers.loss import HALVES, KNOBS, as_tensor
from tests.helpers.preserving import alike, preserved

ALL = [*FUSED, ("eager", "cpu")]
# Neither knows of the other: every divergence, and every type of loss under the one with most terms.
COMBINATIONS = [(name, "sigmoid", 0.0) for name in DIVERGENCES]
COMBINATIONS += [
    ("jeffreys", *of) for of in (("sigmoid", 0.3), ("robust", 0.0), ("robust", 0.3), ("hinge", 0.0), ("ipo", 0.0))
]
OTHERS = {"sft_weight": [0.0, 0.3, 5.0], "margin": [0.0, 0.5, 3.0], "clip_log_ratio": [None, 0.02, 0.4, 1e30]}


def stepped(pred, ref, target, mu, backend="eager", device="cpu", upstream=None, **options):
    """(losses or loss, gradient, stats), on the CPU."""
    pred = pred.to(device).detach().requires_grad_()
    there = Target(*(x if x is None else x.to(device) for x in Target.of(target)))
    loss, stats = fdpo_loss(
        pred, ref.to(device), there, backend=backend, winner_preserving=mu, **KNOBS | {"reduction": "sum"} | options
    )
    (grad,) = torch.autograd.grad(loss, pred, None if upstream is None else upstream.to(loss))
    return loss.detach().cpu(), grad.cpu(), {name: value.cpu() for name, value in stats.items()}


def assert_close(got, want, dtype=torch.float32):
    _, grad, stats = got
    scale, info = stats["loser_scale"].double(), torch.finfo(dtype)
    off = (1 / scale - 1 / want.scale).abs()
    equal = scale == want.scale  # both 0, too: no error to keep
    bound = 2e-5 / want.scale + 4 * torch.finfo(torch.float32).eps * want.slack
    assert (equal | (off <= bound)).all(), (off, bound)
    by_scale = want.grad.clone()
    by_scale[want.losers] *= torch.where(equal, 1.0, scale / want.scale).view(-1, *[1] * (grad.ndim - 1))
    largest = by_scale.abs().max().item() if grad.numel() else 0.0
    torch.testing.assert_close(
        grad.double(), by_scale, rtol=2 * info.eps + 2e-5, atol=2e-6 * largest + info.tiny * info.eps
    )


@pytest.mark.parametrize(("backend", "device"), ALL)
@pytest.mark.parametrize(("name", "loss_type", "e"), COMBINATIONS)
def test_gradients_are_those_of_the_formulas(backend, device, name, loss_type, e):
    for mu, errors in product((0.0, 0.5), (False, True)):
        pred, ref, target = alike(12, (3, 5), seed=len(name))
        if errors:
            ref = (ref.double() - target.double()).square().flatten(1).mean(1)
        options = {"divergence": name, "loss_type": loss_type, "label_smoothing": e, "ratio_scale": 20.0, "beta": 0.5}
        got = stepped(pred, ref, target, mu, backend, device, **options)
        want = preserved(pred, ref, target, mu, **options)
        assert_close(got, want)
        assert (want.scale < 1).any()
        torch.testing.assert_close(got[0].double(), want.losses.sum(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("backend", "device"), ALL)
@given(data=st.data())
@settings(max_examples=40)
def test_any_call(backend, device, data):
    """Shapes, dtypes, strides, layouts, what the target is, weights of both signs, reductions, upstream gradients."""
    pairs = data.draw(st.integers(0, 4), "pairs")
    shape = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=4), "shape")
    dtypes = data.draw(st.tuples(*[st.sampled_from([torch.float32, *HALVES])] * 3), "dtypes")
    likeness = data.draw(st.sampled_from([-0.7, 0.0, 0.5, 1.0, 2.0]), "likeness")
    pred, ref, given_target = alike(pairs, shape, dtypes, data.draw(st.integers(0, 9)), likeness)
    form = data.draw(st.sampled_from(["given", "drawn", "mixed"]), "form")
    drawn = draws(3, torch.arange(pairs), 2)
    target, whole = given_target, given_target.double()
    if form == "drawn":
        noise = eager_normals(drawn, whole[0].numel() if pairs else 1)
        target, whole = drawn, noise.double().view(pairs, *shape).repeat(2, *[1] * len(shape)) if pairs else whole
    elif form == "mixed":
        target = Target(drawn, target, torch.rand(2, pairs, generator=torch.Generator().manual_seed(2)))
        whole = as_tensor(target) if pairs else whole
    if form != "given":
        offset = whole - given_target.double()
        pred, ref = ((x.double() + offset).to(x.dtype) for x in (pred, ref))
    if data.draw(st.booleans(), "errors") and pairs:
        ref = (ref.double() - whole).square().flatten(1).mean(1)
    options = {"layout": data.draw(st.sampled_from(["halves", "interleaved"]), "layout"), "ratio_scale": 2.0}
    options["divergence"] = data.draw(st.sampled_from([*DIVERGENCES, torch.sinh]), "divergence")
    if options["layout"] == "interleaved":
        order = torch.arange(2 * pairs).view(2, -1).T.flatten()
        pred, ref, whole = pred[order], ref[order], whole[order]
        if (there := Target.of(target)).data is not None:
            target = there._replace(data=there.data[order])
    if data.draw(st.booleans(), "weighted"):
        options["weight"] = torch.randn(pairs, generator=torch.Generator().manual_seed(1))
    mu = data.draw(st.sampled_from([None, 0.0, 0.25, 0.9, 1 - 2**-20]), "mu")
    for name, values in OTHERS.items():
        options[name] = data.draw(st.sampled_from(values), name)
    want = preserved(pred, ref, whole, mu, beta=KNOBS["beta"], **options)
    reduction = data.draw(st.sampled_from(["mean", "sum", "none"]), "reduction")
    upstream = torch.tensor(data.draw(st.sampled_from([1.0, 0.25, -3.0])))
    factor = float(upstream) / (max(pairs, 1) if reduction == "mean" else 1)
    if reduction == "none":
        upstream = upstream.expand(pairs)
    strided = pred.transpose(1, -1).contiguous().transpose(1, -1)
    got = stepped(
        strided,
        ref,
        target,
        mu,
        backend,
        device,
        upstream,
        **options | {"reduction": reduction, **weight_on(options, device)},
    )
    assert_close(got, want._replace(grad=factor * want.grad), dtypes[0])
    losses = {"none": want.losses, "sum": want.losses.sum(), "mean": want.losses.sum() / max(pairs, 1)}[reduction]
    torch.testing.assert_close(got[0].double(), losses, rtol=1e-5, atol=1e-5 * want.losses.abs().sum().item())


def weight_on(options, device):
    return {"weight": options["weight"].to(device)} if "weight" in options else {}


@pytest.mark.parametrize(("backend", "device"), ALL)
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("errors", [False, True])
@pytest.mark.parametrize("divergence", ["jensen_shannon", torch.sinh])
def test_all_but_the_dispreferred_gradient_keeps_its_bits(backend, device, dtype, errors, divergence):
    pred, ref, target = alike(5, (4, 20, 20), (dtype,) * 3)
    if errors:
        ref = (ref.double() - target.double()).square().flatten(1).mean(1)
    options = {"divergence": divergence, "ratio_scale": 5.0}
    off, on = (stepped(pred, ref, target, mu, backend, device, **options) for mu in (None, 0.0))
    assert torch.equal(on[0], off[0])
    assert torch.equal(on[1][:5], off[1][:5])
    assert not torch.equal(on[1][5:], off[1][5:])
    assert off[2]["loser_scale"].eq(1).all()
    assert on[2]["loser_scale"].lt(1).any()
    assert {name for name in on[2] if not torch.equal(on[2][name], off[2][name])} == {"loser_scale"}


@pytest.mark.parametrize(("backend", "device"), ALL)
@pytest.mark.parametrize("divergence", ["reverse_kl", lambda u: u])
def test_scales_on_known_vectors(backend, device, divergence):
    """Of two elements: g_w is along (1, 0); the other one with it, against it, across it, and none at all."""
    toward = {(2.0, 1.0): 0.25, (0.25, 1.0): 1.0, (-1.0, 0.0): 1.0, (0.0, 1.0): 1.0, (0.0, 0.0): 1.0, (0.5, 0.0): 1.0}
    miss_l = torch.tensor(list(toward), dtype=torch.float32)
    miss_w = torch.tensor([[1.0, 0.0]], dtype=torch.float32).expand_as(miss_l)
    pred = torch.cat([miss_w, miss_l])
    options = {"divergence": divergence, "beta": 1.0, "ratio_scale": 0.1}
    _, _, stats = stepped(pred, pred, torch.zeros_like(pred), 0.5, backend, device, **options)
    torch.testing.assert_close(stats["loser_scale"], torch.tensor(list(toward.values()), dtype=torch.float32))
    perfect = torch.cat([0 * miss_w, miss_l])  # a preferred sample without an error has nothing to lose
    _, _, stats = stepped(perfect, perfect, torch.zeros_like(pred), 0.5, backend, device, **options)
    assert stats["loser_scale"].eq(1).all()


REVERSED = {
    "a margin that ipo pulls back": {"loss_type": "ipo", "beta": 100.0},
    "a margin that smoothed labels pull back": {"loss_type": "sigmoid", "label_smoothing": 0.4, "beta": 50.0},
    "a negative weight": {"weight": torch.full((4,), -1.0)},
    "no weight": {"weight": torch.zeros(4)},
    "a hinge that is satisfied": {"loss_type": "hinge", "beta": 50.0},
    "a link that falls": {"divergence": lambda u: -u},
    "a constant link": {"divergence": torch.zeros_like},
}


@pytest.mark.parametrize(("backend", "device"), ALL)
@pytest.mark.parametrize("why", REVERSED)
def test_nothing_is_scaled_where_the_loss_pushes_the_other_way(backend, device, why):
    pred, _, target = alike(4, (3, 5))
    ref = torch.tensor([1.0] * 4 + [0.01] * 4, dtype=torch.float64)  # far worse than the policy, then far better
    options = {"divergence": "reverse_kl", "ratio_scale": 1.0, "beta": 1.0} | REVERSED[why]
    options |= weight_on(options, device)
    flat = why == "a constant link"
    if flat:  # which has no gradient
        options["reduction"] = "none"
        _, stats = fdpo_loss(pred.to(device), ref.to(device), target.to(device), backend=backend,
                             winner_preserving=0.0, **options)  # fmt: skip
        assert stats["loser_scale"].eq(1).all()
        return
    off, on = (stepped(pred, ref, target, mu, backend, device, **options) for mu in (None, 0.0))
    assert on[2]["loser_scale"].eq(1).all()
    assert torch.equal(on[1], off[1])
    plain = {"divergence": "reverse_kl", "ratio_scale": 1.0, "beta": 1.0}
    assert stepped(pred, ref, target, 0.0, backend, device, **plain)[2]["loser_scale"].lt(1).any()


@pytest.mark.parametrize(("backend", "device"), ALL)
@pytest.mark.parametrize("mu", [None, 0.0, 0.3, 0.99])
def test_a_step_of_a_model_that_both_samples_share(backend, device, mu):
    """Of a linear one the preferred error changes by exactly rate * first + rate^2 * second, and first is what mu says.

    The dispreferred sample misses its target in the same direction, but more: to unlearn it is to miss more on both.
    """
    generator = torch.Generator().manual_seed(0)
    weight, features, miss = (torch.randn(size, generator=generator, dtype=torch.float64) for size in ((6, 5), 5, 6))
    outputs = weight @ features
    targets = torch.stack([outputs - miss, outputs - 1.5 * miss + 0.1])

    def errors(weight):
        return ((weight @ features).expand(2, -1) - targets).square().mean(1)

    pred = outputs.expand(2, -1).float()
    options = {"divergence": "reverse_kl", "beta": 1.0, "ratio_scale": 1.0, "reduction": "sum"}
    _, by_pred, stats = stepped(pred, pred, targets.float(), mu, backend, device, **options)
    step = -torch.outer(by_pred.double().sum(0), features)
    second = (step @ features).square().mean()
    first = [(errors(weight + rate * step) - errors(weight))[0] / rate - rate * second for rate in (1e-3, 1e-1)]
    # at the start both sides are pushed with half of ratio_scale; what its own gradient alone takes off
    own = 0.5 * features.square().sum() * (2 / 6 * miss).square().sum()
    if mu is None:
        assert min(first) > 0.3 * own
        assert stats["loser_scale"] == 1
        return
    torch.testing.assert_close(torch.stack(first), (-mu * own).expand(2), rtol=1e-5, atol=1e-6 * own.item())
    assert 0 < stats["loser_scale"] < 1


def published(pred, target, mu):
    """lambda as Diffusion-SDPO's paper and code form it, of a batch as a whole: their error is the batch's mean."""
    (p_w, p_l), (t_w, t_l) = (x.detach().chunk(2) for x in (pred, target))
    sides = []
    for p, t in ((p_w, t_w), (p_l, t_l)):
        p.requires_grad_()
        sides += torch.autograd.grad(((p - t) ** 2).mean(), p)
    g_w, g_l = sides
    inner = (g_w * g_l).sum()
    return (((1 - mu) * g_w.square().sum() / inner) if inner > 0 else torch.ones_like(inner)).clamp(0, 1)


@pytest.mark.parametrize(("backend", "device"), ALL)
@pytest.mark.parametrize("likeness", [-1.0, 0.3, 1.0, 3.0])
def test_under_reverse_kl_a_pair_is_scaled_as_diffusion_sdpo_scales_a_batch(backend, device, likeness):
    pred, ref, target = alike(6, (4, 8, 8), likeness=likeness)
    for mu in (0.0, 0.6, 0.9):
        _, _, stats = stepped(pred, ref, target, mu, backend, device, divergence="reverse_kl")
        want = [published(pred[i::6].double(), target[i::6].double(), mu).item() for i in range(6)]
        np.testing.assert_allclose(stats["loser_scale"], want, rtol=1e-5)


@pytest.mark.parametrize("divergence", ["jensen_shannon", torch.sinh])
def test_higher_derivatives_take_the_scale_for_a_constant(divergence):
    """They are those of the loss in which the dispreferred error moves lambda times as far from where it is."""
    pred, ref, target = (x.double() for x in alike(2, (3,)))
    options = KNOBS | {"divergence": divergence, "ratio_scale": 2.0, "backend": "eager"}
    lamb = fdpo_loss(pred, ref, target, winner_preserving=0.5, **options)[1].loser_scale.double()
    assert lamb.lt(1).all()

    def ours(p):
        return fdpo_loss(p, ref, target, winner_preserving=0.5, **options)[0]

    def surrogate(p):
        error, start = (p - target).square().mean(1), (pred - target).square().mean(1)
        error = torch.cat([error[:2], start[2:] + lamb * (error[2:] - start[2:])])
        u = -options["ratio_scale"] * (error - (ref - target).square().mean(1))
        link = DIVERGENCES[divergence] if isinstance(divergence, str) else divergence
        return torch.nn.functional.softplus(-options["beta"] * (link(u[:2]) - link(u[2:]))).mean()

    tolerance = {"rtol": 1e-6, "atol": 1e-9}  # lambda is a float32 in the statistics
    torch.testing.assert_close(torch.func.grad(ours)(pred), torch.func.grad(surrogate)(pred), **tolerance)
    want = torch.func.hessian(surrogate)(pred)
    for hessian in (torch.func.hessian, lambda f: torch.func.jacrev(torch.func.jacrev(f))):
        torch.testing.assert_close(hessian(ours)(pred), want, **tolerance)
    twice = torch.autograd.functional.hessian(ours, pred)
    torch.testing.assert_close(twice, want, **tolerance)
    _, tangent = torch.func.jvp(ours, (pred,), (target,))
    torch.testing.assert_close(tangent, torch.func.jvp(surrogate, (pred,), (target,))[1], **tolerance)
