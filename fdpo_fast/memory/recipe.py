"""A configuration for somebody's model, pairs and card: a published one with what is theirs, changed until it fits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import fdpo_fast
from fdpo_fast.config.errors import UserError
from fdpo_fast.config.load import EXTENDS, extended, merged
from fdpo_fast.config.mistakes import checked
from fdpo_fast.config.run import Config
from fdpo_fast.config.schema import Data, Model
from fdpo_fast.files import read_json
from fdpo_fast.memory.account import GIB
from fdpo_fast.memory.ladder import RUNGS, settled
from fdpo_fast.memory.needs import Needs, brought, needs, with_allowances
from fdpo_fast.memory.trace import Trace, trace
from fdpo_fast.models import FAMILIES, family_class, quiet_libraries
from fdpo_fast.models.architecture import read_architecture
from fdpo_fast.models.facts import UNGUIDED

Kind = Literal["lora", "full"]
Raw = dict[str, Any]

_RECIPES: dict[tuple[str, Kind], str] = {
    ("sd", "full"): "sd15_js.json",
    ("sd", "lora"): "sd15_lora_js.json",
    ("sdxl", "full"): "sdxl_js.json",
    ("sdxl", "lora"): "sdxl_lora_js.json",
    ("sd3", "full"): "sd35m_js.json",
    ("sd3", "lora"): "sd35m_lora_js.json",
    ("flux", "full"): "flux_js_8gpu.json",
    ("flux", "lora"): "flux_lora_js.json",
    ("z_image", "lora"): "zimage_lora_js.json",
}
_OWN_PAIRS = "my_pairs_sdxl_lora.json"
"""The file that says what is otherwise where pairs are a few hundred of somebody's own."""
_FLOAT16_VAE = "madebyollin/sdxl-vae-fp16-fix"
"""The VAE of the published configurations that its makers changed so that it does not overflow in float16."""
_UNGUIDED = {
    "model": {"guidance": None},
    "evaluate": {"sampling_steps": 4, "guidance": 0.0},
    "log": {"sampling_steps": 4, "guidance": 0.0},
}
"""What is otherwise where a Flux is told no guidance: it was distilled to few steps, as FLUX.1-schnell was."""
_INSIDE_BACKWARD = "sdxl_js_16gb.json"
"""The file that says what is otherwise where a step is a single pair."""


@dataclass(frozen=True)
class Wish:
    """What somebody has, and wants."""

    model: str
    family: str
    pairs: str
    kind: Kind
    gpu: float
    """Bytes of memory of one GPU."""
    gpus: int
    host: float | None
    """Bytes of memory of the machine; None for no limit."""
    output_dir: str


@dataclass(frozen=True)
class Recipe:
    """A configuration, what it needs, and what was given up for that."""

    raw: Raw
    """The content of its file."""
    needs: Needs
    changes: tuple[str, ...]

    def fits(self, wish: Wish) -> bool:
        """Say whether the machine has what it needs."""
        return self.needs.gpu_total <= wish.gpu and (wish.host is None or self.needs.host <= wish.host)


def family_of(model: str) -> str | None:
    """Name the family of a model that is here, or that a published configuration trains; None for another."""
    index = Path(model).expanduser() / "model_index.json"
    if index.is_file():
        kind = read_json(index).get("_class_name")
        made = (name for name in FAMILIES if kind in family_class(Model(family=name, base=model)).pipelines)
        return next(made, None)
    bases = {_published(file)["model"]["base"]: family for (family, _), file in _RECIPES.items()}
    return bases.get(model)


def fitting(wish: Wish) -> Recipe:
    """Find the fastest settings with which a wish fits its machine; UserError where none do."""
    quiet_libraries()
    draft = _drafted(wish)
    scales, tried = _Scales(checked(Config, draft)), []
    for raw, changes in _ladder(draft, wish):
        tried.append(_relieved(raw, changes, wish, scales))
        if tried[-1].fits(wish):
            return tried[-1]
    least = min(tried, key=lambda recipe: recipe.needs.gpu_total).needs
    host = min(recipe.needs.host for recipe in tried)
    raise UserError(
        f"nothing fits: at the least it takes {least.gpu_total / GIB:.1f} GiB of a GPU, or {host / GIB:.1f} of the "
        "host; train an adapter (--train lora) or a smaller model"
    )


def _file(name: str) -> Path:
    """Find a published configuration: within the package where that was installed, beside it in a checkout."""
    package = Path(fdpo_fast.__file__).parent
    return next(file for place in (package, package.parent) if (file := place / "configs" / name).is_file())


def _published(name: str) -> Raw:
    return extended(_file(name))


def _otherwise(name: str) -> Raw:
    """Return what a published configuration says otherwise than its base."""
    return {section: values for section, values in read_json(_file(name)).items() if section != EXTENDS}


def _drafted(wish: Wish) -> Raw:
    """Return the published configuration of a family with somebody's model and pairs in it."""
    if (wish.family, wish.kind) not in _RECIPES:
        raise UserError(f"no published configuration trains all weights of {wish.family}: use --train lora")
    raw = _published(_RECIPES[wish.family, wish.kind])
    if "pickapic" not in wish.pairs.lower():
        published = raw["train"]["pairs_per_step"]
        raw = merged(raw, _otherwise(_OWN_PAIRS))
        if wish.kind == "full":  # the published rate goes with the number of pairs
            raw["optimizer"]["lr"] = _rounded(raw["optimizer"]["lr"] * raw["train"]["pairs_per_step"] / published)
    train, data = raw["train"], raw["data"]
    if wish.model != raw["model"]["base"]:
        raw["model"] = {key: value for key, value in raw["model"].items() if key != "vae"} | {"base": wish.model}
    elif raw["model"].get("vae") == _FLOAT16_VAE:
        data["vae_dtype"] = "fp16"
    data["source"], train["output_dir"] = wish.pairs, wish.output_dir
    a_round = train["pairs_per_micro_batch"] * wish.gpus
    train["pairs_per_step"] = -(-train["pairs_per_step"] // a_round) * a_round
    if _is_told_none(raw["model"]):
        raw = merged(raw, _UNGUIDED)
    if Path(wish.model).expanduser().is_dir():
        architecture = read_architecture(Model(**raw["model"]))
        if side := architecture.denoiser_config.get("sample_size"):  # none is of a transformer that takes any
            raw["data"]["resolution"] = side * architecture.factors()[0]
    return raw


def _is_told_none(model: Raw) -> bool:
    """Say whether a recipe tells guidance to a model that takes none, which is here or known by its name."""
    folder = Path(model["base"]).expanduser()
    if not model.get("guidance") or not folder.is_dir():
        return bool(model.get("guidance")) and model["base"] in UNGUIDED
    file = folder / family_class(Model(**model)).denoiser_name / "config.json"
    return file.is_file() and not read_json(file).get("guidance_embeds")  # none is there where the family is another


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")


def _ladder(raw: Raw, wish: Wish) -> Iterator[tuple[Raw, tuple[str, ...]]]:
    """Yield a draft as it stands, then what takes less and less memory, with what was changed in words."""
    changes: tuple[str, ...] = ()
    yield raw, changes
    if raw["model"]["gradient_checkpointing"] != "full":
        raw = merged(raw, {"model": {"gradient_checkpointing": "full"}})
        changes = ("activations are computed again in backward (model.gradient_checkpointing)",)
        yield raw, changes
    if raw["train"]["pairs_per_micro_batch"] > 1:
        raw = merged(raw, {"train": {"pairs_per_micro_batch": 1}})
        changes += ("one pair at a time (train.pairs_per_micro_batch)",)
        yield raw, changes
    if wish.kind == "lora" and not raw["model"].get("quantization"):
        raw = merged(raw, {"model": {"quantization": "nf4"}})
        changes += ("the base in 4 bits (model.quantization)",)
        yield raw, changes
    for name, rung in RUNGS.items():
        inside = rung.sections["train"]["step_in_backward"]
        if raw["model"].get("quantization") and rung.sections["deepspeed"]["zero_optimization"]["stage"] == 3:
            continue
        if not inside:
            yield settled(raw, name, wish.gpus), (*changes, f"rung {name}: {rung.title}")
        elif wish.kind == "full" and wish.gpus == 1:
            yield settled(_one_pair_a_step(raw), name, 1), (*changes, f"rung {name}: {rung.title}")


def _one_pair_a_step(raw: Raw) -> Raw:
    """Return a draft with rates and lengths that suit steps of one pair, its visits as many as before at the most."""
    other = _otherwise(_INSIDE_BACKWARD)
    visits = raw["train"]["max_steps"] * raw["train"]["pairs_per_step"]
    steps = min(other["train"]["max_steps"], visits)
    every = max(1, steps // 10)
    own = {
        "optimizer": other["optimizer"],
        "train": {"max_steps": steps, "checkpoint_every": every},
        "log": {"every": other["log"]["every"], "samples_every": every},
    }
    return merged(raw, own)


class _Scales:
    """What weighs drafts of one model; each kind of micro-batch is traced once."""

    def __init__(self, config: Config) -> None:
        self._architecture = read_architecture(config.model)
        self._ready = brought(config, self._architecture)
        self._traces: dict[str, Trace] = {}

    def needs(self, config: Config, wish: Wish) -> Needs:
        kind = config.model.model_dump_json() + str(config.train.pairs_per_micro_batch)
        if kind not in self._traces:
            self._traces[kind] = trace(config, self._architecture)
        return needs(config, self._architecture, self._traces[kind], wish.gpus, self._ready, wish.gpu)


def _relieved(raw: Raw, changes: tuple[str, ...], wish: Wish, scales: _Scales) -> Recipe:
    """Return a draft with what is beside its steps, caching and sample grids, made smaller where that is too much."""
    while True:
        found = scales.needs(checked(Config, raw), wish)
        crowded = {phase for phase, tensors in found.beside.items() if with_allowances(tensors) > wish.gpu}
        relief = next((each for each in _reliefs(raw) if each.phase in crowded), None)
        if relief is None:
            return Recipe(raw, found, changes)
        raw, changes = merged(raw, relief.sections), (*changes, relief.words)


class _Relief(NamedTuple):
    """A phase beside the steps, and what makes it smaller."""

    phase: str
    sections: Raw
    words: str


def _reliefs(raw: Raw) -> Iterator[_Relief]:
    """Yield what can still be made smaller in a draft, what costs least first."""
    batch, log = Data(**raw["data"]).encoded_at_once, raw["log"]
    if batch > 1:
        words = f"{batch // 2} images at a time while caching (data.encode_batch)"
        yield _Relief("caching images", {"data": {"encode_batch": batch // 2}}, words)
    if log["images_per_prompt"] > 1:
        yield _Relief(
            "sample grids", {"log": {"images_per_prompt": 1}}, "one image of a caption (log.images_per_prompt)"
        )
    if log["samples_every"]:
        off = {"samples_every": 0, "prompts": None, "images_per_prompt": 1}
        yield _Relief("sample grids", {"log": off}, "no sample grids, which do not fit (log.samples_every)")
