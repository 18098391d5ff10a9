"""`fdpo init`: what it writes is a configuration, fits by `fdpo plan`, and has samples and checkpoints."""

import json
import shutil

import pytest

from fdpo_fast.cli import main
from fdpo_fast.config.load import load
from fdpo_fast.memory.recipe import _RECIPES, family_of
from fdpo_fast.models import FAMILIES
from tests.helpers.terminal import Terminal

SDXL = "stabilityai/stable-diffusion-xl-base-1.0"
SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
SD35 = "stabilityai/stable-diffusion-3.5-medium"
FLUX, Z_IMAGE = "black-forest-labs/FLUX.1-dev", "Tongyi-MAI/Z-Image"


@pytest.fixture
def init(tmp_path, monkeypatch, capsys):
    """Run `fdpo init` in an empty folder; returns what it printed, and the configuration."""
    monkeypatch.chdir(tmp_path)

    def run(*words, file="fdpo.json"):
        main(["init", *(["mine.json"] if file == "mine.json" else []), *words])
        return capsys.readouterr().out, load(file)

    return run


def refusal(*words):
    with pytest.raises(SystemExit) as caught:
        main(["init", *words])
    return str(caught.value)


@pytest.mark.parametrize("family", ["sd", "sdxl"])
@pytest.mark.parametrize("train", ["lora", "full"])
def test_a_model_that_is_here_says_its_family_and_its_size(init, plan, pipelines, family, train, capsys):
    base = str(pipelines[family])
    said, config = init("--model", base, "--pairs", "my/pairs", "--gpu", "12GB", "--train", train)
    assert (config.model.family, config.model.base, config.model.vae) == (family, base, None)
    assert config.data.vae_dtype == "fp32"  # nothing is known of its VAE
    assert (config.data.source, config.model.train) == ("my/pairs", train)
    unet = json.loads((pipelines[family] / "unet/config.json").read_text())
    assert config.data.resolution == unet["sample_size"] * 2  # the tiny VAE halves once
    assert config.log.samples_every == config.train.checkpoint_every == config.train.max_steps // 10
    assert config.log.prompts
    assert "this configuration fits" in plan(json.loads(config.dumps()), "--gpu", "12GB")
    assert said.splitlines()[-1] == "next: fdpo data check --config fdpo.json"


@pytest.mark.parametrize("here", [True, False])
def test_a_flux_of_few_steps_is_told_no_guidance(init, plan, pipelines, tmp_path, here):
    """Its resolution is the published one either way: a transformer takes any, and says none."""
    base = "black-forest-labs/FLUX.1-schnell"
    if here:
        base = str(shutil.copytree(pipelines["flux"], tmp_path / "base"))
        file = tmp_path / "base/transformer/config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"guidance_embeds": False}))
    _, config = init("--model", base, "--family", "flux", "--pairs", "p", "--gpu", "12GB")
    assert config.model.guidance is None
    assert (config.evaluate.sampling_steps, config.evaluate.guidance) == (4, 0)
    assert (config.log.sampling_steps, config.log.guidance) == (4, 0)
    assert config.data.resolution == 512
    assert "this configuration fits" in plan(json.loads(config.dumps()), "--gpu", "12GB")


def test_a_flux_that_was_distilled_keeps_its_guidance(init, pipelines):
    _, config = init("--model", str(pipelines["flux"]), "--pairs", "p", "--gpu", "12GB")
    assert (config.model.guidance, config.log.sampling_steps, config.data.resolution) == (3.5, 28, 512)


def test_every_flag_is_taken(init, pipelines):
    words = [
        "--model",
        str(pipelines["sd"]),
        "--pairs",
        "yuvalkirstain/pickapic_v2",
        "--card",
        "rtx3090",
        "--gpus",
        "3",
    ]
    said, config = init(*words, "--train", "full", "--host", "64GB", file="mine.json")
    assert config.train.output_dir == "runs/mine"
    assert "of 24 on each GPU" in said
    assert config.accumulation(3) * 3 * config.train.pairs_per_micro_batch == config.train.pairs_per_step == 132
    assert config.data.max_rows == 72000  # as published for Pick-a-Pic, and not for a few hundred pairs
    assert "is there already: pass --force" in refusal("mine.json", *words)
    init(*words, "--force", "--host", "64GB", file="mine.json")


def test_what_is_missing_or_wrong_is_one_sentence(init, pipelines, capsys):
    words = ["--model", "own/model", "--pairs", "p", "--gpu", "12GB"]
    assert refusal() == "fdpo init: there is nobody to ask: pass --model and --pairs and --gpu or --card"
    assert (
        refusal(*words)
        == "fdpo init: --family must be sd or sdxl or sd3 or flux or z_image: own/model is not here to say so"
    )
    assert "--family must be sd or sdxl or sd3 or flux or z_image" in refusal(*words, "--family", "imagen")
    assert "neither a folder nor a hub name" in refusal("--model", "nowhere", *words[2:], "--family", "sd")
    assert "pass --gpu or --card" in refusal(*words, "--card", "A100")
    here = ["--model", str(pipelines["sd"]), "--pairs", "p"]
    assert "model.family takes StableDiffusionXLPipeline" in refusal(*here, "--gpu", "12GB", "--family", "sdxl")
    assert "nothing fits: at the least it takes" in refusal(*here, "--gpu", "0.5GB")
    assert "of the host" in refusal(*here, "--gpu", "12GB", "--host", "1GB")
    z_image = ["--model", "own/model", "--pairs", "p", "--gpu", "80GB", "--family", "z_image"]
    assert "no published configuration trains all weights of z_image" in refusal(*z_image, "--train", "full")
    refusal("nowhere/x.json", *words)
    assert "nowhere does not exist" in capsys.readouterr().err


def test_the_family_of_published_models_is_known():
    assert [family_of(name) for name in (SDXL, SD15, SD35, FLUX, Z_IMAGE, "own/model")] == [
        *("sdxl", "sd", "sd3", "flux", "z_image", None)
    ]
    assert {family for family, _ in _RECIPES} == set(FAMILIES)


@pytest.mark.parametrize(
    ("model", "train", "gpu", "rung", "samples"),
    [
        (SD15, "lora", 8, None, True),
        (SD15, "full", 8, None, True),
        (SD15, "full", 80, None, True),
        pytest.param(SDXL, "lora", 12, None, True, marks=pytest.mark.slow),
        pytest.param(SDXL, "lora", 80, None, True, marks=pytest.mark.slow),
        pytest.param(SDXL, "full", 8, "D", True, marks=pytest.mark.slow),
        pytest.param(SDXL, "full", 12, "C", True, marks=pytest.mark.slow),
        pytest.param(SDXL, "full", 16, "B", True, marks=pytest.mark.slow),
        pytest.param(SDXL, "full", 24, None, True, marks=pytest.mark.slow),
        pytest.param(SDXL, "full", 80, None, True, marks=pytest.mark.slow),
        pytest.param(SDXL, "lora", 6, None, False, marks=pytest.mark.slow),
        (SD35, "lora", 24, None, True),
        pytest.param(FLUX, "lora", 12, None, True, marks=pytest.mark.slow),
        pytest.param(Z_IMAGE, "lora", 12, None, True, marks=pytest.mark.slow),
        pytest.param(SD35, "full", 24, None, True, marks=pytest.mark.slow),
    ],
)
def test_what_is_written_fits_the_card(init, plan, model, train, gpu, rung, samples):
    said, config = init("--model", model, "--pairs", "pairs", "--gpu", f"{gpu}GB", "--train", train)
    assert "this configuration fits" in plan(json.loads(config.dumps()), "--gpu", f"{gpu}GB")
    assert (f"to fit: rung {rung}:" in said) == bool(rung)
    assert bool(config.log.samples_every) == samples
    assert config.data.vae_dtype == ("fp16" if model == SDXL else "fp32")  # SDXL comes with a VAE that was made for it
    assert config.train.checkpoint_every <= config.train.max_steps // 10
    if train == "full":  # rates go with the pairs of a step: 1e-8 each, and 7e-8 for one
        each = {16: 1.6e-7, 1: 7e-8}
        assert config.optimizer.lr == pytest.approx(each[config.train.pairs_per_step])


def test_somebody_at_a_terminal_is_asked(pipelines, tmp_path):
    terminal = Terminal(["fdpo", "init"], tmp_path)
    try:
        for question, answer in [
            ("hub name: ", "own/model"),
            ("its family: sd or sdxl or sd3 or flux or z_image: ", "sd"),
            ("hub data set: ", "pairs"),
            ("train: lora, or full [lora]: ", "neither"),
            ("train: lora, or full [lora]: ", ""),
            ("GPU, its memory or its name: ", "RTX 4091"),
            ("GPU, its memory or its name: ", "rtx 4090"),
        ]:
            terminal.wait(question)
            terminal.type(f"{answer}\n")
        terminal.wait("next: fdpo data check --config fdpo.json")
    finally:
        terminal.end()
    config = load(tmp_path / "fdpo.json")
    assert (config.model.base, config.model.family, config.model.train) == ("own/model", "sd", "lora")


def test_somebody_who_does_not_answer(tmp_path):
    terminal = Terminal(["fdpo", "init"], tmp_path)
    try:
        terminal.wait("hub name: ")
        terminal.type("\x04")
        terminal.wait("fdpo init: nothing was written, as there was no answer")
    finally:
        terminal.end()
