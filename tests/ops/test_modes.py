"""The operators under tracers and counters, by gradients that come in batches, on tensors of inference mode."""

from contextlib import suppress

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from fdpo_fast import add_noise, draws, fdpo_loss
from fdpo_fast.noise import normals
from tests.helpers.backends import FUSED

KNOBS = {"beta": 2.0, "ratio_scale": 5.0}
LINKS = ["jensen_shannon", lambda u: u + u.tanh()]


def tensors(seed=0, device="cpu"):
    generator = torch.Generator("cpu").manual_seed(seed)
    return [torch.randn(6, 3, 5, generator=generator, dtype=torch.float32).to(device) for _ in range(3)]


def trained(pred, ref, target, weight=None, **options):
    pred = pred.detach().requires_grad_()
    loss, stats = fdpo_loss(pred, ref, target, weight=weight, **KNOBS | options)
    return loss, torch.autograd.grad(loss, pred)[0], stats.margin, stats["accuracy"]


@pytest.mark.parametrize(("backend", "device"), FUSED)
@pytest.mark.parametrize("divergence", LINKS)
def test_make_fx_sees_the_operators(backend, device, divergence):
    """Of real inputs: the graph replays to the right values on others."""

    def run(*inputs):
        return trained(*inputs, divergence=divergence, backend=backend)

    graph = make_fx(run)(*tensors(device=device))
    names = [str(node.target) for node in graph.graph.nodes if "fdpo_fast" in str(node.target)]
    assert [name.split(".")[1] for name in names] == ["loss_forward", "loss_backward"]
    others = tensors(1, device)
    torch.testing.assert_close(graph(*others), run(*others))


@pytest.mark.parametrize(("backend", "device"), FUSED)
def test_make_fx_sees_the_noise(backend, device):
    def run(latents, drawn, signal, sigma):
        return *add_noise(latents, drawn, signal, sigma, backend=backend), normals(drawn, 7, backend=backend)

    def inputs(seed):
        rows = draws(seed, torch.arange(3) + seed, 1, device=device)
        return tensors(seed, device)[0], rows, *torch.rand(2, 50, dtype=torch.float32, device=device).unbind()

    graph = make_fx(run)(*inputs(0))
    assert len([node for node in graph.graph.nodes if "fdpo_fast" in str(node.target)]) == 2
    others = inputs(5)
    assert all(torch.equal(*pair) for pair in zip(graph(*others), run(*others), strict=True))


class Seen(TorchDispatchMode):
    """A mode that notes the operators that it sees."""

    def __init__(self):
        super().__init__()
        self.names = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.names.append(str(function))
        return function(*args, **kwargs or {})


@pytest.mark.parametrize(("backend", "device"), FUSED)
@pytest.mark.parametrize("divergence", LINKS)
def test_modes_see_the_operators_and_change_nothing(backend, device, divergence):
    inputs, options = tensors(device=device), {"divergence": divergence, "backend": backend}
    want = trained(*inputs, **options)
    with FlopCounterMode(display=False):
        counted = trained(*inputs, **options)
    with Seen() as seen:
        noted = trained(*inputs, **options)
    torch.testing.assert_close(counted, want)
    torch.testing.assert_close(noted, want)
    assert sum("fdpo_fast" in name for name in seen.names) == 2


@pytest.mark.parametrize(("backend", "device"), FUSED)
@pytest.mark.parametrize("divergence", LINKS)
@pytest.mark.parametrize("layout", ["halves", "interleaved"])
@pytest.mark.parametrize("drawn", [False, True])
def test_batched_gradients_are_those_of_a_loop(backend, device, divergence, layout, drawn):
    pred, ref, target = tensors(device=device)
    target = draws(0, torch.arange(3), 0, device=device) if drawn else target
    options = {"divergence": divergence, "layout": layout, "reduction": "none", "backend": backend}

    def losses(pred):
        return fdpo_loss(pred, ref, target, **KNOBS | options)[0]

    loss = losses(pred.requires_grad_())
    upstream = torch.randn(4, 3, dtype=torch.float32, device=device)
    (got,) = torch.autograd.grad(loss, pred, upstream, is_grads_batched=True, retain_graph=True)
    want = [torch.autograd.grad(loss, pred, row, retain_graph=True)[0] for row in upstream]
    torch.testing.assert_close(got, torch.stack(want), rtol=1e-5, atol=1e-6)
    (vmapped,) = torch.func.vmap(lambda row: torch.autograd.grad(loss, pred, row, retain_graph=True))(upstream)
    torch.testing.assert_close(vmapped, got)
    jacobians = [torch.autograd.functional.jacobian(losses, pred, vectorize=vectorize) for vectorize in (True, False)]
    torch.testing.assert_close(*jacobians, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("backend", "device"), [("eager", "cpu"), *FUSED])
@pytest.mark.parametrize("divergence", LINKS)
@pytest.mark.parametrize("which", ["ref", "target", "weight", "errors", "draws"])
def test_constants_made_in_inference_mode(backend, device, divergence, which):
    pred, ref, target = tensors(device=device)
    with torch.inference_mode():
        inside = {
            "ref": ref.clone(),
            "target": target.clone(),
            "weight": torch.rand(3, dtype=torch.float32, device=device),
            "errors": torch.rand(6, dtype=torch.float32, device=device),
            "draws": draws(0, torch.arange(3), 0, device=device),
        }[which]
    assert inside.is_inference()
    place = {"errors": "ref", "draws": "target"}.get(which, which)
    arguments = {"ref": ref, "target": target, "weight": None, "divergence": divergence, "backend": backend}
    got = trained(pred, **arguments | {place: inside})
    want = trained(pred, **arguments | {place: inside.clone()})
    assert all(torch.equal(*pair) for pair in zip(got, want, strict=True))


@pytest.mark.parametrize(("backend", "device"), [("eager", "cpu"), *FUSED])
@pytest.mark.parametrize("divergence", LINKS)
def test_a_call_in_inference_mode(backend, device, divergence):
    inputs = tensors(device=device)
    want, _ = fdpo_loss(*inputs, divergence=divergence, backend=backend, **KNOBS)
    with torch.inference_mode():
        got, stats = fdpo_loss(*inputs, divergence=divergence, backend=backend, **KNOBS)
        assert torch.equal(got, want)
        assert len(stats) == 10


@pytest.mark.parametrize(("backend", "device"), FUSED)
@pytest.mark.parametrize("divergence", LINKS)
def test_a_graph_that_is_kept_gives_its_gradient_again(backend, device, divergence):
    pred, ref, target = tensors(device=device)
    pred.requires_grad_()
    loss, _ = fdpo_loss(pred, ref, target, divergence=divergence, backend=backend, **KNOBS)
    (first,) = torch.autograd.grad(loss, pred, retain_graph=True)
    kept = first.clone()
    first.zero_()  # whoever gets a gradient may write into it
    (second,) = torch.autograd.grad(loss, pred, retain_graph=True)
    assert torch.equal(second, kept)
    (third,) = torch.autograd.grad(loss, pred, 0.25 * torch.ones_like(loss), retain_graph=True)
    torch.testing.assert_close(third, 0.25 * kept)
    pred.grad = None
    loss.backward(retain_graph=True)
    loss.backward()
    torch.testing.assert_close(pred.grad, 2 * kept)
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        loss.backward()


@pytest.mark.parametrize(("backend", "device"), [("eager", "cpu"), *FUSED])
@pytest.mark.parametrize("divergence", LINKS)
@pytest.mark.parametrize("upstream", [1.0, 0.3])
def test_predictions_that_changed_before_backward_are_refused(backend, device, divergence, upstream):
    """As torch refuses it; but a gradient that was formed in the forward pass does not need them, and is right."""
    pred, ref, target = tensors(device=device)
    pred.requires_grad_()
    for _ in range(2):  # the second time with the first one's upstream gradient for a guess
        want, _ = fdpo_loss(pred, ref, target, divergence=divergence, backend="eager", **KNOBS)
        (want,) = torch.autograd.grad(upstream * want, pred)
        hidden = pred * 1
        loss, _ = fdpo_loss(hidden, ref, target, divergence=divergence, backend=backend, **KNOBS)
        with torch.no_grad():
            hidden.add_(1)
        got = None
        with suppress(RuntimeError):
            (got,) = torch.autograd.grad(upstream * loss, pred, retain_graph=True)
        if got is not None:
            torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-6)
        else:
            with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                torch.autograd.grad(upstream * loss, pred, retain_graph=True)
