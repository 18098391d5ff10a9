"""Stable Diffusion 3 against diffusers: prompts, T5 or none, what the transformer is told, and its plan."""

import json
import shutil

import pytest
import torch
from diffusers import DiffusionPipeline, FlowMatchEulerDiscreteScheduler, SD3Transformer2DModel

from fdpo_fast.cache.dataset import Batch
from fdpo_fast.config.errors import UserError
from fdpo_fast.config.schema import Model
from fdpo_fast.memory.trace import traces
from fdpo_fast.models import load_family
from fdpo_fast.models.architecture import read_architecture
from fdpo_fast.models.prediction import errors, predict
from fdpo_fast.models.presets import build
from fdpo_fast.noise import draws, pair_draw
from fdpo_fast.ops.pairs import both
from tests.helpers.pictures import LONG

CAPTIONS = ["a cat on a table", "", LONG, "größe ✓ 猫"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return build("tiny_sd3", tmp_path_factory.mktemp("sd3") / "base")


@pytest.fixture
def without_t5(base, tmp_path):
    shutil.copytree(base, tmp_path / "base")
    for part in ("text_encoder_3", "tokenizer_3"):
        shutil.rmtree(tmp_path / "base" / part)
    index = tmp_path / "base/model_index.json"
    parts = json.loads(index.read_text()) | {"text_encoder_3": [None, None], "tokenizer_3": [None, None]}
    index.write_text(json.dumps(parts))
    return tmp_path / "base"


def family(base, **options):
    return load_family(Model(family="sd3", base=str(base), dtype="fp32", **options))


@pytest.mark.parametrize("tokens", [None, 77])
def test_embeddings_are_the_pipelines_own(base, tokens):
    made = family(base, text_tokens=tokens)
    ours = made.text_encoder(torch.device("cpu"))(CAPTIONS)
    pipeline = DiffusionPipeline.from_pretrained(base)
    for row, caption in enumerate(CAPTIONS):
        embeds, _, pooled, _ = pipeline.encode_prompt(
            caption, None, None, do_classifier_free_guidance=False, max_sequence_length=tokens or 256
        )
        torch.testing.assert_close(ours["pooled_prompt_embeds"][row : row + 1], pooled)
        found = ours["prompt_embeds"][row : row + 1]
        torch.testing.assert_close(found[:, :77], embeds[:, :77])
        assert (found[:, 77:] - embeds[:, 77:]).abs().max() < 0.03 * embeds[:, 77:].abs().max()  # T5 is in bf16
    shapes = {key: tuple(value.shape[1:]) for key, value in ours.items()}
    assert shapes == made.facts.text_shapes


def test_without_t5_its_embeddings_are_zeros(without_t5):
    ours = family(without_t5).text_encoder(torch.device("cpu"))(CAPTIONS)["prompt_embeds"]
    assert ours.shape[1:] == (77 + 256, 96)
    assert not ours[:, 77:].any()
    assert ours[:, :77].any()


def test_tokens_are_said_for_families_with_t5_alone(tmp_path):
    folder = build("tiny_sd", tmp_path / "sd")
    with pytest.raises(UserError, match=r"model\.text_tokens is for families with T5: 'sd' always has CLIP's 77"):
        load_family(Model(family="sd", base=str(folder), text_tokens=77))


def test_images_are_drawn_with_the_tokens_of_training(base, tmp_path):
    assert family(base).drawing == {"max_sequence_length": 256}
    assert family(base, text_tokens=5).drawing == {"max_sequence_length": 5}
    sd = build("tiny_sd", tmp_path / "sd")
    assert load_family(Model(family="sd", base=str(sd))).drawing == {}


@pytest.mark.parametrize("key", ["compile", "cuda_graphs"])
def test_what_is_made_for_unets_is_refused(base, key, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(UserError, match=rf"model\.{key} is for UNets: 'sd3' has a transformer"):
        family(base, **{key: True})


@pytest.mark.parametrize("shape", [(16, 16), (12, 20)])
def test_a_prediction_is_the_training_step_of_diffusers(base, shape):
    made, theirs = family(base), SD3Transformer2DModel.from_pretrained(base, subfolder="transformer")
    scheduler = FlowMatchEulerDiscreteScheduler.from_pretrained(base, subfolder="scheduler")
    latents = torch.randn(4, 4, *shape)
    text = made.text_encoder(torch.device("cpu"))(["a cat", "a dog"])
    condition = {key: both(value) for key, value in text.items()}
    ids, visits = torch.tensor([5, 6]), torch.tensor([0, 3])
    batch = Batch(latents, draws(3, ids, visits), condition, torch.ones(2), None)
    with torch.no_grad():
        pred, target, fed = predict(made, made.denoiser(torch.float32), batch)
        timesteps, noise = pair_draw(3, ids, visits, (4, *shape))
        sigmas, times = (table.flip(0)[timesteps].repeat(2) for table in (scheduler.sigmas, scheduler.timesteps))
        sigma, noise = sigmas[:, None, None, None], both(noise)
        want = theirs(
            hidden_states=sigma * noise + (1 - sigma) * latents, timestep=times,
            encoder_hidden_states=condition["prompt_embeds"], pooled_projections=condition["pooled_prompt_embeds"],
        ).sample  # fmt: skip
    assert torch.equal(both(fed), times)
    torch.testing.assert_close(pred, want)
    misses = (pred - (noise - latents)).double().square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(errors(pred, target), misses, rtol=1e-5, atol=0)


def test_a_shift_by_tokens_goes_by_the_latents(base, tmp_path):
    shutil.copytree(base, tmp_path / "base")
    FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True).save_pretrained(tmp_path / "base/scheduler")
    made, cpu = family(tmp_path / "base"), torch.device("cpu")
    small, large = (made.process(torch.Size((2, 4, side, side)), cpu).sigma for side in (32, 128))
    u = torch.arange(1, 1001, dtype=torch.float64) / 1000
    for sigma, mu in ((small, 0.5), (large, 1.15)):  # 256 and 4096 tokens of two by two
        k = torch.tensor(mu, dtype=torch.float64).exp()
        torch.testing.assert_close(sigma.double(), k * u / (1 + (k - 1) * u), rtol=1e-6, atol=0)


def test_its_memory_is_traced(tiny_config, tmp_path):
    from fdpo_fast.config.run import Config

    raw = tiny_config("sd3", tmp_path / "pairs")
    raw["model"]["base"] = str(build("tiny_sd3", tmp_path / "base"))
    config = Config.model_validate(raw)
    found = traces(config, read_architecture(config.model))
    assert found["full"].saved == found["per_block"].saved < found["off"].saved
