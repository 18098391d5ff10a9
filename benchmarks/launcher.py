"""How DeepSpeed's launcher is started: as a module of this interpreter, wherever its script may lie."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from torch.distributed.elastic.utils.distributed import get_free_port as free_port

DEEPSPEED = (sys.executable, "-m", "deepspeed.launcher.runner")
TORCHRUN = (sys.executable, "-m", "torch.distributed.run")


def deepspeed(ranks: int) -> list[str]:
    """The words before the script, for `ranks` processes on this machine and a port that is free."""
    return [*DEEPSPEED, "--num_gpus", str(ranks), "--master_port", str(free_port())]


def environment(threads: int) -> dict[str, str]:
    """Ours, with the interpreter's own programs (ninja) on the path, and threads for each rank."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return os.environ | {"PATH": path, "OMP_NUM_THREADS": str(threads)}
