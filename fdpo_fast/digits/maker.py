"""What an embedded base is made of: one class for each, named in `config.embedded.EMBEDDED`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from importlib import import_module
from typing import Any, TypeAlias

from diffusers import AutoencoderKL, DiffusionPipeline, ModelMixin
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTokenizer, PreTrainedModel

from fdpo_fast.config.embedded import EMBEDDED
from fdpo_fast.config.schema import Model
from fdpo_fast.models.tokenizer import BEGIN, END

Part: TypeAlias = ModelMixin | PreTrainedModel
SIZE = 32
"""The side of an image in pixels."""
TOKENS = 16
"""The tokens of a caption, begin and end included."""


class Maker(ABC):
    """Makes the parts of a base with random weights, and puts them together."""

    @abstractmethod
    def parts(self) -> dict[str, Callable[[], Part]]:
        """Return what makes each module, by its component's name and in the order in which they draw weights."""

    @abstractmethod
    def pipeline(self, modules: dict[str, Part], tokenizer: CLIPTokenizer) -> DiffusionPipeline:
        """Put modules together, as a pipeline of diffusers."""

    @abstractmethod
    def encode(self, pipeline: DiffusionPipeline, captions: list[str]) -> dict[str, Tensor]:
        """Return the embeddings of captions by the family's names, with a graph to train the text encoders by."""


def maker(base: str) -> Maker:
    """Return the maker of an embedded base."""
    module, _, cls = EMBEDDED[base].maker.rpartition(".")
    return getattr(import_module(module), cls)()


def model_of(base: str) -> Model:
    """Return the section `model` that goes with an embedded base."""
    made = EMBEDDED[base]
    return Model(family=made.family, base=base, text_tokens=made.text_tokens)


def vae(**options: Any) -> AutoencoderKL:
    """Make a VAE of 4 latent channels with random weights; `options` are of its configuration."""
    return AutoencoderKL(
        block_out_channels=(16, 32, 32),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=SIZE,
        **options,
    )


def text_config(**options: Any) -> CLIPTextConfig:
    """Make the configuration of a CLIP text encoder of two layers; `options` are what else it has."""
    return CLIPTextConfig(
        vocab_size=1000,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        bos_token_id=BEGIN,
        eos_token_id=END,
        pad_token_id=END,
        **options,
    )
