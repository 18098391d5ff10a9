"""The families of flow transformers beside the pipelines of diffusers: what they are told, and what they predict."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKL, DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteSchedulerOutput

from fdpo_fast.config.errors import UserError
from fdpo_fast.config.run import Config
from fdpo_fast.config.schema import LoRA, Model
from fdpo_fast.memory.trace import traces
from fdpo_fast.models import load_family
from fdpo_fast.models.architecture import read_architecture
from fdpo_fast.models.presets import build, denoiser
from fdpo_fast.ops.pairs import both
from tests.helpers.pictures import LONG

CAPTIONS = ["a cat on a table", "", LONG, "größe ✓ 猫"]
TOLD = {"flux": {"guidance": 3.5}}
SAMPLED = {"sd3": {"guidance_scale": 1.0}, "flux": {"guidance_scale": 3.5}, "z_image": {"guidance_scale": 0.0}}
FLOWS = ("sd3", "flux", "z_image")
CPU = torch.device("cpu")


class Recorder(FlowMatchEulerDiscreteScheduler):
    """A scheduler that keeps what the denoiser was given and what it predicted."""

    def step(self, model_output, timestep, sample, return_dict=True, **_):
        self.seen = SimpleNamespace(pred=model_output, timestep=timestep, sample=sample)
        return FlowMatchEulerDiscreteSchedulerOutput(sample) if return_dict else (sample,)


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    root = tmp_path_factory.mktemp("flows")
    return {name: build(f"tiny_{name}", root / name) for name in FLOWS}


def family(bases, name, **options):
    return load_family(Model(family=name, base=str(bases[name]), dtype="fp32", **TOLD.get(name, {}), **options))


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("shape", [(32, 32), (24, 40)])
def test_a_prediction_is_the_pipelines_own(bases, name, shape):
    """The pipeline draws one step; what it fed its transformer gives the same prediction here."""
    made, pipeline = family(bases, name), DiffusionPipeline.from_pretrained(bases[name])
    pipeline.scheduler = Recorder.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    latents, captions = torch.randn(4, 4, *shape), CAPTIONS[:2] * 2  # two pairs in halves layout
    pipeline(
        [*captions], height=2 * shape[0], width=2 * shape[1], latents=made.packed(latents), num_inference_steps=1,
        sigmas=[0.37], output_type="latent", max_sequence_length=made.tokens(made.model), **SAMPLED[name],
    )  # fmt: skip
    seen = pipeline.scheduler.seen
    condition = made.condition(made.text_encoder(CPU)(captions), torch.zeros(4, 6), made.model)
    with torch.no_grad():
        pred = made.predict(made.denoiser(torch.float32), latents, seen.timestep.expand(4), condition)
    assert pred.shape == latents.shape
    error = (made.packed(pred) - seen.pred).abs().max() / seen.pred.abs().max()
    assert error < 0.01  # the text encoders of 4 to 9 GB run in bf16 here


@pytest.mark.parametrize("name", FLOWS)
def test_embeddings_have_the_shapes_that_are_said(bases, name):
    made = family(bases, name, text_tokens=128)
    found = made.text_encoder(CPU)(CAPTIONS)
    assert {key: tuple(value.shape[1:]) for key, value in found.items()} == made.facts.text_shapes
    assert all(value.dtype == torch.float32 and len(value) == len(CAPTIONS) for value in found.values())


def test_z_image_has_as_many_tokens_as_a_caption(bases):
    made = family(bases, "z_image", text_tokens=128)
    found, pipeline = made.text_encoder(CPU)([*CAPTIONS]), DiffusionPipeline.from_pretrained(bases["z_image"])
    rows, _ = pipeline.encode_prompt([*CAPTIONS], CPU, False, max_sequence_length=128)
    assert [len(row) for row in rows] == found["prompt_mask"].sum(dim=1).tolist()
    assert len({len(row) for row in rows}) > 2
    for row, ours, mask in zip(rows, found["prompt_embeds"], found["prompt_mask"], strict=True):
        assert not ours[len(row) :].any()
        assert mask[: len(row)].all()
        assert (ours[: len(row)] - row).abs().max() < 0.03 * row.abs().max()


def test_a_prediction_does_not_depend_on_other_captions(bases):
    """To the bit: a reference error is cached in another batch than it is trained in."""
    made = family(bases, "z_image", text_tokens=128)
    unet, noisy, times = made.denoiser(torch.float32), torch.randn(6, 4, 16, 16), torch.full((6,), 500.0)
    text = {key: both(value) for key, value in made.text_encoder(CPU)(["a cat", LONG, ""]).items()}
    with torch.no_grad():
        together = made.predict(unet, noisy, times, text)
        for pair in range(3):
            rows = [pair, pair + 3]
            alone = made.predict(unet, noisy[rows], times[rows], {key: value[rows] for key, value in text.items()})
            assert torch.equal(together[rows], alone)


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("tokens", [None, 128])
def test_a_caption_is_too_long_where_no_encoder_reads_it_all(bases, name, tokens):
    made = family(bases, name, text_tokens=tokens)
    short, long, longest = made.excess()(["a cat", "a cat " * 45, "a cat " * 400])
    assert short == long == 0  # beyond CLIP's 77, not beyond the other's 128
    assert longest > 0


def test_what_a_distilled_model_is_told_is_asked_for(bases):
    model = Model(family="flux", base=str(bases["flux"]))
    with pytest.raises(UserError, match=r"model\.guidance is missing: .* was distilled from guidance"):
        load_family(model)
    with pytest.raises(UserError, match=r"model\.guidance is missing"):
        read_architecture(model)


@pytest.mark.parametrize("name", ["sd3", "z_image"])
def test_guidance_is_for_distilled_models_alone(bases, name):
    with pytest.raises(UserError, match=r"model\.guidance is for models distilled from guidance"):
        load_family(Model(family=name, base=str(bases[name]), guidance=3.5))


def test_a_flux_that_was_not_distilled_is_told_nothing(bases, tmp_path):
    shutil.copytree(bases["flux"], tmp_path / "base")
    unguided = denoiser("tiny_flux").from_config(denoiser("tiny_flux").config, guidance_embeds=False)
    unguided.save_pretrained(tmp_path / "base/transformer")
    made = load_family(Model(family="flux", base=str(tmp_path / "base")))
    condition = made.condition(made.text_encoder(CPU)(["a cat"] * 2), torch.zeros(2, 6), made.model)
    assert "guidance" not in condition
    with torch.no_grad():
        pred = made.predict(made.denoiser(torch.float32), torch.zeros(2, 4, 16, 16), torch.ones(2), condition)
    assert pred.shape == (2, 4, 16, 16)


@pytest.mark.parametrize(("name", "billions"), [("sd35m", 2.24), ("flux", 11.9), ("z_image", 6.15)])
def test_the_published_sizes(name, billions):
    with torch.device("meta"):
        transformer = denoiser(name)
    assert sum(parameter.numel() for parameter in transformer.parameters()) == pytest.approx(billions * 1e9, rel=0.01)


@pytest.mark.parametrize("name", FLOWS)
def test_its_memory_is_traced(bases, tiny_config, tmp_path, name):
    raw = tiny_config("sd", tmp_path / "pairs")
    raw["model"] |= {"family": name, "base": str(bases[name]), **TOLD.get(name, {})}
    config = Config.model_validate(raw)
    found = traces(config, read_architecture(config.model))
    assert found["full"].saved == found["per_block"].saved < found["off"].saved


@pytest.mark.parametrize("name", FLOWS)
def test_a_tokenizers_template_is_exported(bases, name):
    from fdpo_fast.models.hub import LOADED

    names = {path.name for path in bases[name].rglob("*") if path.is_file()}
    assert {name for name in names if not name.endswith(LOADED)} <= {"merges.txt"}
    if name == "z_image":
        tokenizer = json.loads((bases[name] / "tokenizer/tokenizer_config.json").read_text())
        assert "chat_template" in tokenizer or (bases[name] / "tokenizer/chat_template.jinja").is_file()


def test_a_base_without_a_template_of_captions_is_told(bases, tmp_path):
    shutil.copytree(bases["z_image"], tmp_path / "base")
    (tmp_path / "base/tokenizer/chat_template.jinja").unlink()
    with pytest.raises(UserError, match="has no chat_template, by which captions are written"):
        load_family(Model(family="z_image", base=str(tmp_path / "base")))


@pytest.mark.parametrize("name", FLOWS)
def test_a_vae_of_other_channels_is_told(bases, tmp_path, name):
    sixteen = AutoencoderKL.from_pretrained(bases[name], subfolder="vae")
    AutoencoderKL.from_config(sixteen.config, latent_channels=8).save_pretrained(tmp_path / "vae")
    model = Model(family=name, base=str(bases[name]), vae=str(tmp_path / "vae"), **TOLD.get(name, {}))
    for read in (load_family, read_architecture):
        with pytest.raises(UserError, match=r"gives latents of 8 channels and the denoiser of .* takes 4"):
            read(model)


@pytest.mark.parametrize("name", FLOWS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_it_draws_in_the_dtype_of_the_denoiser(bases, name, dtype):
    """Beside a T5 or Qwen in bfloat16, whatever the denoiser is in."""
    made = family(bases, name, text_tokens=32)
    pipeline = made.sampler(made.denoiser(dtype), CPU)
    images = pipeline(
        ["a cat"], height=64, width=64, num_inference_steps=1, output_type="pt", **SAMPLED[name], **made.drawing
    ).images
    assert images.isfinite().all()


def test_a_layer_that_takes_no_adapter_is_told_before_anything_is_made(bases):
    with pytest.raises(UserError, match="'norm_q' is a RMSNorm, not linear or a convolution"):
        family(bases, "flux", train="lora", lora=LoRA(targets=["norm_q"]))
