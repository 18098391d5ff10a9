"""The run configuration as a whole: its sections, and the rules across them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pydantic import Field, model_validator

from fdpo_fast.config.errors import UserError
from fdpo_fast.config.evaluation import Compare, Evaluate, Pairs, Rounds
from fdpo_fast.config.schema import VISITS, Data, Log, Loss, Model, Optimizer, Reference, Train
from fdpo_fast.config.section import Section

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
    """All sections of a run, and the rules across them."""

    model: Model
    data: Data
    reference: Reference
    loss: Loss
    optimizer: Optimizer
    train: Train
    log: Log = Log()
    evaluate: Evaluate = Evaluate()
    pairs: Pairs = Pairs()
    compare: Compare | None = None
    rounds: Rounds | None = None
    deepspeed: dict[str, Any] = Field(
        default_factory=dict,
        description="DeepSpeed's own keys, passed on as they stand; a key that repeats one of ours is refused.",
    )

    @model_validator(mode="before")
    @classmethod
    def _reference_follows_model(cls, raw: Any) -> Any:
        """Make cached errors the default of full tuning, and the switched-off adapter that of LoRA."""
        if not isinstance(raw, dict) or not isinstance(raw.get("reference", {}), dict):
            return raw
        model = raw.get("model")
        lora = isinstance(model, dict) and model.get("train") == "lora"
        reference = {"mode": "adapter" if lora else "cached", **raw.get("reference", {})}
        if reference["mode"] == "cached":
            reference.setdefault("visits", VISITS)
        return {**raw, "reference": reference}

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if self.reference.mode == "adapter" and self.model.train != "lora":
            raise ValueError(
                "reference.mode 'adapter' needs model.train 'lora': full tuning has no adapter to switch off"
            )
        if self.reference.mode == "adapter" and self.reference.model:
            raise ValueError(
                "reference.model needs reference.mode 'cached' or 'live': the policy without its adapter is model.base"
            )
        if self.reference.mode == "cached":
            self.reference.stored_visits()
        if self.train.pairs_per_step % self.train.pairs_per_micro_batch:
            raise ValueError(
                f"train.pairs_per_step {self.train.pairs_per_step} is not a multiple of "
                f"train.pairs_per_micro_batch {self.train.pairs_per_micro_batch}"
            )
        for key in self.deepspeed:
            if key in _OWNED:
                raise ValueError(f"deepspeed.{key} is not set there: {_OWNED[key]} states it once for both")
        self._check_deepspeed()
        if type(self.stage) is not int or not 0 <= self.stage <= 3:
            raise ValueError(f"deepspeed.zero_optimization.stage must be 0, 1, 2 or 3, got {json.dumps(self.stage)}")
        if self.model.dtype == "fp32" and self.deepspeed.get("bf16", {}).get("enabled"):
            raise ValueError("deepspeed.bf16 is enabled but model.dtype is 'fp32': set model.dtype to 'bf16'")
        if self.model.compile and self.stage == 3:
            raise ValueError(
                "model.compile does not go with ZeRO stage 3, whose parameters come and go: switch one off"
            )
        if self.model.quantization and self.model.train != "lora":
            raise ValueError(
                "model.quantization needs model.train 'lora': weights of 4 or 8 bits are frozen, and full tuning would "
                "train them"
            )
        if self.model.quantization and self.stage == 3:
            raise ValueError(
                "model.quantization does not go with ZeRO stage 3, which cannot split what bitsandbytes holds: use "
                "stage 0, 1 or 2"
            )
        self._check_graphs()
        self._check_optimizer()
        self._check_validation()
        names = [scorer.name for scorer in (*self.evaluate.scorers, *(self.rounds.scorers if self.rounds else ()))]
        if unknown := [name for name in self.pairs.weights if name not in names]:
            raise ValueError(f"pairs.weights has '{unknown[0]}', which evaluate.scorers has not: {', '.join(names)}")
        if self.log.samples_every and not self.log.prompts:
            raise ValueError("log.samples_every is set but log.prompts is empty: give the captions to draw")
        return self

    def _check_validation(self) -> None:
        """Refuse keys of validation of which each would be ignored without the other."""
        train, held = self.train, self.data.validation is not None
        if held and not train.validate_every:
            raise ValueError("data.validation holds pairs out and train.validate_every is 0: say when to look at them")
        for key in ("validate_every", "keep_best", "patience"):
            if getattr(train, key) and not held:
                raise ValueError(f"train.{key} needs data.validation, the pairs to look at: a share, or a source")

    def _check_graphs(self) -> None:
        """Refuse what memory that stays where it was captured does not go with."""
        if not self.model.cuda_graphs:
            return
        refused = {
            "model.gradient_checkpointing 'off', as nothing is saved by computing a graph's activations again": (
                self.model.gradient_checkpointing != "off"
            ),
            "ZeRO stage 0, 1 or 2, as stage 3's parameters come and go": self.stage == 3,
            "train.step_in_backward false, as a graph holds all gradients": self.train.step_in_backward,
            "data.buckets false, as each shape takes the memory of a whole step": self.data.buckets,
        }
        for needs, failed in refused.items():
            if failed:
                raise ValueError(f"model.cuda_graphs needs {needs}")

    def _check_deepspeed(self) -> None:
        """Refuse values that we read ourselves and could not."""
        for key in ("bf16", "zero_optimization"):
            if not isinstance(self.deepspeed.get(key, {}), dict):
                raise ValueError(f"deepspeed.{key} must be an object, got {json.dumps(self.deepspeed[key])}")
        for key, value in self.zero.items():
            if key.startswith("offload_") and not isinstance(value, dict | None):
                raise ValueError(f'deepspeed.zero_optimization.{key} must be an object like {{"device": "cpu"}}')
            if value == "auto":
                raise ValueError(f"deepspeed.zero_optimization.{key} 'auto' is for other trainers: give a number")

    @property
    def comparison(self) -> Compare:
        """Return the section of `fdpo compare`; UserError where there is none."""
        if self.compare is None:
            raise UserError("the configuration has no section 'compare': see configs/digits_sweep.json")
        return self.compare

    @property
    def zero(self) -> dict[str, Any]:
        """Return DeepSpeed's section of ZeRO."""
        return self.deepspeed.get("zero_optimization", {})

    @property
    def stage(self) -> int:
        """Return ZeRO's stage."""
        return self.zero.get("stage", 0)

    def offloaded(self, what: str) -> bool:
        """Say whether ZeRO keeps it on the host: "optimizer", or "param"."""
        return (self.zero.get(f"offload_{what}") or {}).get("device", "none") != "none"

    @property
    def parameters_on_host(self) -> bool:
        """Say whether ZeRO brings a parameter to the device only for as long as it is needed."""
        return self.stage == 3 and self.offloaded("param")

    @property
    def master(self) -> bool:
        """Say whether DeepSpeed keeps masters of bf16 weights: in fp32, unless `bf16_masters`."""
        bf16 = self.model.dtype == "bf16" and not self.train.step_in_backward
        return self.deepspeed.get("bf16", {}).get("enabled", bf16)

    @property
    def whole_gradients(self) -> bool:
        """Say whether the optimizer is given the model's own gradients: then we clip them, and not DeepSpeed."""
        return not (self.stage or self.master)

    @property
    def bf16_masters(self) -> bool:
        """Say whether ZeRO's masters, and their gradients, are in bf16."""
        return self.deepspeed.get("bf16", {}).get("bf16_master_weights_and_grads", False)

    @property
    def master_bytes(self) -> int:
        """Return the bytes of an element of DeepSpeed's masters; 0 where there are none."""
        return (2 if self.bf16_masters else 4) if self.master else 0

    @property
    def backward_twice(self) -> bool:
        """Say whether a step inside backward is preceded by a backward for the global norm."""
        clips = self.optimizer.clipping == "global" and self.optimizer.max_grad_norm > 0
        return self.train.step_in_backward and clips

    def _check_optimizer(self) -> None:
        """Refuse what an optimizer would ignore, or cannot do inside backward."""
        optimizer, inside = self.optimizer, self.train.step_in_backward
        if optimizer.clipping == "per_parameter" and not inside:
            raise ValueError("optimizer.clipping 'per_parameter' needs train.step_in_backward: use 'global' without it")
        for key in ("offload_optimizer", "offload_param"):
            if (self.zero.get(key) or {}).get("device") == "nvme":
                raise ValueError(f"deepspeed.zero_optimization.{key} to 'nvme' is not supported: take 'cpu'")
        if self.bf16_masters and not (self.master and self.stage):
            raise ValueError("deepspeed.bf16.bf16_master_weights_and_grads needs bf16 enabled and ZeRO stage 1, 2 or 3")
        cast = optimizer.type == "adamw8bit" or (optimizer.type == "cpu_adam" and self.offloaded("optimizer"))
        if self.bf16_masters and not cast:
            raise ValueError(
                "deepspeed.bf16.bf16_master_weights_and_grads needs optimizer.type 'adamw8bit', or 'cpu_adam' with "
                f"offload_optimizer, got '{optimizer.type}'"
            )
        self._check_weights()
        if not inside:
            return
        if optimizer.type != "adamw8bit":
            raise ValueError(f"train.step_in_backward needs optimizer.type 'adamw8bit', got '{optimizer.type}'")
        if self.stage:
            raise ValueError(f"train.step_in_backward needs ZeRO stage 0, got {self.stage}: ZeRO keeps the gradients")
        if self.master:
            raise ValueError("train.step_in_backward has no fp32 master: leave out deepspeed.bf16")

    def _check_weights(self) -> None:
        """Refuse 24-bit weights where nobody would keep them."""
        if self.optimizer.weights == "plain":
            return
        needs = f"optimizer.weights '{self.optimizer.weights}' needs"
        if self.optimizer.type != "adamw8bit":
            raise ValueError(f"{needs} optimizer.type 'adamw8bit', got '{self.optimizer.type}'")
        if self.model.dtype != "bf16":
            raise ValueError(f"{needs} model.dtype 'bf16', got '{self.model.dtype}', whose weights are complete")
        if (self.master or self.stage) and not self.bf16_masters:
            way = "bf16_master_weights_and_grads to true" if self.stage else "enabled to false"
            raise ValueError(f"{needs} no fp32 master, which has more bits: set deepspeed.bf16.{way}")

    def accumulation(self, world_size: int) -> int:
        """Return the micro-batches of an optimizer step on each of `world_size` ranks.

        Raises UserError where the global step does not divide.
        """
        per_round = self.train.pairs_per_micro_batch * world_size
        if self.train.pairs_per_step % per_round:
            raise UserError(
                f"train.pairs_per_step {self.train.pairs_per_step} is not a multiple of train.pairs_per_micro_batch "
                f"{self.train.pairs_per_micro_batch} times {world_size} ranks"
            )
        micro_batches = self.train.pairs_per_step // per_round
        if self.train.step_in_backward and micro_batches > 1:
            raise UserError(
                f"train.step_in_backward cannot accumulate: train.pairs_per_step {self.train.pairs_per_step} would be "
                f"{micro_batches} micro-batches; make train.pairs_per_micro_batch "
                f"{self.train.pairs_per_step // world_size}"
            )
        return micro_batches

    def for_deepspeed(self, world_size: int) -> dict[str, Any]:
        """Return the dictionary for `deepspeed.initialize`: the user's section plus what our sections already say."""
        return {
            # torch and bitsandbytes optimizers are handed over ready-made, under offload too
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": 2**31,
            **self.deepspeed,
            "bf16": {"enabled": self.master, **self.deepspeed.get("bf16", {})},
            "zero_optimization": {
                "stage": 0,
                # stage 3's own linear layer rounds otherwise than torch's, and so than the reference
                "memory_efficient_linear": False,
                **self.zero,
            },
            "train_micro_batch_size_per_gpu": self.train.pairs_per_micro_batch,
            "gradient_accumulation_steps": self.accumulation(world_size),
            "gradient_clipping": 0.0 if self.whole_gradients else self.optimizer.max_grad_norm,
        }

    def differences(self, other: Config) -> list[str]:
        """List `section.key: ours -> theirs` for each key that is not equal."""
        ours, theirs = (config.model_dump(mode="json") for config in (self, other))
        return [
            change
            for section in ours
            for change in _differences(f"{section}.", ours[section] or {}, theirs[section] or {})
        ]

    def dumps(self) -> str:
        """Return the resolved configuration as JSON text that `load` reads back to an equal object."""
        return json.dumps(self.model_dump(mode="json"), indent=2) + "\n"


def _differences(path: str, ours: dict, theirs: dict) -> Iterator[str]:
    """Yield what differs below a path; DeepSpeed's own keys hold what they hold, and are not looked into."""
    for key in ours | theirs:
        one, two = ours.get(key), theirs.get(key)
        if isinstance(one, dict) and isinstance(two, dict) and path != "deepspeed.":
            yield from _differences(f"{path}{key}.", one, two)
        elif one != two:
            yield f"{path}{key}: {json.dumps(one)} -> {json.dumps(two)}"
