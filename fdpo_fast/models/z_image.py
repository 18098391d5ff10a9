"""Z-Image: one stream of text and image tokens, told how much of the image is there (arXiv 2511.22699)."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import torch
from diffusers import DiffusionPipeline, ZImageTransformer2DModel
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fdpo_fast.config.errors import UserError
from fdpo_fast.config.schema import Model
from fdpo_fast.files import read_json
from fdpo_fast.models.denoiser import Denoiser
from fdpo_fast.models.family import Family


def has_template(config: Path) -> bool:
    """Say whether a tokenizer's configuration has a template of conversations in it."""
    return config.is_file() and bool(read_json(config).get("chat_template"))


class ZImage(Family):
    """The family of Z-Image pipelines, whose captions have as many tokens as they have words."""

    pipelines = ("ZImagePipeline",)
    components = ("transformer", "scheduler", "vae", "text_encoder", "tokenizer")
    denoiser_name = "transformer"
    denoiser_class = ZImageTransformer2DModel
    text_components = ("text_encoder", "tokenizer")
    text_keys = ("prompt_embeds", "prompt_mask")
    on_host = frozenset({"prompt_mask"})
    text_tokens = 512
    text_dtypes: ClassVar[dict[str, torch.dtype]] = {"text_encoder": torch.bfloat16}  # Qwen3 of 4 B: 8 GB, not 16
    preset = "z_image"
    patch = 2

    def __init__(self, model: Model) -> None:
        super().__init__(model)
        folder = self.base / "tokenizer"
        there = (folder / "chat_template.jinja").is_file() or has_template(folder / "tokenizer_config.json")
        if folder.is_dir() and not there:  # none is needed where embeddings come ready
            raise UserError(f"{folder} has no chat_template, by which captions are written: put Z-Image's own there")

    def encode_prompt(self, pipeline: DiffusionPipeline, captions: list[str], device: torch.device) -> list[Tensor]:
        """Encode captions to Qwen's tokens, [n, tokens, d] with zeros behind the last, and where they are, [n, tokens].

        The mask has ones and zeros, which every dtype of a cache holds.
        """
        length = self.tokens(self.model)
        # it writes its template into the list
        rows, _ = pipeline.encode_prompt([*captions], device, do_classifier_free_guidance=False, **self.drawing)
        whole = rows[0].new_zeros(length, rows[0].shape[-1])
        embeds = pad_sequence([*rows, whole], batch_first=True)[:-1].float()
        counts = torch.tensor([len(row) for row in rows], dtype=torch.int64, device=device)
        return [embeds, (torch.arange(length, dtype=torch.int64, device=device) < counts[:, None]).float()]

    @classmethod
    def text_shapes(cls, config: dict, model: Model) -> dict[str, tuple[int, ...]]:
        """Return the shapes of a caption's embeddings and of their mask."""
        return dict(
            zip(cls.text_keys, ((cls.tokens(model), config["cap_feat_dim"]), (cls.tokens(model),)), strict=True)
        )

    @classmethod
    def predict(cls, unet: Denoiser, noisy: Tensor, timesteps: Tensor, condition: dict[str, Tensor]) -> Tensor:
        """Return the flow, [2b, c, h, w], of a transformer that predicts its opposite, conditioned on text.

        A pair at a time, whose sides share a caption: padded to the longest of a batch, a pair's rounding would depend
        on the others, and a cached reference error on which they were.
        """
        text, mask = (condition[key] for key in cls.text_keys)
        counts = mask.sum(dim=1, dtype=torch.int64).tolist()  # on the host: it waits for no GPU
        sides, times = noisy.to(unet.dtype).unsqueeze(2).unflatten(0, (2, -1)), (1000 - timesteps) / 1000
        preds = []
        for pair in range(len(noisy) // 2):
            caption = text[pair, : counts[pair]].to(unet.dtype)
            preds.append(torch.stack(unet([*sides[:, pair]], times[pair].expand(2), [caption, caption]).sample))
        return -torch.stack(preds, dim=1).flatten(0, 1).squeeze(2)
