r"""Counter-based draws: timestep, noise and caption dropout as pure functions of (seed, pair_id, visit).

The generator is Philox4x32-10 (Salmon et al., SC 2011). Nothing has a state, so a draw depends on neither rank, nor
step, nor batch: the reference errors of a draw can be computed once and kept, and a resumed run sees what it would
have seen. Layout of the 128-bit counter and the 64-bit key:

    key     = (seed low, seed high)
    counter = (block, visit, pair_id low, pair_id high << 8 | stream)

block: index of a group of four elements of the flattened sample (words 0..3 of its output belong to elements
4 * block + 0..3). stream: 0 noise, 1 timestep, 2 caption dropout. 0 <= pair_id < 2^56, 0 <= visit < 2^32.

Normals by Box-Muller, two from two words x, y, formed in float64 and rounded once to float32:

    r = sqrt(-2 log((x + 1) / 2^32)),  (r cos(2 pi y / 2^32), r sin(2 pi y / 2^32))

CPU tensors are filled by csrc/noise.cpp (same words; the normals may differ from eager torch by one rounding).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fdpo_fast.ops import host

NOISE_SPEC = "philox4x32-10/box-muller/1"
"""Version of the layout above; part of every cache that depends on draws."""

NOISE, TIMESTEP, CAPTION = range(3)

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Philox4x32-10: four words for each counter. Words are uint32 values in int64 tensors of any broadcast shape."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = _multiply(_MULTIPLIERS[0], c0)
        high1, low1 = _multiply(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def _multiply(constant: int, word: Tensor) -> tuple[Tensor, Tensor]:
    """High and low half of the 64-bit product; by halves of the word, since int64 has no unsigned product."""
    low = constant * (word & 0xFFFF)
    high = constant * (word >> 16) + (low >> 16)
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)


def words(seed: int, pair_ids: Tensor, visits: Tensor, stream: int, blocks: int) -> Tensor:
    """The raw stream [B, 4 * blocks], uint32 values as int64, for int64 `pair_ids` and `visits` [B]."""
    block = torch.arange(blocks, device=pair_ids.device)
    counter = (
        block[None, :],
        visits[:, None],
        (pair_ids & _MASK)[:, None],
        (pair_ids >> 32 << 8 | stream)[:, None],
    )
    return torch.stack(torch.broadcast_tensors(*philox(counter, _key(seed))), dim=-1).flatten(1)


def normals(seed: int, pair_ids: Tensor, visits: Tensor, count: int) -> Tensor:
    """Standard normals [B, count], float32, on the device of `pair_ids`."""
    if pair_ids.device.type == "cpu" and host.available:
        return host.normals(seed, pair_ids, visits, count)
    return eager_normals(seed, pair_ids, visits, count)


def eager_normals(seed: int, pair_ids: Tensor, visits: Tensor, count: int) -> Tensor:
    """`normals` in plain torch."""
    x, y = words(seed, pair_ids, visits, NOISE, -(-count // 4)).double().unflatten(1, (-1, 2)).unbind(-1)
    radius = torch.sqrt(-2 * torch.log((x + 1) * 2.0**-32))
    angle = y * (2 * math.pi * 2.0**-32)
    both = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1)
    return both.flatten(1)[:, :count].float()


def uniforms(seed: int, pair_ids: Tensor, visits: Tensor, stream: int) -> Tensor:
    """One number in [0, 1) per pair and visit, [B], float64."""
    return words(seed, pair_ids, visits, stream, 1)[:, 0] * 2.0**-32


def pair_draw(
    seed: int,
    pair_id: int | Tensor,
    visit: int | Tensor,
    shape: tuple[int, ...],
    *,
    num_train_timesteps: int = 1000,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """The timestep and the noise of a pair's visit; both images of the pair share them.

    Args:
        seed: 0 <= seed < 2^64.
        pair_id, visit: an int each, or int64 tensors [B].
        shape: shape of one sample.
        num_train_timesteps: timesteps are uniform over 0 .. num_train_timesteps - 1.
        dtype: of the noise; drawn in float32 and rounded.
        device: of both results.

    Returns:
        (timestep, noise): int64 scalar and `shape`, or [B] and [B, *shape] for tensors.

    Raises:
        ValueError: a negative or too large seed, pair_id or visit.
    """
    single = not isinstance(pair_id, Tensor) and not isinstance(visit, Tensor)
    pair_ids, visits = torch.broadcast_tensors(
        *(torch.as_tensor(value, dtype=torch.int64, device=device).reshape(-1) for value in (pair_id, visit))
    )
    _check_range("seed", seed, seed, 64)
    if len(pair_ids) and pair_ids.device.type == "cpu":  # elsewhere the look would wait for the device
        _check_range("pair_id", int(pair_ids.min()), int(pair_ids.max()), 56)
        _check_range("visit", int(visits.min()), int(visits.max()), 32)
    timestep = words(seed, pair_ids, visits, TIMESTEP, 1)[:, 0] * num_train_timesteps >> 32
    noise = normals(seed, pair_ids, visits, math.prod(shape)).to(dtype).unflatten(1, tuple(shape) or (1,))
    noise = noise if shape else noise[:, 0]
    return (timestep[0], noise[0]) if single else (timestep, noise)


def _check_range(name: str, smallest: int, largest: int, bits: int) -> None:
    if smallest < 0 or largest >> bits:
        raise ValueError(f"{name} must lie in [0, 2^{bits}), got {smallest if smallest < 0 else largest}")


def _key(seed: int) -> tuple[int, int]:
    return seed & _MASK, seed >> 32
