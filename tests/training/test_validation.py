"""Held-out pairs: which they are, that their figures are a model's own, and what follows from them."""

import json
from itertools import cycle
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from hypothesis import given
from hypothesis import strategies as st

from fdpo_fast import noise
from fdpo_fast.cache.held_out import held_out
from fdpo_fast.cache.open import caches_of
from fdpo_fast.config.errors import UserError
from fdpo_fast.config.load import load
from fdpo_fast.distributed import Rank
from fdpo_fast.training.records import read_records
from fdpo_fast.training.validation import Best
from tests.helpers.caches import ROWS
from tests.helpers.pictures import write
from tests.helpers.training import weights_in

FIGURES = ("loss", "accuracy", "margin", "delta_w", "delta_l", "steep")


@given(st.lists(st.sampled_from("abcdefgh"), min_size=2), st.floats(0.01, 0.99), st.integers(0, 99))
def test_held_out_captions_occur_nowhere_else(captions, share, seed):
    if len(set(captions)) == 1:
        with pytest.raises(UserError, match="have the same one: give validation a source of its own"):
            held_out(captions, share, seed)
        return
    held = held_out(captions, share, seed).tolist()
    inside = {caption for caption, out in zip(captions, held, strict=True) if out}
    outside = {caption for caption, out in zip(captions, held, strict=True) if not out}
    assert inside
    assert outside
    assert not inside & outside
    assert sum(held) <= max(share * len(captions), max(map(captions.count, inside)))
    backwards = held_out(captions[::-1], share, seed).tolist()[::-1]
    assert backwards == held


def test_another_seed_holds_out_others():
    captions = [str(number) for number in range(1000)]
    first, second = held_out(captions, 0.2, 0), held_out(captions, 0.2, 1)
    assert first.sum() == second.sum() == 200
    assert 20 < (first & second).sum() < 60


@pytest.fixture
def held(raw_config):
    """Hold a fifth of the embedded pairs out; look at them every two steps, on three draws each."""
    raw_config["data"]["validation"] = 0.2
    raw_config["train"] |= {"validate_every": 2, "validation_visits": 3}
    return raw_config


def looked(raw):
    return [record for record in read_records(Path(raw["train"]["output_dir"])) if "validation/accuracy" in record]


def data_of(raw, tmp_path):
    (tmp_path / "again.json").write_text(json.dumps(raw))
    prepared = caches_of(load(tmp_path / "again.json"), Rank(0, 1, torch.device("cpu"), lambda: None))
    return prepared.data, prepared.validation


def expected(raw, tmp_path):
    """The figures by float64 formulas, from the weights of base and export and the draws of every pair."""
    _, data = data_of(raw, tmp_path)
    base = data.family.denoiser(torch.float32)
    policy = UNet2DConditionModel.from_pretrained(Path(raw["train"]["output_dir"]) / "export", subfolder="unet")
    scheduler = data.family.schedule
    u = torch.zeros(len(data), 3, 2, dtype=torch.float64)
    for pair in range(len(data)):
        for visit in range(3):
            batch = data.batch(torch.tensor([pair]), torch.tensor([visit]))
            draws = noise.draws(data.seed, data.id[pair : pair + 1], torch.tensor([visit]))
            assert torch.equal(batch.draws, draws)
            step = noise.timesteps(draws, data.family.steps)
            e = noise.normals(draws, batch.latents[0].numel()).view(1, *batch.latents.shape[1:]).repeat(2, 1, 1, 1)
            noisy = scheduler.add_noise(batch.latents, e, step.repeat(2))
            text = batch.condition["prompt_embeds"]
            errors = [
                (model(noisy, step.repeat(2), text).sample.double() - e.double()).square().mean(dim=(1, 2, 3))
                for model in (policy, base)
            ]
            u[pair, visit] = -raw["loss"]["ratio_scale"] * (errors[0] - errors[1])
    link = u - torch.log((1 + u.exp()) / 2)  # of Jensen-Shannon
    margin = link[..., 0] - link[..., 1]
    values = {
        "loss": torch.nn.functional.softplus(-margin),
        "accuracy": (margin > 0).double(),
        "margin": margin,
        "delta_w": -u[..., 0] / raw["loss"]["ratio_scale"],
        "delta_l": -u[..., 1] / raw["loss"]["ratio_scale"],
        "steep": (1 / (1 + u.exp()) > 10 / 2).double().mean(-1),  # the slopes of that link: none is
    }
    return {name: value.mean(1) for name, value in values.items()}


def test_figures_are_those_of_the_weights(held, launch, tmp_path):
    launch(held)
    with torch.no_grad():
        values = expected(held, tmp_path)
    found = looked(held)
    assert [record["step"] for record in found] == [1, 3, 5]
    last, pairs = found[-1], len(values["loss"])
    assert last["validation/pairs"] == pairs > 1
    for name in FIGURES:
        mean, half = values[name].mean().item(), 1.96 * values[name].std().item() / pairs**0.5
        assert last[f"validation/{name}"] == pytest.approx(mean, rel=2e-3, abs=1e-8)
        assert last[f"validation/{name}_half_width"] == pytest.approx(half, rel=5e-3, abs=1e-8)
    bins = last["validation_bins"]
    assert sum(part["pairs"] for part in bins) == 3 * pairs
    for name in FIGURES:
        whole = sum(part["pairs"] * part[name] for part in bins) / (3 * pairs)
        assert last[f"validation/{name}"] == pytest.approx(whole, rel=1e-6, abs=1e-12)


def test_a_policy_that_does_not_move_stands_at_the_reference(held, launch, tmp_path):
    held["optimizer"]["lr"] = 0.0
    held["train"]["pairs_per_micro_batch"] = 4
    launch(held)
    for record in looked(held):
        assert {record[f"validation/{name}"] for name in ("margin", "delta_w", "delta_l")} == {0.0}
        assert record["validation/accuracy"] == 0.5
    data, validation = data_of(held, tmp_path)
    assert not set(data.captions) & set(validation.captions)
    assert not set(data.id.tolist()) & set(validation.id.tolist())
    report = json.loads((Path(held["train"]["output_dir"]) / "data.json").read_text())
    assert report["pairs"] == len(data)
    assert report["validation"]["pairs"] == len(validation)


def test_an_adapter_is_looked_at_beside_the_base(held, launch):
    held["model"] |= {"train": "lora", "lora": {"rank": 2}}
    held["reference"] = {}
    held["optimizer"]["lr"] = 0.0
    launch(held)
    assert all(record["validation/margin"] == 0 for record in looked(held))


@pytest.mark.parametrize(("stage", "ranks"), [(0, 1), *(pytest.param(s, 2, marks=pytest.mark.slow) for s in (1, 3))])
def test_an_average_is_what_is_looked_at(held, launch, stage, ranks):
    """One that stays at the reference has no margin, whatever the weights do, and they keep every bit."""
    held["optimizer"]["lr"] = 1e-3
    held["deepspeed"] = {"zero_optimization": {"stage": stage}}
    held["train"] |= {"ema_decay": 1 - 1e-12, "pairs_per_micro_batch": 2}
    held["log"] |= {"every": 1, "samples_every": 2, "prompts": ["a handwritten two"], "sampling_steps": 1}
    launch(held, ranks=ranks)
    for record in looked(held):
        assert abs(record["validation/margin"]) < 1e-9
    ours = read_records(Path(held["train"]["output_dir"]))
    assert abs(ours[-1]["margin"]) > 1e-3
    held["train"] |= {"output_dir": held["train"]["output_dir"] + "_alone", "ema_decay": None, "validate_every": 6}
    held["log"] |= {"samples_every": 0}
    launch(held, ranks=ranks)
    alone = read_records(Path(held["train"]["output_dir"]))
    assert [record["loss"] for record in ours] == [record["loss"] for record in alone]
    assert alone[-1]["validation/margin"] != 0


@pytest.mark.parametrize("stage", [0, pytest.param(3, marks=pytest.mark.slow)])
def test_ranks_look_together(held, launch, stage):
    held["deepspeed"] = {"zero_optimization": {"stage": stage}}
    held["train"]["pairs_per_micro_batch"] = 2
    launch(held)
    alone = looked(held)
    held["train"]["output_dir"] += "_ranks"
    launch(held, ranks=2)
    for ours, theirs in zip(looked(held), alone, strict=True):
        for name in FIGURES:
            assert ours[f"validation/{name}"] == pytest.approx(theirs[f"validation/{name}"], rel=1e-3, abs=1e-7)


def test_a_source_of_its_own(tiny_config, launch, tmp_path):
    source, other = write(tmp_path / "rows.parquet", ROWS), write(tmp_path / "others.parquet", ROWS[:3])
    raw = tiny_config("sd", source)
    raw["data"]["validation"] = str(other)
    raw["train"] |= {"validate_every": 6, "max_steps": 6}
    launch(raw)
    assert [record["validation/pairs"] for record in looked(raw)] == [3]
    report = json.loads((Path(raw["train"]["output_dir"]) / "data.json").read_text())
    assert report["pairs"] == len(ROWS)


@pytest.mark.parametrize("choice", ["validation_accuracy", "validation_loss"])
def test_the_best_is_kept_and_exported(held, launch, monkeypatch, choice):
    told = {1: 0.5, 3: 0.9, 5: 0.7}
    if choice == "validation_loss":
        told = {step: -value for step, value in told.items()}
    name = choice.replace("_", "/")
    pretend(monkeypatch, name, told)
    held["train"] |= {"keep_best": choice, "keep_checkpoints": 1, "checkpoint_every": 2}
    held["log"]["every"] = 1
    launch(held)
    folder = Path(held["train"]["output_dir"])
    assert sorted(path.name for path in (folder / "checkpoints").glob("step-*")) == ["step-000004", "step-000006"]
    best, last = weights_in(folder / "export-best"), weights_in(folder / "export")
    assert any(not torch.equal(best[key], last[key]) for key in best)
    held["train"] |= {"output_dir": str(folder) + "_short", "max_steps": 4}
    launch(held)
    short = weights_in(Path(held["train"]["output_dir"]) / "export")
    assert all(torch.equal(best[key], short[key]) for key in best)


def pretend(monkeypatch, name, told):
    """Look at the pairs as ever, and say of one figure what is given, by step."""
    from fdpo_fast.training.validation import Validation

    own, steps = Validation.figures, cycle(sorted(told))
    monkeypatch.setattr(Validation, "figures", lambda *args: own(*args) | {name: told[next(steps)]})


def test_patience_ends_a_run_and_a_resumed_one(held, launch, monkeypatch):
    pretend(monkeypatch, "validation/accuracy", {0: 0.6, 1: 0.5, 2: 0.6, 3: 0.9})
    held["train"] |= {"validate_every": 1, "patience": 2, "max_steps": 6, "checkpoint_every": 5}
    said = launch(held)
    assert "2 validations without a better one: the best is behind step 1" in said.stdout + said.stderr
    folder = Path(held["train"]["output_dir"])
    assert [record["step"] for record in read_records(folder)] == [0, 1, 2]
    assert (folder / "checkpoints/latest").read_text().strip() == "step-000003"
    assert (folder / "export").is_dir()
    launch(held, "--resume")
    assert [record["step"] for record in read_records(folder)] == [0, 1, 2]


def test_a_resumed_run_looks_the_same(held, launch):
    held["train"] |= {"keep_best": "validation_margin", "checkpoint_every": 2}
    launch(held)
    whole = looked(held)
    held["train"] |= {"output_dir": held["train"]["output_dir"] + "_parts", "max_steps": 4}
    launch(held)
    held["train"]["max_steps"] = 6
    launch(held, "--resume")
    for ours, theirs in zip(looked(held), whole, strict=True):
        assert {key: ours[f"validation/{key}"] for key in FIGURES} == {
            key: theirs[f"validation/{key}"] for key in FIGURES
        }


def test_the_first_of_equal_ones_is_the_best():
    records = [{"step": step, "validation/accuracy": value} for step, value in enumerate((0.5, 0.7, 0.7, float("nan")))]
    best = Best(None, 2, records)
    assert (best.step, best.since) == (1, 2)
    assert best.over()
    assert not Best(None, 3, records).over()
    assert not Best(None, None, records).over()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"validate_every": 0}, "train.validate_every is 0: say when to look"),
        ({"validation": None}, r"train\.validate_every needs data\.validation"),
        ({"validation": None, "validate_every": 0, "keep_best": "validation_loss"}, r"train\.keep_best needs data"),
        ({"validation": None, "validate_every": 0, "patience": 3}, r"train\.patience needs data\.validation"),
        ({"validation": 1.0}, r"'data\.validation' must be a number > 0, < 1 or string"),
        ({"validation": "nowhere/here"}, "nowhere/here"),
        ({"validation": ""}, "data.validation"),
    ],
)
def test_what_does_not_go_together_is_told(held, command, changes, words):
    changes = dict(changes)
    if "validation" in changes:
        held["data"]["validation"] = changes.pop("validation")
    held["train"] |= changes
    with pytest.raises(SystemExit, match=words):
        command(held, "train")
