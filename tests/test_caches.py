"""The caches: what they count, what a batch depends on, and what a kill costs."""

import pytest
import torch
from conftest import RECIPE
from test_pickapic import BLUE, RED, write

from fdpo_fast import config
from fdpo_fast.data import shards
from fdpo_fast.data.caches import Rank, TrainingSet, describe, predict
from fdpo_fast.data.pickapic import PickAPic
from fdpo_fast.data.shards import Shards
from fdpo_fast.models import family as load_family

RANK = Rank(0, 1, torch.device("cpu"), lambda: None)


@pytest.fixture
def training_set(raw_config, write_config, embedded_folder, tmp_path):
    """Make a TrainingSet from rows (caption, jpg_0, jpg_1, label_0), or from the embedded pairs."""
    model = load_family("sd", str(embedded_folder / "pipeline"))

    def make(rows=None, *overrides):
        path = embedded_folder / "pairs.parquet" if rows is None else write(tmp_path / "rows.parquet", rows)
        settings = config.load(write_config(raw_config), [f"data.cache_dir={tmp_path / 'cache'}", *overrides])
        return settings, model, TrainingSet(settings, model, RANK, PickAPic(str(path), settings.data.ties))

    return make


def test_refused_rows_are_counted_and_named(training_set):
    rows = [("a", RED, BLUE, 1.0), ("b", RED[:50], BLUE, 1.0), ("c", RED, BLUE, 0.5), ("d", BLUE, RED, 0.0)] * 6
    _, _, data = training_set(rows)
    assert len(data) == 12
    assert (data.report["rows"], data.report["pairs"], data.report["ties_dropped"]) == (24, 12, 6)
    assert data.report["refused"][0] == {"place": "rows.parquet row 1", "reason": "an image does not decode"}
    assert "refused: 6 x an image does not decode, first at rows.parquet row 1" in describe(data.report)


def test_no_pair_left_is_an_error(training_set):
    with pytest.raises(ValueError, match=r"no pair to train on: 2 rows, 0 pairs, 1 ties dropped, refused: 1 x"):
        training_set([("a", RED, BLUE, 0.5), ("b", b"", BLUE, 1.0)])


def test_both_sides_share_timestep_noise_and_caption(training_set):
    _, _, data = training_set()
    batch = data.batch(torch.tensor([3, 0, 17]), torch.tensor([0, 1, 0]))
    for value in (batch.noise, batch.timesteps, *batch.condition.values()):
        preferred, dispreferred = value.chunk(2)
        assert torch.equal(preferred, dispreferred)
    preferred, dispreferred = batch.latents.chunk(2)
    assert not torch.equal(preferred, dispreferred)
    assert batch.latents.std().item() == pytest.approx(1, abs=0.5)  # scaled


def test_a_visit_looks_the_same_in_any_batch(training_set):
    _, _, data = training_set()
    many = data.batch(torch.arange(8), torch.tensor([0, 1] * 4))
    alone = data.batch(torch.tensor([5]), torch.tensor([1]))
    for ours, theirs in ((alone.noise, many.noise), (alone.timesteps, many.timesteps), (alone.latents, many.latents)):
        assert torch.equal(ours, theirs[[5, 13]])
    assert torch.equal(alone.condition["context"], many.condition["context"][[5, 13]])


def test_captions_drop_at_the_rate_asked_for(training_set):
    _, _, data = training_set(None, "data.caption_dropout=0.5")
    empty = data.text.rows("context", torch.tensor([data.empty_caption]))
    dropped = [
        (data.batch(torch.arange(30), torch.full((30,), visit)).condition["context"][:30] == empty).flatten(1).all(1)
        for visit in range(20)
    ]
    assert 0.4 < torch.cat(dropped).float().mean().item() < 0.6


def test_reference_errors_are_those_of_the_draws(training_set):
    settings, model, data = training_set()
    data.cache_reference(settings, model, RANK, lambda: model.denoiser(torch.float32))
    positions, visits = torch.tensor([2, 20, 29]), torch.tensor([1, 0, 1])
    batch = data.batch(positions, visits)
    with torch.no_grad():
        pred, target = predict(model, model.denoiser(torch.float32).eval(), batch)
    want = (pred.double() - target.double()).square().mean(dim=(1, 2, 3))
    assert batch.ref_error.dtype == torch.float64
    torch.testing.assert_close(batch.ref_error, want, rtol=1e-5, atol=0)


@pytest.mark.parametrize("override", ["train.seed=1", "data.caption_dropout=0.3", "reference.visits=3"])
def test_another_draw_is_another_reference_cache(training_set, tmp_path, override):
    for overrides in ((), (override,), ("loss.beta=9.0", "loss.divergence=jeffreys", "optimizer.lr=1.0")):
        settings, model, data = training_set(None, *overrides)
        data.cache_reference(settings, model, RANK, lambda model=model: model.denoiser(torch.float32))
    kinds = [path.name.split("-")[0] for path in (tmp_path / "cache").iterdir()]
    assert (kinds.count("reference"), kinds.count("latents"), kinds.count("text")) == (2, 1, 1)


def test_other_labels_are_another_reference_cache(training_set, tmp_path):
    for label in (1.0, 0.0):
        settings, model, data = training_set([("a", RED, BLUE, label)] * 3)
        data.cache_reference(settings, model, RANK, lambda model=model: model.denoiser(torch.float32))
    assert len(list((tmp_path / "cache").glob("reference-*"))) == 2


def test_a_killed_build_keeps_its_whole_shards(tmp_path):
    made = []

    def make(shard, dies_at=None):
        if shard == dies_at:
            raise KeyboardInterrupt
        made.append(shard)
        return {"x": torch.full((2, 3), float(shard))}, {}

    with pytest.raises(KeyboardInterrupt):
        shards.build(tmp_path, "kind", {"a": 1}, 4, lambda shard: make(shard, dies_at=2), 0, 1)
    folder = shards.build(tmp_path, "kind", {"a": 1}, 4, make, 0, 1)
    assert made == [0, 1, 2, 3]
    rows = Shards(folder)
    assert len(rows) == 8
    assert rows.rows("x", torch.tensor([7, 0, 3]))[:, 0].tolist() == [3, 0, 1]
    assert shards.build(tmp_path, "kind", {"a": 2}, 0, make, 0, 1) != folder


def test_ranks_share_the_work(tmp_path):
    made = {rank: [] for rank in range(3)}
    for rank, shards_made in made.items():

        def make(shard, shards_made=shards_made):
            shards_made.append(shard)
            return {"x": torch.zeros(1)}, {}

        shards.build(tmp_path, "kind", {}, 7, make, rank, 3)
    assert sorted(shard for part in made.values() for shard in part) == list(range(7))
    assert RECIPE["pairs"] > 16  # the embedded pairs span two shards of 16 rows
