"""What the families share: a diffusers pipeline folder with one VAE, one denoiser and one noise schedule."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar, TypeAlias

import torch
from diffusers import AutoencoderKL, DiffusionPipeline, SchedulerMixin, UNet2DConditionModel
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn

from fdpo_fast.config.errors import UserError
from fdpo_fast.config.schema import Model
from fdpo_fast.data.images import to_vae
from fdpo_fast.files import digest, file_digest, read_json
from fdpo_fast.models.denoiser import Denoiser
from fdpo_fast.models.hub import pipeline_folder, vae_folder
from fdpo_fast.models.process import Process, prediction_of, read_scheduler, shifts_by_size, tables
from fdpo_fast.models.tokenizer import Excess, excess

ImageEncoder = Callable[[Tensor], tuple[Tensor, Tensor]]
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


def without_decoder(vae: AutoencoderKL) -> AutoencoderKL:
    """Take from a VAE, in place, the half that encoding has no use for."""
    vae.decoder = vae.post_quant_conv = None
    return vae


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
    text_components: ClassVar[tuple[str, ...]]
    """Folders that the text embeddings depend on."""
    text_keys: ClassVar[tuple[str, ...]]
    """Names of the text embeddings, those of diffusers' pipelines."""
    preset: ClassVar[str]
    """The published architecture, in `presets.PRESETS`."""
    patch: ClassVar[int | None] = None
    """The side of the squares of latents that are a token of the denoiser; None of one that has no tokens."""

    def __init__(self, model: Model) -> None:
        self.model = model
        if model.attention == "xformers" and not (find_spec("xformers") and torch.cuda.is_available()):
            lacks = "a CUDA GPU" if find_spec("xformers") else "the package: pip install xformers"
            raise UserError(f"model.attention 'xformers' lacks {lacks}; 'auto' needs neither")
        if model.cuda_graphs and not torch.cuda.is_available():
            raise UserError("model.cuda_graphs needs a CUDA GPU, and torch finds none here: set it to false")
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
        """Raise UserError for a LoRA target that no layer of the UNet is called."""
        config = UNet2DConditionModel.load_config(self.base, subfolder="unet")
        with torch.device("meta"):
            names = [f".{name}" for name, _ in UNet2DConditionModel.from_config(config).named_modules()]
        unknown = [target for target in self.model.lora.targets if not any(n.endswith(f".{target}") for n in names)]
        if unknown:
            raise UserError(f"no layer of the UNet is called {', '.join(unknown)}: see model.lora.targets")

    # --- what caches depend on ---

    def digest(self, *components: str) -> str:
        """Return the SHA-256 over the files of the named component folders."""
        folders = {name: self.vae if name == "vae" else self.base / name for name in components}
        files = [(name, path) for name, folder in folders.items() for path in sorted(folder.rglob("*"))]
        return digest([[name, path.name, file_digest(path)] for name, path in files if path.is_file()])

    def pictures_digest(self) -> str:
        """Return the SHA-256 over all files that a picture depends on."""
        return self.digest("unet", "vae", "scheduler", *self.text_components)

    def denoiser_digest(self) -> str:
        """Return the SHA-256 over the denoiser's files."""
        return self.digest("unet")

    @cached_property
    def facts(self) -> Facts:
        """What the caches need to know of the pipeline, with the digests of its files."""
        unet_config = read_json(self.base / "unet" / "config.json")
        return Facts(
            vae_factor=shrinks(read_json(self.vae / "config.json")),
            denoiser_factor=shrinks(unet_config),
            channels=unet_config["in_channels"],
            text_keys=self.text_keys,
            text_shapes=self.text_shapes(unet_config),
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
        """Return a function of uint8 pixels [n, 3, h, w] on the CPU that gives their latents' mean and deviation.

        Both are float32 on the device and scaled as the denoiser takes them, [n, c, h/f, w/f]. The VAE computes in
        `dtype`. Nothing waits for a GPU: the next pixels can be handed over while it is at work on these.
        """
        vae, cuda = without_decoder(self.load_vae(dtype)).eval(), device.type == "cuda"
        layout = torch.channels_last if cuda or dtype != torch.float32 else torch.preserve_format
        vae.to(device, memory_format=layout)
        if compiled:
            vae.encoder.compile()

        @torch.inference_mode()
        def encode(pixels: Tensor) -> tuple[Tensor, Tensor]:
            handed = pixels.pin_memory() if cuda else pixels
            images = to_vae(handed.to(device, non_blocking=True)).to(dtype, memory_format=layout)
            parameters = vae.encode(images).latent_dist.parameters
            posterior = DiagonalGaussianDistribution(parameters.float())
            scale = vae.config.scaling_factor
            return (posterior.mean - (vae.config.shift_factor or 0)) * scale, posterior.std * scale

        return encode

    def text_encoder(self, device: torch.device) -> TextEncoder:
        """Return a function of captions that gives their embeddings by `text_keys`, each [n, ...] float32.

        They are those that the family's own pipeline makes.
        """
        without = dict.fromkeys(("unet", "vae"))
        pipeline = DiffusionPipeline.from_pretrained(
            self.base, use_safetensors=True, torch_dtype=torch.float32, **without, **self.pipeline_options
        ).to(device)

        @torch.inference_mode()
        def encode(captions: list[str]) -> dict[str, Tensor]:
            return dict(zip(self.text_keys, self.encode_prompt(pipeline, captions, device), strict=True))

        return encode

    def excess(self) -> Excess | None:
        """Return what says by how many tokens captions are longer than the text encoders read."""
        return excess(self.base)

    pipeline_options: ClassVar[dict] = {}
    """Keyword arguments of `DiffusionPipeline.from_pretrained` for this family."""

    @classmethod
    def elements_of_text(cls, unet_config: dict) -> int:
        """Return how many numbers the embeddings of a caption are, for a UNet's configuration."""
        return sum(math.prod(shape) for shape in cls.text_shapes(unet_config).values())

    @classmethod
    def text_shapes(cls, unet_config: dict) -> dict[str, tuple[int, ...]]:
        """Return the shapes of a caption's embeddings by `text_keys`, of CLIP's 77 tokens."""
        return {cls.text_keys[0]: (77, unet_config["cross_attention_dim"])}

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

    def denoiser(self, dtype: torch.dtype, policy: Path | None = None) -> Denoiser:
        """Load the UNet of the base, or of a policy, on the CPU in `dtype` and with its attention.

        policy: a pipeline's folder, or one with an adapter, which is put on the base and stays beside the weights.
        """
        adapter = policy is not None and policy != self.base and has_adapter(policy)
        unet = UNet2DConditionModel.from_pretrained(
            policy if policy and not adapter else self.base, subfolder="unet", torch_dtype=dtype, use_safetensors=True
        )
        if adapter:
            unet.load_lora_adapter(policy, weight_name=ADAPTER, prefix="unet")
        if self.model.attention == "xformers":
            unet.enable_xformers_memory_efficient_attention()
        return unet

    @classmethod
    @abstractmethod
    def predict(cls, unet: Denoiser, noisy: Tensor, timesteps: Tensor, condition: dict[str, Tensor]) -> Tensor:
        """Return the UNet's prediction, [n, c, h, w], in the UNet's dtype."""

    # --- diffusers pipelines ---

    def pipeline(self, unet: Denoiser) -> DiffusionPipeline:
        """Load the base pipeline with `unet` in place of its own; the other components in float32 on the CPU."""
        options = {"vae": self.load_vae()} if self.model.vae else {}
        return DiffusionPipeline.from_pretrained(
            self.base, unet=unet, use_safetensors=True, torch_dtype=torch.float32, **options, **self.pipeline_options
        )

    def sampler(self, unet: Denoiser, device: torch.device) -> DiffusionPipeline:
        """Load the base pipeline ready to draw; the UNet stays where it is, the others follow it in its dtype."""
        pipeline = self.pipeline(unet)
        for name, part in pipeline.components.items():
            if isinstance(part, nn.Module) and name != "unet":
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
