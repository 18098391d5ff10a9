"""The operators under PyTorch's transformations: opcheck, compile, autocast, func, checkpointing, fake tensors."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.utils.checkpoint import checkpoint

from fdpo_fast import DIVERGENCES, FDPOLoss, Target, add_noise, draws, fdpo_loss
from fdpo_fast.densities import cumulative
from fdpo_fast.loss.eager import LOSS_TYPES
from tests.helpers.backends import FUSED

KNOBS = {"divergence": "jensen_shannon", "beta": 2.0, "ratio_scale": 50.0}
ROWS = [list(DIVERGENCES["jeffreys"].row), list(LOSS_TYPES["robust"](0.1))]


def operators(backend, device):
    """The namespace that runs the backend on the device."""
    return torch.ops.fdpo_fast_interpreted if (backend, device) == ("triton", "cpu") else torch.ops.fdpo_fast


def tensors(pairs=2, shape=(4, 6, 6), device="cpu"):
    generator = torch.Generator().manual_seed(0)
    target, p, r = (torch.randn(2 * pairs, *shape, generator=generator, dtype=torch.float32) for _ in range(3))
    return [x.to(device) for x in (target + 0.1 * p, target + 0.1 * r, target)]


@pytest.mark.parametrize(("backend", "device"), FUSED)
@pytest.mark.parametrize("upstream", [None, 0.25])
@pytest.mark.parametrize(("reduction", "may_undo"), [("mean", None), ("mean", 0.75), ("none", None), ("none", 0.0)])
def test_opcheck_of_the_loss(backend, device, reduction, may_undo, upstream):
    pred, ref, target = tensors(device=device)
    pred.requires_grad_()
    errors, drawn = torch.rand(4, dtype=torch.float64, device=device), draws(0, torch.arange(2), 0, device=device)
    last = pred.detach().to(memory_format=torch.channels_last).requires_grad_()
    on = torch.ones(2, 2, dtype=torch.float32, device=device)
    for arguments in (
        (pred, ref, *Target(data=target), None),
        (last, errors, *Target(data=target), torch.ones(2, device=device, dtype=torch.float32)),
        (pred, errors, *Target(drawn), None),
        (pred, ref, *Target(drawn, target, on), None),
    ):
        for more in ((0.0, 0.0, None), (0.5, 0.2, 0.3)):
            options = (*ROWS, 2.0, 50.0, True, reduction, may_undo, *more, upstream)
            torch.library.opcheck(operators(backend, device).loss_forward.default, (*arguments, *options))


@pytest.mark.parametrize(("backend", "device"), FUSED)
def test_opcheck_of_the_others(backend, device):
    pred, _, target = tensors(device=device)
    drawn = draws(0, torch.arange(2), 0, device=device)
    stats, table = (
        torch.rand(11, 2, device=device, dtype=torch.float32),
        torch.rand(100, device=device, dtype=torch.float32),
    )
    ops = operators(backend, device)
    for of in (Target(data=target), Target(drawn), Target(drawn, target, stats[:2])):
        for grad_loss in (
            torch.ones((), device=device, dtype=torch.float32),
            torch.ones(2, device=device, dtype=torch.float32),
        ):
            torch.library.opcheck(ops.loss_backward.default, (grad_loss, stats, pred, *of, False))
    for density in (None, cumulative(table)):
        density = None if density is None else density.to(device)
        torch.library.opcheck(ops.add_noise.default, (pred, drawn, table, table, density, False, torch.bfloat16))
    torch.library.opcheck(ops.normals.default, (drawn, 37))


def step(model, loss, x, ref, target):
    value, stats = loss(model(x), ref, target)
    value.backward()
    grads = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    return value.detach(), grads, stats


@pytest.mark.parametrize("divergence", ["jensen_shannon", lambda u: u + u.tanh()])
def test_compile_fullgraph_of_model_and_loss(divergence):
    pred, ref, target = tensors()
    model = torch.nn.Sequential(
        torch.nn.Conv2d(4, 8, 3, padding=1, dtype=torch.float32),
        torch.nn.SiLU(),
        torch.nn.Conv2d(8, 4, 3, padding=1, dtype=torch.float32),
    )
    loss = FDPOLoss(**KNOBS | {"divergence": divergence})
    want = step(model, loss, pred, ref, target)

    @torch.compile(fullgraph=True)
    def forward(x, ref, target):
        return loss(model(x), ref, target)

    value, stats = forward(pred, ref, target)
    value.backward()
    torch.testing.assert_close(value.detach(), want[0])
    for parameter, grad in zip(model.parameters(), want[1], strict=True):
        torch.testing.assert_close(parameter.grad, grad, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(stats.margin, want[2].margin, rtol=1e-4, atol=1e-6)


def test_compile_runs_the_fused_operators():
    targets = []

    def spy(graph, _):
        targets.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return graph.forward

    from torch._dynamo.backends.common import aot_autograd

    pred, ref, target = tensors()
    compiled = torch.compile(FDPOLoss(**KNOBS), fullgraph=True, backend=aot_autograd(fw_compiler=spy, bw_compiler=spy))
    compiled(pred.requires_grad_(), ref, target)[0].backward()
    assert [name for name in targets if "fdpo_fast" in name] == [
        "fdpo_fast.loss_forward.default",
        "fdpo_fast.loss_backward.default",
    ]


def test_compile_does_not_depend_on_the_batch():
    compiled = torch.compile(FDPOLoss(**KNOBS), fullgraph=True, dynamic=True)
    shape = (4, 5, 7)  # sizes that no number of samples below has too, which torch would take for one size
    compiled(*tensors(3, shape))
    with torch.compiler.set_stance("fail_on_recompile"):
        for pairs in (4, 5):
            arguments = tensors(pairs, shape)
            torch.testing.assert_close(compiled(*arguments)[0], fdpo_loss(*arguments, **KNOBS)[0])


def test_autocast():
    # the policy's predictions come out in bfloat16 beside noise in float32; the loss is formed in float32 all the same
    pred, ref, target = tensors()
    model = torch.nn.Conv2d(4, 4, 1, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        out = model(pred)
        assert out.dtype == torch.bfloat16
        for backend in ("cpp", "eager"):
            inside, _ = fdpo_loss(out, ref, target, backend=backend, **KNOBS)
            assert inside.dtype == torch.float32
            with torch.autocast("cpu", enabled=False):
                outside, _ = fdpo_loss(out, ref, target, backend=backend, **KNOBS)
            assert torch.equal(inside, outside)
    inside.backward()
    assert model.weight.grad.isfinite().all()


def test_func_grad_on_the_eager_backend():
    pred, ref, target = tensors()
    got, (loss, stats) = torch.func.grad_and_value(
        lambda p: fdpo_loss(p, ref, target, backend="eager", **KNOBS), has_aux=True
    )(pred)
    pred.requires_grad_()
    want, _ = fdpo_loss(pred, ref, target, **KNOBS)
    want.backward()
    torch.testing.assert_close(got, pred.grad)
    torch.testing.assert_close(loss, want.detach())
    assert stats["margin"].shape == (2,)


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant):
    pred, ref, target = tensors()
    model = torch.nn.Conv2d(4, 4, 3, padding=1, dtype=torch.float32)
    want = step(model, FDPOLoss(**KNOBS), pred, ref, target)
    loss = checkpoint(
        lambda x: fdpo_loss(model(x), ref, target, **KNOBS)[0], pred.requires_grad_(), use_reentrant=reentrant
    )
    loss.backward()
    assert torch.equal(loss.detach(), want[0])
    for parameter, grad in zip(model.parameters(), want[1], strict=True):
        torch.testing.assert_close(parameter.grad, grad)


def test_fake_tensors_go_through():
    with FakeTensorMode():
        pred, ref, target = (torch.empty(8, 4, 128, 128, dtype=torch.bfloat16) for _ in range(3))
        loss, stats = fdpo_loss(pred.requires_grad_(), ref, target, backend="cpp", **KNOBS)
        loss.backward()
        assert pred.grad.shape == pred.shape
        noisy, timesteps = add_noise(
            target, draws(0, torch.arange(4), 0), torch.ones(10), torch.ones(10), backend="cpp"
        )
    assert (loss.shape, stats.margin.shape, noisy.dtype, timesteps.shape) == ((), (4,), torch.bfloat16, (4,))


@pytest.mark.parametrize("what", ["predictions", "draws", "callable", "none, weighted"])
def test_compile_traces_triton(what):
    # the operators are opaque to the tracer: what runs behind them is not compiled here
    pred, ref, target = tensors()
    options = KNOBS | ({"divergence": lambda u: u + u.tanh()} if what == "callable" else {})
    weight = torch.rand(2, dtype=torch.float32) if "weighted" in what else None
    loss = FDPOLoss(backend="triton", reduction="none" if "none" in what else "mean", **options)
    target = draws(0, torch.arange(2), 0) if what == "draws" else target
    pred.requires_grad_()
    compiled, _ = torch.compile(loss, fullgraph=True, backend="aot_eager")(pred, ref, target, weight)
    want, _ = loss(pred, ref, target, weight)
    torch.testing.assert_close(compiled, want)
    got, exact = (torch.autograd.grad(value.sum(), pred)[0] for value in (compiled, want))
    torch.testing.assert_close(got, exact)


def test_forward_mode_takes_the_eager_backend_or_says_so():
    pred, ref, target = tensors()
    tangent = target + 0.5
    (want,) = torch.autograd.grad(fdpo_loss(pred.requires_grad_(), ref, target, **KNOBS)[0], pred)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(pred.detach(), tangent)
        got = forward_ad.unpack_dual(fdpo_loss(dual, ref, target, **KNOBS)[0]).tangent
        with pytest.raises(ValueError, match="backend 'cpp' is not differentiable"):
            fdpo_loss(dual, ref, target, backend="cpp", **KNOBS)
    torch.testing.assert_close(got, (want * tangent).sum(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("which", range(4))
def test_freed_memory_is_refused(which):
    arguments = [*tensors(), torch.ones(2, dtype=torch.float32)]
    arguments[which].untyped_storage().resize_(0)
    with pytest.raises(ValueError, match="has no memory"):
        fdpo_loss(*arguments[:3], weight=arguments[3], backend="cpp", **KNOBS)


def test_func_takes_the_eager_backend_or_says_so():
    pred, ref, target = tensors()
    grad = torch.func.grad(lambda p: fdpo_loss(p, ref, target, **KNOBS)[0])(pred)
    (want,) = torch.autograd.grad(fdpo_loss(pred.requires_grad_(), ref, target, **KNOBS)[0], pred)
    torch.testing.assert_close(grad, want)
    with pytest.raises(ValueError, match=r"backend 'cpp' is not differentiable by torch.func, but backend 'eager' is"):
        torch.func.grad(lambda p: fdpo_loss(p, ref, target, backend="cpp", **KNOBS)[0])(pred.detach())


def test_second_derivatives_are_refused():
    pred, ref, target = tensors()
    pred.requires_grad_()
    for divergence in ("jensen_shannon", lambda u: u):
        loss, _ = fdpo_loss(pred, ref, target, **KNOBS | {"divergence": divergence})
        with pytest.raises(RuntimeError, match="first derivatives only"):
            torch.autograd.grad(loss, pred, create_graph=True)


@pytest.mark.skipif(torch.torch_version.TorchVersion(torch.__version__) < (2, 8), reason="2.7 checks no symbols")
def test_numbers_may_be_symbols_of_the_compiler():
    pred, ref, target = tensors()
    loss = torch.compile(
        lambda beta: fdpo_loss(pred, ref, target, **KNOBS | {"beta": beta})[0], fullgraph=True, backend="aot_eager"
    )
    for beta in (1.0, 2.0, 3.5):
        torch.testing.assert_close(loss(beta), fdpo_loss(pred, ref, target, **KNOBS | {"beta": beta})[0])
