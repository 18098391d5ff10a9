"""Ranks of a run that share the cost of imports: they are forked from a server in which all is imported once."""

import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks import launcher

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(["fdpo_fast.training.trainer", "tests.helpers.training"])


def _rank(index, count, port, run, arguments, folder):
    """Be a rank as a launcher starts it; what it says goes to files."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / f"{name}{index}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    import torch

    here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": count, "RANK": index}
    here |= {"LOCAL_RANK": index, "LOCAL_WORLD_SIZE": count}
    os.environ.update({name: str(value) for name, value in here.items()})
    torch.set_num_threads(1)
    run(*arguments)


def _train(arguments):
    from fdpo_fast.train import main

    main(arguments)


def forked(count: int, arguments: list[str], folder: Path, patience: float = 300) -> subprocess.CompletedProcess:
    """Run the trainer on `count` ranks and return what a launcher would: code and output of all."""
    return together(count, _train, (arguments,), folder, patience)


def together(
    count: int, run: Callable, arguments: tuple, folder: Path, patience: float = 300
) -> subprocess.CompletedProcess:
    """Call a function of a module on `count` ranks and return what a launcher would: code and output of all."""
    folder.mkdir(exist_ok=True)
    port, end = launcher.free_port(), time.monotonic() + patience
    ranks = [CONTEXT.Process(target=_rank, args=(i, count, port, run, arguments, folder)) for i in range(count)]
    for rank in ranks:
        rank.start()
    try:
        # a rank that fails leaves the others waiting for it
        while any(rank.is_alive() for rank in ranks) and not any(rank.exitcode for rank in ranks):
            assert time.monotonic() < end, f"ranks still at work after {patience} s"
            ranks[0].join(0.05)
        for rank in ranks:
            rank.join(5)
    finally:
        for rank in ranks:
            rank.kill()
            rank.join()
    code = next((rank.exitcode for rank in ranks if rank.exitcode), 0)
    said = ["".join((folder / f"{name}{i}").read_text() for i in range(count)) for name in ("stdout", "stderr")]
    return subprocess.CompletedProcess(arguments, code, *said)
