"""What a run writes about itself, and who may write it."""

import json
import math
from pathlib import Path

import pytest

from fdpo_fast.lock import at_work
from fdpo_fast.metrics import Writer, read_records
from fdpo_fast.sections import Log

RECORDS = [
    {"step": 0, "loss": 0.5, "grad_norm": math.inf, "warnings": ["careful"]},
    {"step": 1, "loss": math.nan, "bins": [{"timesteps": [0, 10], "pairs": 1, "loss": math.nan, "margin": 0.1,
                                            "accuracy": 1.0, "delta_w": 0.0, "delta_l": 0.0}]},
]  # fmt: skip


def refuse(constant):
    raise AssertionError(f"{constant} is no JSON")


def test_records_are_json_and_come_back(tmp_path):
    Writer(tmp_path, 0, Log(tensorboard=False), {}).write(RECORDS)
    file = tmp_path / "metrics.jsonl"
    for line in file.read_text().splitlines():
        json.loads(line, parse_constant=refuse)
    with file.open("a") as half:
        half.write('{"step": 2, "bins": [{"loss": 1}')  # ends with a brace, too
    first, second = read_records(tmp_path)
    assert first | {"grad_norm": 0} == RECORDS[0] | {"grad_norm": 0}
    assert math.isnan(second["loss"])
    assert math.isnan(first["grad_norm"])

    Writer(tmp_path, 1, Log(tensorboard=False), {})  # resumed behind step 0
    assert [record["step"] for record in read_records(tmp_path)] == [0]


def test_two_runs_do_not_share_a_folder(raw_config, command):
    folder = Path(raw_config["train"]["output_dir"])
    folder.mkdir()
    with at_work(folder), pytest.raises(SystemExit, match="another run is at work in"):
        command(raw_config, "train")
    raw_config["train"]["max_steps"] = 1
    command(raw_config, "train")  # what the lock leaves behind is not in the way
    assert (folder / "export").is_dir()
