"""What the machine refuses is a sentence; what is our own slip is none, and asks to be reported."""

import errno
import os
import resource
import signal
import subprocess
import sys

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

import fdpo_fast
from fdpo_fast.cli import main
from fdpo_fast.commands import plan
from fdpo_fast.commands.common import imports
from fdpo_fast.faults import REMEDIES, of_machine
from tests.helpers import ROOT


@pytest.mark.parametrize("number", REMEDIES, ids=errno.errorcode.get)
def test_refusals_are_known_however_a_library_tells_them(tmp_path, number):
    words = os.strerror(number)
    direct = OSError(number, words, "a.json")
    assert of_machine(direct) == f"{words}: a.json; {REMEDIES[number]}"
    for error in (OSError(number, words), RuntimeError(f"I/O error: {words} (os error {number})")):
        assert of_machine(error, tmp_path) == f"{words}: {tmp_path}; {REMEDIES[number]}"
    behind = ImportError("cannot import name 'x'")  # as libraries put another before it
    behind.__context__ = direct
    assert of_machine(behind) == of_machine(direct)


def test_slips_are_no_refusals():
    for error in (KeyError("No space"), FileNotFoundError(errno.ENOENT, "No such file"), RuntimeError("shapes differ")):
        assert of_machine(error) is None
    circle = ValueError("a")
    circle.__cause__ = circle
    assert of_machine(circle) is None


@pytest.mark.parametrize("kib", [4, 300, 1000])
def test_what_the_libraries_really_say(tmp_path, kib):
    """Of a file that may not grow so far, wherever in it that is."""
    big = {"a": torch.zeros(1 << 19)}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (kib << 10, limits[1]))
    try:
        for number, save in enumerate((torch.save, save_file, lambda _, file: file.write_bytes(bytes(2 << 20)))):
            with pytest.raises((OSError, RuntimeError, SafetensorError)) as raised:
                save(big, tmp_path / f"{number}")
            assert "ulimit -f" in of_machine(raised.value), raised.value
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def test_a_slip_keeps_its_traceback_and_asks_to_be_reported(tmp_path):
    script = """
import sys
from fdpo_fast import cli
from fdpo_fast.commands import plan

def slip(**_):
    return [*zip([1], [], strict=True)]

plan.run = slip
cli.main(["plan", "--config", "x"])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    lines = done.stderr.splitlines()
    assert done.returncode == 1
    assert lines[0].startswith("Traceback")
    assert "zip() argument 2 is shorter" in lines[-2]
    assert lines[-1] == (
        f"fdpo plan: this is a mistake of fdpo_fast {fdpo_fast.__version__}, not yours: please report it with the "
        "lines above"
    )


def test_too_little_memory_is_no_mistake_of_ours():
    script = """
from fdpo_fast import cli
from fdpo_fast.commands import plan

def slip(**_):
    raise MemoryError("all gone")

plan.run = slip
cli.main(["plan", "--config", "x"])
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr.splitlines()[-1] == (
        "fdpo plan: there is too little memory: `fdpo plan` says which settings fit"
    )


def test_a_refusal_at_any_command_is_a_sentence(monkeypatch):
    def refused(**_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "plan.json")

    monkeypatch.setattr(plan, "run", refused)
    with pytest.raises(SystemExit) as end:
        main(["plan", "--config", "x"])
    assert end.value.code == "fdpo plan: No space left on device: plan.json; make room there; nothing was written"


@pytest.mark.parametrize(
    ("stdout", "code", "says"),
    [("closed", 128 + signal.SIGPIPE, ""), ("/dev/full", 1, "fdpo config: No space left on device; make room there; ")],
)
def test_a_reader_that_leaves_or_a_full_disk_behind_the_output(stdout, code, says):
    """As of `fdpo config | head` and `fdpo config > FILE`."""
    if stdout == "closed":
        reader, writer = os.pipe()
        os.close(reader)
    else:
        writer = os.open(stdout, os.O_WRONLY)
    command = [sys.executable, "-m", "fdpo_fast.cli", "config", "--config", "configs/sd15_js.json"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    os.close(writer)
    assert (done.returncode, done.stderr[: len(says)]) == (code, says)
    assert done.stderr.count("\n") == bool(says)


def test_a_module_of_ours_that_is_missing_is_no_package_to_install():
    with pytest.raises(ModuleNotFoundError), imports():
        import fdpo_fast.nothing  # noqa: F401
