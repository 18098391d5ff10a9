"""Runs of the trainer, forked one after the other from a process in which everything is imported once.

A line of JSON on stdin is a run: {words, root, at, mode, said}. One on stdout is its end: {code, operations}.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
import traceback
from pathlib import Path
from typing import Any

PATIENCE = 180
"""Seconds that a run may take."""


def child(run: dict[str, Any]) -> None:
    """Be the trainer, with its output in files and its operations on `root` counted."""
    for number, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(f"{run['said']}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1, closefd=False) for number in (1, 2))
    from fdpo_fast.train import main

    operations = ctypes.CDLL(None)
    operations.faults_arm(run["root"].encode(), ctypes.c_long(run["at"]), ctypes.c_long(run["mode"]))
    code = 0
    try:
        main(run["words"])
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        code = 1
    done = operations.faults_count()
    operations.faults_arm(b"", ctypes.c_long(0), ctypes.c_long(0))
    Path(f"{run['said']}.count").write_text(str(done))
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code or 0)


def main() -> None:
    import signal

    import torch

    torch.set_num_threads(1)
    for line in sys.stdin:
        run = json.loads(line)
        Path(f"{run['said']}.count").unlink(missing_ok=True)
        pid = os.fork()
        if pid == 0:
            signal.alarm(PATIENCE)
            child(run)
        _, status = os.waitpid(pid, 0)
        count = Path(f"{run['said']}.count")
        operations = int(count.read_text()) if count.exists() else None
        print(json.dumps({"code": os.waitstatus_to_exitcode(status), "operations": operations}), flush=True)


if __name__ == "__main__":
    main()
