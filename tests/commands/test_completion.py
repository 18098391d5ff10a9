"""Completion as somebody at a terminal has it: words begun, tab, and what the shell then runs."""

import shutil

import pytest

from fdpo_fast.cli import main
from fdpo_fast.commands.completion import ASK, SCRIPTS
from fdpo_fast.config.timesteps import Timesteps
from tests.helpers.terminal import Terminal

START = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], 'eval "$(fdpo completion bash)"'),
    "zsh": (["zsh", "-f", "-i"], 'autoload -U compinit; compinit -D -u; eval "$(fdpo completion zsh)"'),
    "fish": (["fish", "--no-config", "--interactive"], "fdpo completion fish | source"),
}
REFERENCE = [f"reference.{key}" for key in ("mode", "model", "visits", "seed", "timesteps")]
REFERENCE += [f"reference.timesteps.{key}" for key in Timesteps.model_fields]


@pytest.fixture(params=list(SCRIPTS))
def terminal(request, tmp_path):
    command, load = START[request.param]
    if not shutil.which(command[0]):
        pytest.skip(f"{command[0]} is not installed")
    (tmp_path / "my_pairs.json").write_text("{}")
    shell = Terminal(command, tmp_path)
    shell.type(f"{load}; echo lo''aded\n")
    shell.wait("loaded")
    yield shell
    shell.end()


def test_words_are_completed_at_a_terminal(terminal):
    for keys, runs in [
        ("fdpo calib\t--he\t", "usage: fdpo calibrate"),
        ("fdpo cache ver\t--he\t", "usage: fdpo cache verify"),
        ("fdpo plan --config my\t--card RTX\\ 4\t--tflops x", "argument --tflops: 'x' is not a positive number"),
        ("fdpo train --config my\t--set optimizer.sche\t3", "'optimizer.schedule' must be one of"),
    ]:
        terminal.type(f"{keys}\n")
        terminal.wait(runs)


def offered(capsys, *words):
    main([ASK, *words])
    return [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize(
    ("words", "candidates"),
    [
        (["tra"], ["train"]),
        (["da"], ["data"]),
        (["data", ""], ["check"]),
        (["--v"], ["--version"]),
        (["cache", "v"], ["verify"]),
        (["cache", "verify", "--p"], ["--pairs"]),
        (["cache", "--pai"], []),
        (["plan", "--card", "RTX\\ 3"], ["RTX 3090"]),
        (["plan", "--config", ""], []),
        (["train", "--set", "loss.be"], ["loss.beta="]),
        (["config", "--explain", "loss.be"], ["loss.beta"]),
        (["config", "--explain", "optimizer.s"], ["optimizer.schedule"]),
        (["config", "--explain", "reference"], ["reference", *REFERENCE]),
        (["completion", ""], ["bash", "zsh", "fish"]),
        (["report", ""], []),
        (["report", "--h"], ["--help"]),
        (["nothing", ""], []),
        (["train", "--local"], []),
    ],
)
def test_what_is_offered(capsys, words, candidates):
    assert offered(capsys, *words) == candidates
