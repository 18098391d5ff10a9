"""What processes of a run share."""

import os
import time
from importlib import import_module


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
