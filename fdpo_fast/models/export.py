"""A trained denoiser as a pipeline of diffusers: one dtype throughout, and how much of the training it keeps.

The weights come from the base's own files, tensor by tensor: no second UNet is in memory. An adapter is merged in
float32, and written by itself too.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import diffusers
import torch
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from fdpo_fast import checksums
from fdpo_fast.config.errors import UserError
from fdpo_fast.files import read_json, replacing
from fdpo_fast.models.denoiser import Denoiser
from fdpo_fast.models.family import ADAPTER, Family
from fdpo_fast.models.hub import LOADED, VARIANTS, present
from fdpo_fast.models.precision import DTYPES
from fdpo_fast.models.trainable import add_lora
from fdpo_fast.optim.eager import random_bits, round_randomly

WEIGHTS = "diffusion_pytorch_model.safetensors"
"""The name of a denoiser's file, as diffusers writes and reads it."""


class Weight(NamedTuple):
    """A weight of the policy, in float32."""

    value: Tensor
    start: Tensor
    """The value from which training started."""


class Rounding:
    """Rounds trained weights to the dtype of a file, and measures how far that moves them beside what training did."""

    ENOUGH = 0.01
    COARSE = 2 / 3
    """Where rounding to nearest moves a weight more than this share of its change, most of the change is not kept."""

    def __init__(self, dtype: torch.dtype, adapter: bool) -> None:
        self.dtype, self.adapter = dtype, adapter
        self.changed = self.moved = 0.0
        self.weights = 0

    def __call__(self, weight: Weight) -> Tensor:
        """Round a weight to nearest, or stochastically where that would leave most of it where it was.

        To nearest a change below half a step of the start's is lost for good; stochastically it is there under noise,
        of which predictions are an average. A start between the steps of the dtype is such noise by itself.
        """
        value, start = weight
        change, stored = _square(value - start), value.to(self.dtype)
        on_steps = self.dtype != torch.float32 and torch.equal(start.to(self.dtype).float(), start)
        if on_steps and _square(value - stored.float()) > self.COARSE**2 * change:
            bits = random_bits(0, self.weights, 0, 0, value.numel(), value.device)
            stored = round_randomly(value, bits.view(value.shape), self.dtype)
        self.weights += 1
        self.changed += change
        self.moved += _square(value - stored.float())
        return stored

    @property
    def ratio(self) -> float:
        """Return |stored - trained| / |trained - start| over all weights; 0 where nothing has changed."""
        return math.sqrt(self.moved / self.changed) if self.changed else 0.0

    def sentence(self) -> str | None:
        """Return what a user should know of a file that keeps too little; None of one that does not."""
        if self.ratio <= self.ENOUGH:
            return None
        dtype = str(self.dtype).removeprefix("torch.")
        return (
            f"rounding the exported weights to {dtype} moved them {self.ratio:.2g} times as far as training: "
            f"{f'use {ADAPTER}, which is not rounded, or set' if self.adapter else 'set'} "
            'train.export_dtype to "fp32"; --resume writes the export anew'
        )


def _square(difference: Tensor) -> float:
    return difference.double().square().sum().item()


def export(family: Family, trained: Iterable[tuple[str, Tensor]], dtype: torch.dtype | None, folder: Path) -> Rounding:
    """Write a folder that `DiffusionPipeline.from_pretrained` loads; returns how its weights were rounded.

    trained: the trained parameters with their names in the denoiser, each whole and on the CPU; they are read once.
    dtype: of all weights in the folder; None is that of the base's denoiser. With an adapter, its file
    (`pytorch_lora_weights.safetensors`, what `pipe.load_lora_weights` reads) lies there too, and always the checksums
    of all. Raises UserError where a weight does not fit the dtype, and where the folder cannot be written.
    """
    unet, state, adapter = family.blank_denoiser(), _stored(family), family.model.train == "lora"
    rounding = Rounding(dtype or next(iter(state.values())).dtype, adapter)
    with _said(folder), replacing(folder) as partial:
        partial.mkdir(parents=True)
        _copy_others(family, partial, rounding.dtype)
        unet.save_config(partial / family.denoiser_name)
        if adapter:
            _add(unet, family, dict(trained))
            _save_adapter(unet, family, partial)
            weights = _merged(unet, state)
        else:
            weights = _tuned(trained, state, DTYPES[family.model.dtype])
        stored = ((name, _fitting(name, weight.value, rounding(weight))) for name, weight in weights)
        _write(partial / family.denoiser_name / WEIGHTS, state, stored, rounding.dtype)
        checksums.write(partial, checksums.sums(partial, checksums.names_in(partial)))
    return rounding


@contextmanager
def _said(folder: Path) -> Iterator[None]:
    """Turn what a disk refuses within the block into a sentence: what was trained is in the checkpoint."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise UserError(f"{folder} cannot be written: {reason}; --resume writes it from the last checkpoint") from None


# --- the denoiser ---


def _stored(family: Family) -> dict[str, Tensor]:
    """Return the state dict of the base's denoiser in the dtype of its files, whose memory it is."""
    folder = family.base / family.denoiser_name
    index = folder / f"{WEIGHTS}.index.json"
    names = set(read_json(index)["weight_map"].values()) if index.is_file() else {WEIGHTS}
    state = {name: tensor for file in sorted(names) for name, tensor in load_file(folder / file).items()}
    if state.keys() == family.blank_denoiser().state_dict().keys():
        return state
    # older names, which diffusers knows
    return family.denoiser_class.from_pretrained(folder, torch_dtype=torch.float32, use_safetensors=True).state_dict()


def _tuned(
    trained: Iterable[tuple[str, Tensor]], state: dict[str, Tensor], dtype: torch.dtype
) -> Iterator[tuple[str, Weight]]:
    """Yield what was trained; it started from the state in `dtype`."""
    for name, value in trained:
        yield name, Weight(value.float(), state[name].to(dtype).float())


def _add(unet: Denoiser, family: Family, trained: dict[str, Tensor]) -> None:
    """Give a denoiser the trained adapter, in float32."""
    with torch.device("meta"):
        add_lora(unet, family.model.lora)
    unet.load_state_dict({name: value.float() for name, value in trained.items()}, strict=False, assign=True)


def _save_adapter(unet: Denoiser, family: Family, folder: Path) -> None:
    """Write the file of a denoiser's adapter.

    The factor alpha / rank is drawn into its tensors: readers differ in where they look for it, and take it for 1 where
    they find none.
    """
    lora = family.model.lora
    layers = {
        name: value * (lora.alpha / lora.rank) if ".lora_B." in name else value
        for name, value in get_peft_model_state_dict(unet).items()
    }
    about = {
        "r": lora.rank,
        "lora_alpha": lora.rank,
        "target_modules": lora.targets,
        "base_model_name_or_path": family.model.base,
    }
    pipeline = getattr(diffusers, family.pipelines[0])
    name = family.denoiser_name
    pipeline.save_lora_weights(folder, **{f"{name}_lora_layers": layers, f"{name}_lora_adapter_metadata": about})
    sort_metadata(folder / ADAPTER)


def sort_metadata(path: Path) -> None:
    """Put the metadata of a safetensors file in order, which its library writes in another one each time."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
        assert len(text) <= size
        file.seek(8)
        file.write(text.ljust(size))


def trained_on(folder: Path) -> str | None:
    """Return the base that the adapter in a folder was trained on, as its file says."""
    with safe_open(folder / ADAPTER, "pt") as file:
        about = json.loads((file.metadata() or {}).get("lora_adapter_metadata", "{}"))
    return next((base for key, base in about.items() if key.endswith(".base_model_name_or_path")), None)


def _merged(unet: Denoiser, state: dict[str, Tensor]) -> Iterator[tuple[str, Weight]]:
    """Yield the weights that an adapter changes, with what it adds."""
    for name, layer in unet.named_modules():
        if isinstance(layer, LoraLayer):
            start = state[f"{name}.weight"].float()
            yield f"{name}.weight", Weight(start + layer.get_delta_weight("default"), start)


# --- the files ---


def _copy_others(family: Family, folder: Path, dtype: torch.dtype) -> None:
    """Copy what the pipeline loads of its other components, their weights in this dtype."""
    parts = read_json(family.base / "model_index.json")
    for name in (name for name in present(parts, family.components) if name != family.denoiser_name):
        source, target = family.vae if name == "vae" else family.base / name, folder / name
        files = sorted(source.iterdir()) if source.is_dir() else []
        for file in (file for file in files if file.suffix in LOADED and not any(map(file.match, VARIANTS))):
            target.mkdir(exist_ok=True)
            if file.suffix != ".safetensors" or not _cast(file, target / file.name, dtype):
                shutil.copyfile(file, target / file.name)
        _load_in_float32(target / "config.json")
    shutil.copyfile(family.base / "model_index.json", folder / "model_index.json")


def _cast(source: Path, target: Path, dtype: torch.dtype) -> bool:
    """Write a file of weights in another dtype; says whether it is not in this one already."""
    state = load_file(source)
    if all(tensor.dtype == dtype for tensor in state.values() if tensor.is_floating_point()):
        return False
    _write(target, state, (), dtype)
    return True


def _load_in_float32(config: Path) -> None:
    """Have transformers load a component in float32 where no dtype is asked for, as diffusers loads all others.

    By itself it takes the dtype that its configuration names, and the components would not go together.
    """
    content = read_json(config) if config.is_file() else {}
    if named := content.keys() & {"dtype", "torch_dtype"}:
        config.write_text(json.dumps(content | dict.fromkeys(named, "float32"), indent=2) + "\n")


_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.uint8: "U8",
}
"""The dtypes by the names of safetensors."""


def _write(path: Path, state: Mapping[str, Tensor], changed: Iterable[tuple[str, Tensor]], dtype: torch.dtype) -> None:
    """Write a state dict to a safetensors file, a tensor at a time: what is `changed` by that, the rest as it is.

    Floating-point numbers are in `dtype`. The library's own function wants all tensors at once. Raises UserError where
    a number does not fit the dtype.
    """
    dtypes = {name: dtype if tensor.is_floating_point() else tensor.dtype for name, tensor in state.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in sorted(state, key=lambda name: (-dtypes[name].itemsize, name)):  # each aligned to its own size
        begin, end = end, end + state[name].numel() * dtypes[name].itemsize
        header[name] = {"dtype": _NAMES[dtypes[name]], "shape": [*state[name].shape], "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    rest = dict(state)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name, tensor in _then(changed, rest):
            file.seek(8 + len(text) + header[name]["data_offsets"][0])
            file.write(_bytes(name, tensor, dtypes[name]))


def _then(changed: Iterable[tuple[str, Tensor]], rest: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Yield what is changed, then the rest without it."""
    for name, tensor in changed:
        del rest[name]
        yield name, tensor
    yield from rest.items()


def _bytes(name: str, tensor: Tensor, dtype: torch.dtype) -> memoryview:
    stored = _fitting(name, tensor, tensor.to(dtype)).contiguous()
    return stored.reshape(-1).view(torch.uint8).numpy().data


def _fitting(name: str, exact: Tensor, stored: Tensor) -> Tensor:
    """Return a weight as it is stored; UserError where its dtype has made it infinite."""
    if stored.dtype == torch.float16 and not torch.equal(stored.isfinite(), exact.isfinite()):
        raise UserError(f"the weight {name} is too large for float16: set train.export_dtype to 'bf16' or 'fp32'")
    return stored
