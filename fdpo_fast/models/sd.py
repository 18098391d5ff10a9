"""Stable Diffusion 1.x and 2.x: one CLIP text encoder, epsilon or v-prediction."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from fdpo_fast.models.family import Family


class StableDiffusion(Family):
    text_components = ("text_encoder", "tokenizer")

    def text_encoder(self, device: torch.device) -> Callable[[list[str]], dict[str, Tensor]]:
        tokenizer = CLIPTokenizer.from_pretrained(self.base, subfolder="tokenizer")
        model = CLIPTextModel.from_pretrained(self.base, subfolder="text_encoder", use_safetensors=True)
        model = model.to(device).eval()

        @torch.no_grad()
        def encode(captions: list[str]) -> dict[str, Tensor]:
            tokens = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
            return {"context": model(tokens.to(device)).last_hidden_state}

        return encode

    def predict(self, unet: nn.Module, noisy: Tensor, timesteps: Tensor, condition: dict[str, Tensor]) -> Tensor:
        return unet(noisy.to(unet.dtype), timesteps, condition["context"].to(unet.dtype)).sample
