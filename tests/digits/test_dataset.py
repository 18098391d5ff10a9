"""The embedded default: what judges, what is stored, and that a kill costs little."""

import json

import pyarrow.parquet as pq
import pytest
import torch

from fdpo_fast.config.digits import DigitsRecipe
from fdpo_fast.data.decode import decode
from fdpo_fast.data.readers.pickapic import SCHEMA, PickAPic
from fdpo_fast.digits import dataset, pipeline
from fdpo_fast.digits.demo import diversity, wins
from tests.helpers import RECIPE


@pytest.mark.parametrize(("judge", "other_half"), [("judge", slice(900, None)), ("unseen", slice(0, 900))])
def test_classifiers_read_scans_they_have_not_seen(judge, other_half):
    images, labels = dataset.scans()
    right = dataset.read_digits(images[other_half], judge) == labels[other_half]
    assert right.float().mean() > 0.9


def test_the_rule_wants_the_right_digit_and_a_bold_stroke():
    images, labels = dataset.scans()
    recipe = DigitsRecipe(correct_weight=1.0, stroke_weight=4.0)
    seven = images[labels == 7][:1]
    right, wrong, bold = (
        dataset.score(image, torch.tensor([label]), recipe).item()
        for image, label in ((seven, 7), (seven, 2), ((seven * 1.3).clamp(max=1), 7))
    )
    assert right == pytest.approx(wrong + 1)
    assert bold > right


def test_pairs_are_in_pick_a_pics_schema(embedded_folder):
    path = embedded_folder / "pairs.parquet"
    table = pq.read_table(path)
    assert table.schema.equals(SCHEMA)
    assert len(table) == RECIPE["pairs"]
    pairs = list(PickAPic(str(path)).read(0, len(table)))
    assert {pair.caption for pair in pairs} == set(dataset.CAPTIONS)
    assert all(decode(pair.preferred.read(), 1).size == (32, 32) for pair in pairs)


def test_training_goes_on_where_it_was_killed(tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "CHECKPOINT", 2)

    def fit(folder, dies_at=None):
        torch.manual_seed(0)
        model = torch.nn.Linear(3, 3)
        calls = []

        def loss(generator):
            calls.append(1)
            if len(calls) == dies_at:
                raise KeyboardInterrupt
            return model(torch.randn(4, 3, generator=generator)).square().mean()

        pipeline._fit("x", folder, model, loss, steps=7, lr=0.1, seed=3)
        return model.weight

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    whole.mkdir()
    broken.mkdir()
    with pytest.raises(KeyboardInterrupt):
        fit(broken, dies_at=6)
    assert torch.equal(fit(broken), fit(whole))


def test_a_finished_folder_is_not_made_again(embedded_folder, cache_dir):
    before = (embedded_folder / "pairs.parquet").stat().st_mtime_ns
    assert dataset.embedded("digits", DigitsRecipe(**RECIPE), cache_dir) == embedded_folder
    assert (embedded_folder / "pairs.parquet").stat().st_mtime_ns == before
    assert json.loads((embedded_folder / "recipe.json").read_text())["pairs"] == RECIPE["pairs"]


def test_diversity_and_wins_by_hand():
    images = torch.zeros(4, 1, 2, 2)
    images[1], images[3] = 1, 0.5
    labels = torch.tensor([0, 0, 1, 1])
    assert diversity(images, labels) == pytest.approx((1 + 0.5) / 2)
    base = dataset.scans()[0][:4].expand(-1, 3, -1, -1)
    labels = dataset.scans()[1][:4]
    recipe = DigitsRecipe(correct_weight=0.0)
    after = torch.stack([base[0], base[1] * 0.5, (base[2] * 1.5).clamp(max=1), base[3]])
    won = wins(base, after, labels, recipe)
    assert won.value == 0.5  # 0.5, 0, 1, 0.5
    assert won.low != won.low  # one image a caption: nothing to draw from
