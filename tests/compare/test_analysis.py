"""What a grid of runs shows: fronts, volumes, differences, and the page that says so."""

import math

import numpy as np
import pytest

from fdpo_fast.compare.analysis import Comparison, hypervolume
from fdpo_fast.report.comparison import write_comparison
from fdpo_fast.report.verdict import sentences
from tests.helpers.comparison import comparison


def test_hypervolume_is_the_area_of_a_union():
    assert hypervolume(np.array([[0.5, 0.5]])) == pytest.approx(0.25)
    assert hypervolume(np.array([[1.0, 0.2], [0.5, 0.6], [0.4, 0.4]])) == pytest.approx(0.2 + 0.5 * 0.4)
    rng = np.random.default_rng(0)
    places = rng.random((7, 2))
    dots = rng.random((200_000, 2))
    inside = (dots[:, None] <= places).all(axis=2).any(axis=1).mean()  # counted another way
    assert hypervolume(places) == pytest.approx(inside, abs=5e-3)


def test_the_front_holds_what_nothing_beats(tmp_path):
    places = {("reverse_kl", 1): (0.5, 0.5), ("reverse_kl", 2): (1.0, 0.1), ("jensen_shannon", 1): (0.6, 0.6)}
    found = comparison(tmp_path, lambda kind, strength, seed: places.get((kind, strength), (0.55, 0.1)))
    assert [(spot.kind, spot.strength) for spot in found.front] == [("jensen_shannon", 1), ("reverse_kl", 2)]


@pytest.mark.parametrize(
    ("gain", "noise", "first", "words"),
    [
        (0.2, 0.002, "The largest hypervolume has Jensen-Shannon", "support that Jensen-Shannon"),
        (-0.2, 0.002, "The largest hypervolume has reverse KL", "speak against"),
        (0.0, 0.1, "No divergence is ahead for sure", "do not decide"),
        (0.001, 0.2, "No divergence is ahead for sure", "do not decide"),
    ],
)
def test_the_sentence_follows_the_data(tmp_path, gain, noise, first, words):
    rng = np.random.default_rng(3)

    def place(kind, strength, seed):
        height = 0.5 + gain * (kind == "jensen_shannon") + noise * rng.normal()
        return (0.5 * strength, height / strength)

    text = " ".join(sentences(comparison(tmp_path, place, seeds=(0, 1, 2, 3, 4))))
    assert first in text
    assert words in text
    assert "Pareto front" in text


def test_p_values_are_paired_and_adjusted(tmp_path):
    """Seeds differ much more than divergences, so only the pairing shows it; Holm: the smallest p times two."""
    from scipy.stats import ttest_rel

    rng = np.random.default_rng(0)
    seeds, shift = {n: rng.normal(0, 0.2) for n in range(4)}, {"reverse_kl": 0, "jensen_shannon": 0.1, "jeffreys": 0.02}

    def place(kind, strength, seed):
        return (0.5, 0.5 + seeds[seed] + shift[kind] + rng.normal(0, 0.005)) if strength == 1 else (1.0, 0.0)

    found = comparison(tmp_path, place, kinds=tuple(shift), seeds=tuple(seeds))
    by_kind = {volume.kind: list(volume.by_seed.values()) for volume in found.volumes}
    raw = {k: ttest_rel(by_kind["jensen_shannon"], by_kind[k]).pvalue for k in ("reverse_kl", "jeffreys")}
    adjusted = {difference.other: difference.p for difference in found.differences("jensen_shannon")}
    smallest = min(raw, key=raw.get)
    assert adjusted[smallest] == pytest.approx(2 * raw[smallest])
    assert max(adjusted.values()) < 0.05


def test_a_single_seed_says_so(tmp_path):
    found = comparison(tmp_path, lambda kind, strength, seed: (0.4 * strength, 0.5), seeds=(0,))
    assert "fewer than two seeds" in " ".join(sentences(found))
    assert all(math.isnan(volume.area.low) for volume in found.volumes)


def test_a_part_of_the_grid_proves_nothing(tmp_path):
    """A curve that lacks its end covers less; nothing is concluded from that."""
    whole = comparison(tmp_path, lambda kind, strength, seed: (0.5 * strength, 0.5 / strength + 0.01 * seed))
    keep = [p for p in whole.points if (p.kind.name, p.strength) != ("jensen_shannon", 2)]
    part = Comparison(whole.config, keep, whole.report, whole.galleries)
    assert [volume.kind for volume in part.volumes] == ["reverse_kl"]
    text = " ".join(sentences(part))
    assert "3 of 12 runs are not finished, so nothing more is said" in text
    assert "balanc" not in text
    write_comparison(part, tmp_path)
    assert "9 of 12 runs" in (tmp_path / "report/report.md").read_text()


def test_what_the_base_beats_is_not_on_the_front(tmp_path):
    found = comparison(tmp_path, lambda kind, strength, seed: (-0.1 * strength, 0.5))
    assert found.front == []
    assert "by means over the seeds: none, as the base has more" in " ".join(sentences(found))


def test_a_seed_that_one_divergence_lacks_costs_that_pair_alone(tmp_path):
    kinds = ("reverse_kl", "jensen_shannon", "jeffreys")
    whole = comparison(tmp_path, lambda kind, strength, seed: (0.5 * strength, 0.5 + 0.01 * seed), kinds=kinds)
    keep = [p for p in whole.points if p.kind.name != "jeffreys" or p.seed == 0]
    part = Comparison(whole.config, keep, whole.report, whole.galleries)
    assert [difference.other for difference in part.differences("jensen_shannon")] == ["reverse_kl"]
