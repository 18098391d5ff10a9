"""What killed processes leave half written, and who may delete it."""

import os
import subprocess
import sys

import pytest

from fdpo_fast.config.errors import UserError
from fdpo_fast.files import clear_partial, replacing
from fdpo_fast.training.lock import LOCK, at_work
from tests.helpers import ROOT

WRITES = """
import sys, time
from pathlib import Path
from fdpo_fast.files import replacing

with replacing(Path(sys.argv[1]) / "export") as folder, replacing(Path(sys.argv[1]) / "a.json") as file:
    folder.mkdir()
    (folder / "weights").write_text("half")
    file.write_text("half")
    print("writing", flush=True)
    time.sleep(100)
"""
WORKS = """
import sys, time
from pathlib import Path
from fdpo_fast.training.lock import at_work

with at_work(Path(sys.argv[1])):
    print("at work", flush=True)
    time.sleep(100)
"""


@pytest.fixture
def begun(tmp_path):
    """Start a script about `tmp_path`, and wait for its first line; it does not outlive the test."""
    started = []

    def begin(script):
        process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT)
        started.append(process)
        assert process.stdout.readline()
        return process

    yield begin
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_a_killed_process_was_writing_goes_and_what_a_live_one_writes_stays(tmp_path, begun):
    process = begun(WRITES)
    written = names(tmp_path)
    assert written == [f".a.json.{process.pid}.partial", f".export.{process.pid}.partial"]
    clear_partial(tmp_path)
    assert names(tmp_path) == written
    process.kill()
    process.wait()
    clear_partial(tmp_path)
    assert names(tmp_path) == []


def test_only_our_names_go(tmp_path):
    others = [".a.partial", "a.99999999.partial", ".a.99999999.partial.bak", ".99999999.partial", "b.partial", ".tmp"]
    for name in others:
        (tmp_path / name).touch()
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept/file").touch()
    (tmp_path / ".a.99999999.partial").symlink_to("kept")
    clear_partial(tmp_path, alone=True)
    assert names(tmp_path) == sorted([*others, "kept"])
    assert names(tmp_path / "kept") == ["file"]
    clear_partial(tmp_path / "nowhere")


def test_what_bears_our_own_number_is_from_before(tmp_path):
    """In a container the number of a killed process comes again."""
    (tmp_path / f".a.{os.getpid()}.partial").touch()
    (tmp_path / ".a.1.partial").touch()
    clear_partial(tmp_path)
    assert names(tmp_path) == [".a.1.partial"]
    with replacing(tmp_path / "a") as partial:
        partial.write_text("new")
    clear_partial(tmp_path, alone=True)
    assert names(tmp_path) == ["a"]


def test_a_run_whose_lock_is_deleted_still_has_its_folder(tmp_path, begun):
    process = begun(WORKS)
    (tmp_path / LOCK).unlink()
    for _ in range(2):
        with pytest.raises(UserError, match="another run is at work in"), at_work(tmp_path):
            pass
    process.kill()
    process.wait()
    with at_work(tmp_path):
        pass


def test_a_file_system_that_locks_no_folders_has_the_file(tmp_path, begun, monkeypatch):
    import fcntl

    lock = fcntl.flock

    def as_nfs(place, how):
        if os.path.isdir(f"/proc/self/fd/{place}"):
            raise OSError(9, os.strerror(9))
        lock(place, how)

    monkeypatch.setattr(fcntl, "flock", as_nfs)
    begun(WORKS)
    with pytest.raises(UserError, match="another run is at work in"), at_work(tmp_path):
        pass
