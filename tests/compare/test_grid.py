"""The runs of a grid, and what is refused before any of them starts."""

import pytest

from fdpo_fast.compare import crew
from fdpo_fast.compare.grid import losses, points
from fdpo_fast.config.errors import UserError
from fdpo_fast.config.load import load
from tests.helpers import ROOT
from tests.helpers.comparison import CONFIG


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


def test_a_divergence_may_have_other_keys_of_the_loss(tmp_path):
    config = load(ROOT / "configs/digits_winner.json")
    found = list(points(config, losses(config, config.compare.divergences), tmp_path))
    assert len({point.name for point in found}) == len(found) == 8 * 3 * 3
    assert found[3].name == "reverse_kl-winner_preserving0.0-strength0.3-seed0"
    assert {point.config.loss.winner_preserving for point in found} == {None, 0.0, 0.5, 0.9}
    assert {point.config.loss.divergence for point in found} == {"reverse_kl", "jensen_shannon"}


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
        (
            'compare.divergences=[{"divergence": "jeffreys", "loss": {"beta": 2}}]',
            "has loss.beta, which the comparison",
        ),
        ('compare.divergences=[{"divergence": "jeffreys", "loss": {"nu": 2}}]', "jeffreys, nu 2': unknown key 'nu'"),
    ],
)
def test_mistakes_are_found_before_anything_runs(override, words):
    with pytest.raises(ValueError, match=words):
        crew.check(load(CONFIG, [override]))


def test_a_folder_keeps_its_comparison(tmp_path):
    config = load(CONFIG)
    crew.claim(tmp_path, load(CONFIG, ["train.max_steps=9"]))  # nothing has come of that
    crew.claim(tmp_path, config)
    (tmp_path / "calibration.json").touch()
    crew.claim(tmp_path, config)
    with pytest.raises(UserError, match=r"another train.max_steps: 100 -> 7"):
        crew.claim(tmp_path, load(CONFIG, ["train.max_steps=7"]))


def test_what_is_measured_may_change_and_runs_may_come(tmp_path):
    crew.claim(tmp_path, load(CONFIG))
    (tmp_path / "calibration.json").touch()
    changed = ["compare.seeds=[0, 1, 2, 3, 4]", "evaluate.resample=captions", "log.every=5", "compare.diversity=rmse"]
    crew.claim(tmp_path, load(CONFIG, changed))
    for fixed in ("compare.median_u=1.0", "compare.trial_steps=3", "loss.ratio_scale=100.0", "optimizer.lr=1e-6"):
        with pytest.raises(UserError, match="a comparison with another"):
            crew.claim(tmp_path, load(CONFIG, [fixed]))
