"""What `fdpo plan` says: of mistakes, and of what to change."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fdpo_fast.memory.cards import CARDS, seconds


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["model.family=sd"], "is a StableDiffusionXLPipeline, this model.family takes StableDiffusionPipeline"),
        (["model.base=a b/c"], "neither a folder nor a hub name"),
        (["model.base=digits"], 'goes with model.family "sd", not "sdxl": set model.family'),
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
            "no layer of the denoiser is named 'nothing'",
        ),
        (["model.train=lora", 'model.lora={"targets": ["norm1"]}'], "'norm1' is a (LayerNorm|GroupNorm), not linear"),
    ],
)
def test_mistakes_get_a_sentence(plan, tiny_config, tmp_path, words, sentence):
    overrides = [word for override in words for word in ("--set", override)]
    with pytest.raises(SystemExit, match=sentence):
        plan(tiny_config("sdxl", tmp_path), *overrides)


def test_where_only_sample_grids_are_too_large(plan, tiny_config, tmp_path):
    raw = tiny_config("sdxl", tmp_path / "not here")
    raw["model"]["compile"] = True  # which ZeRO-3 cannot
    raw["log"] |= {"samples_every": 2, "images_per_prompt": 100_000, "prompts": ["a cat"]}
    figures = json.loads(plan(raw, "--json"))
    steps = (figures["gpu_tensors_gib"] + 0.35) * 1.07 + 1.7
    assert 2 * steps < figures["gpu_total_gib"]
    text = plan(raw, "--gpu", f"{2 * steps:.6f}GB")
    assert "its steps do; change" in text
    assert "for sample grids: lower log.images_per_prompt" in text


def test_a_folder_is_not_overwritten_by_a_file(plan, tiny_config, tmp_path, capsys):
    kept = tmp_path / "results"
    kept.mkdir()
    (kept / "precious").touch()
    for name in (str(kept), "", "/dev/null"):
        with pytest.raises(SystemExit):
            plan(tiny_config("sdxl", tmp_path), "--json", name)
        assert "is not the name of a file" in capsys.readouterr().err
    assert (kept / "precious").exists()


def test_what_comes_ready_is_not_encoded(plan, tiny_config, tmp_path):
    """By what the columns hold: images, latents alone, or latents and both embeddings of SDXL."""
    rng = np.random.default_rng(0)
    latents = [rng.normal(size=(4, 32, 32)).tolist() for _ in range(2)]
    row = {"caption": "a cat", "label_0": 1.0, "label_1": 0.0, "latents_0": latents[0], "latents_1": latents[1]}
    text = {"prompt_embeds": rng.normal(size=(77, 64)).tolist(), "pooled_prompt_embeds": rng.normal(size=32).tolist()}
    found = {}
    for name, columns in (
        ("latents", row),
        ("all", row | text),
        ("one", row | {"prompt_embeds": text["prompt_embeds"]}),
    ):
        pq.write_table(pa.Table.from_pylist([columns] * 2), tmp_path / f"{name}.parquet")
        found[name] = _phases(plan, tiny_config("sdxl", tmp_path / f"{name}.parquet"))
    raw = tiny_config("sdxl", "owner/name")
    raw["data"]["max_rows"] = 10
    found["images"] = _phases(plan, raw)
    raw["data"]["format"] = "latents"  # somewhere else, so its columns are not known
    found["elsewhere"] = _phases(plan, raw)
    encoded = {name: {p for p in phases if p in ("caching images", "caching text")} for name, phases in found.items()}
    text_alone = {"caching text"}
    assert encoded == {
        "images": {"caching images", "caching text"},
        "latents": text_alone,
        "one": text_alone,
        "elsewhere": text_alone,
        "all": set(),
    }


def _phases(plan, raw):
    return json.loads(plan(raw, "--json"))["phases"]


def test_seconds_are_those_of_published_utilisation(plan, tiny_config, tmp_path):
    """Recomputation takes time in proportion to its FLOPs; a card without a published figure gets no estimate."""
    raw = tiny_config("sdxl", tmp_path / "pairs")
    found = {}
    for name in ("off", "full"):
        raw["model"]["gradient_checkpointing"] = name
        found[name] = json.loads(plan(raw, "--json"))["seconds_a_pair"]
    slower = found["full"]["A100"]["from"] / found["off"]["A100"]["from"]
    assert 1.1 < slower < 4 / 3 + 0.01  # at most a forward again, to a forward and backward of three
    found = found["full"]
    assert found.keys() == {name for name, card in CARDS.items() if card.mfu}
    assert found["A100"]["from"] / found["H100"]["from"] == pytest.approx(0.32 * 989 / (0.287 * 312), rel=0.01)
    assert all(entry["measured_by"] for entry in found.values())
    text = plan(raw, "--card", "RTX 3090")
    assert "no utilisation of a RTX 3090 has been published" in text
    assert "this configuration fits" in text  # 24 GB are taken from the card
    text = plan(raw, "--card", "H100")
    assert "not measured by us: H100" in text
    assert "A100" not in text


def test_cards_are_what_their_makers_and_others_say():
    fast, slow = seconds(CARDS["H100"], 41.2e12, 51.7e12)
    assert (fast, slow) == (pytest.approx(51.7 / (0.32 * 989)), pytest.approx(51.7 / (0.195 * 989)))
    assert seconds(CARDS["L40S"], 1.0, 1.0) is None
    assert all(0 < card.mfu[0] <= card.mfu[1] < 0.45 and card.source for card in CARDS.values() if card.mfu)
