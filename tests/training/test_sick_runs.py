"""Runs made to be in each known state, of the embedded base in a handful of steps, and one that is in none."""

import copy
import re
from pathlib import Path

import pytest

from fdpo_fast.report.run import Run
from fdpo_fast.report.verdict import states
from fdpo_fast.training.records import read_records
from tests.helpers.training import run

pytestmark = pytest.mark.slow

IN_BF16 = {"model.dtype": "bf16", "optimizer.type": "adamw8bit", "deepspeed": {"bf16": {"enabled": False}}}
SICK = {
    "healthy": ({"optimizer.lr": 3e-5, "loss.divergence": "reverse_kl", "loss.ratio_scale": 50.0}, None),
    "rate": ({"optimizer.lr": 1e-10}, r"the loss stands where it began: .* norm; raise optimizer\.lr \(1e-10\)"),
    "scale": (
        {"loss.ratio_scale": 0.01, "optimizer.lr": 1e-5},
        r"are told apart: .* raise loss\.ratio_scale \(0\.01\)",
    ),
    "flat": (
        {"loss.winner_preserving": 0.0, "optimizer.lr": 3e-5, "loss.ratio_scale": 1000.0},
        r"where the link of jensen_shannon is flat; lower loss\.ratio_scale \(1000\)",
    ),
    "rate too large": (
        {"optimizer.lr": 0.01, "loss.ratio_scale": 2000.0},
        r"the run diverges, .* lower optimizer\.lr \(0\.01\)",
    ),
    "forgetting": ({"optimizer.lr": 3e-4}, r"bought by forgetting; .* or set loss\.winner_preserving"),
    "saturated": ({"optimizer.lr": 3e-4}, r"pairs are saturated, .* lower loss\.ratio_scale \(200\)"),
    "by heart": ({"data.validation": 0.3, "train.validate_every": 10}, r"by heart, .* \(train\.keep_best"),
    "nearest": (
        {**IN_BF16, "optimizer.rounding": "nearest", "optimizer.lr": 1e-6},
        r"weights stand still, .* set optimizer\.rounding to 'stochastic'",
    ),
    "noise": (
        {**IN_BF16, "optimizer.lr": 1e-9},
        r"further than their updates do, .* set optimizer\.weights to 'bf16\+8'",
    ),
}


def changed(raw, changes):
    raw = copy.deepcopy(raw)
    for key, value in changes.items():
        section, _, name = key.partition(".")
        if name:
            raw[section][name] = value
        else:
            raw[section] = value
    return raw


@pytest.mark.parametrize("name", SICK)
def test_a_run_says_what_is_wrong_with_it(raw_config, name):
    changes, sentence = SICK[name]
    raw_config["train"] |= {"max_steps": 120 if sentence else 60, "checkpoint_every": 1000}
    raw_config["data"]["caption_dropout"] = 0.0
    raw_config["log"]["every"] = 10
    raw = changed(raw_config, changes)
    folder = Path(raw["train"]["output_dir"])
    run(raw)
    said = " ".join(states(Run(folder)))
    warned = " ".join(words for record in read_records(folder) for words in record.get("warnings", []))
    if sentence is None:
        assert said == warned == ""
    else:
        assert re.search(sentence, said), said
        assert re.search(sentence, warned), warned
