"""The fused backends against the formulas in float64: at most twice the error of eager torch of the same dtype.

Triton runs under its interpreter on CPU tensors, or with `-m gpu` on a GPU.
"""

import math

import pytest
import torch

from fdpo_fast import DIVERGENCES, alpha, draws, fdpo_loss
from fdpo_fast.noise import normals
from fdpo_fast.ops import cpp
from tests.helpers.backends import FUSED
from tests.helpers.loss import HALVES, KNOBS, evaluate, oracle, tensors

PAIRS = 12
# Neither row knows of the other: every divergence, and every loss type under the one with most terms.
COMBINATIONS = [(name, "sigmoid") for name in DIVERGENCES] + [("jeffreys", name) for name in ("robust", "hinge", "ipo")]


def assert_exact(arguments, backend, device, drawn=None, **options):
    """Value, gradient and statistics within twice the eager error of the same dtype against float64.

    `drawn`: what to hand to the backend in place of the target, which is the noise that it stands for.
    """
    pred, ref, target = arguments
    want = oracle(*arguments, **options)
    eager = evaluate(*arguments, "eager", **options)
    ours = evaluate(pred, ref, target if drawn is None else drawn, backend, device, **options)
    results = [{"loss": run[0], "gradient": run[1]} | run[2] for run in (want, eager, ours)]
    for name, exact in results[0].items():
        allowed, got = (relative_error(run[name], exact) for run in results[1:])
        # behind u eager computes in float64, as C++ does, and Triton in float32, with some units in the last place
        units = (4 if backend == "triton" else 1) * torch.finfo(pred.dtype if name == "gradient" else torch.float32).eps
        assert got <= 2 * max(allowed, units), (name, got, allowed)


def relative_error(got, exact):
    """Of three elements in four: the worst ones of a dozen are a lottery, which either side may win."""
    floor = 1e-6 * exact.abs().max() + torch.finfo(torch.float32).tiny
    return ((got - exact).abs() / (exact.abs() + floor)).quantile(0.75).item()


@pytest.mark.parametrize(("backend", "device"), FUSED)
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("form", ["predictions", "errors", "drawn", "errors, drawn"])
def test_forms(backend, device, dtype, form):
    pred, ref, target = tensors(PAIRS, (4, 24, 24), (dtype,) * 3)
    if "errors" in form:
        ref = (ref.double() - target.double()).square().mean(dim=(1, 2, 3))
    drawn = None
    if "drawn" in form:
        drawn = draws(7, torch.arange(PAIRS), 3)
        target = normals(drawn.to(device), 4 * 24 * 24, backend).cpu().reshape(PAIRS, 4, 24, 24).repeat(2, 1, 1, 1)
        pred, ref = (target + 0.1 * pred.float()).to(dtype), ref if "errors" in form else (target + 0.1 * ref).to(dtype)
    assert_exact((pred, ref, target), backend, device, drawn, reduction="none")


@pytest.mark.parametrize(("backend", "device"), FUSED)
@pytest.mark.parametrize(("name", "loss_type"), [*COMBINATIONS, ("alpha(0.01)", "sigmoid")])
def test_divergences_and_loss_types(backend, device, name, loss_type):
    arguments = tensors(50, (3, 5), seed=len(name), spread=1.0)  # log-ratios from -60 to 60
    divergence = alpha(0.01) if name == "alpha(0.01)" else name
    options = {"loss_type": loss_type, "label_smoothing": 0.1 if loss_type in ("sigmoid", "robust") else 0.0}
    assert_exact(
        arguments, backend, device, divergence=divergence, reduction="none", beta=0.5, ratio_scale=10.0, **options
    )


@pytest.mark.parametrize(("backend", "device"), FUSED)
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
@pytest.mark.parametrize("name", DIVERGENCES)
def test_equal_predictions_give_log_2_and_opposite_gradients(backend, device, name, dtype):
    pred, _, target = tensors(1, (4, 16, 16), (dtype,) * 3)
    pred[1], target[1] = pred[0], target[0]
    loss, grad, stats = evaluate(pred, pred, target, backend, device, divergence=name, beta=5000.0, ratio_scale=1.0)
    assert loss.item() == torch.tensor(math.log(2), dtype=torch.float32).item()
    assert stats["margin"].eq(0).all()
    assert stats["accuracy"].item() == 0.5
    assert torch.equal(grad[0], -grad[1])
    assert grad.ne(0).any()


@pytest.mark.parametrize(("backend", "device"), FUSED)
@pytest.mark.parametrize(("name", "loss_type"), COMBINATIONS)
def test_extremes_stay_finite_with_the_right_sign(backend, device, name, loss_type):
    extremes = [-1e6, -1e3, -30.0, 0.0, 30.0, 1e3, 1e6]
    grid = torch.tensor([(a, b) for a in extremes for b in extremes], dtype=torch.float32)
    errors = 1 + torch.cat([grid[:, 0], grid[:, 1]])
    pred, target = torch.ones(len(errors), 1, dtype=torch.float32), torch.zeros(len(errors), 1, dtype=torch.float32)
    options = {"divergence": name, "loss_type": loss_type, "beta": 1e4, "ratio_scale": 1.0, "reduction": "none"}
    loss, grad, stats = evaluate(pred, errors, target, backend, device, **options)
    assert loss.isfinite().all()
    assert grad.isfinite().all()
    assert torch.equal(stats["log_ratio_w"], grid[:, 0].double())
    if loss_type != "ipo":  # which also pulls margins back
        assert (grad[: len(grid)] >= 0).all()
        assert (grad[len(grid) :] <= 0).all()
        assert (grad[: len(grid)][(grid[:, 0] < grid[:, 1]) & (grid[:, 0] < -20)] > 0).all()


@pytest.mark.parametrize(("backend", "device"), FUSED)
def test_repeats_give_the_same_bits(backend, device):
    arguments = tensors(3, (4, 40, 40))
    first = evaluate(*arguments, backend, device)
    for _ in range(3):
        again = evaluate(*arguments, backend, device)
        assert torch.equal(again[0], first[0])
        assert torch.equal(again[1], first[1])
        assert all(torch.equal(again[2][key], value) for key, value in first[2].items())


@pytest.mark.parametrize("pairs", [1, 2, 3, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_threads_do_not_change_the_bits(pairs, dtype):
    # of a size at which several threads are put to work
    arguments = tensors(pairs, (4, 128, 97), (dtype,) * 3)
    drawn = draws(1, torch.arange(pairs), 0)
    threads = torch.get_num_threads()
    try:
        for ref, target in ((arguments[1], arguments[2]), (torch.ones(2 * pairs, dtype=torch.float64), drawn)):
            results = []
            for count in (1, 2, 3, 4):
                torch.set_num_threads(count)
                results.append(evaluate(arguments[0], ref, target, "cpp"))
                results.append(evaluate(arguments[0], ref, target, "cpp", upstream=torch.tensor(1.0)))
            for loss, grad, stats in results[1:]:
                assert torch.equal(loss, results[0][0])
                assert torch.equal(grad, results[0][1])
                assert all(torch.equal(stats[key], value) for key, value in results[0][2].items())
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("dtypes", [(torch.float32,) * 3, (torch.bfloat16,) * 3, (torch.float16, *HALVES)])
@pytest.mark.parametrize("shape", [(4, 32, 32), (3, 37)])
def test_instruction_sets_give_the_same_bits(shape, dtypes, monkeypatch):
    assert {"portable"} <= set(cpp.KERNELS)
    arguments = tensors(2, shape, dtypes)
    drawn = (arguments[0], torch.ones(4, dtype=torch.float64), draws(1, torch.arange(2), 0))
    results = {}
    for name, kernels in cpp.KERNELS.items():
        monkeypatch.setattr(cpp, "active", kernels)
        results[name] = [
            evaluate(*given, "cpp", upstream=up) for given in (arguments, drawn) for up in (None, torch.tensor(3.0))
        ]
    for runs in results.values():
        for got, want in zip(runs, results["portable"], strict=True):
            assert torch.equal(got[0], want[0])
            assert torch.equal(got[1], want[1])


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("isa", list(cpp.KERNELS) if cpp.missing is None else [])
def test_conversions_of_every_half(isa, dtype, monkeypatch):
    # a single element per sample: error is the square of what was read, the gradient a rounding of the same number
    monkeypatch.setattr(cpp, "active", cpp.KERNELS[isa])
    every = torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)
    x = every.reshape(-1, 1)
    pred = x.clone().requires_grad_()
    loss, stats = fdpo_loss(
        pred, torch.zeros(len(x), dtype=torch.float32), torch.zeros_like(x), backend="cpp", reduction="none", **KNOBS
    )
    errors = torch.cat([stats.error_w, stats.error_l])
    torch.testing.assert_close(errors, x.flatten().float().square(), rtol=0, atol=0, equal_nan=True)
    # c * pred rounded to the dtype, for c from the stats
    (grad,) = torch.autograd.grad(loss, pred, torch.full_like(loss, 1.0))
    scaled = fdpo_loss(
        pred, torch.zeros(len(x), dtype=torch.float32), torch.zeros_like(x), backend="eager", reduction="none", **KNOBS
    )[0]
    (want,) = torch.autograd.grad(scaled, pred, torch.full_like(loss, 1.0))
    finite = want.isfinite().flatten() & (errors < 1e30)
    assert finite.float().mean() > 0.6
    torch.testing.assert_close(grad[finite], want[finite], rtol=2 * torch.finfo(dtype).eps, atol=1e-7)
