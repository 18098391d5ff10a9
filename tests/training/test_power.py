"""A power cut at every operation on a run's files loses its last checkpoint and nothing else."""

import copy
import json
import shutil
from pathlib import Path

import pytest
import torch

from fdpo_fast import checksums
from fdpo_fast.training import resumption
from tests.helpers.power import recorded, restore
from tests.helpers.training import weights


@pytest.fixture
def raw(raw_config):
    raw_config["train"] |= {"checkpoint_every": 1, "keep_checkpoints": 2, "ema_decay": 0.5}
    raw_config["log"]["every"] = 1
    return raw_config


@pytest.mark.parametrize("resumed", [23, pytest.param(1, marks=pytest.mark.slow)])
def test_nothing_but_the_last_checkpoint_is_lost(raw, launch, tmp_path, resumed):
    """At each operation a whole checkpoint is left, the newest or the one before, with the records of its steps.

    One in so many states is gone on from; it ends in the same weights.
    """
    folder = Path(raw["train"]["output_dir"])
    folder.mkdir()
    with recorded(folder) as record:
        launch(raw)
    want, tried = weights(raw), 0
    assert set(record.states.values()) == {None, *(f"step-{step:06d}" for step in range(1, 7))}
    for number, (state, truth) in enumerate(record.states.items()):
        left = tmp_path / "left"
        shutil.rmtree(left, ignore_errors=True)
        restore(state, left)
        newest = int(truth.removeprefix("step-")) if truth else 0
        checkpoint = resumption.pointed(left / "checkpoints")
        if newest > 1:
            assert checkpoint.name in (truth, resumption.name_of(newest - 1))
        if checkpoint:
            step = int(checkpoint.name.removeprefix("step-"))
            assert checksums.facts_of(checkpoint)["step"] == step
            assert checksums.damage(checkpoint) is None
            records = [json.loads(line) for line in (left / "metrics.jsonl").read_text().splitlines()]
            assert [one["step"] for one in records][:step] == list(range(step))
            if number % resumed == 0:
                again = copy.deepcopy(raw)
                again["train"]["output_dir"] = str(left)
                launch(again, "--resume")
                assert all(torch.equal(value, want[name]) for name, value in weights(again).items())
                tried += 1
    assert len(record.states) > 100
    assert tried
