"""What the families share: a diffusers pipeline folder with one VAE, one denoiser and one noise schedule."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, SchedulerMixin, UNet2DConditionModel
from torch import Tensor, nn

from fdpo_fast.config.errors import UserError
from fdpo_fast.config.schema import Model
from fdpo_fast.files import digest, file_digest, read_json
from fdpo_fast.models.denoiser import Denoiser
from fdpo_fast.models.hub import OPTIONAL, pipeline_folder, present, vae_folder
from fdpo_fast.models.process import Process, prediction_of, read_scheduler, shifts_by_size, tables
from fdpo_fast.models.tokenizer import Excess, excess
from fdpo_fast.models.vae import ImageEncoder, encoder

TextEncoder = Callable[[list[str]], dict[str, Tensor]]
Pipeline: TypeAlias = DiffusionPipeline

ADAPTER = "pytorch_lora_weights.safetensors"
"""The name of an adapter's file, as diffusers writes and reads it."""

OWN_NOISE = ("DPMSolverSDEScheduler", "CosineDPMSolverMultistepScheduler")
"""The schedulers of diffusers whose noise is not by the generator that they are given: no image is drawn twice."""


def has_adapter(folder: Path) -> bool:
    """Say whether a folder holds an adapter, alone or beside the pipeline that it was merged into."""
    return (folder / ADAPTER).is_file()


def shrinks(config: dict) -> int:
    """Return by how much a VAE, or a UNet, of this configuration divides a side on the way to its smallest layers."""
    return 2 ** (len(config["block_out_channels"]) - 1)


@dataclass(frozen=True)
class Facts:
    """What caches need to know of a pipeline, read from its files once."""

    vae_factor: int
    """By how much the VAE divides a side of the image on the way to the latents."""
    denoiser_factor: int
    """By how much the denoiser divides a side of the latents on the way to its smallest layers."""
    channels: int
    """The channels of the latents that the denoiser takes."""
    text_keys: tuple[str, ...]
    """Names of the text embeddings."""
    text_shapes: dict[str, tuple[int, ...]]
    """The shapes of a caption's embeddings, by name."""
    vae: str
    """The SHA-256 over the VAE's files."""
    text: str
    """The SHA-256 over the files of what makes text embeddings."""


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
    patch: ClassVar[int | None] = None
    """The side of the squares of latents that are a token of the denoiser; None of one that has no tokens."""

    def __init__(self, model: Model) -> None:
        self.model = model
        if model.text_tokens and self.text_tokens is None:
            raise UserError(f"model.text_tokens is for families with T5: '{model.family}' always has CLIP's 77")
        if model.attention == "xformers" and not (find_spec("xformers") and torch.cuda.is_available()):
            lacks = "a CUDA GPU" if find_spec("xformers") else "the package: pip install xformers"
            raise UserError(f"model.attention 'xformers' lacks {lacks}; 'auto' needs neither")
        if model.cuda_graphs and not torch.cuda.is_available():
            raise UserError("model.cuda_graphs needs a CUDA GPU, and torch finds none here: set it to false")
        for key in ("compile", "cuda_graphs"):
            if getattr(model, key) and not issubclass(self.denoiser_class, UNet2DConditionModel):
                raise UserError(f"model.{key} is for UNets: '{model.family}' has a transformer, set it to false")
        self.base = pipeline_folder(model.base, self.pipelines, self.components)
        self.vae = vae_folder(model.vae) if model.vae else self.base / "vae"
        self.schedule = read_scheduler(self.base / "scheduler")
        if shifts_by_size(self.schedule) and self.patch is None:
            raise UserError(f"{self.base}/scheduler shifts by an image's tokens, and a UNet has none: set its shift")
        if model.train == "lora":
            self._check_targets()
        self.process = lru_cache(maxsize=256)(self._process)
        """(shape of latents, device) -> the tables of the noise process for it."""

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

    def _check_targets(self) -> None:
        """Raise UserError for a LoRA target that no layer of the denoiser is called."""
        names = [f".{name}" for name, _ in self.blank_denoiser().named_modules()]
        unknown = [target for target in self.model.lora.targets if not any(n.endswith(f".{target}") for n in names)]
        if unknown:
            raise UserError(f"no layer of the denoiser is called {', '.join(unknown)}: see model.lora.targets")

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

    @cached_property
    def facts(self) -> Facts:
        """What the caches need to know of the pipeline, with the digests of its files."""
        config = read_json(self.base / self.denoiser_name / "config.json")
        return Facts(
            vae_factor=shrinks(read_json(self.vae / "config.json")),
            denoiser_factor=self.factor(config),
            channels=config["in_channels"],
            text_keys=self.text_keys,
            text_shapes=self.text_shapes(config, self.model),
            vae=self.digest("vae"),
            text=self.digest(*self.text_components),
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

        They are those that the family's own pipeline makes.
        """
        without = dict.fromkeys((self.denoiser_name, "vae"))
        dtypes = self.text_dtypes | {"default": torch.float32} if self.text_dtypes else torch.float32
        pipeline = DiffusionPipeline.from_pretrained(
            self.base, use_safetensors=True, torch_dtype=dtypes, **without, **self._options()
        ).to(device)
        # its configuration says how wide embeddings are; it has no memory
        pipeline.register_modules(**{self.denoiser_name: self.blank_denoiser()})

        @torch.inference_mode()
        def encode(captions: list[str]) -> dict[str, Tensor]:
            return dict(zip(self.text_keys, self.encode_prompt(pipeline, captions, device), strict=True))

        return encode

    def excess(self) -> Excess | None:
        """Return what says by how many tokens captions are longer than the text encoders read."""
        return excess(self.base)

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
        return shrinks(config) if cls.patch is None else config["patch_size"]

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
    def condition(cls, text: dict[str, Tensor], sizes: Tensor) -> dict[str, Tensor]:
        """Return what the denoiser is conditioned on, by names of its own.

        That is the text, and for some families `sizes` [n, 6], see `images.Placed.size`.
        """
        return text

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
            folder, subfolder=self.denoiser_name, torch_dtype=dtype, use_safetensors=True
        )
        if adapter:
            denoiser.load_lora_adapter(policy, weight_name=ADAPTER, prefix=self.denoiser_name)
        if self.model.attention == "xformers":
            denoiser.enable_xformers_memory_efficient_attention()
        return denoiser

    @classmethod
    @abstractmethod
    def predict(cls, unet: Denoiser, noisy: Tensor, timesteps: Tensor, condition: dict[str, Tensor]) -> Tensor:
        """Return the denoiser's prediction, [n, c, h, w], in the denoiser's dtype."""

    # --- diffusers pipelines ---

    @property
    def drawing(self) -> dict[str, int]:
        """Return how a pipeline of the family is called to draw, so that captions are read as they are in training."""
        return {}

    def pipeline(self, unet: Denoiser) -> DiffusionPipeline:
        """Load the base pipeline with `unet` in place of its own; the other components in float32 on the CPU."""
        options = {self.denoiser_name: unet} | ({"vae": self.load_vae()} if self.model.vae else {})
        return DiffusionPipeline.from_pretrained(
            self.base, use_safetensors=True, torch_dtype=torch.float32, **options, **self._options()
        )

    def sampler(self, unet: Denoiser, device: torch.device) -> DiffusionPipeline:
        """Load the base pipeline ready to draw; the denoiser stays where it is, the others follow it in its dtype."""
        pipeline = self.pipeline(unet)
        for name, part in pipeline.components.items():
            if isinstance(part, nn.Module) and name != self.denoiser_name:
                part.to(device, unet.dtype)
        pipeline.set_progress_bar_config(disable=True)
        pipeline.vae.enable_slicing()  # an image at a time: all at once would outgrow training itself
        return pipeline

    @staticmethod
    def scheduler(name: str, pipeline: DiffusionPipeline) -> SchedulerMixin:
        """Make a scheduler of the pipeline's noise; UserError where diffusers has none of that name that fits."""
        fitting = {cls.__name__: cls for cls in pipeline.scheduler.compatibles if cls.__name__ not in OWN_NOISE}
        if name not in fitting:
            raise UserError(f"evaluate.scheduler '{name}' does not fit: use one of {', '.join(sorted(fitting))}")
        return fitting[name].from_config(pipeline.scheduler.config)
