"""What the families share: a diffusers pipeline folder with one VAE, one denoiser and one noise schedule."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, UNet2DConditionModel
from torch import Tensor, nn

from fdpo_fast.config.errors import UserError
from fdpo_fast.config.schema import Model
from fdpo_fast.files import digest, file_digest, read_json
from fdpo_fast.models.denoiser import Denoiser
from fdpo_fast.models.facts import Facts, check_channels, check_guidance, shrinks
from fdpo_fast.models.hub import OPTIONAL, pipeline_folder, present, vae_folder
from fdpo_fast.models.placement import place
from fdpo_fast.models.process import Process, prediction_of, read_scheduler, shifts_by_size, tables
from fdpo_fast.models.quantization import quantiser
from fdpo_fast.models.tokenizer import Excess, excess
from fdpo_fast.models.trainable import check_targets
from fdpo_fast.models.vae import ImageEncoder, encoder

TextEncoder = Callable[[list[str]], dict[str, Tensor]]
Pipeline: TypeAlias = DiffusionPipeline

ADAPTER = "pytorch_lora_weights.safetensors"
"""The name of an adapter's file, as diffusers writes and reads it."""


def has_adapter(folder: Path) -> bool:
    """Say whether a folder holds an adapter, alone or beside the pipeline that it was merged into."""
    return (folder / ADAPTER).is_file()


class Family(ABC):
    """A pipeline on disk. Components are loaded when asked for and belong to the caller, who lets them go."""

    pipelines: ClassVar[tuple[str, ...]]
    """Names of the diffusers pipelines, as in model_index.json, that are of this family."""
    components: ClassVar[tuple[str, ...]]
    """Names of what such a pipeline is made of: folders of its base, which alone are read and exported."""
    denoiser_name: ClassVar[str] = "unet"
    """The component that is trained."""
    denoiser_class: ClassVar[Any] = UNet2DConditionModel
    """The denoiser's class in diffusers."""
    text_components: ClassVar[tuple[str, ...]]
    """Folders that the text embeddings depend on."""
    text_keys: ClassVar[tuple[str, ...]]
    """Names of the text embeddings, those of diffusers' pipelines."""
    text_tokens: ClassVar[int | None] = None
    """How many tokens a caption has by default, where `model.text_tokens` may say so; None where it may not."""
    text_dtypes: ClassVar[dict[str, torch.dtype]] = {}
    """The dtypes of text encoders, by component, that are too large for float32."""
    preset: ClassVar[str]
    """The published architecture, in `presets.PRESETS`."""
    on_host: ClassVar[frozenset[str]] = frozenset()
    """Names of the masks of embeddings, which stay in host memory while training: shapes follow from them."""
    patch: ClassVar[int | None] = None
    """The side of the squares of latents that are a token of the denoiser; None of one that has no tokens."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.check_keys(model)
        if model.attention == "xformers" and not (find_spec("xformers") and torch.cuda.is_available()):
            lacks = "a CUDA GPU" if find_spec("xformers") else "the package: pip install xformers"
            raise UserError(f"model.attention 'xformers' lacks {lacks}; 'auto' needs neither")
        if model.cuda_graphs and not torch.cuda.is_available():
            raise UserError("model.cuda_graphs needs a CUDA GPU, and torch finds none here: set it to false")
        quantiser(model)  # refuses what cannot be
        self.base = pipeline_folder(model.base, self.pipelines, self.components)
        config = read_json(self.base / self.denoiser_name / "config.json")
        check_guidance(model, config)
        self.vae = vae_folder(model.vae) if model.vae else self.base / "vae"
        check_channels(model, read_json(self.vae / "config.json"), self.channels(config))
        self.schedule = read_scheduler(self.base / "scheduler")
        if shifts_by_size(self.schedule) and self.patch is None:
            raise UserError(f"{self.base}/scheduler shifts by an image's tokens, and a UNet has none: set its shift")
        if model.train == "lora":
            check_targets(self.blank_denoiser(), model.lora.targets)
        self.process = lru_cache(maxsize=256)(self._process)
        """(shape of latents, device) -> the tables of the noise process for it."""

    @classmethod
    def check_keys(cls, model: Model) -> None:
        """Raise UserError for keys that are not for the family, whatever its base is."""
        if model.text_tokens and cls.text_tokens is None:
            raise UserError(f"model.text_tokens is for families with T5: '{model.family}' always has CLIP's 77")
        for key in ("compile", "cuda_graphs"):
            if getattr(model, key) and not issubclass(cls.denoiser_class, UNet2DConditionModel):
                raise UserError(f"model.{key} is for UNets: '{model.family}' has a transformer, set it to false")

    @property
    def steps(self) -> int:
        """How many timesteps there are."""
        return self.schedule.config.num_train_timesteps

    @property
    def prediction(self) -> str:
        """What the denoiser predicts, a name of `process.PREDICTIONS`."""
        return prediction_of(self.schedule)

    def _process(self, shape: torch.Size, device: torch.device) -> Process:
        tokens = None if self.patch is None else shape[-2] * shape[-1] // self.patch**2
        return tables(self.schedule, tokens).to(device)

    # --- what caches depend on ---

    def digest(self, *components: str) -> str:
        """Return the SHA-256 over the files of the named component folders."""
        folders = {name: self.vae if name == "vae" else self.base / name for name in components}
        files = [(name, path) for name, folder in folders.items() for path in sorted(folder.rglob("*"))]
        return digest([[name, path.name, file_digest(path)] for name, path in files if path.is_file()])

    def pictures_digest(self) -> str:
        """Return the SHA-256 over all files that a picture depends on."""
        return self.digest(self.denoiser_name, "vae", "scheduler", *self.text_components)

    def denoiser_digest(self) -> str:
        """Return the SHA-256 over the denoiser's files."""
        return self.digest(self.denoiser_name)

    def denoiser_shape(self) -> dict[str, Any]:
        """Return the configuration of the denoiser, without what tells where it is from."""
        found = read_json(self.base / self.denoiser_name / "config.json")
        return {key: value for key, value in found.items() if not key.startswith("_") or key == "_class_name"}

    @cached_property
    def facts(self) -> Facts:
        """What the caches need to know of the pipeline, with the digests of its files."""
        config = read_json(self.base / self.denoiser_name / "config.json")
        return Facts(
            vae_factor=shrinks(read_json(self.vae / "config.json")),
            denoiser_factor=self.factor(config),
            channels=self.channels(config),
            text_keys=self.text_keys,
            text_shapes=self.text_shapes(config, self.model),
            vae=self.digest("vae"),
            text=self.digest(*self.text_components),
            text_tokens=self.tokens(self.model) or None,
            masks=self.on_host,
        )

    # --- encoders, needed only to fill caches and to draw samples ---

    def load_vae(self, dtype: torch.dtype = torch.float32) -> AutoencoderKL:
        """Load the VAE in `dtype` on the CPU."""
        return AutoencoderKL.from_pretrained(self.vae, use_safetensors=True, torch_dtype=dtype)

    def image_encoder(
        self, device: torch.device, dtype: torch.dtype = torch.float32, compiled: bool = False
    ) -> ImageEncoder:
        """Return a function of pixels that gives their latents, computed by the VAE in `dtype`, see `vae.encoder`."""
        return encoder(self.load_vae(dtype), device, dtype, compiled)

    def text_encoder(self, device: torch.device) -> TextEncoder:
        """Return a function of captions that gives their embeddings by `text_keys`, each [n, ...] float32.

        They are those that the family's own pipeline makes. Whoever lets go of it calls `placement.collect`.
        """
        without = dict.fromkeys((self.denoiser_name, "vae"))
        pipeline = self.load(torch.float32, **without)
        place(pipeline.components, self.text_components, device)
        # its configuration says how wide embeddings are; it has no memory
        pipeline.register_modules(**{self.denoiser_name: self.blank_denoiser()})

        @torch.inference_mode()
        def encode(captions: list[str]) -> dict[str, Tensor]:
            return dict(zip(self.text_keys, self.encode_prompt(pipeline, captions, device), strict=True))

        return encode

    def excess(self) -> Excess | None:
        """Return what says by how many tokens captions are longer than the text encoders read."""
        return excess(self.base, self.tokens(self.model) or None)

    @classmethod
    def text_dtype(cls, name: str, dtype: torch.dtype) -> torch.dtype:
        """Return the dtype of a text encoder whose embeddings are wanted in `dtype`."""
        return min(dtype, cls.text_dtypes.get(name, dtype), key=lambda each: each.itemsize)

    def load(self, dtype: torch.dtype, **parts: Any) -> DiffusionPipeline:
        """Load the base pipeline on the CPU with some parts in place of its own, the others in `dtype`."""
        dtypes = {name: self.text_dtype(name, dtype) for name in self.text_dtypes} | {"default": dtype}
        options = parts | self._options()
        return DiffusionPipeline.from_pretrained(self.base, use_safetensors=True, torch_dtype=dtypes, **options)

    pipeline_options: ClassVar[dict] = {}
    """Keyword arguments of `DiffusionPipeline.from_pretrained` for this family."""

    def _options(self) -> dict:
        """Return them with what the base is without, which diffusers wants to be told."""
        there = present(read_json(self.base / "model_index.json"), self.components)
        return self.pipeline_options | {
            name: None for name in OPTIONAL if name in self.components and name not in there
        }

    @classmethod
    def factor(cls, config: dict) -> int:
        """Return by how much a denoiser of this configuration divides a side of the latents."""
        return cls.patch or shrinks(config)

    @classmethod
    def channels(cls, config: dict) -> int:
        """Return the channels of the latents that a denoiser of this configuration denoises."""
        return config["in_channels"]

    @classmethod
    def tokens(cls, model: Model) -> int:
        """Return how many tokens a caption has, where `model.text_tokens` may say so."""
        return model.text_tokens or cls.text_tokens or 0

    @classmethod
    def elements_of_text(cls, config: dict, model: Model) -> int:
        """Return how many numbers the embeddings of a caption are, for a denoiser's configuration."""
        return sum(math.prod(shape) for shape in cls.text_shapes(config, model).values())

    @classmethod
    def text_shapes(cls, config: dict, model: Model) -> dict[str, tuple[int, ...]]:
        """Return the shapes of a caption's embeddings by `text_keys`, for a denoiser's configuration."""
        return {cls.text_keys[0]: (77, config["cross_attention_dim"])}

    @abstractmethod
    def encode_prompt(self, pipeline: DiffusionPipeline, captions: list[str], device: torch.device) -> list[Tensor]:
        """Encode captions by the pipeline's text encoders; the embeddings are in the order of `text_keys`."""

    @classmethod
    def condition(cls, text: dict[str, Tensor], sizes: Tensor, model: Model) -> dict[str, Tensor]:
        """Return what the denoiser is conditioned on, by names of its own.

        That is the text; for some families `sizes` [n, 6], see `images.Placed.size`; and the guidance, if it is told.
        """
        if model.guidance is None:
            return text
        return {**text, "guidance": torch.full((len(sizes),), model.guidance, dtype=torch.float32, device=sizes.device)}

    # --- the denoiser ---

    def blank_denoiser(self) -> Denoiser:
        """Make the base's denoiser on the meta device."""
        with torch.device("meta"):
            return self.denoiser_class.from_config(
                self.denoiser_class.load_config(self.base, subfolder=self.denoiser_name)
            )

    def denoiser(self, dtype: torch.dtype, policy: Path | None = None) -> Denoiser:
        """Load the denoiser of the base, or of a policy, on the CPU in `dtype` and with its attention.

        policy: a pipeline's folder, or one with an adapter, which is put on the base and stays beside the weights.
        """
        adapter = policy is not None and policy != self.base and has_adapter(policy)
        folder = policy if policy and not adapter else self.base
        denoiser = self.denoiser_class.from_pretrained(
            folder, subfolder=self.denoiser_name, torch_dtype=dtype, use_safetensors=True,
            quantization_config=quantiser(self.model),
        )  # fmt: skip
        if adapter:
            denoiser.load_lora_adapter(policy, weight_name=ADAPTER, prefix=self.denoiser_name)
        if self.model.attention == "xformers":
            denoiser.enable_xformers_memory_efficient_attention()
        return denoiser

    @classmethod
    @abstractmethod
    def predict(cls, unet: Denoiser, noisy: Tensor, timesteps: Tensor, condition: dict[str, Tensor]) -> Tensor:
        """Return the denoiser's prediction, [2b, c, h, w] in halves layout, in the denoiser's dtype."""

    # --- diffusers pipelines ---

    @property
    def drawing(self) -> dict[str, int]:
        """Return how a pipeline of the family is called to draw, so that captions are read as they are in training."""
        return {"max_sequence_length": tokens} if (tokens := self.tokens(self.model)) else {}

    def sampler(self, unet: Denoiser, device: torch.device) -> DiffusionPipeline:
        """Load the base pipeline ready to draw; the denoiser stays where it is, the others follow it in its dtype."""
        vae = {"vae": self.load_vae(unet.dtype)} if self.model.vae else {}
        pipeline = self.load(unet.dtype, **{self.denoiser_name: unet}, **vae)
        for name, part in pipeline.components.items():
            if isinstance(part, nn.Module) and name not in (self.denoiser_name, *self.text_components):
                part.to(device)
        place(pipeline.components, self.text_components, device)
        pipeline.set_progress_bar_config(disable=True)
        pipeline.vae.enable_slicing()  # an image at a time: all at once would outgrow training itself
        return pipeline

    @classmethod
    def packed(cls, latents: Tensor) -> Tensor:
        """Return latents [n, c, h, w] as the pipeline takes them."""
        return latents
