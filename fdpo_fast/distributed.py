"""The processes of a run: their group, and what they agree on."""

from __future__ import annotations

import atexit
import hashlib
import os
import secrets
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from filelock import FileLock

from fdpo_fast import progress, signals
from fdpo_fast.config.errors import UserError

Found = TypeVar("Found")


@dataclass(frozen=True)
class Rank:
    """A process among those of a run, with its device."""

    index: int
    count: int
    device: torch.device
    barrier: Callable[[], None]

    def say(self, *words: object) -> None:
        """Print the words, on the first rank only."""
        if self.index == 0:
            progress.say(*words)

    def warn(self, words: str) -> None:
        """Print a warning on the standard error, on the first rank only."""
        if self.index == 0:
            progress.say(f"warning: {words}", file=sys.stderr)


def single_process() -> Rank:
    """Return the rank of a process by itself, on the first GPU or the host, without a process group."""
    return Rank(0, 1, torch.device("cuda" if torch.cuda.is_available() else "cpu"), lambda: None)


def under_launcher() -> bool:
    """Say whether a launcher has started this process as one of its ranks."""
    return "RANK" in os.environ


def start_processes() -> Rank:
    """Join the launcher's process group, or be a group of one, which nobody reaches from another machine."""
    import deepspeed

    cuda = torch.cuda.is_available()
    if not under_launcher():  # DeepSpeed reads these
        os.environ.update(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
        _stay_on_loopback()
        if not dist.is_initialized():
            store = dist.HashStore()  # type: ignore[attr-defined]  # in torch's manual, not in its types
            dist.init_process_group("nccl" if cuda else "gloo", store=store, rank=0, world_size=1)
            atexit.register(_leave)
    if os.environ.get("WORLD_SIZE") == "1":
        for variable in ("NCCL_MIN_NCHANNELS", "NCCL_MAX_NCHANNELS"):
            os.environ.setdefault(variable, "1")  # nothing is sent: on an H200 NCCL then takes 0.17 GiB, not 0.54
    if not cuda:
        _build_collectives()
    # a rank may wait for the others' share of the caches
    deepspeed.init_distributed(verbose=False, timeout=timedelta(days=7))
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    if cuda:
        torch.cuda.set_device(device)
    if cuda and dist.get_world_size() == 1:
        _use(device)
    return Rank(dist.get_rank(), dist.get_world_size(), device, dist.barrier)


def _leave() -> None:
    """Let the group's threads end before the interpreter does, which would abort the process on its way out."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _stay_on_loopback() -> None:
    """Let gloo and NCCL listen on the loopback interface alone, unless the environment names another."""
    names = [name for _, name in socket.if_nameindex() if name in ("lo", "lo0")]
    for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME") if names else ():
        os.environ.setdefault(variable, names[0])


def _use(device: torch.device) -> None:
    """Show a group of one its GPU, which its barriers would guess, and warn of it.

    Among several ranks DeepSpeed binds it, by `device_id`. For one it does not: NCCL then fails on some machines
    (DeepSpeed's issue 8248). The device of a collective is what a barrier takes next.
    """
    warnings.filterwarnings("ignore", message=r"barrier\(\): using the device under current context")
    dist.all_reduce(torch.zeros((), dtype=torch.float32, device=device))


def _build_collectives(patience: float = 60) -> None:
    """Have DeepSpeed build its collectives for the host, one process at a time.

    torch guards the build by a file that a killed process leaves behind, and then everybody waits for ever. This lock
    ends with its process, so a guard found under it is another program's, or after `patience` seconds a leftover.
    """
    from deepspeed.comm.torch import build_shm_op
    from torch.utils.cpp_extension import _get_build_directory

    folder = Path(_get_build_directory("deepspeed_shm_comm", verbose=False))
    guard = folder / "lock"
    doing = "compiling DeepSpeed's collectives for the host, about a minute, once for an environment"
    with progress.waiting(doing, show=signals.speaks()), FileLock(folder.with_name("fdpo_fast.lock")):
        with suppress(FileNotFoundError):  # it has gone meanwhile
            while guard.exists():
                if time.time() - guard.stat().st_mtime > patience:
                    guard.unlink()
                time.sleep(0.1)
        build_shm_op()


def ranks_here() -> int:
    """Return the number of the run's processes on this machine; 1 where the launcher does not say."""
    # named so by torchrun and by the deepspeed launcher
    return int(os.environ.get("LOCAL_WORLD_SIZE") or os.environ.get("LOCAL_SIZE") or 1)


def check_shared(rank: Rank, key: str, folder: Path) -> None:
    """Raise UserError, on every rank, where the nodes of a run do not see one and the same folder. Collective."""
    if ranks_here() == rank.count:
        return
    writes = rank.index == 0 and os.access(folder, os.W_OK)
    number = torch.tensor(secrets.randbits(62) if writes else 0, dtype=torch.int64, device="cpu")
    largest_over_ranks(number)  # known to all once all are here
    if not number:  # complete caches may lie in a folder that is read-only
        return
    token = folder / f".shared-{number.item()}"
    if writes:
        token.touch()
    rank.barrier()
    missing = torch.tensor(float(not _appears(token)), dtype=torch.float32, device="cpu")
    largest_over_ranks(missing)
    if writes:
        token.unlink()
    if missing:
        raise UserError(f"{key} '{folder}' is not shared between the nodes: name a folder that all of them reach")


def check_equal(rank: Rank, text: str, sentence: str) -> None:
    """Raise UserError with a sentence, on every rank, where a text is not the same on all. Collective."""
    if ranks_here() == rank.count:
        return
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:7], "big")
    ends = torch.tensor([number, -number], dtype=torch.int64, device="cpu")
    largest_over_ranks(ends)
    if ends.sum():
        raise UserError(sentence)


def _appears(file: Path, seconds: float = 10) -> bool:
    """Say whether a file that another node has written is seen here within `seconds`.

    A network file system may take a while.
    """
    end = time.monotonic() + seconds
    while file.name not in os.listdir(file.parent):  # asks the server, where `exists` may answer from before
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def agreed(work: Callable[[], Found]) -> list[Found]:
    """Do a work on every rank; return what each has found. A UserError of any is one of all. Collective.

    What else a rank meets it raises itself, once the others know: they end by a UserError rather than wait for it.
    """
    found, error, own = None, None, None
    try:
        found = work()
    except UserError as raised:
        error = str(raised)
    except Exception as raised:
        error, own = f"rank {dist.get_rank()} has failed: {raised}", raised
    told: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(told, (found, error))
    if own:
        raise own
    if said := [error for _, error in told if error is not None]:
        raise UserError(said[0])
    return [found for found, _ in told]


def mean_over_ranks(tensor: torch.Tensor) -> None:
    """Make a tensor its mean over the ranks, in place. Collective."""
    if dist.get_world_size() > 1:
        dist.all_reduce(tensor)
        tensor /= dist.get_world_size()


def largest_over_ranks(tensor: torch.Tensor) -> None:
    """Make a tensor, element by element, the largest of all ranks, in place. Collective.

    It may be anywhere: under offload that is not where NCCL can reach.
    """
    reached = tensor.cuda() if dist.get_backend() == "nccl" else tensor
    dist.all_reduce(reached, op=dist.ReduceOp.MAX)
    tensor.copy_(reached)


class StopSignal:
    """Turns Ctrl-C or SIGTERM on any rank into a stop of all ranks after the same step; a second one ends the process.

    A thread answers at once, also while the step is in code that is not Python. What the ranks agree on is reduced
    beside the next step and read behind it: nobody waits for a device, nor for a rank that is less than a step behind.
    A rank by itself looks at its own wish. To be used as a context, by the main thread.
    """

    def __init__(self, rank: Rank, kept: Callable[[], str]) -> None:
        self.rank, self.kept = rank, kept
        self.asked = 0
        """The number of the signal that asked this rank; 0 for none."""
        self.coming: Callable[[], int] | None = None
        """What gives the largest number over the ranks as they were behind the step before."""
        self._undo = ExitStack()

    def __enter__(self) -> StopSignal:
        heard, told = os.pipe()
        os.set_blocking(told, False)
        self._undo.enter_context(signals.handled_by(lambda number, frame: None))  # the thread hears it by the pipe
        self._undo.callback(os.close, told)
        self._undo.callback(signal.set_wakeup_fd, signal.set_wakeup_fd(told, warn_on_full_buffer=False))
        threading.Thread(target=self._listen, args=(heard,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._undo.close()

    def _listen(self, heard: int) -> None:
        with os.fdopen(heard, "rb", buffering=0) as signs:
            while sign := signs.read(1):
                if sign[0] in signals.ENDING:
                    self._answer(sign[0])

    def _answer(self, number: int) -> None:
        first = signals.is_first()
        if first:
            self.asked = number
            self.rank.say("stopping after this step, again to stop now")
        elif first is False:
            self.rank.say(f"stopped within a step: --resume goes on from {self.kept()}")
            os._exit(128 + number)

    def behind_step(self, last: bool) -> int:
        """Return the signal that asked a rank to stop, the same on all; 0 for none. Collective, behind every step.

        Behind the `last` one what was asked meanwhile is waited for: there is no step to read it behind.
        """
        if self.rank.count == 1:
            return self.asked
        seen, self.coming = self.coming, _largest_later(self.asked, self.rank.device)
        number = seen() if seen else 0
        return number or (self.coming() if last else 0)


def _largest_later(number: int, device: torch.device) -> Callable[[], int]:
    """Reduce a number over the ranks; returns what waits for the largest. Collective."""
    flag = torch.full((), number, dtype=torch.int32, device=device)
    work = dist.all_reduce(flag, op=dist.ReduceOp.MAX, async_op=True)
    if device.type != "cuda":

        def waited() -> int:
            work.wait()
            return int(flag)

        return waited
    work.wait()  # on the stream, not here
    copy = torch.empty((), dtype=torch.int32, device="cpu", pin_memory=True)
    copy.copy_(flag, non_blocking=True)
    copied = torch.cuda.Event()
    copied.record()

    def read() -> int:
        copied.synchronize()
        return int(copy)

    return read
