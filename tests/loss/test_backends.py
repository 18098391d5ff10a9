"""What the fused backends promise of any call: shapes, dtypes, strides, every output written, NaN kept apart."""

from contextlib import contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fdpo_fast import draws, fdpo_loss
from tests.helpers.backends import FUSED
from tests.helpers.loss import HALVES, KNOBS, evaluate, oracle, tensors


@pytest.mark.parametrize(("backend", "device"), FUSED)
@given(data=st.data())
@settings(max_examples=40)
def test_any_call(backend, device, data):
    """Shapes, dtypes, strides, layouts, forms, weights, reductions and upstream gradients."""
    pairs = data.draw(st.integers(0, 4), "pairs")
    shape = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=4), "shape")
    dtypes = data.draw(st.tuples(*[st.sampled_from([torch.float32, *HALVES])] * 3), "dtypes")
    pred, ref, target = tensors(pairs, shape, dtypes, seed=data.draw(st.integers(0, 9)))
    errors, drawn = data.draw(st.booleans(), "errors"), data.draw(st.booleans(), "drawn")
    if errors and pairs:
        ref = (ref.double() - target.double()).square().flatten(1).mean(dim=1)
        ref = ref.to(data.draw(st.sampled_from([torch.float32, torch.float64])))
    strided = {name: data.draw(st.permutations(range(1, pred.ndim)), name) for name in ("pred", "ref", "target")}
    pred, ref, target = (
        with_strides(x, strided[name]) if x.ndim > 1 else x
        for name, x in (("pred", pred), ("ref", ref), ("target", target))
    )
    if drawn:
        target = draws(data.draw(st.integers(0, 2**64 - 1)), torch.arange(pairs), 2)
        target = data.draw(st.sampled_from([target, target.t().contiguous().t(), target.repeat(1, 2)[:, :pairs]]))
    options = {"layout": data.draw(st.sampled_from(["halves", "interleaved"]), "layout")}
    options["ratio_scale"] = 5.0  # margins of some ten: e^-margin multiplies an error of theirs by their size
    options["reduction"] = data.draw(st.sampled_from(["mean", "sum", "none"]), "reduction")
    if data.draw(st.booleans(), "weighted"):
        options["weight"] = torch.rand(pairs, generator=torch.Generator().manual_seed(1))
    upstream = torch.tensor(data.draw(st.sampled_from([1.0, 0.25, -3.0])))
    if options["reduction"] == "none":
        upstream = upstream * torch.arange(1, pairs + 1)
    options["upstream"] = upstream
    want, got = oracle(pred, ref, target, **options), evaluate(pred, ref, target, backend, device, **options)
    torch.testing.assert_close(got[0], want[0], rtol=1e-5, atol=1e-6)
    eps, scale = torch.finfo(pred.dtype).eps, want[1].abs().max().item() if want[1].numel() else 0.0
    tiny = torch.finfo(pred.dtype).tiny * eps
    torch.testing.assert_close(got[1], want[1], rtol=2 * eps, atol=1e-5 * scale + tiny)
    for key, value in want[2].items():
        torch.testing.assert_close(got[2][key], value, rtol=1e-5, atol=1e-5)


def with_strides(x, order):
    """The same values, laid out in memory with the dimensions of a sample in another order."""
    inverse = [0, *(1 + order.index(d) for d in range(1, x.ndim))]
    return x.permute(0, *order).contiguous().permute(inverse)


@pytest.mark.parametrize(("backend", "device"), FUSED)
def test_channels_last_is_not_copied(backend, device, monkeypatch):
    arguments = tensors(2, (4, 16, 16))
    want = evaluate(*arguments, backend, device)
    monkeypatch.setattr(torch.Tensor, "contiguous", lambda *_, **__: pytest.fail("copied"))
    last = [x.to(memory_format=torch.channels_last) for x in arguments]
    for mixed in (last, [last[0], arguments[1], arguments[2]], [arguments[0], last[1], arguments[2]]):
        got = evaluate(*mixed, backend, device)
        torch.testing.assert_close(got[0], want[0], rtol=1e-6, atol=0)
        torch.testing.assert_close(got[1], want[1], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(("backend", "device"), FUSED)
def test_gradient_keeps_the_layout_of_pred(backend, device):
    pred, ref, target = (x.to(device, memory_format=torch.channels_last) for x in tensors(2, (4, 8, 8)))
    pred.requires_grad_()
    fdpo_loss(pred, ref, target, backend=backend, **KNOBS)[0].backward()
    assert pred.grad.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("backend", "device"), FUSED)
def test_five_dimensions_that_do_not_merge(backend, device):
    pred, ref, target = tensors(2, (3, 2, 4, 5, 2))
    crossed = with_strides(pred, [5, 2, 4, 1, 3])
    want, got = evaluate(pred, ref, target, backend, device), evaluate(crossed, ref, target, backend, device)
    torch.testing.assert_close(got[1], want[1], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize(("backend", "device"), FUSED)
def test_rows_beyond_32_bits(backend, device):
    # rows 2^30 elements apart: the last one starts at 3 * 2^30; memory that is never touched is never there
    room = torch.empty(3 * 2**30 + 64, dtype=torch.bfloat16, device=device)
    pred, ref, target = tensors(2, (64,), (torch.bfloat16,) * 3)
    far = room.as_strided((4, 64), (2**30, 1))
    far.copy_(pred)
    want, got = evaluate(pred, ref, target, backend, device), evaluate(far, ref, target, backend, device)
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1])


@pytest.mark.parametrize(("backend", "device"), FUSED)
def test_elements_beyond_32_bits_within_a_sample(backend, device):
    room = torch.empty(2**31 + 2**22, dtype=torch.bfloat16, device=device)
    pred, ref, target = tensors(1, (3, 4), (torch.bfloat16,) * 3)
    far = room.as_strided((2, 3, 4), (2**21, 2**30, 1))
    far.copy_(pred)
    want, got = evaluate(pred, ref, target, backend, device), evaluate(far, ref, target, backend, device)
    torch.testing.assert_close(got[1], want[1])


@contextmanager
def poisoned():
    """`torch.empty` gives NaN."""
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(3).isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize(("backend", "device"), FUSED)
@pytest.mark.parametrize("shape", [(1,), (5, 5), (4, 16, 16), (3, 33, 31)])
def test_every_output_is_written(backend, device, shape):
    arguments = tensors(3, shape)
    with poisoned():
        for reduction in ("mean", "none"):
            loss, grad, stats = evaluate(*arguments, backend, device, reduction=reduction)
            scaled = evaluate(*arguments, backend, device, reduction=reduction, upstream=torch.full(loss.shape, 2.0))[1]
            assert all(x.isfinite().all() for x in (loss, grad, scaled, *stats.values()))


@pytest.mark.parametrize(("backend", "device"), FUSED)
@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_nan_stays_in_its_pair(backend, device, poison):
    pred, ref, target = tensors(3, (4, 16, 16))
    clean = evaluate(pred, ref, target, backend, device, reduction="none")
    pred[4, 0, 0, 0] = poison  # the dispreferred sample of pair 1
    loss, grad, stats = evaluate(pred, ref, target, backend, device, reduction="none")
    assert not stats["error_l"][1].isfinite()
    for key in ("margin", "error_w", "error_l", "log_ratio_l"):
        assert torch.equal(stats[key][[0, 2]], clean[2][key][[0, 2]])
    assert torch.equal(loss[[0, 2]], clean[0][[0, 2]])
    assert torch.equal(grad[[0, 2, 3, 5]], clean[1][[0, 2, 3, 5]])


@pytest.mark.parametrize(("backend", "device"), FUSED)
def test_a_callable_link_runs_behind_the_fused_errors(backend, device):
    arguments = tensors(3, (4, 8, 8))
    for layout in ("halves", "interleaved"):
        weight = torch.tensor([1.0, 0.5, 2.0], device=device)
        want = oracle(*arguments, divergence=lambda u: u + u.tanh(), layout=layout, weight=weight.cpu())
        got = evaluate(*arguments, backend, device, divergence=lambda u: u + u.tanh(), layout=layout, weight=weight)
        torch.testing.assert_close(got[0], want[0], rtol=1e-6, atol=0)
        torch.testing.assert_close(got[1], want[1], rtol=1e-5, atol=1e-12)
        for key, value in want[2].items():
            torch.testing.assert_close(got[2][key], value, rtol=1e-5, atol=1e-6)


def test_the_gradient_that_was_formed_ahead_is_handed_over_once():
    pred, ref, target = tensors(2, (4, 8, 8))
    pred.requires_grad_()
    loss, _ = fdpo_loss(pred, ref, target, backend="cpp", **KNOBS)
    (first,) = torch.autograd.grad(loss, pred, retain_graph=True)
    kept = first.clone()
    first.zero_()  # its owner may do that
    (second,) = torch.autograd.grad(loss, pred, retain_graph=True)
    assert torch.equal(second, kept)
    (third,) = torch.autograd.grad(loss, pred, torch.tensor(-2.0))
    torch.testing.assert_close(third, -2 * kept)


@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_what_the_last_upstream_gradient_was_changes_no_bit(dtype):
    pred, ref, target = tensors(2, (4, 8, 8), (dtype,) * 3)
    upstream = torch.tensor(0.3)
    runs = []
    for before in (1.0, 0.3, -7.0, float("nan")):
        evaluate(pred, ref, target, "cpp", upstream=torch.tensor(before))
        runs.append(evaluate(pred, ref, target, "cpp", upstream=upstream)[1])
    assert all(torch.equal(run, runs[0]) for run in runs)


def test_a_backend_that_cannot_says_why():
    pred, ref, target = tensors(1, (4,))
    with pytest.raises(ValueError, match=r"backend 'cpp' takes float32, bfloat16 and float16 tensors, not float64"):
        fdpo_loss(pred.double(), ref, target, backend="cpp", **KNOBS)
    with pytest.raises(ValueError, match=r"backend 'cpp' runs on cpu tensors, not on meta"):
        fdpo_loss(*(x.to("meta") for x in (pred, ref, target)), backend="cpp", **KNOBS)
    with pytest.raises(ValueError, match=r"draws have shape \(3, 2\): give \(3, 1\)"):
        fdpo_loss(pred, ref, draws(0, torch.arange(2), 0), **KNOBS)


def test_best_available():
    pred, ref, target = tensors(1, (4,))
    assert fdpo_loss(pred.requires_grad_(), ref, target, **KNOBS)[0].grad_fn.name() == "FusedLossBackward"
    double, _ = fdpo_loss(pred.double(), ref, target, **KNOBS)
    assert double.dtype == torch.float64


@pytest.mark.parametrize(("backend", "device"), FUSED)
def test_lazy_signs_are_seen(backend, device):
    pred, ref, target = tensors(2, (4, 5))
    signed = torch.complex(torch.zeros_like(pred), -pred).conj().imag
    assert signed.is_neg()
    want, got = (evaluate(p, ref, target, backend, device) for p in (pred, signed))
    assert torch.equal(got[0], want[0])
    assert torch.equal(got[1], want[1])


def test_targets_of_inference_mode():
    with torch.inference_mode():
        pred, ref, target = tensors(1, (4,))
    loss, _ = fdpo_loss(pred.clone().requires_grad_(), ref, target, **KNOBS)
    loss.backward()


def test_a_large_gradient_reuses_memory_that_nobody_holds():
    pred, ref, target = tensors(8, (4, 64, 128))  # 2 MiB
    pred.requires_grad_()

    def grad():
        return torch.autograd.grad(fdpo_loss(pred, ref, target, backend="cpp", **KNOBS)[0], pred)[0]

    first = grad()
    exact, address, kept = first.clone(), first.data_ptr(), first[3]
    del first
    second = grad()  # a view of the first is alive
    assert second.data_ptr() != address
    assert torch.equal(kept, exact[3])
    address = second.data_ptr()
    del second
    third = grad()
    assert third.data_ptr() == address
    assert torch.equal(third, exact)
    storage = third.untyped_storage()  # held as Python's object alone
    del third
    fourth = grad()
    assert fourth.data_ptr() != address
    assert torch.equal(torch.empty(0, dtype=torch.float32).set_(storage, 0, exact.shape), exact)
    address = fourth.share_memory_().data_ptr()  # another process may have it
    del fourth
    assert grad().data_ptr() != address


def test_threads_of_python_do_not_share_that_memory():
    from concurrent.futures import ThreadPoolExecutor

    calls = [tensors(8, (4, 64, 128), seed=seed) for seed in range(4)]
    want = [evaluate(*arguments, "cpp")[1] for arguments in calls]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            got = list(pool.map(lambda arguments: evaluate(*arguments, "cpp")[1], calls))
            assert all(torch.equal(a, b) for a, b in zip(got, want, strict=True))
