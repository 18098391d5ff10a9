"""The sheet of curves and what is said above it: what a run has, and the states that it is in."""

import json

import pytest
from matplotlib.figure import Figure

from fdpo_fast.report import verdict
from fdpo_fast.report.curves import SHEET, sheet
from fdpo_fast.report.run import Run
from fdpo_fast.report.show import parts, report
from tests.helpers.curves import configured, records
from tests.helpers.run import written


@pytest.fixture
def folder(tmp_path):
    """Make the folder of a run with given records and changes of the configuration."""

    def make(found, *changes):
        (tmp_path / "config.json").write_text(configured("train.max_steps=5000", *changes).dumps())
        (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in found))
        return tmp_path

    return make


def first(folder):
    return next(iter(parts(Run(folder))))


def test_what_is_wrong_stands_on_top_of_the_page(folder):
    run = folder(records(200, saturated=0.8, delta_w=lambda step: 1e-4 * (step + 1)), "data.validation=0.2",
                 "train.validate_every=10")  # fmt: skip
    assert first(run).title == "What the curves say"
    forgotten, saturated = first(run).text
    assert forgotten.startswith("The error on preferred images is 56% above the reference's")
    assert saturated.startswith("80% of the pairs are saturated")
    report(run)
    page = (run / "report.html").read_text()
    assert page.index("of the pairs are saturated") < page.index("<h2>Where it stands")


def test_of_a_healthy_run_nothing_is_said_but_that(folder):
    said = first(folder(records(200), "data.validation=0.2", "train.validate_every=10")).text
    assert len(said) == 1
    assert said[0].startswith("Nothing shows")
    assert "`data.validation`" in first(folder(records(200))).text[1]


def test_records_of_older_versions_have_a_page(folder):
    new = [name for name in records(10)[-1] if "/" in name or name in ("movement", "gradient_weight", "saturated")]
    old = [{key: value for key, value in record.items() if key not in new} for record in records(40)]
    run = folder(old)
    assert verdict.states(Run(run)) == []
    titles = [panel.title for panel in sheet(Run(run)).panels]
    assert titles == ["Loss", "Errors", "Implicit accuracy", "Margin", "Gradient norm", "Learning rate"]
    report(run)


def test_a_run_shows_what_it_has(tmp_path, folder):
    whole = Run(written(tmp_path / "whole"))
    titles = [panel.title for panel in sheet(whole).panels]
    assert titles == [curve.word.name for curve in SHEET if curve.keys != ("loser_scale",)]
    assert "Scale on dispreferred images" in {
        panel.title for panel in sheet(Run(folder([{"step": 0, "loser_scale": 0.5}]))).panels
    }


def lines(run, name):
    """What a curve draws: axes with their lines by label."""
    (curve,) = (curve for curve in SHEET if curve.word.name == name)
    axes = Figure().subplots()
    curve.draw(run, axes)
    return axes, {line.get_label(): line for line in axes.lines}


def test_training_and_held_out_are_told_apart(tmp_path):
    run = Run(written(tmp_path / "run"))
    axes, found = lines(run, "Implicit accuracy")
    assert {"training", "held out, 95 %"} <= found.keys()
    held = found["held out, 95 %"]
    assert list(held.get_xdata()) == [step for step in range(1, 41) if step % 4 == 0]
    (band,) = axes.collections
    low, high = band.get_paths()[0].vertices[:, 1].min(), band.get_paths()[0].vertices[:, 1].max()
    assert (low, high) == (pytest.approx(held.get_ydata()[0] - 0.05), pytest.approx(held.get_ydata()[-1] + 0.05))
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["training", "held out, 95 %"]


def test_norms_that_span_decades_are_drawn_by_their_logarithm(tmp_path, folder):
    axes, _ = lines(Run(written(tmp_path / "run")), "Gradient norm")
    assert axes.get_yscale() == "log"
    assert axes.yaxis.get_major_formatter()(100.0) == "100"
    axes, _ = lines(Run(folder(records(40))), "Gradient norm")
    assert axes.get_yscale() == "linear"


def test_capped_log_ratios_are_shown_where_there_are_any(folder):
    assert "capped" not in lines(Run(folder(records(40, clipped=0.0))), "Saturated, capped, steep")[1]
    found = lines(Run(folder(records(40, clipped=1.0))), "Saturated, capped, steep")[1]
    assert set(found["capped"].get_ydata()) == {0.5}  # one of a pair's two
