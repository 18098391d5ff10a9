"""What processes of a run share."""

import os
import socket
import subprocess
import sys
import time
from importlib import import_module

import psutil
import pytest

from fdpo_fast.config.errors import UserError
from tests.helpers import ROOT
from tests.helpers.ranks import together


def test_a_guard_that_a_killed_build_left_behind_does_not_hold_up(tmp_path, monkeypatch):
    """torch waits for ever where its build folder has a file `lock`; younger ones are another's, and waited for."""
    import torch.utils.cpp_extension as extensions

    from fdpo_fast.distributed import _build_collectives

    guard, built = tmp_path / "op/lock", []
    guard.parent.mkdir()
    monkeypatch.setattr(extensions, "_get_build_directory", lambda name, verbose: str(guard.parent))
    comm = import_module("deepspeed.comm.torch")  # `deepspeed.comm` has an attribute of that name too
    monkeypatch.setattr(comm, "build_shm_op", lambda: built.append(guard.exists()))
    guard.touch()
    os.utime(guard, (0, 0))
    _build_collectives()
    guard.touch()
    before = time.monotonic()
    _build_collectives(patience=1)
    assert time.monotonic() - before >= 0.8
    assert built == [False, False]


LISTENS = """
import os, sys
import psutil
import torch, torch.distributed as dist
from fdpo_fast.distributed import start_processes

rank = start_processes()
dist.new_group([0], backend="gloo")
rank.barrier()
for socket in psutil.Process().net_connections():
    print("socket", socket.status, socket.laddr.ip, os.environ["GLOO_SOCKET_IFNAME"])
"""


def sockets(**environment):
    """The addresses that one process listens on, and the interface that it says gloo takes."""
    environment = {name: value for name, value in os.environ.items() if "SOCKET_IFNAME" not in name} | environment
    done = subprocess.run(
        [sys.executable, "-c", LISTENS], env=environment, capture_output=True, text=True, check=True, cwd=ROOT
    )
    return {tuple(line.split()[2:]) for line in done.stdout.splitlines() if line.startswith("socket LISTEN")}


def test_one_process_is_reached_from_this_machine_alone():
    assert sockets() == {("127.0.0.1", "lo")}


def test_another_interface_may_be_named():
    """As where the loopback interface is not allowed; without ours, gloo takes what the machine's name resolves to."""
    others = {name: found for name, found in psutil.net_if_addrs().items() if name != "lo"}
    addresses = {name: [a.address for a in found if a.family == socket.AF_INET] for name, found in others.items()}
    name = next((name for name, found in addresses.items() if found), None)
    if name is None:
        pytest.skip("this machine has the loopback interface alone")
    assert sockets(GLOO_SOCKET_IFNAME=name) == {(addresses[name][0], name)}


def _meet(failing):
    """Be a rank that agrees with another, of which the first meets a full disk."""
    from fdpo_fast.distributed import agreed, start_processes

    rank = start_processes()

    def work():
        if rank.index == 0:
            raise failing("no space left")

    try:
        agreed(work)
    except (UserError, OSError) as error:
        print(f"{type(error).__name__}: {error}")


@pytest.mark.parametrize(
    ("failing", "second"),
    [(UserError, "UserError: no space left"), (OSError, "UserError: rank 0 has failed: no space left")],
)
def test_what_a_rank_meets_ends_the_others_too(tmp_path, failing, second):
    done = together(2, _meet, (failing,), tmp_path)
    assert done.returncode == 0, done.stderr
    assert f"{failing.__name__}: no space left" in done.stdout.splitlines()
    assert second in done.stdout.splitlines()
