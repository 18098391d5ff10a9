"""Divergences at equal drift, and what keys of the loss do to one: figures that are known, and tests by scipy."""

import numpy as np
import pytest
from scipy.stats import ttest_rel

from fdpo_fast.compare.analysis import Comparison
from fdpo_fast.compare.moved import at_equal_drift, effects
from fdpo_fast.report.comparison import write_comparison
from tests.helpers.comparison import comparison

KINDS = ("reverse_kl", "forward_kl", "jensen_shannon")
SLOPES = {"reverse_kl": 0.05, "forward_kl": 0.02, "jensen_shannon": 0.05}
WIDER = {"reverse_kl": 1.0, "forward_kl": 3.0, "jensen_shannon": 2.0}
"""Drift at strength 1; at 2 it is four times as much."""


def drift(kind, strength, seed):
    return WIDER[kind] * strength**2


def noise(kind, seed, size=0.01):
    return size * np.random.default_rng([KINDS.index(kind), seed]).normal()


def place(kind, strength, seed):
    """Alignment is in proportion to the drift, with the slope of divergence and seed."""
    return (SLOPES[kind] + noise(kind, seed)) * drift(kind, strength, seed), 1 - 0.1 * drift(kind, strength, seed)


def looked_at(tmp_path, seeds=(0, 1, 2, 3)):
    return comparison(
        tmp_path, place, KINDS, seeds, looks=lambda *at: (drift(*at), 1e-3 * at[1], 0.1 * (at[0] == "forward_kl"))
    )


def test_rows_have_what_the_last_look_found(tmp_path):
    for point, row in zip((found := looked_at(tmp_path)).points, found.rows, strict=True):
        assert row["drift"] == pytest.approx(drift(point.kind.name, point.strength, point.seed))
        assert row["winner"] == 1e-3 * point.strength
        assert row["steep"] == (0.1 if point.kind.name == "forward_kl" else 0.0)


def test_divergences_are_compared_at_drifts_that_all_reach(tmp_path):
    """All reach 4, reverse KL's at strength 2; curves in proportion to the drift are met exactly between strengths."""
    found = at_equal_drift(looked_at(tmp_path))
    assert [(at.kind, at.drift) for at in found] == [(kind, level) for level in (1.0, 2.0, 4.0) for kind in KINDS]
    for at in found:
        alignment = [(SLOPES[at.kind] + noise(at.kind, seed)) * at.drift for seed in range(4)]
        assert at.figures["alignment"].value == pytest.approx(np.mean(alignment))
        assert at.figures["diversity"].value == pytest.approx(1 - 0.1 * at.drift)
        by_other = {each.other: each for each in at.alignment}
        assert by_other.keys() == set(KINDS) - {at.kind}
        raw = {}
        for other, each in by_other.items():
            theirs = [(SLOPES[other] + noise(other, seed)) * at.drift for seed in range(4)]
            raw[other] = ttest_rel(alignment, theirs).pvalue
            assert each.gap.value == pytest.approx(np.mean(alignment) - np.mean(theirs))
        smallest = min(raw, key=raw.get)
        assert by_other[smallest].p == pytest.approx(min(1, 2 * raw[smallest]))


def test_nothing_is_compared_that_was_not_looked_at(tmp_path):
    found = looked_at(tmp_path)
    lacking = next(p for p in found.points if p.kind.name == "forward_kl")
    for point in found.points:
        if point.kind.name == "forward_kl":
            (tmp_path / "runs" / point.name / "metrics.jsonl").unlink()
    again = Comparison(found.config, found.points, found.report, found.galleries)
    assert {at.kind for at in at_equal_drift(again)} == {"reverse_kl", "jensen_shannon"}
    assert again.rows[again.points.index(lacking)]["drift"] is None
    write_comparison(again, tmp_path)  # what there is


@pytest.mark.parametrize(("nearer", "compared"), [(1, 2), (2, 0), (3, 0)])
def test_a_policy_that_came_nearer_has_no_drift_to_compare_at(tmp_path, nearer, compared):
    found = comparison(
        tmp_path, place, KINDS, looks=lambda *at: (drift(*at) * (-1 if at[0] in KINDS[:nearer] else 1), 0.0, 0.0)
    )
    assert {at.kind for at in at_equal_drift(found)} == set(KINDS[nearer : nearer + compared])
    write_comparison(found, tmp_path)
    assert ("has the most alignment" in (tmp_path / "report/report.md").read_text()) == (compared > 0)


MU = "reverse_kl, winner_preserving 0.5"
CHANGED = {"divergence": "reverse_kl", "loss": {"winner_preserving": 0.5}}


def test_what_a_key_of_the_loss_does_is_told_by_seed(tmp_path):
    """Seeds differ by far more than the settings do, and strengths too: only the pairing shows it."""
    rng = np.random.default_rng(0)
    of_seed = rng.normal(0, 1, 4)
    shift = {kind: rng.normal(0, 0.01, 4) for kind in ("reverse_kl", MU)}

    def at(kind, strength, seed):
        moved = shift[kind][seed] if kind in shift else 0.0
        return of_seed[seed] + strength + moved + 0.1 * (kind == MU), 0.5

    kinds = ("reverse_kl", CHANGED, "jensen_shannon")
    found = comparison(tmp_path, at, kinds, (0, 1, 2, 3), looks=lambda *at: (1.0, 1e-3 - 4e-4 * (at[0] == MU), 0.0))
    (effect,) = effects(found)
    assert (effect.kind, effect.plain) == (MU, "reverse_kl")
    gaps = 0.1 + shift[MU] - shift["reverse_kl"]
    assert effect.figures["alignment"].gap.value == pytest.approx(gaps.mean())
    assert effect.figures["alignment"].gap.low < gaps.mean() < effect.figures["alignment"].gap.high
    assert effect.figures["alignment"].p == pytest.approx(ttest_rel(gaps, 0 * gaps).pvalue)
    assert effect.figures["winner"].gap.value == pytest.approx(-4e-4)
    assert effect.figures["diversity"].gap.value == 0
    assert effect.figures["diversity"].p == 1
    write_comparison(found, tmp_path)
    (row,) = [line for line in (tmp_path / "report/report.md").read_text().splitlines() if line.count("[") == 5]
    cells = row.split("|")
    assert cells[1].strip() == "reverse KL, winner preserving 0.5"
    assert [cell.strip().endswith("*") for cell in cells[2:6]] == [True, True, False, True]
    assert cells[2].strip().startswith(f"{gaps.mean():+.3f} [")


def test_the_page_says_it(tmp_path):
    found = looked_at(tmp_path, seeds=(0, 1, 2, 3, 4))
    write_comparison(found, tmp_path)
    said = (tmp_path / "report/report.md").read_text()
    assert "At a drift of 4 " in said
    assert "significantly more than forward KL (by 0.1" in said
    assert (tmp_path / "report/drift.png").stat().st_size > 10_000
    assert "What other keys of the loss do" not in said
