"""The states of a run: each is seen at its threshold and not below it, in its own records and in no healthy ones."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fdpo_fast.training import states
from fdpo_fast.training.states import STATES, windows
from fdpo_fast.training.warnings import Watch
from tests.helpers.curves import EVERY, configured, records

NEAREST = ("optimizer.rounding=nearest",)
TIGHT = {"margin__q05": -0.04, "margin__q95": 0.04}


def said(found, *changes):
    """The states that records are in, by the name of the function, with their sentences."""
    config = configured(*changes)
    return {state.__name__: words for state in STATES if (words := state(windows(found), config))}


def after(step, before, then):
    return lambda at: before if at < step else then


def test_a_healthy_run_is_in_no_state():
    for steps in (1, 9, 10, 50, 200, 2000):
        assert said(records(steps)) == {}
    assert said(records(200), *NEAREST) == {}


CASES = {
    "loss": ("diverging", {"loss": 1.21 * math.log(2)}, {"loss": 1.19 * math.log(2)}, ()),
    "ipo": ("diverging", {"loss": 0.31}, {"loss": 0.29}, ("loss.type=ipo",)),
    "hinge": ("diverging", {"loss": 1.21}, {"loss": 1.19}, ("loss.type=hinge",)),
    "margin": ("diverging", {"loss": 2.56}, {"loss": 2.54}, ("loss.margin=2",)),  # of log(1 + e^2)
    "sft": (
        "diverging",
        {"loss": 5 + 1.21 * math.log(2), "error_w": 0.1},
        {"loss": 5 + 1.19 * math.log(2), "error_w": 0.1},
        ("loss.sft_weight=50",),
    ),
    "grad_norm": ("diverging", {"grad_norm": after(160, 1.0, 10.5)}, {"grad_norm": after(160, 1.0, 9.5)}, ()),
    "skipped": ("skipping", {"skipped": 1}, {"skipped": 0}, ()),
    "lost": ("standing_still", {"optimizer__lost": 0.5}, {"optimizer__lost": 0.49}, NEAREST),
    "noise": ("standing_still", {"optimizer__noise": 12.3}, {"optimizer__noise": 12.2}, ()),  # of 150 steps
    "come through": ("standing_still", {"optimizer__lost": 0.9934}, {"optimizer__lost": 0.9933}, ()),
    "chance": (
        "not_moving",
        {**TIGHT, "accuracy": 0.52},
        {**TIGHT, "margin__q95": 0.051, "accuracy": 0.52},
        (),
    ),
    "sign": ("not_moving", {**TIGHT, "accuracy": 0.7}, {**TIGHT, "margin__q05": -0.051, "accuracy": 0.7}, ()),
    # windows begin above the reference
    "forgotten": (
        "winner_forgotten",
        {"delta_w": lambda at: 1e-4 * (at - 119)},
        {"delta_w": lambda at: 1e-4 * (at - 126)},
        (),
    ),
    "coming down": (
        "winner_forgotten",
        {"delta_w": after(160, 1e-2, 0.91e-2)},
        {"delta_w": after(160, 1e-2, 0.89e-2)},
        (),
    ),
    # a log-ratio of -5 at ratio_scale 200
    "less likely": (
        "winner_forgotten",
        {"delta_w": 0.0251, "error_w": 1.0},
        {"delta_w": 0.0249, "error_w": 1.0},
        (),
    ),
    # a tenth of the reference's, where that of the policy is 0.055
    "worse by a tenth": (
        "winner_forgotten",
        {"delta_w": 0.00501, "error_w": 0.055},
        {"delta_w": 0.00499, "error_w": 0.055},
        ("loss.ratio_scale=1",),
    ),
    # the half width of training's accuracy is 0.0237, so that of the difference is 0.0553
    "apart": (
        "memorising",
        {"accuracy": 0.75, "validation__accuracy": 0.594},
        {"accuracy": 0.75, "validation__accuracy": 0.596},
        (),
    ),
    "falling": (
        "memorising",
        {"validation__accuracy": after(100, 0.75, 0.69)},
        {"validation__accuracy": after(100, 0.75, 0.71)},
        (),
    ),
    "saturated": ("saturated", {"saturated": after(160, 0.1, 0.51)}, {"saturated": after(160, 0.1, 0.49)}, ()),
}


@pytest.mark.parametrize("name", CASES)
def test_a_state_is_seen_at_its_threshold(name):
    state, above, below, changes = CASES[name]
    assert list(said(records(**above), *changes)) == [state]
    assert said(records(**below), *changes) == {}


def test_sentences_name_what_to_change():
    for state, above, _, changes in CASES.values():
        words = said(records(**above), *changes)[state]
        keys = {"optimizer.lr", "loss.beta", "loss.ratio_scale", "optimizer.rounding", "optimizer.weights"}
        assert any(key in words for key in keys), words
        assert "nan" not in words
        assert not words.endswith(".")


def test_what_stands_still_is_not_called_not_moving_too():
    figures = {**TIGHT, "accuracy": 0.5, "movement": 0.0, "optimizer__lost": 1.0}
    assert list(said(records(**figures), *NEAREST)) == ["standing_still"]
    figures["optimizer__lost"] = 0.0
    for accuracy in (0.5, 0.7):  # tiny margins may have their signs right
        words = said(records(**{**figures, "accuracy": accuracy}))["not_moving"]
        assert "the weights have moved by 0e+00 of their norm" in words
        assert "raise optimizer.lr (1e-05)" in words
        assert "ratio_scale" not in words
    assert "loss.ratio_scale (200)" in said(records(**{**figures, "movement": None}))["not_moving"]
    words = said(records(**{**figures, "delta_w": -1.01 / 200}))["not_moving"]
    assert "u is 1 on preferred images" in words
    assert "lower loss.ratio_scale (200)" in words
    words = said(records(**{**figures, "movement": 1e-3, "accuracy": 0.7}))["not_moving"]
    assert "70% of the pairs are told apart" in words
    assert "optimizer.lr" not in words


def test_the_warm_up_is_waited_for():
    figures = {**TIGHT, "accuracy": 0.5, "optimizer__lost": 1.0}
    rising = {"lr": lambda step: 1e-8 * min(150, step)}
    assert "not_moving" in said(records(**{**figures, "optimizer__lost": 0.0}))
    assert "not_moving" not in said(records(**figures, **rising))
    late = {"optimizer__lost": lambda step: 0.9 if step < 150 else 0.1}
    assert "standing_still" not in said(records(**{**figures, **late}, **rising), *NEAREST)


def test_the_end_of_a_schedule_is_no_standing_still():
    """Where the rate falls to 0, updates do: what counts is the run as a whole."""
    figures = {"optimizer__lost": after(150, 0.1, 1.0), "optimizer__noise": after(150, 0.5, 1e6)}
    assert said(records(**figures), *NEAREST) == {}


@given(st.integers(1, 25), st.lists(st.integers(1, 40), min_size=1, max_size=12))
def test_windows_are_the_same_however_far_a_run_is(every, flushes):
    """The trainer, which keeps no records, and the page, which reads all, see a run in the same windows."""
    found = []
    watch, seen = Watch(configured(), []), []
    probe = lambda windows, config: seen.append(list(windows))  # noqa: E731
    for count in flushes:
        new = [{"step": len(found) + at, "loss": float(len(found) + at), "pairs": every} for at in range(count)]
        new[-1]["bins"] = []
        found += new
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("fdpo_fast.training.warnings.STATES", (probe,))
            list(watch(new))
        assert seen[-1] == windows(found)
        assert sum(each["steps"] for each in seen[-1]) == len(found)
        assert all(each["steps"] >= states.LEAST for each in seen[-1][: -1 if len(found) < states.LEAST else None])


def test_windows_are_means_of_what_is_finite():
    (one,) = windows([{"step": 0, "loss": 1.0, "grad_norm": math.nan}, {"step": 1, "loss": 3.0, "skipped": 2}])
    assert one == {"step": 1, "steps": 2, "loss": 2.0, "pairs": 0, "skipped": 2}


NAMES = [*windows(records(10))[0], "skipped"]


@given(st.lists(st.dictionaries(st.sampled_from(NAMES), st.floats() | st.integers(-9, 9)), min_size=1, max_size=60))
def test_records_that_lack_figures_end_in_no_error(found):
    for step, each in enumerate(found):
        each["step"] = step
        if step % 3 == 2:
            each["bins"] = []
    said(found)


def test_each_is_told_once_and_skipped_steps_whenever_there_are_more():
    found = records(200, saturated=0.9, skipped=lambda step: step // 70)
    watch = Watch(configured(), [])
    told = [words for first in range(0, 200, EVERY) for words in watch(found[first : first + EVERY])]
    assert [words.split(": ")[0] for words in told] == ["step 9", "step 79", "step 149"]
    assert told[0].endswith(said(found)["saturated"])
    assert "2 steps skipped so far" in told[2]


def test_a_run_that_is_gone_on_with_remembers(tmp_path):
    found = records(200, delta_w=lambda step: 1e-4 * (step + 1))
    watch = Watch(configured(), found[:100])
    assert any("preferred images" in words for words in watch(found[100:110]))
