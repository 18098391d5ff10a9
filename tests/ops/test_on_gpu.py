"""What needs a GPU beyond the kernels' own tests: graphs, compilers, and very many programs at once."""

import pytest
import torch

from fdpo_fast import FDPOLoss, fdpo_loss, noise
from tests.helpers.loss import KNOBS

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
"""The same test body: tiny on the CPU, in earnest on a GPU."""


def latents(pairs, shape, device, dtype=torch.bfloat16, seed=0):
    """(pred, ref, target): a policy some way from the target, near its reference."""
    generator = torch.Generator(device).manual_seed(seed)
    target, p, r = (torch.randn(2 * pairs, *shape, generator=generator, device=device) for _ in range(3))
    pred = target + 0.3 * p
    return tuple(x.to(dtype) for x in (pred, pred + 0.01 * r, target))


def both(loss, pred, ref, target):
    """(loss, gradient)."""
    pred = pred.detach().requires_grad_()
    value, _ = loss(pred, ref, target)
    return value.detach(), torch.autograd.grad(value, pred)[0]


@pytest.mark.gpu
@pytest.mark.parametrize("form", ["predictions", "errors", "draws"])
def test_the_loss_in_a_cuda_graph(form):
    loss = FDPOLoss(**KNOBS)

    def inputs(seed):
        pred, ref, target = latents(2, (4, 32, 32), "cuda", seed=seed)
        if form == "predictions":
            return pred, ref, target
        draws = noise.draws(seed, torch.arange(2, device="cuda"), 0)
        errors = (ref.double() - target.double()).square().mean(dim=(1, 2, 3))
        return pred, errors, draws if form == "draws" else target

    static = [x.clone() for x in inputs(0)]
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):
        for _ in range(3):
            both(loss, *static)
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = both(loss, *static)
    for seed in (0, 1, 2, 1):
        fresh = inputs(seed)
        for place, value in zip(static, fresh, strict=True):
            place.copy_(value)
        graph.replay()
        for ours, direct in zip(found, both(loss, *fresh), strict=True):
            assert torch.equal(ours, direct)


@pytest.mark.parametrize("device", DEVICES)
def test_many_more_programs_than_fit_at_once_give_the_same_bits(device):
    # on a GPU 64 pairs of SDXL's latents are thousands of programs, and the last of a pair finishes it
    pairs, shape, repeats = (64, (4, 128, 128), 300) if device == "cuda" else (8, (4, 16, 16), 20)
    pred, ref, target = latents(pairs, shape, device)
    loss = FDPOLoss(**KNOBS)
    first = both(loss, pred, ref, target)
    for _ in range(repeats):
        assert all(torch.equal(ours, before) for ours, before in zip(both(loss, pred, ref, target), first, strict=True))
    eager = both(FDPOLoss(backend="eager", **KNOBS), pred.double(), ref.double(), target.double())
    torch.testing.assert_close(first[0].double(), eager[0], rtol=1e-5, atol=0)


@pytest.mark.gpu
def test_equal_predictions_give_log_two_on_the_gpu():
    pred, _, target = latents(16, (4, 128, 128), "cuda")
    value, stats = fdpo_loss(pred, pred, target, **KNOBS)
    assert (stats.margin == 0).all()
    assert value.item() == torch.tensor(2.0).log().item()


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compile_of_the_loss_on_the_gpu(dtype):
    loss = FDPOLoss(**KNOBS)
    compiled = torch.compile(lambda *inputs: loss(*inputs)[0], fullgraph=True)
    pred, ref, target = latents(4, (4, 32, 32), "cuda", dtype)
    pred.requires_grad_()
    value = compiled(pred, ref, target)
    (grad,) = torch.autograd.grad(value, pred)
    want, want_grad = both(loss, pred, ref, target)
    torch.testing.assert_close(value, want, rtol=1e-6, atol=0)
    torch.testing.assert_close(grad, want_grad)
