"""Sets of pairs as others make them, by what `fdpo data check` and `fdpo cache` say of them and keep."""

import builtins
import contextlib
import errno
import io
import json
import os
import re
import subprocess
import sys
import threading
import time
from typing import NamedTuple
from unittest.mock import patch

import pytest
from PIL import Image
from safetensors.torch import load_file

from benchmarks import launcher
from tests.helpers import ROOT
from tests.helpers.others_pairs import CASES
from tests.helpers.others_pairs_case import folders, parquet


class Said(NamedTuple):
    status: int
    out: str
    err: str


@pytest.fixture
def fdpo(write_config, capsys):
    """Run a command on a configuration, in a process of its own where variables are given; returns what it said."""
    from fdpo_fast.cli import main

    def run(raw, *words, environment=None):
        words = [*words, "--config", str(write_config(raw))]
        if environment:
            done = subprocess.run(
                [sys.executable, "-m", "fdpo_fast.cli", *words],
                cwd=ROOT,
                env=launcher.environment(threads=1) | environment,
                capture_output=True,
                timeout=400,  # DeepSpeed may compile its collectives first
            )
            return Said(done.returncode, *(part.decode(errors="replace") for part in (done.stdout, done.stderr)))
        code = 0
        with patch.dict(os.environ):
            try:
                main(words)
            except SystemExit as end:
                code = end.code
        out, err = capsys.readouterr()
        return Said(0, out, err) if not code else Said(1, out, f"{err}{code}")

    return run


@pytest.fixture
def config(tiny_config):
    """Make a configuration whose caches are of latents and text alone."""

    def make(source, **data):
        raw = tiny_config("sdxl", source)
        raw["data"] |= data
        return raw | {"reference": {"mode": "live"}}

    return make


@pytest.fixture
def check(fdpo, config, tmp_path):
    """Let `fdpo data check` read a source; returns what it said and the JSON."""

    def run(source, environment=None, **data):
        report = tmp_path / "report.json"
        said = fdpo(config(source, **data), "data", "check", "--json", str(report), environment=environment)
        return said, json.loads(report.read_text()) if report.exists() else {}

    return run


@pytest.fixture
def source(tmp_path):
    (tmp_path / "source").mkdir()
    return lambda case: case.build(tmp_path / "source")


def sentence(said, command):
    """The one sentence that a command ends with."""
    assert said.status == 1, said.out
    *_, last = said.err.splitlines()
    assert last.startswith(f"fdpo {command}: ")
    assert "Traceback" not in said.err
    return last


def cached_pairs(said):
    assert said.status == 0, said.err
    return int(re.search(r"([\d,]+) pairs", said.out)[1].replace(",", ""))


def kept(tmp_path, kind="*"):
    """Whole shards of the caches of a kind, or of all."""
    return sorted((tmp_path / "cache").glob(f"{kind}-*/*.safetensors"))


def cached_weights(tmp_path):
    """Weights of pairs, from whichever cache has them."""
    columns = [load_file(path) for path in kept(tmp_path)]
    return [weight for column in columns if "weight" in column for weight in column["weight"].tolist()]


def names(cases):
    return {"argvalues": cases, "ids": [case.name for case in cases]}


@pytest.mark.parametrize("case", **names([case for case in CASES if case.stops != ("cache",)]))
def test_data_check(check, source, case):
    said, found = check(source(case), case.environment, **case.settings)
    if case.stops:
        words = sentence(said, "data check")
        assert [word for word in case.says if word not in words] == []
        return
    assert said.status == 0, said.err
    if case.pairs is not None:
        assert found["pairs"] == case.pairs, found["refused"]
    if case.refused is not None:
        assert len(found["refused"]) == case.refused, found["refused"]
    everything = said.out + said.err + json.dumps(found, ensure_ascii=False)
    assert [word for word in case.says if word not in everything] == []
    assert {key: found[key] for key in case.counts} == case.counts
    missing = [{"file": name} for name in (*case.left_out, *case.accounted)]
    left = [item["file"] for item in found["left_out"]] if missing or "left_out" in found else []
    assert [name for name in case.left_out if not any(file.endswith(name) for file in left)] == []
    assert all(item["reason"] for item in found.get("left_out", []))
    told = " ".join([*left, *(f"{row['place']}: {row['reason']}" for row in found["refused"])])
    assert [name for name in case.accounted if name not in told and f"'{name.split('.')[0]}'" not in told] == []


@pytest.mark.parametrize("case", **names(CASES))
def test_cache(fdpo, config, source, tmp_path, case):
    said = fdpo(config(source(case), **case.settings), "cache", environment=case.environment)
    if "cache" in case.stops:
        words = sentence(said, "cache")
        assert [word for word in case.says if word not in words] == []
        assert kept(tmp_path, "latents") + kept(tmp_path, "text") == []  # hours, where there are many
        return
    assert said.status == 0, said.err
    if (pairs := case.cached or case.pairs) is not None:
        assert cached_pairs(said) == pairs
    if case.weights:
        assert {round(weight, 6) for weight in cached_weights(tmp_path)} == set(case.weights)


def test_a_pair_of_two_shapes_loses_alike_on_both_sides(check, source):
    case = next(case for case in CASES if "different_shapes" in case.counts)
    _, found = check(source(case), **case.settings)
    assert found["cut_preferred"] == pytest.approx(found["cut_dispreferred"], abs=0.02)
    assert 0.05 < found["cut_preferred"] < 0.4  # the square pair loses nothing


def test_without_a_tokenizer_no_caption_is_called_long(fdpo, config, tmp_path):
    raw = config(folders(tmp_path / "source", 2))
    raw["model"]["base"] = str(tmp_path / "nowhere")
    assert fdpo(raw, "data", "check", "--json", str(tmp_path / "report.json")).status == 0
    assert json.loads((tmp_path / "report.json").read_text())["over_length"] is None


def test_reasons_are_summed_by_their_kind(check, tmp_path):
    root = folders(tmp_path / "source", 8)
    for name in ("w/001.jpg", "l/005.jpg"):
        (root / name).write_bytes((root / name).read_bytes()[:900])
    said, found = check(root)
    assert "2 x an image does not decode" in said.out
    assert [row["reason"].partition(": ")[0] for row in found["refused"]] == ["an image does not decode"] * 2
    assert [re.search(r"[wl]/\d+\.jpg", row["reason"])[0] for row in found["refused"]] == ["w/001.jpg", "l/005.jpg"]


def test_a_folder_that_is_away_for_a_while(fdpo, config, tmp_path, monkeypatch):
    """As a network file system at its server's restart."""
    root, opened, lock, original = folders(tmp_path / "source", 40), [0], threading.Lock(), Image.open
    away = root.with_name("away")

    def slow(*arguments, **options):
        with lock:
            opened[0] += 1
            if opened[0] == 20:
                root.rename(away)
                threading.Timer(1.5, away.rename, [root]).start()
        return original(*arguments, **options)

    monkeypatch.setattr(Image, "open", slow)
    said = fdpo(config(root), "cache")
    time.sleep(2)  # until it is back, whatever became of the command
    assert opened[0] >= 20
    assert root.is_dir()
    assert cached_pairs(said) == 40
    assert "refused: none" in said.out


@contextlib.contextmanager
def failing(name, times):
    """Let the opening of files of a name fail as a disk's cable does, so many times; waits are cut short."""
    left, wait = [times], time.sleep

    def wrapped(function):
        def call(file, *arguments, **options):
            if isinstance(file, (str, os.PathLike)) and os.fspath(file).endswith(name) and left[0] > 0:
                left[0] -= 1
                raise OSError(errno.EIO, os.strerror(errno.EIO), os.fspath(file))
            return function(file, *arguments, **options)

        return call

    with contextlib.ExitStack() as stack:
        for module in (builtins, io, os):
            stack.enter_context(patch.object(module, "open", wrapped(module.open)))
        stack.enter_context(patch.object(time, "sleep", lambda seconds: wait(min(seconds, 0.02))))
        yield left


def test_a_disk_that_fails_twice(fdpo, config, tmp_path):
    root = folders(tmp_path / "source", 12)
    with failing("w/010.jpg", 2) as left:
        said = fdpo(config(root), "cache")
    assert left == [0]
    assert cached_pairs(said) == 12


def test_a_disk_that_fails_for_good_ends_what_the_same_command_completes(fdpo, config, tmp_path):
    """The row is not refused, since nothing is known against it."""
    raw = config(folders(tmp_path / "source", 20))
    with failing("w/010.jpg", 10**6):
        words = sentence(fdpo(raw, "cache"), "cache")
    assert "pair '010'" in words
    assert "w/010.jpg" in words
    assert os.strerror(errno.EIO) in words
    before = {path: path.stat().st_mtime_ns for path in kept(tmp_path)}
    assert before  # the first seven rows
    assert cached_pairs(fdpo(raw, "cache")) == 20
    assert {path: path.stat().st_mtime_ns for path in kept(tmp_path)}.items() >= before.items()


def test_verify_tells_of_a_refused_image_that_was_mended(fdpo, config, tmp_path):
    """In place, with the size and the time of change that it had."""
    root = folders(tmp_path / "source", 8)
    image = root / "l/003.jpg"
    whole, status = image.read_bytes(), image.stat()
    image.write_bytes(bytes(len(whole)))
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))
    raw = config(root)
    assert cached_pairs(fdpo(raw, "cache")) == 7
    assert fdpo(raw, "cache", "verify").status == 0
    image.write_bytes(whole)
    os.utime(image, ns=(status.st_atime_ns, status.st_mtime_ns))
    words = sentence(fdpo(raw, "cache", "verify"), "cache verify")
    assert "003" in words
    assert re.search(r"delete|fdpo cache`", words)


def test_more_refused_than_data_max_refused_stops(fdpo, config, tmp_path):
    path = parquet(tmp_path / "a.parquet", 10, broken=range(6))
    words = sentence(fdpo(config(path), "cache"), "cache")
    assert "60" in words
    assert "data.max_refused" in words
    said = fdpo(config(path, max_refused=0.7), "cache")
    assert cached_pairs(said) == 4
    assert "warning: " in said.err


@pytest.mark.parametrize(("count", "share"), [(10, "10"), (60, "")])
def test_a_warning_counts_what_is_refused_above_two_in_a_hundred(fdpo, config, tmp_path, count, share):
    path = parquet(tmp_path / "a.parquet", count, broken=[3])
    said = fdpo(config(path), "cache")
    assert cached_pairs(said) == count - 1
    warnings = [line for line in said.err.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == bool(share)
    assert all(share in line for line in warnings)
