"""Activations by running the real model's forward and backward on fake tensors, which have shapes but no memory."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from fdpo_fast.config import Config
from fdpo_fast.data.caches import DTYPES
from fdpo_fast.models import tuning
from fdpo_fast.models.blueprint import Blueprint


class Tracker(TorchDispatchMode):
    """Bytes of the storages that are alive, and the most there were.

    What `torch.distributed._tools.mem_tracker.MemTracker` counts (a test compares them), which takes three minutes for
    SDXL as it keeps books by module; this takes four seconds. Storages made before are not counted.
    """

    def __init__(self) -> None:
        super().__init__()
        self._known: weakref.WeakSet = weakref.WeakSet()
        self.gradients = self.others = 0
        self.peak = self.peak_with_gradients = 0

    def ignore(self, module: nn.Module) -> None:
        """Count views of a module's parameters and buffers as nothing."""
        for tensor in (*module.parameters(), *module.buffers()):
            self._known.add(tensor.untyped_storage())

    def gradient_ready(self, parameter: nn.Parameter) -> None:
        """Count the gradient of a parameter apart from now on; a hook."""
        size = parameter.grad.untyped_storage().nbytes()
        self.others -= size
        self.gradients += size

    def restart(self) -> None:
        """Forget the peaks."""
        self.peak, self.peak_with_gradients = self.others, self.others + self.gradients

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage()) not in self._known:
                self._known.add(storage)
                size = storage.nbytes()
                self.others += size
                weakref.finalize(storage, self._free, size)
                self.peak = max(self.peak, self.others)
                self.peak_with_gradients = max(self.peak_with_gradients, self.others + self.gradients)
        return out

    def _free(self, size: int) -> None:
        self.others -= size


@dataclass(frozen=True)
class Trace:
    """Bytes of one micro-batch on one rank, and what is trained. Neither gradients nor weights are activations."""

    saved: int
    """From forward to backward."""
    forward: int
    """The most in forward."""
    backward: int
    """The most in backward."""
    backward_with_gradients: int
    """The most in backward where gradients stay as they come."""
    inference: int
    """The most in a forward without backward: of the reference."""
    data: int
    """The micro-batch: latents, noisy latents, condition, draws."""
    shapes: tuple[int, ...]
    """Elements of each trained parameter."""
    trained_bytes: int
    frozen_bytes: int

    @property
    def trained(self) -> int:
        """Elements."""
        return sum(self.shapes)


def _fake(module: nn.Module) -> nn.Module:
    """Give a module of the meta device fake CPU tensors: those choose the kernels that real ones would."""
    for part in module.modules():
        for tensors in (part._parameters, part._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    fake = torch.empty(tensor.shape, dtype=tensor.dtype)
                    tensors[name] = nn.Parameter(fake, tensor.requires_grad) if tensors is part._parameters else fake
    return module


# torch's counter does not know the host's attention
_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: lambda q, k, v, *_, **__: sdpa_flop_count(q, k, v),
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, q, k, v, *_, **__: sdpa_backward_flop_count(grad, q, k, v)
    ),
}


class _Rehearsal:
    """The policy and a micro-batch as training sees them, of fake tensors; to be used under their `mode`."""

    def __init__(self, config: Config, blueprint: Blueprint) -> None:
        dtype, pairs = DTYPES[config.model.dtype], config.train.pairs_per_micro_batch
        side = config.data.resolution // blueprint.factors()[0]
        self.family, unet = blueprint.family, blueprint.unet(dtype).train()
        tuning.prepare(unet, config.model)
        self.criterion = config.loss.criterion()
        shapes = self.family.text_shapes(blueprint.unet_config)
        with FakeTensorMode() as self.mode:
            self.unet = _fake(unet)
            self.trained = [parameter for parameter in unet.parameters() if parameter.requires_grad]
            self.noisy = torch.zeros(2 * pairs, blueprint.unet_config["in_channels"], side, side, dtype=dtype)
            self.draws, self.weight = torch.zeros(3, pairs, dtype=torch.int64), torch.ones(pairs)
            self.timesteps = torch.zeros(2 * pairs, dtype=torch.int64)
            text = {key: torch.zeros(2 * pairs, *shape) for key, shape in shapes.items()}
            self.condition = self.family.condition(text, torch.zeros(2 * pairs, 6, dtype=torch.int64))

    def predict(self) -> Tensor:
        return self.family.predict(self.unet, self.noisy, self.timesteps, self.condition)

    def loss(self) -> Tensor:
        errors = torch.zeros(len(self.noisy), dtype=torch.float64)
        return self.criterion(self.predict(), errors, self.draws, self.weight)[0].mean()


def trace(config: Config, blueprint: Blueprint) -> Trace:
    """Run a micro-batch of the configuration's policy. Seconds, for SDXL; allocates nothing of note."""
    found, tracker, rehearsal = {}, Tracker(), _Rehearsal(config, blueprint)
    with rehearsal.mode:
        tracker.ignore(rehearsal.unet)
        for parameter in rehearsal.trained:
            parameter.register_post_accumulate_grad_hook(tracker.gradient_ready)
        with tracker:
            with torch.no_grad():
                rehearsal.predict()
            found["inference"] = tracker.peak
            tracker.restart()
            loss = rehearsal.loss()
            found["forward"], found["saved"] = tracker.peak, tracker.others
            tracker.restart()
            loss.backward()
            found["backward"], found["backward_with_gradients"] = tracker.peak, tracker.peak_with_gradients
        sizes = [parameter.numel() * parameter.element_size() for parameter in rehearsal.trained]
        everything = sum(p.numel() * p.element_size() for p in rehearsal.unet.parameters())
        shapes = tuple(parameter.numel() for parameter in rehearsal.trained)
    inputs = (rehearsal.noisy, rehearsal.noisy.float(), rehearsal.draws, *rehearsal.condition.values())
    found["data"] = sum(tensor.nbytes for tensor in inputs)
    return Trace(**found, shapes=shapes, trained_bytes=sum(sizes), frozen_bytes=everything - sum(sizes))


def flops(config: Config, blueprint: Blueprint) -> int:
    """Of a micro-batch's forward and backward, what is computed again included: products, convolutions, attention.

    And of the reference's forward, where its errors are not cached.
    """
    rehearsal = _Rehearsal(config, blueprint)
    with rehearsal.mode, FlopCounterMode(display=False, custom_mapping=_ATTENTION) as counter:
        rehearsal.loss().backward()
        if config.reference.mode != "cached":
            with torch.no_grad():
                rehearsal.predict()
    return counter.get_total_flops()


def vae_passes(config: Config, blueprint: Blueprint) -> tuple[int, int]:
    """The most that a VAE takes, weights included: encoding a batch of images in float32, decoding one in the policy's.

    The first fills the cache of latents, the second draws sample grids.
    """
    encode, decode = Tracker(), Tracker()
    side, factor, dtype = config.data.resolution, blueprint.factors()[0], DTYPES[config.model.dtype]
    with FakeTensorMode(), torch.no_grad():
        vae = _fake(blueprint.vae(torch.float32)).eval()
        encode.ignore(vae)
        images = torch.zeros(config.data.encode_batch, 3, side, side)
        with encode:
            posterior = vae.encode(images).latent_dist
            posterior.mean, posterior.std  # noqa: B018  # as `Family.image_encoder` takes them
        weights = sum(p.numel() for p in vae.parameters())
        vae = _fake(blueprint.vae(dtype)).eval()
        decode.ignore(vae)
        latents = torch.zeros(1, vae.config.latent_channels, side // factor, side // factor, dtype=dtype)
        with decode:
            vae.decode(latents)
    return encode.peak + images.nbytes + 4 * weights, decode.peak + dtype.itemsize * weights
