"""What is added to ZeRO of DeepSpeed: random bits of each master, memory that is shared."""

import warnings
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch

from fdpo_fast import AdamW8bit
from fdpo_fast.optim import zero


def test_each_master_has_its_own_random_bits():
    ends = []
    for rank in (0, 1):
        torch.manual_seed(0)
        start = torch.randn(5003, dtype=torch.float32)
        masters = [torch.nn.Parameter(start.bfloat16()) for _ in range(2)]
        optimizer = AdamW8bit(masters[:1], lr=1e-4)
        with patch.object(zero.dist, "get_rank", return_value=rank):
            zero._number_elements(optimizer, masters)
        for master in masters:  # as ZeRO does
            master.grad = torch.ones_like(master)
            optimizer.param_groups[0]["params"] = [master]
            optimizer.step()
        ends += [master.detach() for master in masters]
    assert len({tuple(end.tolist()) for end in ends}) == 4


def test_a_deepspeed_with_other_names_is_left_alone():
    with pytest.warns(UserWarning, match="keeps its buffers elsewhere, so some exist twice"):
        zero.share(SimpleNamespace(master_weights_and_grads_dtype=torch.bfloat16))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        zero.share(SimpleNamespace(master_weights_and_grads_dtype=torch.float32))
        zero.share(AdamW8bit([torch.nn.Parameter(torch.ones(1, dtype=torch.float32))]))
