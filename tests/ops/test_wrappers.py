"""The operators on tensors of other types than torch's own: right, or one exception of Python's."""

import pytest
import torch

from fdpo_fast import add_noise, draws, fdpo_loss
from fdpo_fast.noise import normals
from tests.helpers.wrappers import KINDS, Named, Wrapper, one_rank, unwrapped

KNOBS = {"beta": 2.0, "ratio_scale": 5.0}
BACKENDS = ["cpp", "triton"]
RIGHT = {"wrapper", "named"}

rank = pytest.fixture(one_rank)


@pytest.fixture(autouse=True)
def interpreted(backend):
    if backend == "triton" and torch.cuda.is_available():
        pytest.skip("not interpreted")


def batch():
    generator = torch.Generator("cpu").manual_seed(0)
    pred, ref, target = (torch.randn(4, 3, 5, generator=generator, dtype=torch.float32) for _ in range(3))
    weight, errors = (torch.rand(n, generator=generator, dtype=torch.float32) for n in (2, 4))
    return {"pred": pred, "ref": ref, "target": target, "weight": weight}, errors, draws(0, torch.arange(2), 0)


def trained(arguments, backend, divergence):
    """Loss, margin and gradient of a call."""
    pred = arguments["pred"].requires_grad_()
    loss, stats = fdpo_loss(**arguments, backend=backend, divergence=divergence, **KNOBS)
    (grad,) = torch.autograd.grad(loss, pred)
    return [x.detach() for x in (loss, stats.margin, grad)]


def agree(ours, theirs):
    return all(torch.equal(unwrapped(a).as_subclass(torch.Tensor), b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("which", ["pred", "ref", "target", "weight", "errors", "draws"])
@pytest.mark.parametrize("divergence", ["jensen_shannon", torch.tanh])
def test_a_wrapper_beside_plain_tensors(backend, kind, which, divergence, rank):
    arguments, errors, drawn = batch()
    place = {"errors": "ref", "draws": "target"}.get(which, which)
    arguments |= {"errors": {"ref": errors}, "draws": {"target": drawn}}.get(which, {})
    before = {**arguments, "pred": arguments["pred"].clone()}
    arguments[place] = KINDS[kind](arguments[place])
    if kind in RIGHT:
        want = trained(before, backend, divergence)
        assert agree(trained(arguments, backend, divergence), want)
    else:
        with pytest.raises((ValueError, RuntimeError, AssertionError, NotImplementedError)):
            trained(arguments, backend, divergence)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", list(KINDS))
@pytest.mark.parametrize("which", ["latents", "draws", "signal", "sigma", "normals"])
def test_noise_of_a_wrapper(backend, kind, which, rank):
    loss, _, drawn = batch()
    table = torch.linspace(0.1, 0.9, 7, dtype=torch.float32)
    arguments = {"latents": loss["pred"], "draws": drawn, "signal": table, "sigma": table.flip(0)}

    def made(arguments):
        if which == "normals":
            return [normals(arguments["draws"], 6, backend=backend)]
        return add_noise(**arguments, backend=backend)

    want = made(arguments)
    place = "draws" if which == "normals" else which
    arguments[place] = KINDS[kind](arguments[place])
    if kind in RIGHT:
        assert agree(made(arguments), want)
    elif which == "normals" and kind == "fake":
        assert made(arguments)[0].shape == want[0].shape
    else:
        with pytest.raises((ValueError, RuntimeError, AssertionError, NotImplementedError)):
            made(arguments)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", [Wrapper, lambda tensor: tensor.as_subclass(Named)])
def test_everything_wrapped(backend, kind):
    arguments, _, _ = batch()
    want = trained({**arguments, "pred": arguments["pred"].clone()}, backend, "jensen_shannon")
    wrapped = {name: kind(tensor) for name, tensor in arguments.items()}
    assert agree(trained(wrapped, backend, "jensen_shannon"), want)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rehearsal_on_the_meta_device(backend):
    """All on the meta device gives shapes, if the backend takes tensors of the kind that are rehearsed."""
    arguments, _, _ = batch()
    away = {name: tensor.to("meta") for name, tensor in arguments.items()}
    if backend == "triton":
        with pytest.raises(ValueError, match="backend 'triton' runs on"):
            trained(away, backend, "jensen_shannon")
        return
    loss, margin, grad = trained(away, None, "jensen_shannon")
    assert (loss.device.type, margin.shape, grad.shape) == ("meta", (2,), (4, 3, 5))
