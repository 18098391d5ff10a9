"""The run configuration: one strict JSON file, one pydantic model per section; every key is declared here alone."""

from __future__ import annotations

import difflib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fdpo_fast.divergences import Divergence, divergence
from fdpo_fast.loss import FDPOLoss

EMBEDDED = "digits"  # as `model.base` or `data.source`: the pipeline and pairs that fdpo_fast makes on the spot


class ConfigError(ValueError):
    """A configuration that cannot run: one sentence per mistake."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class LoRA(Section):
    rank: int = Field(8, ge=1)
    alpha: float = Field(8.0, gt=0)
    targets: list[str] = Field(["to_q", "to_k", "to_v", "to_out.0"], min_length=1)


class Model(Section):
    family: str
    base: str = Field(description=f"diffusers folder or hub name; '{EMBEDDED}' is the embedded pipeline")
    train: Literal["full", "lora"] = "full"
    dtype: Literal["fp32", "bf16"] = "bf16"
    lora: LoRA = LoRA()
    gradient_checkpointing: bool = False


class DigitsRecipe(Section):
    """What the embedded default is made with: the base pipeline, and the stated rule that ranks its pairs.

    score = correct_weight * [the judge reads the digit asked for] + stroke_weight * mean ink;
    the image with the larger score + N(0, noise^2) is preferred; a gap below `tie_below` is a tie.
    """

    vae_steps: int = Field(400, ge=1)
    unet_steps: int = Field(1000, ge=1)
    batch: int = Field(64, ge=1)
    pairs: int = Field(1280, ge=1)
    sampling_steps: int = Field(15, ge=1)
    guidance: float = Field(2.0, ge=0)
    correct_weight: float = 1.0
    stroke_weight: float = 4.0
    noise: float = Field(0.1, ge=0)
    tie_below: float = Field(0.02, ge=0)
    seed: int = Field(0, ge=0, lt=2**32)


class Data(Section):
    source: str = Field(description=f"parquet file, folder or glob; '{EMBEDDED}' is the embedded set of pairs")
    format: Literal["pickapic"] = "pickapic"
    resolution: int = Field(512, ge=8)
    ties: Literal["drop", "half"] = "drop"
    caption_dropout: float = Field(0.0, ge=0, lt=1)
    cache_dir: str = "~/.cache/fdpo_fast"
    encode_batch: int = Field(16, ge=1)
    shard_rows: int = Field(1024, ge=1)
    digits: DigitsRecipe = DigitsRecipe()


class Reference(Section):
    mode: Literal["cached", "live", "adapter"]
    visits: int | None = Field(
        None, ge=1, lt=2**32, description="draws of (t, noise) per pair; null: a fresh one every epoch"
    )


class Loss(Section):
    divergence: str = "jensen_shannon"
    alpha: float | None = None
    beta: float = Field(gt=0)
    ratio_scale: float = Field(gt=0)
    type: str = "sigmoid"
    label_smoothing: float = Field(0.0, ge=0, lt=0.5)

    @model_validator(mode="after")
    def _known(self) -> Loss:
        if self.alpha is not None and self.divergence != "alpha":
            raise ValueError(f"loss.alpha is set but loss.divergence is '{self.divergence}': alpha would be ignored")
        self.criterion()
        return self

    def link(self) -> Divergence:
        """The divergence this section names."""
        return divergence(self.divergence, **({} if self.alpha is None else {"a": self.alpha}))

    def criterion(self) -> FDPOLoss:
        """The loss this section describes, one value per pair."""
        options = {"loss_type": self.type, "label_smoothing": self.label_smoothing, "reduction": "none"}
        return FDPOLoss(self.link(), beta=self.beta, ratio_scale=self.ratio_scale, **options)


class Optimizer(Section):
    type: Literal["adamw", "adamw8bit_bnb"] = "adamw"
    lr: float = Field(ge=0)
    betas: tuple[float, float] = Field((0.9, 0.999), strict=False)  # JSON has arrays only
    eps: float = Field(1e-8, gt=0)
    weight_decay: float = Field(1e-2, ge=0)
    schedule: Literal["constant", "cosine", "linear"] = "constant"
    warmup_steps: int = Field(0, ge=0)
    max_grad_norm: float = Field(1.0, ge=0, description="global norm; 0: no clipping")


class Train(Section):
    output_dir: str
    max_steps: int = Field(ge=1)
    pairs_per_step: int = Field(ge=1, description="pairs per optimizer step, over all ranks")
    pairs_per_micro_batch: int = Field(ge=1, description="pairs per forward and backward of one rank")
    seed: int = Field(0, ge=0, lt=2**32)
    checkpoint_every: int = Field(100, ge=1)
    keep_checkpoints: int = Field(2, ge=1)
    ema_decay: float | None = Field(None, gt=0, lt=1)


class Log(Section):
    every: int = Field(10, ge=1)
    timestep_bins: int = Field(5, ge=1)
    tensorboard: bool = True
    samples_every: int = Field(0, ge=0, description="steps between sample grids; 0: none")
    prompts: list[str] = []
    images_per_prompt: int = Field(4, ge=1)
    sampling_steps: int = Field(20, ge=1)
    guidance: float = Field(7.5, ge=0)


# DeepSpeed keys that restate one of ours: a second copy could only contradict the first.
_OWNED = {
    "train_batch_size": "train.pairs_per_step",
    "train_micro_batch_size_per_gpu": "train.pairs_per_micro_batch",
    "gradient_accumulation_steps": "train.pairs_per_step and train.pairs_per_micro_batch",
    "gradient_clipping": "optimizer.max_grad_norm",
    "optimizer": "the section 'optimizer'",
    "scheduler": "optimizer.schedule",
    "fp16": "model.dtype (bf16)",
    "amp": "model.dtype (bf16)",
    "torch_autocast": "model.dtype (bf16)",
}


class Config(Section):
    model: Model
    data: Data
    reference: Reference
    loss: Loss
    optimizer: Optimizer
    train: Train
    log: Log = Log()
    deepspeed: dict[str, Any] = {}

    @model_validator(mode="before")
    @classmethod
    def _reference_follows_model(cls, raw: Any) -> Any:
        """Cached errors are the default of full tuning, the switched-off adapter that of LoRA."""
        if not isinstance(raw, dict) or not isinstance(raw.get("reference", {}), dict):
            return raw
        model = raw.get("model")
        lora = isinstance(model, dict) and model.get("train") == "lora"
        reference = {"mode": "adapter" if lora else "cached", **raw.get("reference", {})}
        if reference["mode"] == "cached":
            reference.setdefault("visits", 4)
        return {**raw, "reference": reference}

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if self.reference.mode == "adapter" and self.model.train != "lora":
            raise ValueError(
                "reference.mode 'adapter' needs model.train 'lora': full tuning has no adapter to switch off"
            )
        if self.reference.mode == "cached" and self.reference.visits is None:
            raise ValueError("reference.mode 'cached' needs reference.visits: it says how many draws per pair to store")
        if self.train.pairs_per_step % self.train.pairs_per_micro_batch:
            raise ValueError(
                f"train.pairs_per_step {self.train.pairs_per_step} is not a multiple of "
                f"train.pairs_per_micro_batch {self.train.pairs_per_micro_batch}"
            )
        for key in self.deepspeed:
            if key in _OWNED:
                raise ValueError(f"deepspeed.{key} is not set there: {_OWNED[key]} states it once for both")
        for key in ("bf16", "zero_optimization"):
            if not isinstance(self.deepspeed.get(key, {}), dict):
                raise ValueError(f"deepspeed.{key} must be an object, got {json.dumps(self.deepspeed[key])}")
        if self.model.dtype == "fp32" and self.deepspeed.get("bf16", {}).get("enabled"):
            raise ValueError("deepspeed.bf16 is enabled but model.dtype is 'fp32': set model.dtype to 'bf16'")
        if self.log.samples_every and not self.log.prompts:
            raise ValueError("log.samples_every is set but log.prompts is empty: give the captions to draw")
        return self

    def accumulation(self, world_size: int) -> int:
        """Micro-batches per optimizer step on each of `world_size` ranks.

        Raises ConfigError where the global step does not divide.
        """
        per_round = self.train.pairs_per_micro_batch * world_size
        if self.train.pairs_per_step % per_round:
            raise ConfigError(
                f"train.pairs_per_step {self.train.pairs_per_step} is not a multiple of train.pairs_per_micro_batch "
                f"{self.train.pairs_per_micro_batch} times {world_size} ranks"
            )
        return self.train.pairs_per_step // per_round

    def for_deepspeed(self, world_size: int) -> dict[str, Any]:
        """The dictionary for `deepspeed.initialize`: the user's section plus what our sections already say."""
        return {
            # torch and bitsandbytes optimizers are handed over ready-made, under offload too
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "bf16": {"enabled": self.model.dtype == "bf16"},
            "steps_per_print": 2**31,
            **self.deepspeed,
            "zero_optimization": {"stage": 0, **self.deepspeed.get("zero_optimization", {})},
            "train_micro_batch_size_per_gpu": self.train.pairs_per_micro_batch,
            "gradient_accumulation_steps": self.accumulation(world_size),
            "gradient_clipping": self.optimizer.max_grad_norm,
        }

    def differences(self, other: Config) -> list[str]:
        """`section.key: ours -> theirs` for each key that is not equal."""
        ours, theirs = self.model_dump(mode="json"), other.model_dump(mode="json")
        return [
            f"{section}.{key}: {ours[section].get(key)} -> {theirs[section].get(key)}"
            for section in ours
            for key in ours[section] | theirs[section]
            if ours[section].get(key) != theirs[section].get(key)
        ]

    def dumps(self) -> str:
        """The resolved configuration as JSON text that `load` reads back to an equal object."""
        return json.dumps(self.model_dump(mode="json"), indent=2) + "\n"


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a configuration file and apply `section.key=value` overrides.

    Raises ConfigError with one sentence per mistake.
    """
    try:
        raw = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the config {path}: {error.strerror}") from None
    except ValueError as error:
        raise ConfigError(f"the config {path} is not valid JSON: {error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"the config {path} holds a {type(raw).__name__}, not an object of sections")
    for override in overrides:
        _apply(raw, override)
    try:
        return Config.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{path}: " + "; ".join(_sentence(e) for e in error.errors())) from None


def _apply(raw: dict, override: str) -> None:
    path, sign, text = override.partition("=")
    if not sign or "." not in path:
        raise ConfigError(f"--set '{override}' is not of the form section.key=value")
    try:
        value = json.loads(text)
    except ValueError:
        value = text  # a bare word is a string
    *parents, key = path.split(".")
    node = raw
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise ConfigError(f"--set '{override}': '{parent}' is not a section")
    node[key] = value


def _sentence(error: dict) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(error["loc"][-1]), _keys_beside(error["loc"]), n=1, cutoff=0.3)
        return f"unknown key '{key}'" + (f", did you mean '{'.'.join([*error['loc'][:-1], near[0]])}'?" if near else "")
    if error["type"] == "missing":
        return f"the key '{key}' is missing"
    if error["type"] == "value_error":
        return str(error["ctx"]["error"])
    return f"'{key}': {error['msg'][0].lower()}{error['msg'][1:]}, got {json.dumps(error['input'])}"


def _keys_beside(location: tuple) -> list[str]:
    """Known keys of the section in which the unknown key at `location` stands."""
    section: type[BaseModel] = Config
    for part in location[:-1]:
        section = section.model_fields[part].annotation
    return list(section.model_fields)
