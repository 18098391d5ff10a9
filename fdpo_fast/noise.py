r"""Counter-based draws: timestep, noise and caption dropout as pure functions of (seed, pair_id, visit).

The generator is Philox4x32-10 (Salmon et al., SC 2011). Nothing has a state, so a draw depends on neither rank, nor
step, nor batch: the reference errors of a draw can be computed once and kept, and a resumed run sees what it would
have seen. Layout of the 128-bit counter and the 64-bit key:

    key     = (seed low, seed high)
    counter = (block, visit, pair_id low, pair_id high << 8 | stream)

block: index of a group of four elements of the flattened sample (words 0..3 of its output belong to elements
4 * block + 0..3). stream: of `ops.constants.Stream`: the noise, the timestep, the dropout of captions, the rounding of
weights (pair_id is then the parameter, visit the step), crop and flip. 0 <= pair_id < 2^56, 0 <= visit < 2^32.

Normals by Box-Muller, two from two words x, y, formed in float64 and rounded once to float32:

    r = sqrt(-2 log((x + 1) / 2^32)),  (r cos(2 pi y / 2^32), r sin(2 pi y / 2^32))

The words are the same bits on every backend, the normals the same within one backend: C++ forms them in double, Triton
in float32 with compensation (within two units in the last place of float64).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import overload

import torch
from torch import Tensor

from fdpo_fast.ops import library
from fdpo_fast.ops.constants import Stream, one_of
from fdpo_fast.ops.pairs import LAYOUTS

NOISE_SPEC = "philox4x32-10/box-muller/1"
"""Version of the layout above; part of every cache that depends on draws."""

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)


def philox(counter: tuple[Tensor, ...], key: tuple[int | Tensor, int | Tensor]) -> tuple[Tensor, ...]:
    """Run Philox4x32-10: four words for each counter, uint32 values in int64 tensors of any broadcast shape."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = _multiply(_MULTIPLIERS[0], c0)
        high1, low1 = _multiply(_MULTIPLIERS[1], c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def _multiply(constant: int, word: Tensor) -> tuple[Tensor, Tensor]:
    """Return the 64-bit product's high and low half; by halves of the word, as int64 has no unsigned product."""
    low = constant * (word & 0xFFFF)
    high = constant * (word >> 16) + (low >> 16)
    return high >> 16, ((high & 0xFFFF) << 16) | (low & 0xFFFF)


def draws(seed: int, pair_id: int | Tensor, visit: int | Tensor, *, device: torch.device | str | None = None) -> Tensor:
    """Return what the draws of B pairs are functions of, [3, B] int64: seeds (the same for all), pair ids, visits.

    Args:
        seed: 0 <= seed < 2^64.
        pair_id, visit: int64 tensors [B], or an int for all pairs; 0 <= pair_id < 2^56, 0 <= visit < 2^32.
        device: of the result; that of the tensors by default.

    Raises:
        TypeError: an id or a visit that is not an integer.
        ValueError: a number out of range (tensors are looked at only on the CPU: elsewhere it would wait for them).
    """
    if isinstance(seed, Tensor):
        raise TypeError("seed must be one integer for all pairs, got a tensor")
    seed, pair_id, visit = _integer("seed", seed), _integer("pair_id", pair_id), _integer("visit", visit)
    _check_range("seed", seed, seed, 64)
    for name, value, bits in (("pair_id", pair_id, 56), ("visit", visit, 32)):
        if not isinstance(value, Tensor):
            _check_range(name, value, value, bits)
        elif value.device.type == "cpu" and value.numel() and not library.traced(value):
            _check_range(name, int(value.min()), int(value.max()), bits)
    rows = [value for value in (pair_id, visit) if isinstance(value, Tensor) and value.ndim]
    if len({value.shape for value in rows}) > 1 or any(value.ndim > 1 for value in rows):
        shapes = [tuple(getattr(value, "shape", ())) for value in (pair_id, visit)]
        raise ValueError(f"pair_id and visit must be [B] both, or one number for all, got shapes {shapes}")
    if device is None:
        device = next((value.device for value in (pair_id, visit) if isinstance(value, Tensor)), "cpu")
    signed = seed - 2**64 if seed >> 63 else seed
    parts = [torch.as_tensor(value, dtype=torch.int64, device=device).reshape(-1) for value in (signed, pair_id, visit)]
    return torch.stack(torch.broadcast_tensors(*parts))


@overload
def _integer(name: str, value: int) -> int: ...
@overload
def _integer(name: str, value: int | Tensor) -> int | Tensor: ...
def _integer(name: str, value: int | Tensor) -> int | Tensor:
    """Return the value as an int, or the tensor of integers; TypeError for anything else."""
    if isinstance(value, Tensor):
        dtype = value.dtype
        if not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool):
            return value
        kind = str(dtype)
    else:
        kind = type(value).__name__
        if hasattr(value, "__index__") and not isinstance(value, bool):
            return operator.index(value)
    raise TypeError(f"{name} must be an integer, got {kind}")


def words(draws: Tensor, stream: Stream, blocks: int, first: int = 0) -> Tensor:
    """Return the raw stream [B, 4 * blocks] of `draws` [3, B] from block `first` on, uint32 values as int64."""
    seed, pair_id, visit = draws[:, :, None]
    counter = (
        (torch.arange(blocks, dtype=torch.int64, device=draws.device)[None, :] + first) & _MASK,
        visit & _MASK,
        pair_id & _MASK,
        (pair_id >> 32 << 8 | stream) & _MASK,
    )
    return torch.stack(torch.broadcast_tensors(*philox(counter, (seed & _MASK, seed >> 32 & _MASK))), dim=-1).flatten(1)


def eager_normals(draws: Tensor, count: int) -> Tensor:
    """Make standard normals [B, count] of `draws` [3, B], float32, in plain torch."""
    x, y = words(draws, Stream.NOISE, -(-count // 4)).double().unflatten(1, (-1, 2)).unbind(-1)
    radius = torch.sqrt(-2 * torch.log((x + 1) * 2.0**-32))
    angle = y * (2 * math.pi * 2.0**-32)
    both = torch.stack((radius * torch.cos(angle), radius * torch.sin(angle)), dim=-1)
    return both.flatten(1)[:, :count].float()


def normals(draws: Tensor, count: int, backend: str | None = None) -> Tensor:
    """Make `eager_normals` by the best backend for the device of `draws`, or by the one that is named."""
    backend = library.chosen(backend, draws.device)
    return eager_normals(draws, count) if backend == "eager" else library.normals(backend, draws, count)


def uniforms(draws: Tensor, stream: Stream) -> Tensor:
    """Make one number in [0, 1) per draw, [B], float64."""
    return words(draws, stream, 1)[:, 0].double() * 2.0**-32


def timesteps(draws: Tensor, num_train_timesteps: int, density: Tensor | None = None) -> Tensor:
    """Return the timestep of each draw, 0 .. num_train_timesteps - 1, [B] int64.

    They are uniform, or as likely as the `density` [T] int64 says: how many of the 2^32 words of a draw give at most
    this timestep, see `densities.cumulative`.
    """
    word = words(draws, Stream.TIMESTEP, 1)[:, 0]
    return word * num_train_timesteps >> 32 if density is None else torch.searchsorted(density, word, right=True)


def pair_draw(
    seed: int,
    pair_id: int | Tensor,
    visit: int | Tensor,
    shape: tuple[int, ...],
    *,
    num_train_timesteps: int = 1000,
    density: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> tuple[Tensor, Tensor]:
    """Return the timestep and the noise of a pair's visit; both images of the pair share them.

    Args:
        seed: 0 <= seed < 2^64.
        pair_id, visit: an int each, or int64 tensors [B].
        shape: shape of one sample.
        num_train_timesteps: timesteps are uniform over 0 .. num_train_timesteps - 1,
        density: or as likely as this says, [num_train_timesteps] int64 of `densities.cumulative`.
        dtype: of the noise; drawn in float32 and rounded.
        device: of both results.

    Returns:
        (timestep, noise): int64 scalar and `shape`, or [B] and [B, *shape] for tensors.

    Raises:
        TypeError: what should be an integer and is not, a dtype that is not floating-point.
        ValueError: a negative or too large seed, pair_id, visit, num_train_timesteps or shape.
    """
    if not 1 <= _integer("num_train_timesteps", num_train_timesteps) < 2**31:
        raise ValueError(f"num_train_timesteps must lie in [1, 2^31), got {num_train_timesteps}")
    if not dtype.is_floating_point:
        raise TypeError(f"noise must be of a floating-point dtype, got {dtype}")
    if not isinstance(shape, Sequence) or any(_integer("shape", size) < 0 for size in shape):
        raise ValueError(f"shape must be the sizes of one sample, got {shape}")
    single = not isinstance(pair_id, Tensor) and not isinstance(visit, Tensor)
    drawn = draws(seed, pair_id, visit, device=device)
    if density is not None:
        _check_density(density, num_train_timesteps, drawn.device)
    timestep = timesteps(drawn, num_train_timesteps, density)
    noise = normals(drawn, math.prod(shape)).to(dtype).reshape(drawn.shape[1], *shape)
    return (timestep[0], noise[0]) if single else (timestep, noise)


def add_noise(
    latents: Tensor,
    draws: Tensor,
    signal: Tensor,
    sigma: Tensor,
    *,
    density: Tensor | None = None,
    layout: str = "halves",
    dtype: torch.dtype | None = None,
    backend: str | None = None,
) -> tuple[Tensor, Tensor]:
    """Form x_t = signal[t] * x_0 + sigma[t] * noise for both samples of each pair, which share the pair's draw.

    Args:
        latents: x_0 [2B, ...], float32/bfloat16/float16.
        draws: [3, B] of `draws`.
        signal, sigma: [T] by timestep, float32: for a DDPM schedule sqrt(alphas_cumprod) and sqrt(1 - alphas_cumprod),
            for a rectified flow 1 - s and s, s being the share of noise.
        density: how likely each timestep is, [T] int64 of `densities.cumulative`; all alike by default.
        layout: "halves" = [w...; l...] or "interleaved" = [w, l, w, l, ...].
        dtype: of x_t; that of `latents` by default. Formed in float32 and rounded once.
        backend: as for `fdpo_loss`. The fused ones make the noise in the kernel, once for both samples.

    Returns:
        (x_t [2B, ...], timesteps [B] int64): timesteps and noise are those of `pair_draw`. No gradient flows.

    Raises:
        TypeError: what should be a tensor, or floating-point, and is not.
        ValueError: shapes, dtypes or devices that do not fit, an unknown layout or backend.
    """
    for name, value in (("latents", latents), ("draws", draws), ("signal", signal), ("sigma", sigma)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
        if value.device != latents.device:
            raise ValueError(
                f"{name} is on {value.device} but latents are on {latents.device}: move them to one device"
            )
    for what in (latents.dtype, dtype or latents.dtype):
        if not what.is_floating_point:
            raise TypeError(f"latents and dtype must be floating-point, got {what}")
    if draws.dtype != torch.int64 or latents.ndim == 0 or len(latents) % 2 or draws.shape != (3, len(latents) // 2):
        raise ValueError(
            f"draws are {draws.dtype} {tuple(draws.shape)} for latents {tuple(latents.shape)}: give int64 (3, B), as "
            "noise.draws makes them, for (2B, ...)"
        )
    if signal.shape != sigma.shape or signal.ndim != 1 or not len(signal):
        raise ValueError(f"signal and sigma must be [T], got {tuple(signal.shape)} and {tuple(sigma.shape)}")
    if density is not None:
        _check_density(density, len(signal), latents.device)
        density = density.contiguous()
    one_of("layout", layout, LAYOUTS)
    latents = latents.detach().resolve_neg()
    dtype = dtype or latents.dtype
    signal, sigma = (table.detach().float().resolve_neg().contiguous() for table in (signal, sigma))
    backend = library.chosen(backend, latents.device, latents.dtype, dtype)
    if backend != "eager":
        return library.add_noise(backend, latents, draws, signal, sigma, density, layout == "interleaved", dtype)
    timestep = timesteps(draws, len(signal), density)
    shape = (-1, *[1] * (latents.ndim - 1))
    noise = eager_normals(draws, math.prod(latents.shape[1:])).reshape(-1, *latents.shape[1:])
    out = torch.empty_like(latents, dtype=dtype)
    for x, noisy in zip(LAYOUTS[layout](latents), LAYOUTS[layout](out), strict=True):
        noisy.copy_(signal[timestep].reshape(shape) * x.float() + sigma[timestep].reshape(shape) * noise)
    return out, timestep


def _check_density(density: Tensor, num_train_timesteps: int, device: torch.device) -> None:
    if not isinstance(density, Tensor) or density.dtype != torch.int64:
        kind = density.dtype if isinstance(density, Tensor) else type(density).__name__
        raise TypeError(f"density must be an int64 tensor, as densities.cumulative makes it, got {kind}")
    if density.shape != (num_train_timesteps,):
        raise ValueError(
            f"density has shape {tuple(density.shape)}: give one number a timestep, ({num_train_timesteps},)"
        )
    if density.device != device:
        raise ValueError(f"density is on {density.device}, not on {device}: move it there")


def _check_range(name: str, smallest: int, largest: int, bits: int) -> None:
    if smallest < 0 or largest >> bits:
        raise ValueError(f"{name} must lie in [0, 2^{bits}), got {smallest if smallest < 0 else largest}")
