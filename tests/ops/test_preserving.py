"""The options of the loss under transformations: compile, modes, fake tensors, batched gradients, any link."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad
from torch.fx.experimental.proxy_tensor import make_fx

from fdpo_fast import FDPOLoss, draws, fdpo_loss
from fdpo_fast.ops import cpp
from tests.helpers.backends import FUSED
from tests.helpers.preserving import alike

PRESERVING = {"beta": 2.0, "ratio_scale": 5.0, "winner_preserving": 0.25}
ALL = PRESERVING | {"sft_weight": 0.5, "margin": 0.3, "clip_log_ratio": 0.01}
CLIPPED = {"beta": 2.0, "ratio_scale": 5.0, "clip_log_ratio": 0.01}
EACH = pytest.mark.parametrize("knobs", [PRESERVING, ALL, CLIPPED], ids=["preserving", "all", "clipped"])


class Cubed(torch.autograd.Function):
    """u + u^3 in the way of older code, which torch.func refuses."""

    @staticmethod
    def forward(ctx, u):
        ctx.save_for_backward(u)
        return u + u**3

    @staticmethod
    def backward(ctx, grad):
        return grad * (1 + 3 * ctx.saved_tensors[0] ** 2)


class Learnt(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.tensor(1.5, dtype=torch.float32))

    def forward(self, u):
        return self.scale * u.sinh()


LINKS = {"a row": "jensen_shannon", "a function": torch.sinh, "older code": Cubed.apply, "a module": Learnt()}


def tensors(device="cpu"):
    return [x.to(device) for x in alike(3, (3, 5))]


def trained(pred, ref, target, **options):
    pred = pred.detach().requires_grad_()
    loss, stats = fdpo_loss(pred, ref, target, **options)
    return loss, torch.autograd.grad(loss, pred)[0], torch.stack([stats.loser_scale, stats.clipped])


def test_every_option_does_something():
    for knobs in (PRESERVING, ALL, CLIPPED):
        scale, clipped = trained(*tensors(), **knobs)[2]
        assert scale.lt(1).any() == ("winner_preserving" in knobs)
        assert clipped.gt(0).any() == ("clip_log_ratio" in knobs)
        assert clipped.lt(2).any()


@EACH
@pytest.mark.parametrize("backend", ["cpp", "triton", "eager"])
@pytest.mark.parametrize("name", ["a row", "a function", "a module"])
def test_compile_fullgraph(backend, name, knobs):
    torch.compiler.reset()  # of one function a few variants alone are compiled
    pred, ref, target = tensors()
    loss = FDPOLoss(LINKS[name], backend=backend, **knobs)
    compiled = torch.compile(loss, fullgraph=True, backend="inductor" if backend == "cpp" else "aot_eager")
    want = loss(pred.requires_grad_(), ref, target)
    got = compiled(pred, ref, target)
    torch.testing.assert_close(got[0], want[0])
    torch.testing.assert_close(dict(got[1]), dict(want[1]))
    grads = [torch.autograd.grad(value, pred)[0] for value in (got[0], want[0])]
    torch.testing.assert_close(*grads)


@EACH
@pytest.mark.parametrize(("backend", "device"), FUSED)
@pytest.mark.parametrize("name", LINKS)
def test_make_fx_replays_to_other_inputs(backend, device, name, knobs):
    def run(*inputs):
        return trained(*inputs, divergence=LINKS[name], backend=backend, **knobs)

    graph = make_fx(run)(*tensors(device))
    names = [str(node.target) for node in graph.graph.nodes if "fdpo_fast" in str(node.target)]
    assert [name.split(".")[1] for name in names] == ["loss_forward", "loss_backward"]
    others = [x.to(device) for x in alike(3, (3, 5), seed=1, likeness=1.7)]
    torch.testing.assert_close(graph(*others), run(*others))


@EACH
@pytest.mark.parametrize(("backend", "device"), FUSED)
@pytest.mark.parametrize("name", LINKS)
def test_batched_gradients_are_those_of_a_loop(backend, device, name, knobs):
    pred, ref, target = tensors(device)
    loss, _ = fdpo_loss(
        pred.requires_grad_(), ref, target, divergence=LINKS[name], reduction="none", backend=backend, **knobs
    )
    upstream = torch.randn(4, 3, dtype=torch.float32, device=device)
    (got,) = torch.autograd.grad(loss, pred, upstream, is_grads_batched=True, retain_graph=True)
    want = [torch.autograd.grad(loss, pred, row, retain_graph=True)[0] for row in upstream]
    torch.testing.assert_close(got, torch.stack(want), rtol=1e-5, atol=1e-6)


@EACH
@pytest.mark.parametrize(("backend", "device"), [("eager", "cpu"), *FUSED])
@pytest.mark.parametrize("name", LINKS)
def test_calls_without_a_gradient_say_the_same(backend, device, name, knobs):
    inputs, options = tensors(device), {"divergence": LINKS[name], "backend": backend, **knobs}
    loss, _, want = trained(*inputs, **options)

    def assert_same(inputs):
        got, stats = fdpo_loss(*inputs, **options)
        assert torch.equal(got, loss.detach())
        assert torch.equal(torch.stack([stats.loser_scale, stats.clipped]), want)

    assert_same(inputs)
    with torch.no_grad():
        assert_same(inputs)
    with torch.inference_mode():
        assert_same([x.clone() for x in inputs])


@EACH
@pytest.mark.parametrize("name", ["a row", "a function", "a module"])
def test_func_and_forward_mode(name, knobs):
    pred, ref, target = tensors()
    options = knobs | {"divergence": LINKS[name]}
    loss, want, scale = trained(pred, ref, target, **options)

    def of(p):
        loss, stats = fdpo_loss(p, ref, target, **options)
        return loss, torch.stack([stats.loser_scale, stats.clipped])

    got, there = torch.func.grad(of, has_aux=True)(pred)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(there, scale)
    each = torch.func.vmap(lambda p, r, t: torch.func.grad(lambda p: fdpo_loss(p, r, t, **options)[0])(p))
    batch = [x.view(2, 3, 1, 15).transpose(0, 1).reshape(3, 2, 15) for x in (pred, ref, target)]
    torch.testing.assert_close(each(*batch).transpose(0, 1).reshape(pred.shape), 3 * want)
    with forward_ad.dual_level():
        dual = fdpo_loss(forward_ad.make_dual(pred, target), ref, target, **options)[0]
        torch.testing.assert_close(forward_ad.unpack_dual(dual).tangent, (want * target).sum(), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(loss.detach(), of(pred)[0])


@EACH
@pytest.mark.parametrize("name", LINKS)
@pytest.mark.parametrize("drawn", [False, True])
def test_fake_tensors_go_through(name, drawn, knobs):
    with FakeTensorMode(allow_non_fake_inputs=True):
        pred, ref, target = (torch.empty(8, 4, 16, 16, dtype=torch.bfloat16) for _ in range(3))
        target = draws(0, torch.arange(4), 0) if drawn else target
        loss, stats = fdpo_loss(pred.requires_grad_(), ref, target, backend="cpp", divergence=LINKS[name], **knobs)
        loss.backward()
        assert (pred.grad.shape, stats.loser_scale.shape) == (pred.shape, (4,))


@pytest.mark.parametrize("errors", [False, True])
@pytest.mark.parametrize(
    "dtypes", [(torch.float32,) * 3, (torch.bfloat16,) * 3, (torch.float16, torch.float32, torch.bfloat16)]
)
@pytest.mark.parametrize("shape", [(4, 32, 32), (3, 37), (4, 128, 97)])
def test_instruction_sets_and_threads_give_the_same_bits(shape, dtypes, errors, monkeypatch):
    pred, ref, target = alike(3, shape, dtypes)
    pred = pred.to(memory_format=torch.channels_last) if shape == (4, 32, 32) and errors else pred
    if errors:
        ref = (ref.double() - target.double()).square().flatten(1).mean(1)
    threads, results = torch.get_num_threads(), []
    try:
        for kernels in cpp.KERNELS.values():
            monkeypatch.setattr(cpp, "active", kernels)
            for count in (1, 2, 4):
                torch.set_num_threads(count)
                results.append(trained(pred, ref, target, backend="cpp", **ALL))
    finally:
        torch.set_num_threads(threads)
    assert results[0][2][0].lt(1).any()
    assert all(torch.equal(a, b) for run in results for a, b in zip(run, results[0], strict=True))


def test_the_scale_follows_the_parameter_of_a_link():
    pred, ref, target = tensors()
    link = Learnt()
    loss = FDPOLoss(link, **PRESERVING | {"ratio_scale": 50.0})
    before = loss(pred, ref, target)[1].loser_scale
    with torch.no_grad():
        link.scale.fill_(-1.0)  # it falls, and a step goes the other way
    assert before.lt(1).any()
    assert loss(pred, ref, target)[1].loser_scale.eq(1).all()
