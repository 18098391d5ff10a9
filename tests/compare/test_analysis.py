"""What a grid of runs shows: fronts, volumes, differences, and the page that says so."""

import csv
import math
import re

import numpy as np
import pytest

from fdpo_fast.compare import crew
from fdpo_fast.compare.analysis import COLUMNS, Comparison, hypervolume
from fdpo_fast.compare.grid import losses, points
from fdpo_fast.config.errors import UserError
from fdpo_fast.config.load import load
from fdpo_fast.evaluate.sample import seed_of
from fdpo_fast.report.pages import sentences, write_comparison
from tests.helpers.comparison import CONFIG, comparison


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
    ("gain", "noise", "words"),
    [
        (0.2, 0.002, "support that Jensen-Shannon"),
        (-0.2, 0.002, "speak against"),
        (0.0, 0.1, "do not decide"),
        (0.001, 0.2, "do not decide"),
    ],
)
def test_the_sentence_follows_the_data(tmp_path, gain, noise, words):
    rng = np.random.default_rng(3)

    def place(kind, strength, seed):
        height = 0.5 + gain * (kind == "jensen_shannon") + noise * rng.normal()
        return (0.5 * strength, height / strength)

    text = " ".join(sentences(comparison(tmp_path, place, seeds=(0, 1, 2, 3, 4))))
    assert words in text
    assert "Pareto front" in text


@pytest.mark.parametrize(
    ("shift", "words"), [(0.1, "Alignments from 0.6000 to 1.0000 lie"), (2.0, "No alignment lies")]
)
def test_whether_the_curves_can_be_compared(tmp_path, shift, words):
    found = comparison(tmp_path, lambda kind, strength, seed: (strength / 2 + shift * (kind == "reverse_kl"), 0.5))
    write_comparison(found, tmp_path)
    assert words in (tmp_path / "report/report.md").read_text()


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


def test_the_page_holds_everything_it_shows(tmp_path):
    found = comparison(tmp_path, lambda kind, strength, seed: (0.4 * strength + 0.01 * seed, 0.9 / strength))
    write_comparison(found, tmp_path)
    report = tmp_path / "report"
    page = (report / "index.html").read_text()
    assert not re.search(r'(src|href)="(?!data:|#)', page)  # nothing is fetched
    assert page.count("<img") == len(list(report.glob("*.png")))
    with (report / "points.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert tuple(rows[0]) == COLUMNS
    assert len(rows) == 2 * 2 * 3
    assert float(rows[0]["win_rate"]) == 1.0
    assert "| base |" in (report / "report.md").read_text()


def test_every_run_has_its_own_strength_and_seed(tmp_path):
    config = load(CONFIG)
    found = list(points(config, losses(config, config.compare.divergences), tmp_path))
    compare_ = config.compare
    assert len({point.name for point in found}) == len(found)
    assert len(found) == len(compare_.divergences) * len(compare_.strengths) * len(compare_.seeds)
    for point in found:
        assert point.config.loss.beta == pytest.approx(config.loss.beta / point.strength)
        assert point.config.train.seed == point.seed
        assert point.config.reference == config.reference  # one cache for all


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ('compare.divergences=["nonsense"]', "compare.divergences 'nonsense'"),
        ("compare.alignment=clip", "compare.alignment 'clip' is not among the evaluated ones"),
        ("compare.diversity=lpips", "compare.diversity 'lpips' is not among"),
        ("evaluate.images_per_prompt=1", "at least two images"),
        ("evaluate.prompts=[]", "no captions to draw"),
        ("compare.seeds=[0, 0]", "has the run reverse_kl-strength0.01-seed0 twice"),
        ('compare.divergences=["jeffreys", "jeffreys"]', "twice"),
        ('evaluate.scorers=["fdpo_fast.digits:unseen", "fdpo_fast.digits:preference", "a.b:c"]', "No module named 'a'"),
        ("loss.type=hinge", "calibrated for loss.type 'sigmoid'"),
    ],
)
def test_mistakes_are_found_before_anything_runs(override, words):
    with pytest.raises(ValueError, match=words):
        crew.check(load(CONFIG, [override]))


def test_a_folder_keeps_its_comparison(tmp_path):
    config = load(CONFIG)
    crew.claim(tmp_path, config)
    crew.claim(tmp_path, config)
    with pytest.raises(UserError, match=r"another train.max_steps: 100 -> 7"):
        crew.claim(tmp_path, load(CONFIG, ["train.max_steps=7"]))


def test_what_is_measured_may_change_and_runs_may_come(tmp_path):
    crew.claim(tmp_path, load(CONFIG))
    changed = ["compare.seeds=[0, 1, 2, 3, 4]", "evaluate.resample=captions", "log.every=5", "compare.diversity=rmse"]
    crew.claim(tmp_path, load(CONFIG, changed))
    for fixed in ("compare.median_u=1.0", "compare.trial_steps=3", "loss.ratio_scale=100.0", "optimizer.lr=1e-6"):
        with pytest.raises(UserError, match="a comparison with another"):
            crew.claim(tmp_path, load(CONFIG, [fixed]))


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


def test_arrows_follow_the_gradient_of_the_loss():
    """What the field draws, by autograd: the loss falls along (weight h'(u_w), -weight h'(u_l))."""
    import torch

    loss = load(CONFIG).loss
    u = torch.tensor([-1.3, 0.7], dtype=torch.float64, requires_grad=True)
    link = loss.link()
    torch.nn.functional.softplus(-loss.beta * (link(u[:1]) - link(u[1:]))).sum().backward()
    weight = torch.sigmoid(-loss.beta * (link(u[:1]) - link(u[1:]))) * loss.beta
    pulls = torch.cat([weight * link.slope(u[:1]), -weight * link.slope(u[1:])])
    torch.testing.assert_close(pulls.detach(), -u.grad)


def test_seeds_follow_caption_and_number():
    assert seed_of(0, "a cat", 1) == seed_of(0, "a cat", 1)
    assert len({seed_of(s, p, k) for s in range(3) for p in ("a cat", "a dog") for k in range(4)}) == 24
    assert 0 <= seed_of(0, "a cat", 0) < 2**48
