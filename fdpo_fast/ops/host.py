"""The C++ code of `csrc` on CPU tensors. `available` is False where the package runs without its compiled part."""

from __future__ import annotations

import warnings
from importlib.util import find_spec

import torch
from torch import Tensor

if find_spec("fdpo_fast._native"):
    from fdpo_fast import _native
else:
    _native = None
    warnings.warn(
        "fdpo_fast runs without its compiled part and falls back to eager torch: "
        "`pip install .` in the source folder builds it with a C++20 compiler",
        stacklevel=2,
    )

available = _native is not None


def normals(seed: int, pair_ids: Tensor, visits: Tensor, count: int) -> Tensor:
    """`noise.normals` for CPU tensors: [B, count] float32."""
    out = torch.empty((len(pair_ids), count), dtype=torch.float32)
    _native.normals(seed, pair_ids.contiguous(), visits.contiguous(), out, torch.get_num_threads())
    return out
