"""What a run writes about itself, and who may write it."""

import json
import math
import os
from pathlib import Path

import pytest

from fdpo_fast.config.errors import UserError
from fdpo_fast.config.schema import Log
from fdpo_fast.training.lock import at_work
from fdpo_fast.training.metrics import Writer
from fdpo_fast.training.records import read_metrics, read_records
from fdpo_fast.training.trainer import Trainer

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


def test_a_start_that_fails_leaves_nothing_in_the_way_of_the_next(raw_config, command, monkeypatch):
    folder = Path(raw_config["train"]["output_dir"])
    missing = raw_config | {"model": raw_config["model"] | {"base": "owner/name"}}
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(SystemExit, match=r"model\.base 'owner/name' is not here"):
        command(missing, "train")
    assert not folder.exists()


def test_a_start_that_fails_leaves_nothing_and_a_run_that_fails_everything(raw_config, command, monkeypatch):
    folder = Path(raw_config["train"]["output_dir"])
    take = Trainer.train_step

    def fails_in(number):
        def step(trainer, at):
            if at == number:
                raise MemoryError("a step that is too large")
            return take(trainer, at)

        return step

    raw_config["log"] |= {"samples_every": 3, "prompts": ["a two"], "images_per_prompt": 1, "sampling_steps": 1}
    monkeypatch.setattr(Trainer, "train_step", fails_in(0))
    with pytest.raises(MemoryError):
        command(raw_config, "train")
    assert not folder.exists()
    monkeypatch.setattr(Trainer, "train_step", fails_in(1))
    with pytest.raises(MemoryError):
        command(raw_config, "train")
    assert (folder / "config.json").is_file()
    with pytest.raises(SystemExit, match="is not empty"):
        command(raw_config, "train")


def test_the_folder_of_a_run_that_cannot_go_stays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="the mistake"), at_work(Path()):
        raise UserError("the mistake")


BROKEN = {
    "half": b'{"step": 3, "loss": 0.',
    "binary": bytes(range(128, 256)),
    "zeros": bytes(512),
    "no object": b"[1, 2]",
    "no step": b'{"loss": 0.5}',
    "a step in words": b'{"step": "3"}',
    "a step before the first": b'{"step": -1}',
    "a step of a thousand digits": b'{"step": ' + b"9" * 1000 + b"}",
    "a figure of four hundred digits": b'{"step": 3, "loss": ' + b"9" * 400 + b"}",
    "a figure in words": b'{"step": 3, "loss": "low"}',
    "a figure that is true": b'{"step": 3, "loss": true}',
    "bins that are none": b'{"step": 3, "bins": {"a": 1}}',
    "bins without edges": b'{"step": 3, "bins": [{"loss": 1}]}',
    "warnings that are none": b'{"step": 3, "warnings": "careful"}',
    "nested without end": b"[" * 100_000,
}


@pytest.mark.parametrize("line", BROKEN.values(), ids=BROKEN)
def test_what_is_no_record_is_left_out_and_counted(tmp_path, line):
    good = [b'{"step": 0, "loss": 0.5}', b'{"step": 2, "loss": 0.3}']
    (tmp_path / "metrics.jsonl").write_bytes(b"\n".join([good[0], line, good[1], b""]))
    found = read_metrics(tmp_path)
    assert [record["step"] for record in found.records] == [0, 2]
    assert found.left_out == 1


def test_the_last_of_two_records_of_a_step_counts(tmp_path):
    lines = ['{"step": 1, "loss": 1}', '{"step": 0, "loss": 1}', '{"step": 1, "loss": 2}', ""]
    (tmp_path / "metrics.jsonl").write_text("\n".join(lines))
    assert read_metrics(tmp_path) == ([{"step": 0, "loss": 1}, {"step": 1, "loss": 2}], 1)


@pytest.mark.parametrize("lines", [None, "", '\n\0\0\n{"step": 0, "loss": 1.0}\n'], ids=["missing", "empty", "broken"])
def test_a_resumed_writer_says_what_is_missing(tmp_path, lines):
    if lines is not None:
        (tmp_path / "metrics.jsonl").write_text(lines)
    writer = Writer(tmp_path, 3, Log(tensorboard=False), {})
    there = 1 if lines else 0
    assert writer.lacking.endswith(f"metrics.jsonl lacks the records of {3 - there} of the 3 steps so far")
    assert writer.write([{"step": 3, "loss": 0.5}]) is None
    assert [record["step"] for record in read_records(tmp_path)] == [*range(there), 3]
    (tmp_path / "metrics.jsonl").unlink()
    assert "has been moved or deleted: it begins anew, with step 4" in writer.write([{"step": 4, "loss": 0.5}])
    assert [record["step"] for record in read_records(tmp_path)] == [4]


def test_metrics_that_are_no_file_are_a_sentence(tmp_path):
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(UserError, match=r"metrics\.jsonl is no file"):
        read_metrics(tmp_path)
