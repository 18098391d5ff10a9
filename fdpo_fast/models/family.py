"""What the families share: a diffusers pipeline folder with one VAE, one denoiser and one noise schedule."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, DiffusionPipeline, UNet2DConditionModel
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from torch import Tensor, nn

from fdpo_fast.data.files import digest, file_digest, replacing
from fdpo_fast.sections import LoRA

# What a perfect model predicts, by the scheduler's own name for it.
TARGETS: dict[str, Callable[[DDPMScheduler, Tensor, Tensor, Tensor], Tensor]] = {
    "epsilon": lambda schedule, latents, noise, timesteps: noise,
    "v_prediction": lambda schedule, latents, noise, timesteps: schedule.get_velocity(latents, noise, timesteps),
}


class Family(ABC):
    """A pipeline on disk. Components are loaded when asked for and belong to the caller, who lets them go."""

    text_components: tuple[str, ...]
    """Folders that the text embeddings depend on."""

    def __init__(self, base: str) -> None:
        self.base = _folder(base)
        self.schedule = DDPMScheduler.from_pretrained(self.base, subfolder="scheduler")
        prediction = self.schedule.config.prediction_type
        if prediction not in TARGETS:
            raise ValueError(
                f"{self.base}/scheduler predicts '{prediction}': fdpo_fast trains {' and '.join(TARGETS)} models"
            )
        self._target = TARGETS[prediction]

    # --- what caches depend on ---

    def digest(self, *components: str) -> str:
        """SHA-256 over the files of the named component folders."""
        files = sorted(path for name in components for path in (self.base / name).rglob("*") if path.is_file())
        return digest([[str(path.relative_to(self.base)), file_digest(path)] for path in files])

    # --- encoders, needed only to fill caches and to draw samples ---

    def image_encoder(self, device: torch.device) -> Callable[[Tensor], Tensor]:
        """Images [n, 3, h, w] in [-1, 1] -> scaled latents [n, c, h/f, w/f], float32: the posterior's mean."""
        vae = AutoencoderKL.from_pretrained(self.base, subfolder="vae", use_safetensors=True).to(device).eval()

        @torch.no_grad()
        def encode(images: Tensor) -> Tensor:
            latents = vae.encode(images.to(device)).latent_dist.mean
            return (latents - (vae.config.shift_factor or 0)) * vae.config.scaling_factor

        return encode

    @abstractmethod
    def text_encoder(self, device: torch.device) -> Callable[[list[str]], dict[str, Tensor]]:
        """Captions -> conditioning tensors, each [n, ...], float32."""

    # --- the denoiser ---

    def denoiser(self, dtype: torch.dtype) -> nn.Module:
        """The pre-trained UNet on the CPU in `dtype`."""
        return UNet2DConditionModel.from_pretrained(
            self.base, subfolder="unet", torch_dtype=dtype, use_safetensors=True
        )

    def add_lora(self, unet: nn.Module, lora: LoRA) -> None:
        """Freeze `unet` and add a trainable adapter that changes nothing yet."""
        unet.requires_grad_(False)
        unet.add_adapter(LoraConfig(r=lora.rank, lora_alpha=lora.alpha, target_modules=lora.targets))

    def noisy(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """x_t of the forward process, [n, c, h, w]."""
        return self.schedule.add_noise(latents, noise, timesteps)

    def target(self, latents: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """What a perfect model predicts from x_t, [n, c, h, w]."""
        return self._target(self.schedule, latents, noise, timesteps)

    @abstractmethod
    def predict(self, unet: nn.Module, noisy: Tensor, timesteps: Tensor, condition: dict[str, Tensor]) -> Tensor:
        """The UNet's prediction, [n, c, h, w], in the UNet's dtype."""

    # --- diffusers pipelines ---

    def pipeline(self, unet: nn.Module) -> DiffusionPipeline:
        """The base pipeline with `unet` in place of its own; the other components in float32 on the CPU."""
        return DiffusionPipeline.from_pretrained(self.base, unet=unet, use_safetensors=True)

    def export(self, state: dict[str, Tensor], unet_config: dict, lora: LoRA | None, folder: Path) -> None:
        """Write a folder that `DiffusionPipeline.from_pretrained` loads.

        `state` is the trained UNet's state dict. An adapter is merged into the weights, and written by itself too
        (`pytorch_lora_weights.safetensors`, what `pipe.load_lora_weights` reads).
        """
        dtype = next(iter(state.values())).dtype
        unet = UNet2DConditionModel.from_config(unet_config).to(dtype)
        if lora:
            self.add_lora(unet, lora)
        unet.load_state_dict(state)
        with replacing(folder) as partial:
            partial.mkdir()
            if lora:
                type(self.pipeline(unet)).save_lora_weights(partial, unet_lora_layers=get_peft_model_state_dict(unet))
                unet.fuse_lora()
                unet.unload_lora()
            self.pipeline(unet).save_pretrained(partial)


def _folder(base: str) -> Path:
    """A local pipeline folder: `base` itself, or the hub's snapshot of it (safetensors, configs and tokenizers)."""
    folder = Path(base).expanduser()
    if not folder.is_dir():
        if base.startswith((".", "/", "~")) or base.count("/") != 1:
            raise ValueError(f"model.base '{base}' is neither a folder nor a hub name of the form owner/name")
        from huggingface_hub import snapshot_download

        patterns = ["*.json", "*.txt", "*.model", "*/*.safetensors"]
        folder = Path(snapshot_download(base, allow_patterns=patterns, ignore_patterns=["*.fp16.*", "*.non_ema.*"]))
    index = folder / "model_index.json"
    if not index.is_file():
        raise ValueError(f"model.base '{base}' has no model_index.json: give a diffusers pipeline folder")
    missing = [name for name in ("vae", "unet", "scheduler") if name not in json.loads(index.read_text())]
    if missing:
        raise ValueError(f"the pipeline {folder} has no {' and no '.join(missing)}")
    return folder
