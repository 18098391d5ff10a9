"""What is said while one waits, on a terminal and elsewhere."""

import fcntl
import os
import pty
import struct
import subprocess
import sys
import termios
import time

import pytest

from fdpo_fast import progress as module
from fdpo_fast.progress import progress, waiting
from tests.helpers import ROOT


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves on."""

    class Clock:
        now = 0.0

        def monotonic(self):
            return self.now

    clock = Clock()
    monkeypatch.setattr(module, "time", clock)
    return clock


def test_without_a_terminal_there_is_a_line_now_and_then_and_the_last(clock, capsys):
    with progress(total=600, desc="train") as bar:
        for step in range(600):
            clock.now += 1
            bar.set_postfix_str(f"loss {step}", refresh=False)
            bar.update()
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].startswith("train:   1% 5/600 [00:05<")
    assert lines[0].endswith("loss 4]")
    assert lines[-1].startswith("train: 100% 600/600")
    told = [int(line.split("/")[0].split()[-1]) for line in lines]
    gaps = [after - before for before, after in zip([0, *told], told, strict=False)]
    assert max(gaps) <= 31
    assert len(lines) < 35


def test_a_quick_one_is_one_line_and_a_passing_one_none(clock, capsys):
    assert list(progress("abc", desc="kept")) == ["a", "b", "c"]
    assert list(progress("abc", desc="passing", leave=False)) == ["a", "b", "c"]
    assert list(progress("abc", desc="hidden", show=False)) == ["a", "b", "c"]
    assert [line.split(":")[0] for line in capsys.readouterr().err.splitlines()] == ["kept"]


def test_news_are_told_where_nothing_is_done(clock, capsys):
    bar = progress(total=1, desc="caches")
    for second in range(12):
        clock.now = float(second)
        bar.set_postfix_str("vae 1%" if second < 8 else "vae 2%")
    assert [line.rpartition(", ")[2] for line in capsys.readouterr().err.splitlines()] == ["vae 1%]", "vae 2%]"]


TALK = """
from fdpo_fast.progress import progress, say
for number in progress(range(3), desc="train"):
    say("warning:", number)
"""


def test_on_a_terminal_words_are_not_glued_to_the_bar():
    here, there = pty.openpty()
    fcntl.ioctl(there, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    subprocess.run([sys.executable, "-c", TALK], cwd=ROOT, stdout=there, stderr=there, check=True)
    os.close(there)
    said = b""
    try:
        while part := os.read(here, 4096):
            said += part
    except OSError:  # how a terminal ends
        pass
    os.close(here)
    text = said.decode()
    assert "train:" in text
    for number in range(3):
        before, after = text.split(f"warning: {number}")
        assert before[-1:] in "\r\n"
        assert after.startswith("\r\n")


def test_a_wait_is_spoken_of_once_it_is_long(monkeypatch, capsys):
    monkeypatch.setattr(module, "FIRST", 0.05)
    monkeypatch.setattr(module, "PAUSE", 0.05)
    with waiting("compiling"):
        pass
    with waiting("counting", show=False):
        time.sleep(0.2)
    assert not capsys.readouterr().out
    with waiting("compiling"):
        time.sleep(0.5)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "compiling"
    assert said[1].startswith("still compiling: ")
    time.sleep(0.2)
    assert not capsys.readouterr().out
