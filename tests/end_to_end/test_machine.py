"""What a machine may do to a run: full disks, limits, folders that go, terminals that close: each ends in words."""

import os
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest

from benchmarks import launcher
from fdpo_fast.distributed import _build_collectives
from tests.helpers import ROOT
from tests.helpers.commands import begun
from tests.helpers.pictures import files

IN_A_NAMESPACE = pytest.mark.skipif(
    not shutil.which("unshare") or subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode != 0,
    reason="disks are mounted in a namespace of their own, which this machine does not let us have",
)


def in_shell(script, *words):
    """Run `fdpo` behind lines of shell, as limits and mounts are; returns its code and the last line it said."""
    done = subprocess.run(
        ["bash", "-c", f'{script}\nexec {sys.executable} -m fdpo_fast.cli "$@"', "bash", *words],
        cwd=ROOT,
        env=launcher.environment(threads=1),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stderr.splitlines()[-1]


@pytest.mark.slow
def test_files_that_may_not_grow(raw_config, write_config, tmp_path):
    words = "train", "--config", str(write_config(raw_config))
    _build_collectives()  # what a compiler writes is larger than the limit
    code, said = in_shell("ulimit -f 1000", *words)
    assert code == 1
    assert said == (
        f"fdpo train: a file was not written to its end, as one beyond the limit of its size: {tmp_path}/run; allow "
        "larger files (`ulimit -f unlimited`), or name a place on another disk; no checkpoint was written yet: "
        "--resume starts anew"
    )
    assert not list((tmp_path / "run/checkpoints").glob("step-*"))  # a half one would take the room
    assert in_shell("", *words, "--resume")[0] == 0
    assert (tmp_path / "run/export").is_dir()


@pytest.mark.slow
@IN_A_NAMESPACE
def test_a_disk_that_fills_up_behind_a_checkpoint(raw_config, write_config, tmp_path):
    raw_config["train"] |= {"keep_checkpoints": 3, "max_steps": 12, "checkpoint_every": 3}
    path = write_config(raw_config)
    (tmp_path / "run").mkdir()
    script = f"""
exec unshare -rm bash -c '
mount -t tmpfs -o size=30m none {tmp_path}/run
{sys.executable} -m fdpo_fast.cli train --config {path}
code=$?
tail -n 1 {tmp_path}/run/checkpoints/latest
exit $code'
"""
    done = subprocess.run(
        ["bash", "-c", script], cwd=ROOT, env=launcher.environment(1), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    kept = done.stdout.splitlines()[-1]
    assert done.stderr.splitlines()[-1].endswith(f"; make room there; {kept} is safe, and --resume goes on from it")


@pytest.mark.slow
def test_few_open_files(raw_config, write_config):
    code, said = in_shell("ulimit -n 20", "train", "--config", str(write_config(raw_config)))
    assert code == 1
    assert "Too many open files" in said
    assert "ulimit -n 65536" in said


@IN_A_NAMESPACE
def test_a_folder_that_is_only_read(raw_config, write_config, tmp_path):
    (tmp_path / "run").mkdir()
    command = f"{sys.executable} -m fdpo_fast.cli train --config {write_config(raw_config)}"
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", f"mount -t tmpfs -o ro none {tmp_path}/run; {command}"],
        cwd=ROOT,
        env=launcher.environment(1),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == (
        f"fdpo train: {tmp_path}/run cannot be written: Read-only file system; name another train.output_dir"
    )


def test_what_is_in_the_way_is_found_before_training(raw_config, command, tmp_path):
    for name, make in (("export", "touch"), ("samples", "touch"), ("checkpoints", "touch"), ("metrics.jsonl", "mkdir")):
        folder = tmp_path / name / "run"
        folder.mkdir(parents=True)
        getattr(folder / name, make)()
        raw_config["train"]["output_dir"] = str(folder)
        with pytest.raises(SystemExit, match=f"{name} is in the way of the .* which the run writes: move it"):
            command(raw_config, "train", "--resume")


def test_an_export_that_is_a_link_is_found_before_training(raw_config, command, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "run/export").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SystemExit, match="export is in the way of the folder of that name"):
        command(raw_config, "train", "--resume")


def listening(process):
    """The addresses that a process listens on, other than those that only this machine reaches."""
    found = {socket.laddr.ip for socket in psutil.Process(process.pid).net_connections() if socket.status == "LISTEN"}
    return found - {"127.0.0.1", "::1"}


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM])
def test_a_terminal_that_closes_leaves_a_checkpoint(raw_config, write_config, tmp_path, number):
    """As a signal to end does; and a process by itself is reached from no other machine."""
    if signal.getsignal(number) == signal.SIG_IGN:
        pytest.skip("it is ignored here, as under nohup")
    raw_config["train"] |= {"max_steps": 100_000, "checkpoint_every": 100_000}
    raw_config["log"]["every"] = 1
    records = tmp_path / "run/metrics.jsonl"
    with begun("train", "--config", str(write_config(raw_config))) as run:
        run.wait_for("loading the base")
        while not (records.is_file() and records.stat().st_size):
            assert run.process.poll() is None
            time.sleep(0.05)
        assert listening(run.process) == set()
        run.process.send_signal(number)
        said = run.end(patience=60)
    assert run.process.returncode == 128 + number
    kept = (tmp_path / "run/checkpoints/latest").read_text().strip()
    assert said.splitlines()[-1].endswith(f": --resume goes on from {kept}")


@pytest.mark.parametrize("how", ["deleted", "moved", "replaced"])
@pytest.mark.slow
def test_a_folder_that_goes_under_a_run(raw_config, write_config, tmp_path, how):
    raw_config["train"] |= {"max_steps": 100_000, "checkpoint_every": 100_000}
    raw_config["log"]["every"] = 1
    folder = tmp_path / "run"
    with begun("train", "--config", str(write_config(raw_config))) as run:
        run.wait_for("loading the base")
        while not ((folder / "metrics.jsonl").is_file() and (folder / "metrics.jsonl").stat().st_size):
            assert run.process.poll() is None
            time.sleep(0.05)
        folder.rename(tmp_path / "elsewhere")
        if how == "deleted":
            shutil.rmtree(tmp_path / "elsewhere")
        elif how == "replaced":
            folder.mkdir()
        said = run.end(patience=60)
    assert run.process.returncode == 1
    assert "Traceback" not in said
    assert said.splitlines()[-1] == (
        f"fdpo train: train.output_dir '{folder}' has been moved or deleted under the run: put it back and go on with "
        "--resume, or start anew"
    )
    assert files(folder) == {} if how == "replaced" else not folder.exists()


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.3, 0.8, 1.5, 2.5, 4, 6, 8])
def test_ctrl_c_while_it_starts(raw_config, write_config, tmp_path, delay):
    """Whatever is imported or built by then."""
    raw_config["train"] |= {"max_steps": 100_000}
    with begun("train", "--config", str(write_config(raw_config))) as run:
        time.sleep(delay)
        run.process.send_signal(signal.SIGINT)
        said = run.end(patience=60)
    assert run.process.returncode == 130
    assert "Traceback" not in said
    assert said.splitlines()[-1].startswith("fdpo train: stopped")
    assert (tmp_path / "run").exists() == os.path.exists(tmp_path / "run/checkpoints")
