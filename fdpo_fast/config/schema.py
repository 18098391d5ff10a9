"""The sections of the run configuration, one pydantic model each; every key is declared here alone."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, model_validator

from fdpo_fast.config.digits import DigitsRecipe
from fdpo_fast.config.embedded import NAMES
from fdpo_fast.config.section import Section
from fdpo_fast.config.timesteps import Timesteps
from fdpo_fast.loss.divergences import Divergence, divergence
from fdpo_fast.loss.options import LossOptions

Beta = Annotated[float, Field(ge=0, lt=1)]


class LoRA(Section):
    """The adapters of a LoRA run."""

    rank: int = Field(8, ge=1, description="of the two factors of each adapter")
    alpha: float = Field(8.0, gt=0, description="alpha / rank is the factor on an adapter's product")
    targets: list[str] = Field(
        ["to_q", "to_k", "to_v", "to_out.0"], min_length=1, description="ends of the names of the layers it adapts"
    )


def _switch(value: Any) -> Any:
    """Take the true and false of older files for the names they stood for."""
    return {True: "full", False: "off"}[value] if isinstance(value, bool) else value


class Model(Section):
    """The pipeline that is trained, and how its denoiser is run."""

    family: str = Field(
        description="`sd` (Stable Diffusion 1.x and 2.x), `sdxl`, `sd3` (SD3 and SD3.5), `flux` (FLUX.1) or `z_image`"
    )
    base: str = Field(description=f"diffusers folder or hub name; {NAMES}: a pipeline made on the spot")
    vae: str | None = Field(None, description="diffusers folder or hub name of a VAE in place of the base's own")
    text_tokens: int | None = Field(
        None,
        ge=1,
        le=512,
        description="of T5 or Qwen (its template's too) for a caption, where a family has it; null: 256 (SD3) or 512",
    )
    guidance: float | None = Field(
        None, ge=0, description="what a model distilled from guidance (FLUX.1-dev) is told; there it must be given"
    )
    train: Literal["full", "lora"] = Field("full", description="all weights of the denoiser, or adapters beside them")
    dtype: Literal["fp32", "bf16"] = Field("bf16", description="of the denoiser's weights and activations")
    lora: LoRA = LoRA()
    quantization: Literal["nf4", "int8"] | None = Field(
        None, description="of the frozen base under LoRA, by bitsandbytes: 4 or 8 bits a weight in its linear layers"
    )
    gradient_checkpointing: Annotated[Literal["full", "per_block", "off"], BeforeValidator(_switch)] = Field(
        "off",
        description="compute again in backward: resnets and transformer blocks, transformer blocks alone, nothing",
    )
    attention: Literal["auto", "sdpa", "xformers"] = Field(
        "auto", description="auto: torch's scaled_dot_product_attention, which has the same kernels as xformers"
    )
    channels_last: bool = Field(False, description="layout of the activations; DeepSpeed wants contiguous weights")
    compile: bool = Field(False, description="the denoiser's transformer blocks by torch.compile, one program for all")
    cuda_graphs: bool = Field(
        False, description="one launch for the denoiser's forward, one for its backward, at a fixed shape; takes memory"
    )


class Data(Section):
    """The pairs, and the caches that are made of them."""

    source: str = Field(
        description=f"file, folder, glob, URL or hub data set (owner/name); {NAMES}: the pairs that this pipeline draws"
    )
    format: Literal["auto", "pickapic", "folders", "jsonl", "latents"] = Field(
        "auto", description="of the source; auto: known by its files"
    )
    split: str | None = Field(
        None, description="of a source whose file or folder names tell splits; null: of training; `all`: every one"
    )
    outside: bool = Field(
        False, description="read files that lie outside the source too, where it names them by path or by links"
    )
    max_rows: int | None = Field(None, ge=1, description="take that many rows, evenly over a larger source")
    max_refused: float = Field(
        0.5, ge=0, le=1, description="share of the rows; where more cannot be used, nothing is trained"
    )
    max_megapixels: float = Field(256.0, gt=0, description="millions of pixels; a larger image is refused")
    resolution: int = Field(512, ge=8, description="side of the square, in pixels")
    crop: Literal["center", "random"] = Field("center", description="random: drawn once for each pair")
    flip: float = Field(0.0, ge=0, le=1, description="share of the pairs that are mirrored, both sides together")
    buckets: bool = Field(False, description="keep the aspect ratio: sizes of about resolution^2 pixels")
    bucket_step: int = Field(64, ge=8, description="sides of buckets are multiples of this")
    ties: Literal["drop", "half"] = Field("drop", description="half: kept both ways, at half weight each")
    votes: Literal["decide", "weight", "conservative"] = Field(
        "decide",
        description="what shares of votes do, as 0.7 and 0.3: the larger decides; their difference weighs the loss; "
        "each order of the pair is kept at the weight of its share",
    )
    labels: str | None = Field(
        None, description="file of labels that take the place of the source's own, as `fdpo relabel` writes it"
    )
    unlabelled: Literal["keep", "drop"] = Field(
        "keep", description="pairs of which data.labels says nothing: they keep the source's label, or are left out"
    )
    validation: Annotated[float, Field(gt=0, lt=1)] | str | None = Field(
        None, description="held out: a share of the pairs, by captions that then occur nowhere else, or a source"
    )
    caption_dropout: float = Field(0.0, ge=0, lt=1, description="share of the visits with an empty caption")
    cache_dir: str = Field("~/.cache/fdpo_fast", description="folder of all caches; on several nodes, a shared one")
    cache_dtype: Literal["fp32", "fp16", "bf16"] = Field(
        "fp32", description="of encoded latents and text embeddings on disk"
    )
    vae_dtype: Literal["fp32", "fp16", "bf16"] = Field(
        "fp32", description="of the VAE while caching; 16 bits with a VAE made for it, as sdxl-vae-fp16-fix"
    )
    vae_compile: bool = Field(False, description="the VAE's encoder by torch.compile while caching")
    latents: Literal["mode", "sample", "moments"] = Field(
        "mode", description="of the VAE's posterior: its mode, one fixed sample, or both moments, sampled at each visit"
    )
    encode_batch: int | None = Field(
        None,
        ge=1,
        description="images, or captions, at a time while caching",
        json_schema_extra={"left_out": "of two images of 1024 x 1024 the pixels, at most 16 images"},
    )
    shard_rows: int = Field(1024, ge=1, description="rows of a cache's file: what a kill loses at most")
    workers: int = Field(4, ge=1, description="threads that decode images")
    digits: DigitsRecipe = DigitsRecipe()

    @model_validator(mode="after")
    def _of_labels(self) -> Data:
        if self.unlabelled == "drop" and self.labels is None:
            raise ValueError("data.unlabelled 'drop' needs data.labels: without it every pair would be left out")
        return self

    @property
    def encoded_at_once(self) -> int:
        """How many images, or captions, are encoded at a time: what the VAE takes grows with their pixels."""
        return self.encode_batch or max(1, min(16, 2 * 1024**2 // self.resolution**2))


VISITS = 4
"""Draws of a pair where the configuration does not say how many are cached."""


class Reference(Section):
    """What the policy is measured against, and on which draws."""

    mode: Literal["cached", "live", "adapter"] = Field(
        description="errors from a cache, of a second frozen model, or of the policy with its adapter switched off; "
        "none follows the policy, as an average of its weights would: no cache could hold its errors",
        json_schema_extra={"left_out": "`adapter` for LoRA, else `cached`"},
    )
    model: str | None = Field(
        None,
        description="diffusers folder or hub name of a pipeline whose denoiser is the reference, where training starts "
        "from another one; null: model.base",
    )
    visits: int | None = Field(
        None,
        ge=1,
        lt=2**32,
        description="draws of (t, noise) per pair; null: a fresh one every epoch",
        json_schema_extra={"left_out": "4 where `cached`, else null"},
    )
    seed: int = Field(0, ge=0, lt=2**32, description="of the draws; train.seed is that of the order and the adapter")
    timesteps: Timesteps = Timesteps()

    def stored_visits(self) -> int:
        """How many draws of a pair the cache of reference errors holds; ValueError where nobody says."""
        if self.visits is None:
            raise ValueError("reference.mode 'cached' needs reference.visits: it says how many draws per pair to store")
        return self.visits


class Loss(Section):
    """The divergence, its strengths, and the loss of a pair."""

    divergence: str = Field("jensen_shannon", description="a name of `fdpo_fast.DIVERGENCES`")
    alpha: float | None = Field(None, description="of divergence `alpha`, between 0 and 1")
    beta: float = Field(gt=0, description="strength of the regularisation, outside f'")
    ratio_scale: float = Field(gt=0, description="log-ratio per unit of error difference, inside f'")
    type: str = Field("sigmoid", description="`sigmoid`, `hinge`, `ipo` or `robust`")
    label_smoothing: float = Field(0.0, ge=0, lt=0.5, description="probability that a label is wrong")
    margin: float = Field(0.0, ge=0, description="what beta times the gap is to exceed; 0: its sign alone counts")
    clip_log_ratio: float | None = Field(
        None, gt=0, description="magnitude of a log-ratio beyond which the divergence goes on as a tangent; null: none"
    )
    sft_weight: float = Field(
        0.0,
        ge=0,
        description="of the preferred sample's own mean squared error in the loss of its pair, in units of beta * "
        "ratio_scale",
    )
    winner_preserving: float | None = Field(
        None,
        ge=0,
        lt=1,
        description="share of the preferred sample's gain that a step keeps at least, to first order: the dispreferred "
        "one's gradient is scaled where it works against; 0: the preferred error does not grow; null: no gradient is",
    )

    @model_validator(mode="after")
    def _known(self) -> Loss:
        if self.alpha is not None and self.divergence != "alpha":
            raise ValueError(f"loss.alpha is set but loss.divergence is '{self.divergence}': alpha would be ignored")
        self.options()
        return self

    @property
    def starts_at_log_2(self) -> bool:
        """Say whether the loss of a policy that is its reference is log 2."""
        return self.type in ("sigmoid", "robust") and not self.margin and not self.sft_weight

    def link(self) -> Divergence:
        """Return the divergence this section names, clipped where it says so."""
        link = self.options().link
        assert isinstance(link, Divergence)
        return link

    def options(self) -> LossOptions:
        """Return the options of the loss this section describes, one value per pair."""
        return LossOptions(
            divergence=divergence(self.divergence, **({} if self.alpha is None else {"a": self.alpha})),
            loss_type=self.type,
            reduction="none",
            **self.model_dump(exclude={"divergence", "alpha", "type"}),  # of the same names
        )


class Optimizer(Section):
    """The optimizer, its rates and their schedule."""

    type: Literal["adamw", "adamw8bit", "adamw8bit_bnb", "cpu_adam"] = Field(
        "adamw", description="torch's, ours, bitsandbytes', DeepSpeedCPUAdam"
    )
    lr: float = Field(ge=0, description="never scaled by batch or ranks")
    betas: tuple[Beta, Beta] = Field((0.9, 0.999), strict=False, description="of AdamW")  # JSON has arrays only
    eps: float = Field(1e-8, gt=0, description="of AdamW")
    weight_decay: float = Field(1e-2, ge=0, description="of AdamW, decoupled")
    schedule: Literal["constant", "cosine", "linear"] = Field(
        "constant", description="of the rate behind the warm-up; cosine and linear end at 0 with train.max_steps"
    )
    warmup_steps: int = Field(0, ge=0, description="steps in which the rate rises")
    max_grad_norm: float = Field(1.0, ge=0, description="0: no clipping")
    clipping: Literal["global", "per_parameter"] = Field(
        "global",
        description="whose norm is clipped; with train.step_in_backward the global one takes a second backward, and "
        "per_parameter none",
    )
    rounding: Literal["stochastic", "nearest"] = Field(
        "stochastic", description="of bf16 weights without an fp32 master, by adamw8bit"
    )
    weights: Literal["plain", "bf16+8"] = Field(
        "plain", description="bf16+8: adamw8bit keeps a byte beside each bf16 weight, which makes 24 bits of it"
    )


class Train(Section):
    """The length of a run, its batches, and what it leaves."""

    output_dir: str = Field(description="folder of the run: metrics, checkpoints, samples, export")
    max_steps: int = Field(ge=1, description="optimizer steps")
    pairs_per_step: int = Field(ge=1, description="pairs per optimizer step, over all ranks")
    pairs_per_micro_batch: int = Field(ge=1, description="pairs per forward and backward of one rank")
    seed: int = Field(0, ge=0, lt=2**32, description="of the order, the adapter, rounding, sample grids")
    checkpoint_every: int = Field(100, ge=1, description="steps between checkpoints; the last step has one too")
    keep_checkpoints: int = Field(2, ge=1, description="the newest so many stay")
    ema_decay: float | None = Field(None, gt=0, lt=1, description="export a running average of the weights; null: none")
    export_dtype: Literal["fp32", "fp16", "bf16"] | None = Field(
        None, description="of all weights of the exported pipeline; null: that of the base's files"
    )
    validate_every: int = Field(0, ge=0, description="steps between looks at the pairs of data.validation; 0: none")
    validation_visits: int = Field(4, ge=1, lt=2**32, description="draws of (t, noise) of each held-out pair")
    keep_best: Literal["validation_accuracy", "validation_margin", "validation_loss"] | None = Field(
        None, description="keep and export the best step too, in export-best; null: the last alone"
    )
    patience: int | None = Field(None, ge=1, description="validations without a better one that end a run; null: none")
    step_in_backward: bool = Field(
        False, description="adamw8bit steps each parameter as soon as its gradient is there, and frees it"
    )


class Log(Section):
    """What a run tells while it is at work."""

    every: int = Field(10, ge=1, description="steps between writes; each step has its own record")
    timestep_bins: int = Field(5, ge=1, description="bins of the timestep that figures are split by")
    tensorboard: bool = Field(True, description="write scalars for TensorBoard too")
    wandb: str | None = Field(None, description="project of Weights & Biases; null: none")
    samples_every: int = Field(0, ge=0, description="steps between sample grids; 0: none")
    prompts: list[str] = Field([], description="captions of the sample grids")
    images_per_prompt: int = Field(4, ge=1, description="images of each caption, of base and policy")
    sampling_steps: int = Field(20, ge=1, description="of each image")
    guidance: float = Field(
        7.5, ge=0, description="classifier-free; a model distilled from guidance is told it while it draws"
    )
