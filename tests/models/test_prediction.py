"""The reference model rounds as the policy does."""

import pytest
import torch
from torch import nn

from fdpo_fast.models.prediction import as_in_training


class Tokens(nn.Module):
    """A projection of the pixels of a feature map, as the UNet's transformers begin with."""

    def __init__(self):
        super().__init__()
        self.project = nn.Linear(640, 640)

    def forward(self, features):
        return self.project(features.flatten(2).transpose(1, 2))


def test_a_reference_takes_the_kernels_of_training():
    """bf16, of SDXL's shapes: frozen under no_grad, the projection differs on hosts with AMX."""
    torch.manual_seed(0)
    model, features = Tokens().bfloat16(), torch.randn(2, 640, 8, 8).bfloat16()
    with as_in_training():
        reference = model(features)
    policy = model(features.clone().requires_grad_())
    assert torch.equal(reference, policy)
    with pytest.raises(RuntimeError, match="no backward pass"):
        reference.sum().backward()
