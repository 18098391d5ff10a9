"""Running a model on tensors of the meta device, which have shapes but no memory, and counting what they would take."""

from __future__ import annotations

import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count

from fdpo_fast.optim.in_backward import BUCKET_BYTES

_ATEN = torch.ops.aten
_FLOPS = {
    **flop_registry,
    # torch's counter does not know the host's attention
    _ATEN._scaled_dot_product_flash_attention_for_cpu: (
        lambda q, k, v, *_, **__: sdpa_flop_count(q.shape, k.shape, v.shape)
    ),
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad.shape, q.shape, k.shape, v.shape)
    ),
}


class HostAttention:
    """A context in which attention is the host's kernel, which keeps no scores, on the meta device as well."""

    def __enter__(self) -> None:
        # no mode for functions: those are off within `backward`, where layers are computed again
        self._own = nn.functional.scaled_dot_product_attention
        vars(nn.functional)["scaled_dot_product_attention"] = _attention

    def __exit__(self, *_: Any) -> None:
        vars(nn.functional)["scaled_dot_product_attention"] = self._own


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    assert not enable_gqa, "no denoiser has fewer keys than queries"
    return _ATEN._scaled_dot_product_flash_attention_for_cpu(
        query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale
    )[0]


class _Result(NamedTuple):
    """What an operator gives for arguments of some shapes: (shape, strides, dtype) of new tensors, and its FLOPs."""

    tensors: tuple[tuple, ...] | None
    """None where they share memory with the arguments, or are no plain tensors: the operator is asked again then."""
    single: bool
    """Whether the operator returns a tensor, and not a tuple of them."""
    flops: int


_results: dict[Any, _Result] = {}
"""The results by operator and arguments: a network of blocks asks the same again and again, at 0.3 ms each time."""


class Tracker(TorchDispatchMode):
    """A count of the bytes that are alive, of the most there were, and of FLOPs: products, convolutions, attention.

    What `torch.distributed._tools.mem_tracker.MemTracker` and torch's FlopCounterMode count (tests compare them), which
    take minutes for SDXL. Storages made before are not counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self._known: weakref.WeakSet = weakref.WeakSet()
        self.gradients = self.others = 0
        self.bucket = 0
        """The gradients that wait for their step inside backward."""
        self.peak = self.peak_with_gradients = self.peak_with_bucket = 0
        self.flops = 0

    def ignore(self, module: nn.Module) -> None:
        """Count views of a module's parameters and buffers as nothing."""
        for tensor in (*module.parameters(), *module.buffers()):
            self._known.add(tensor.untyped_storage())

    def gradient_ready(self, parameter: nn.Parameter) -> None:
        """Count the gradient of a parameter apart from now on; to be registered as a hook."""
        if parameter.grad is not None:
            size = parameter.grad.untyped_storage().nbytes()
            self.others -= size
            self.gradients += size
            self.bucket += size
            if self.bucket >= BUCKET_BYTES:
                self.bucket = 0

    def restart(self) -> None:
        """Forget the peaks, so that they are those from now on."""
        self.peak, self.peak_with_gradients = self.others, self.others + self.gradients
        self.bucket, self.peak_with_bucket = 0, self.others

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        key = function, _key(args), _key(tuple(kwargs.items()))
        known = _results.get(key)
        if known is None or known.tensors is None:
            out = function(*args, **kwargs)
            if known is None:
                known = _results[key] = _describe(function, args, kwargs, out)
        else:
            made = [
                torch.empty_strided(shape, strides, dtype=dtype, device="meta")
                for shape, strides, dtype in known.tensors
            ]
            out = made[0] if known.single else tuple(made)
        self.flops += known.flops
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage()) not in self._known:
                self._known.add(storage)
                size = storage.nbytes()
                self.others += size
                weakref.finalize(storage, self._free, size)
                self.peak = max(self.peak, self.others)
                self.peak_with_gradients = max(self.peak_with_gradients, self.others + self.gradients)
                self.peak_with_bucket = max(self.peak_with_bucket, self.others + self.bucket)
        return out

    def _free(self, size: int) -> None:
        self.others -= size


def _key(value: Any) -> Any:
    """Return what an operator's answer depends on: shape, strides and dtype of tensors, type and value of all else."""
    if isinstance(value, Tensor):
        return value.shape, value.stride(), value.dtype
    if isinstance(value, tuple | list):
        return tuple(map(_key, value))
    return type(value), value


def _describe(function: Any, args: tuple, kwargs: dict, out: Any) -> _Result:
    """Describe an operator's answer, to be given again for arguments like these."""
    count = _FLOPS.get(function._overloadpacket)
    flops = count(*args, **kwargs, out_val=out) if count else 0
    tensors = out if isinstance(out, tuple) else (out,)
    schema = function._schema  # not all that share memory say so
    aliases = schema.is_mutable or any(value.alias_info for value in schema.returns)
    given = {value.untyped_storage()._cdata for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)}
    if aliases or not all(_is_plain(tensor) and tensor.untyped_storage()._cdata not in given for tensor in tensors):
        return _Result(None, False, flops)
    described = tuple((tensor.shape, tensor.stride(), tensor.dtype) for tensor in tensors)
    return _Result(described, isinstance(out, Tensor), flops)


def _is_plain(tensor: Any) -> bool:
    """Say whether a tensor is its own memory and nothing more."""
    if not isinstance(tensor, Tensor) or tensor.device.type != "meta" or tensor.storage_offset():
        return False
    alike = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
    return tensor.untyped_storage().nbytes() == alike.untyped_storage().nbytes()
