"""The operators on GPU tensors: Triton kernels. `missing` says why they are not there, where they are not."""

from importlib.util import find_spec
import torch

missing: str | None = None if find_spec("triton") else "Triton (`pip install triton`)"
DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}


def devices():
    return ("cuda",)
