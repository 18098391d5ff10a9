"""How well an image does what its caption asks, or pleases: the scorers that the field reports, one adapter each.

Each is made of a `model` (folder, file or hub name) and a device, and takes n images (PIL, RGB) with their captions;
it gives n scores, float64. `published` is the checkpoint its authors released. All run in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn.functional import normalize

from fdpo_fast.config.errors import UserError
from fdpo_fast.evaluate import weights
from fdpo_fast.models.hub import folder_of

if TYPE_CHECKING:
    from transformers import CLIPModel

Images = list[Image.Image]
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
CLIP_H = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
WORDS = ("*.json", "*.txt")
"""A model's configuration and tokenizer."""
WHOLE = (*WORDS, "model.safetensors", "model-*.safetensors")  # there may be other codes' beside them


def prepared(
    images: Images, side: int, mean: tuple[float, ...] = CLIP_MEAN, std: tuple[float, ...] = CLIP_STD
) -> Tensor:
    """Resize the shorter side to `side` (bicubic), cut the middle out, normalise as CLIP does: [n, 3, side, side]."""
    squares = []
    for image in images:
        scale = side / min(image.size)
        size = [max(side, round(length * scale)) for length in image.size]
        left, top = ((length - side) // 2 for length in size)
        cut = image.resize(size, Image.Resampling.BICUBIC).crop((left, top, left + side, top + side))
        squares.append(torch.from_numpy(np.array(cut.convert("RGB"))).permute(2, 0, 1))
    centre, spread = (torch.tensor(values, dtype=torch.float32, device="cpu")[:, None, None] for values in (mean, std))
    return (torch.stack(squares).float() / 255 - centre) / spread


def pixels(images: Images) -> Tensor:
    """Flatten the pixels of n images of one size: [n, h w 3] in [0, 1], float64."""
    return torch.stack([torch.from_numpy(np.array(image)).flatten() for image in images]).double() / 255


class Clip:
    """CLIPScore: 100 cos(image, caption), at least 0 (Hessel et al. 2021 with the factor of torchmetrics)."""

    published: ClassVar[str] = CLIP_H

    def __init__(self, model: str, device: torch.device) -> None:
        from transformers import AutoTokenizer

        self.device = device
        self.model = self._model(model).to(device).eval()
        self.tokenizer = AutoTokenizer.from_pretrained(self._tokenizer(model))
        self.side = self.model.config.vision_config.image_size

    def _model(self, model: str) -> CLIPModel:
        from transformers import CLIPModel

        return CLIPModel.from_pretrained(folder_of("the model", model, WHOLE), use_safetensors=True)

    def _tokenizer(self, model: str) -> Path:
        return folder_of("the model", model, WORDS)

    @torch.inference_mode()
    def image_features(self, images: Images) -> Tensor:
        """Encode images to features of unit length, [n, d]."""
        vision = self.model.vision_model(pixel_values=prepared(images, self.side).to(self.device))
        return normalize(self.model.visual_projection(vision.pooler_output), dim=-1)

    @torch.inference_mode()
    def text_features(self, prompts: list[str]) -> Tensor:
        """Encode captions to features of unit length, [n, d]."""
        length = self.model.config.text_config.max_position_embeddings
        tokens = self.tokenizer(prompts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        text = self.model.text_model(input_ids=tokens.input_ids.to(self.device))
        return normalize(self.model.text_projection(text.pooler_output), dim=-1)

    def cosine(self, images: Images, prompts: list[str]) -> Tensor:
        """Return the cosine of each image with its caption, [n] float64."""
        return (self.image_features(images) * self.text_features(prompts)).sum(dim=-1).double()

    def __call__(self, images: Images, prompts: list[str]) -> Tensor:
        """Score each image by its caption, [n] float64."""
        return 100 * self.cosine(images, prompts).clamp(min=0)


class PickScore(Clip):
    """PickScore: exp(logit scale) cos(image, caption) of a CLIP tuned on Pick-a-Pic (Kirstain et al. 2023)."""

    published = "yuvalkirstain/PickScore_v1"

    def _tokenizer(self, model: str) -> Path:
        """Find the tokenizer, which the published repository lacks: its authors take that of `CLIP_H`."""
        here = (Path(model).expanduser() / "tokenizer_config.json").is_file()
        return super()._tokenizer(model if here else CLIP_H)

    def __call__(self, images: Images, prompts: list[str]) -> Tensor:
        """Score each image by its caption, [n] float64."""
        return self.model.logit_scale.detach().exp().double() * self.cosine(images, prompts)


class HPS(Clip):
    """HPS v2.1: cos(image, caption) of a CLIP tuned on HPDv2 (Wu et al. 2023). 2.0 and 2.1 are not comparable.

    `model`: a folder of transformers' CLIPModel; one with config.json, a tokenizer, and the authors' weights, which are
    open_clip's; or those weights alone, of a ViT-H/14.
    """

    published = "xswu/HPSv2:HPS_v2.1_compressed.pt"

    def _model(self, model: str) -> CLIPModel:
        from transformers import CLIPConfig, CLIPModel

        folder = Path(model).expanduser()
        if (folder / "model.safetensors").is_file():
            return super()._model(model)
        file = next(folder.glob("*.pt"), None) if folder.is_dir() else weights.file_of(model)
        if file is None:
            raise UserError(f"{folder} has no weights: neither model.safetensors nor *.pt")
        with torch.device("meta"):
            made = CLIPModel(CLIPConfig.from_pretrained(self._tokenizer(model)))
        return weights.assign(made, weights.from_open_clip(weights.read(file)))

    def _tokenizer(self, model: str) -> Path:
        return super()._tokenizer(model if Path(model).expanduser().is_dir() else CLIP_H)

    def __call__(self, images: Images, prompts: list[str]) -> Tensor:
        """Score each image by its caption, [n] float64."""
        return self.cosine(images, prompts)


class HPS20(HPS):
    """HPS v2.0: as `HPS`, with the weights that its authors released first."""

    published = "xswu/HPSv2:HPS_v2_compressed.pt"


class Aesthetic:
    """LAION's improved-aesthetic-predictor: a linear head on CLIP's unit image features, 1 to 10.

    `model`: a folder with CLIP in it and the head as `head.safetensors`; or the head's file, for OpenAI's ViT-L/14.
    """

    published = "trl-lib/ddpo-aesthetic-predictor:aesthetic-model.pth"
    clip = "openai/clip-vit-large-patch14"

    def __init__(self, model: str, device: torch.device) -> None:
        folder = Path(model).expanduser()
        head = folder / "head.safetensors" if folder.is_dir() else weights.file_of(model)
        self.encoder = Clip(model if folder.is_dir() else self.clip, device)
        state = weights.read(head)
        names = sorted({name.rpartition(".")[0] for name in state}, key=lambda name: int(name.rpartition(".")[2] or 0))
        self.layers = [(state[f"{n}.weight"].to(device).float(), state[f"{n}.bias"].to(device).float()) for n in names]

    @torch.inference_mode()
    def __call__(self, images: Images, prompts: list[str]) -> Tensor:
        """Score each image, whatever its caption, [n] float64."""
        hidden = self.encoder.image_features(images)
        for weight, bias in self.layers:  # there is nothing between them but dropout
            hidden = hidden @ weight.T + bias
        return hidden[:, 0].double()


class ImageReward:
    """ImageReward: (head(BLIP's first text state, attending to the image) - 0.167) / 1.033 (Xu et al. 2023).

    `model`: a folder with the authors' `ImageReward.pt` (or safetensors of its names), `config.json` of transformers'
    BLIP and BERT's tokenizer; or the weights' file alone, of BLIP's size (ViT-L/16).
    """

    published = "THUDM/ImageReward:ImageReward.pt"
    MEAN, STD = 0.16717362830052426, 1.0333394966054072
    blip, tokens = "Salesforce/blip-itm-large-coco", "google-bert/bert-base-uncased"

    def __init__(self, model: str, device: torch.device) -> None:
        from transformers import AutoTokenizer, BlipConfig
        from transformers.models.blip.modeling_blip import BlipTextModel, BlipVisionModel

        folder = Path(model).expanduser()
        is_folder = folder.is_dir()
        files = [*folder.glob("*.safetensors"), *folder.glob("*.pt")] if is_folder else [weights.file_of(model)]
        if not files:
            raise UserError(f"{folder} has no weights: neither *.safetensors nor *.pt")
        config = BlipConfig.from_pretrained(folder_of("the model", model if is_folder else self.blip, WORDS))
        if not is_folder:
            # the authors'; BLIP's own image is larger, and its layers are normalised by models/vit.py
            config.vision_config.image_size, config.vision_config.layer_norm_eps = 224, 1e-6
        self.device, self.side = device, config.vision_config.image_size
        state = weights.read(files[0])
        ours = weights.from_blip({n.removeprefix("blip."): t for n, t in state.items() if n.startswith("blip.")})
        with torch.device("meta"):
            vision = BlipVisionModel(config.vision_config)
            text = BlipTextModel(config.text_config, add_pooling_layer=False)
        self.vision = weights.assign(vision, ours, "vision_model.").to(device).eval()
        self.text = weights.assign(text, ours, "text_encoder.").to(device).eval()
        numbers = sorted(int(name.split(".")[2]) for name in state if name.startswith("mlp.") and "weight" in name)
        heads = ((state[f"mlp.layers.{n}.weight"], state[f"mlp.layers.{n}.bias"]) for n in numbers)
        self.head = [(weight.to(device).float(), bias.to(device).float()) for weight, bias in heads]
        tokens = folder_of("the model", model if is_folder else self.tokens, WORDS)
        self.tokenizer = AutoTokenizer.from_pretrained(tokens)

    @torch.inference_mode()
    def __call__(self, images: Images, prompts: list[str]) -> Tensor:
        """Score each image by its caption, [n] float64."""
        seen = self.vision(pixel_values=prepared(images, self.side).to(self.device)).last_hidden_state
        tokens = self.tokenizer(prompts, padding="max_length", truncation=True, max_length=35, return_tensors="pt")
        text = self.text(
            input_ids=tokens.input_ids.to(self.device),
            attention_mask=tokens.attention_mask.to(self.device),
            encoder_hidden_states=seen,
            encoder_attention_mask=torch.ones(seen.shape[:2], dtype=torch.int64, device=self.device),
        )
        hidden = text.last_hidden_state[:, 0]
        for weight, bias in self.head:
            hidden = hidden @ weight.T + bias
        return (hidden[:, 0].double() - self.MEAN) / self.STD


SCORERS: dict[str, Callable[[str, torch.device], Callable[[Images, list[str]], Tensor]]] = {
    "clip": Clip,
    "pickscore": PickScore,
    "hpsv2.0": HPS20,
    "hpsv2.1": HPS,
    "imagereward": ImageReward,
    "aesthetic": Aesthetic,
}
