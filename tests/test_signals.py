"""Ctrl-C and SIGTERM: what answers, when, and what is left."""

import signal
import time

import pytest

from fdpo_fast.cli import COMMANDS, parse
from tests.helpers import commands
from tests.helpers.ranks import together
from tests.helpers.stops import stops

LONG_STEP = """
import torch, time
from fdpo_fast.distributed import StopSignal, single_process

with StopSignal(single_process(), lambda: "step-000003") as stop:
    print("in a step", flush=True)
    torch.ones(200_000_000).cumsum(0).sort()  # is not Python, and goes on for long
    time.sleep(100)
"""


def test_an_echo_of_a_signal_is_no_second_one_but_a_later_one_ends_the_process_at_once():
    """A launcher passes on what the terminal sends as well."""
    with commands.begun(script=LONG_STEP) as run:
        run.wait_for("in a step")
        asked = time.monotonic()
        run.process.send_signal(signal.SIGINT)
        run.wait_for("stopping after this step, again to stop now")
        assert time.monotonic() - asked < 1
        for echo in (signal.SIGTERM, signal.SIGTERM):
            run.process.send_signal(echo)
        time.sleep(1.2)
        assert run.process.poll() is None
        run.process.send_signal(signal.SIGINT)
        assert run.end(patience=2).endswith("stopped within a step: --resume goes on from step-000003\n")
    assert run.process.returncode == 130


@pytest.mark.parametrize("asked", [0, 1])
def test_ranks_stop_behind_the_same_step(asked, tmp_path):
    """Whichever is asked, and however long each of their steps takes."""
    done = together(2, stops, (asked,), tmp_path / "said")
    assert done.returncode == 0, done.stderr
    ends = [line.split()[-2:] for line in done.stdout.splitlines() if line.startswith("ends")]
    assert len(ends) == 2
    assert ends[0] == ends[1]
    step, number = map(int, ends[0])
    assert 5 <= step <= 7
    assert number == signal.SIGTERM


@pytest.mark.parametrize("asked", [0, 1])
def test_ranks_stop_behind_the_last_step_too(asked, tmp_path):
    """Where no step follows in which they could agree: a run that is asked to stop does not go on to its export."""
    done = together(2, stops, (asked, 6), tmp_path / "said")
    assert done.returncode == 0, done.stderr
    ends = [line.split()[-2:] for line in done.stdout.splitlines() if line.startswith("ends")]
    assert ends == [["5", str(int(signal.SIGTERM))]] * 2


@pytest.mark.parametrize("module", COMMANDS, ids=lambda module: module.__name__.rpartition(".")[2])
def test_every_command_says_what_it_leaves(module):
    name = module.__name__.rpartition(".")[2].replace("data", "data check")
    alone = {"label": ["pairs", "--as", "ann"], "relabel": ["--config", "x", "--output", "y"]}
    alone |= {"report": ["folder"], "verify": ["folder"], "init": [], "completion": ["bash"]}
    words = [*name.split(), *alone.get(name, ["--config", "x"])]
    assert len(parse(words)[2]["left"]) > 10


LEFT = {
    "cache": "the same command goes on behind what is cached",
    "sample": "the same command goes on behind the images that are drawn",
    "calibrate": "what is cached stays, and the same command measures anew",
    "data check": "the same command starts anew",
}


@pytest.mark.parametrize("name", ["cache", *(pytest.param(name, marks=pytest.mark.slow) for name in [*LEFT][1:])])
def test_a_command_ends_in_a_sentence(name, raw_config, write_config, tmp_path):
    raw_config["data"] |= {"cache_dir": str(tmp_path / "cache"), "digits": {"vae_steps": 100_000}}  # for hours
    raw_config["evaluate"] = {"prompts": ["a handwritten two"]}
    with commands.begun(*name.split(), "--config", str(write_config(raw_config))) as run:
        run.wait_for("base pipeline: vae: ")
        run.process.send_signal(signal.SIGINT)
        said = run.end(patience=20)
    assert run.process.returncode == 130
    assert said.endswith(f"\nfdpo {name}: stopped; {LEFT[name]}\n")
    assert "Traceback" not in said


SWALLOWED = """
import os, signal, sys
from fdpo_fast import cli, signals
from fdpo_fast.commands import plan
from fdpo_fast.commands.common import imports

def run(**_):
    with imports():
        try:
            os.kill(os.getpid(), signal.SIGINT)
        except BaseException:  # as some do when they are imported
            {then}
    print("went on")

plan.run = run
cli.main(["plan", "--config", "x"])
"""


@pytest.mark.parametrize("then", ["pass", "raise RecursionError", "raise ImportError('numpy')", "raise ValueError"])
def test_a_library_that_keeps_a_stop_to_itself(then):
    with commands.begun(script=SWALLOWED.format(then=then)) as run:
        assert run.end(patience=20) == "fdpo plan: stopped; nothing was written\n"
    assert run.process.returncode == 130
