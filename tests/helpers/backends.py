"""The fused backends, each on the device it is tested on."""

import pytest
import torch

FUSED = [
    ("cpp", "cpu"),
    pytest.param("triton", "cpu", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="not interpreted")),
    pytest.param("triton", "cuda", marks=pytest.mark.gpu),
]
