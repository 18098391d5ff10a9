"""What `fdpo plan` says: of mistakes, and of what to change."""

import json

import pytest
from test_plan import _plan


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["model.family=sd"], "is a StableDiffusionXLPipeline, this model.family takes StableDiffusionPipeline"),
        (["model.base=a b/c"], "is no name on the hub"),
        (["model.base=digits"], "is a StableDiffusionPipeline, this model.family takes StableDiffusionXLPipeline"),
        (['deepspeed.zero_optimization={"stage": 2, "offload_optimizer": "cpu"}'], "must be an object like"),
        (
            ['deepspeed.zero_optimization={"stage": 2, "reduce_bucket_size": "auto"}'],
            "'auto' is for other trainers",
        ),
        (
            ['deepspeed.zero_optimization={"stage": 3, "offload_param": {"device": "nvme"}}'],
            "offload_param to 'nvme' is not supported",
        ),
        (["data.resolution=33"], r"data\.resolution 33 is not a multiple of 4, .* take 36"),
        (["model.vae=/nowhere"], r"model\.vae '/nowhere' is neither a folder nor a hub name"),
        (
            ["model.train=lora", 'model.lora={"targets": ["to_k", "nothing"]}'],
            "no layer of the UNet is named 'nothing'",
        ),
        (["model.train=lora", 'model.lora={"targets": ["norm1"]}'], "'norm1' is a (LayerNorm|GroupNorm), not linear"),
    ],
)
def test_mistakes_get_a_sentence(command, tiny_config, tmp_path, words, sentence):
    overrides = [word for override in words for word in ("--set", override)]
    with pytest.raises(SystemExit, match=sentence):
        _plan(command, tiny_config("sdxl", tmp_path), *overrides)


def test_where_only_sample_grids_are_too_large(command, tiny_config, tmp_path):
    raw = tiny_config("sdxl", tmp_path / "not here")
    raw["model"]["compile"] = True  # which ZeRO-3 cannot
    raw["log"] |= {"samples_every": 2, "images_per_prompt": 100_000, "prompts": ["a cat"]}
    figures = json.loads(_plan(command, raw, "--json"))
    steps = figures["gpu_tensors_gib"] * 1.06 + 0.75
    assert 2 * steps < figures["gpu_total_gib"]
    text = _plan(command, raw, "--gpu", f"{2 * steps:.6f}GB")
    assert "its steps do; change" in text
    assert "for sample grids: lower log.images_per_prompt" in text


def test_a_folder_is_not_overwritten_by_a_file(command, tiny_config, tmp_path, capsys):
    kept = tmp_path / "results"
    kept.mkdir()
    (kept / "precious").touch()
    for name in (str(kept), "", "/dev/null"):
        with pytest.raises(SystemExit):
            _plan(command, tiny_config("sdxl", tmp_path), "--json", name)
        assert "is not the name of a file" in capsys.readouterr().err
    assert (kept / "precious").exists()
