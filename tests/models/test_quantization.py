"""Bases in 4 and 8 bits: which layers, how many bytes, and training of an adapter beside them.

diffusers quantises on a GPU alone; bitsandbytes has the same kernels for the host. What asks for a GPU is switched off
here, all else is the real thing.
"""

import copy
import math

import diffusers.quantizers.bitsandbytes.bnb_quantizer as quantizers
import pytest
import torch

from fdpo_fast.config.errors import UserError
from fdpo_fast.config.run import Config
from fdpo_fast.config.schema import Model
from fdpo_fast.memory.trace import trace
from fdpo_fast.models import load_family, quantization
from fdpo_fast.models.architecture import read_architecture
from fdpo_fast.models.prediction import as_in_training, predict
from fdpo_fast.models.presets import default_dtype, denoiser
from fdpo_fast.models.trainable import prepare
from tests.helpers import TOLD
from tests.helpers.pictures import as_pickapic, difficult_rows
from tests.helpers.training import weights

FAMILIES = ("sd", "sdxl", "sd3", "flux", "z_image")


@pytest.fixture
def on_the_host(monkeypatch):
    for quantizer in (quantizers.BnB4BitDiffusersQuantizer, quantizers.BnB8BitDiffusersQuantizer):
        monkeypatch.setattr(quantizer, "validate_environment", lambda *_, **__: None)
        monkeypatch.setattr(quantizer, "update_device_map", lambda *_: {"": "cpu"})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


def made(pipelines, name, kind):
    options = {"train": "lora", "quantization": kind, **TOLD.get(name, {})}
    return load_family(Model(family=name, base=str(pipelines[name]), **options))


def held(parameter):
    """The bytes of a parameter with what bitsandbytes keeps beside it."""
    state, rows = getattr(parameter, "quant_state", None), getattr(parameter, "SCB", None)
    tensors = [parameter.data] + ([rows] if rows is not None else [])
    if state is not None:
        tensors += [state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code]
    return sum(tensor.nbytes for tensor in tensors)


@pytest.mark.parametrize("kind", ["nf4", "int8"])
@pytest.mark.parametrize("name", FAMILIES)
def test_the_bytes_are_those_of_the_plan(pipelines, on_the_host, name, kind):
    family = made(pipelines, name, kind)
    denoiser = family.denoiser(torch.bfloat16)
    trained = prepare(denoiser, family.model)
    assert {parameter.dtype for parameter in trained} == {torch.bfloat16}
    planned = read_architecture(family.model).denoiser(torch.bfloat16)
    prepare(planned, family.model)
    frozen = sum(held(parameter) for parameter in denoiser.parameters() if not parameter.requires_grad)
    assert quantization.frozen_bytes(planned, family.model) == frozen


@pytest.mark.parametrize(
    ("preset", "kind", "share"), [("flux", "nf4", 0.26), ("flux", "int8", 0.5), ("sdxl", "nf4", 0.355)]
)
def test_what_it_saves_at_full_size(preset, kind, share):
    with torch.device("meta"), default_dtype(torch.bfloat16):
        whole = denoiser(preset).requires_grad_(False)
    models = [Model(family=preset, base=".", quantization=chosen) for chosen in (kind, None)]
    sizes = [quantization.frozen_bytes(whole, model) for model in models]
    assert sizes[0] == pytest.approx(share * sizes[1], rel=0.03)


@pytest.mark.parametrize("name", FAMILIES)
def test_four_bits_predict_nearly_what_sixteen_do(pipelines, on_the_host, name):
    from fdpo_fast.cache.dataset import Batch
    from fdpo_fast.noise import draws
    from fdpo_fast.ops.pairs import both

    family = made(pipelines, name, "nf4")
    sixteen = load_family(family.model.model_copy(update={"quantization": None}))
    text = {key: both(value) for key, value in family.text_encoder(torch.device("cpu"))(["a cat", "a dog"]).items()}
    condition = family.condition(text, torch.zeros(4, 6, dtype=torch.int64), family.model)
    batch = Batch(
        torch.randn(4, 4, 16, 16), draws(3, torch.tensor([5, 6]), torch.tensor([0, 3])), condition, torch.ones(2), None
    )
    with as_in_training():
        few, all_ = (
            predict(one, one.denoiser(torch.bfloat16).train(), batch).pred.float() for one in (family, sixteen)
        )
    assert not torch.equal(few, all_)
    assert (few - all_).detach().norm() < 0.5 * all_.detach().norm()


@pytest.mark.parametrize(("name", "kind"), [("flux", "nf4"), pytest.param("sdxl", "int8", marks=pytest.mark.slow)])
def test_an_adapter_trains_beside_it(
    pipelines, on_the_host, tiny_config, launch, read_metrics, monkeypatch, tmp_path, name, kind
):
    monkeypatch.undo()  # the launch looks for GPUs, too
    raw = tiny_config(name, as_pickapic(tmp_path, difficult_rows()))
    raw["model"] |= {"train": "lora", "dtype": "bf16", "quantization": kind}
    raw["train"]["pairs_per_micro_batch"] = 2
    for quantizer in (quantizers.BnB4BitDiffusersQuantizer, quantizers.BnB8BitDiffusersQuantizer):
        monkeypatch.setattr(quantizer, "validate_environment", lambda *_, **__: None)
        monkeypatch.setattr(quantizer, "update_device_map", lambda *_: {"": "cpu"})
    monkeypatch.setattr("fdpo_fast.models.family.quantiser", lambda m: quantization.QUANTISERS[kind](torch.bfloat16))
    whole, parts = copy.deepcopy(raw), copy.deepcopy(raw)
    whole["train"]["output_dir"], parts["train"]["output_dir"] = str(tmp_path / "whole"), str(tmp_path / "parts")
    launch(whole)
    records = read_metrics(whole)
    assert records[0]["margin"] == 0
    assert all(math.isfinite(record["loss"]) for record in records)
    parts["train"]["max_steps"] = 3
    launch(parts)
    parts["train"]["max_steps"] = 6
    launch(parts, "--resume")
    ours, theirs = weights(whole), weights(parts)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_plan_counts_what_is_frozen(pipelines, tiny_config, tmp_path):
    raw = tiny_config("flux", tmp_path / "pairs")
    raw["model"] |= {"train": "lora", "dtype": "bf16"}
    traced = {}
    for kind in (None, "int8", "nf4"):
        raw["model"]["quantization"] = kind
        config = Config.model_validate(raw)
        traced[kind] = trace(config, read_architecture(config.model))
    assert traced["nf4"].frozen_bytes < traced["int8"].frozen_bytes < traced[None].frozen_bytes
    assert traced["nf4"].whole_bytes == traced[None].whole_bytes  # of what is read, and exported
    assert traced["nf4"].backward > traced[None].backward  # a layer unpacked


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"model": {"train": "full"}}, "model.quantization needs model.train 'lora'"),
        ({"deepspeed": {"zero_optimization": {"stage": 3}}}, "does not go with ZeRO stage 3"),
    ],
)
def test_what_cannot_be_is_a_sentence(tiny_config, tmp_path, changes, says):
    raw = tiny_config("sd", tmp_path / "pairs")
    raw["model"] |= {"train": "lora", "quantization": "nf4", **changes.get("model", {})}
    raw["deepspeed"] = changes.get("deepspeed", {})
    with pytest.raises(ValueError, match=says):
        Config.model_validate(raw)


def test_without_a_gpu_it_is_refused(pipelines):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(UserError, match=r"model\.quantization needs a CUDA GPU"):
        made(pipelines, "sd", "nf4")
