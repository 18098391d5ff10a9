"""FDPOLoss around a link that is a module: what is done to modules is done to it."""

import copy
import pickle

import torch
from torch import nn

from fdpo_fast import FDPOLoss, fdpo_loss

KNOBS = {"beta": 1.0, "ratio_scale": 1.0}


class Link(nn.Module):
    """u -> scale * u, with a scale that is learnt."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale, dtype=torch.float32))

    def forward(self, u):
        return self.scale * u


def batch():
    generator = torch.Generator("cpu").manual_seed(0)
    pred, ref, target = (torch.randn(4, 3, generator=generator, dtype=torch.float32) for _ in range(3))
    return pred.requires_grad_(), ref, target


def value(loss):
    return loss(*batch())[0].item()


def test_parameters_of_a_link_are_those_of_the_module():
    loss = FDPOLoss(Link(2.0), **KNOBS)
    assert [name for name, _ in loss.named_parameters()] == list(loss.state_dict()) == ["link.scale"]
    loss(*batch())[0].backward()
    assert loss.link.scale.grad.abs() > 0
    other = FDPOLoss(Link(), **KNOBS)
    assert value(other) != value(loss)
    other.load_state_dict(loss.state_dict())
    assert value(other) == value(loss)
    assert value(loss) == fdpo_loss(*batch(), divergence=lambda u: 2 * u, **KNOBS)[0].item()
    assert not list(FDPOLoss(**KNOBS).parameters())
    assert not list(FDPOLoss(torch.tanh, **KNOBS).parameters())


def test_copies_have_a_link_of_their_own():
    loss = FDPOLoss(Link(), **KNOBS)
    for twin in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):  # noqa: S301
        before = value(loss)
        with torch.no_grad():
            twin.link.scale.fill_(3.0)
        assert value(twin) != before
        assert value(loss) == before


def test_a_link_that_is_replaced_is_the_link():
    """As FSDP and others do that wrap the modules of a module."""
    loss = FDPOLoss(Link(), **KNOBS)
    loss.link = nn.Sequential(Link(3.0))
    assert loss.options["divergence"] is loss.link
    assert value(loss) == value(FDPOLoss(Link(3.0), **KNOBS))
    functional = torch.func.functional_call(loss, {"link.0.scale": torch.tensor(1.0, dtype=torch.float32)}, batch())
    assert functional[0].item() == value(FDPOLoss(Link(), **KNOBS))
