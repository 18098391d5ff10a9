"""What the predictions of a pair are held against: a tensor, drawn noise, or a mixture of noise and data."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Target(NamedTuple):
    """What a perfect denoiser predicts for B pairs, whatever it predicts: on_noise * e + on_data * x_0.

    With draws alone it is their noise e, with data alone those; with both it is on[0] * e + on[1] * data, which no
    tensor holds: the fused backends make e again in the kernel and read data. For a rectified flow, e - x_0, on is
    (1, -1); for v-prediction at timestep t it is (signal[t], -sigma[t]).
    """

    draws: Tensor | None = None
    """[3, B] int64 of `noise.draws`."""
    data: Tensor | None = None
    """[2B, ...] like the predictions."""
    on: Tensor | None = None
    """[2, B] float32: what noise and data of each pair are multiplied by, where there are both."""

    @classmethod
    def of(cls, target: Tensor | Target) -> Target:
        """Return the target that a tensor stands for: draws are the ones of integers."""
        if isinstance(target, Target):
            return target
        return cls(draws=target) if getattr(target, "dtype", None) == torch.int64 else cls(data=target)


def as_one(target: Target, noise: Tensor | None, pred: Tensor, interleaved: bool) -> Tensor:
    """Return a target as one tensor like `pred` in plain torch; noise: that of its draws, [B, n], or None for none."""
    _, data, on = target
    if noise is None:
        assert data is not None
        return data
    both = torch.stack((noise, noise), int(interleaved)).reshape(pred.shape)
    if data is None:
        return both
    assert on is not None
    shares = on.to(noise.dtype)[:, :, None].expand(-1, -1, 2) if interleaved else on.to(noise.dtype).repeat(1, 2)
    on_noise, on_data = shares.reshape(2, -1, *[1] * (pred.ndim - 1))
    return on_noise * both + on_data * data.to(torch.promote_types(data.dtype, noise.dtype))
