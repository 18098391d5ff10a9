"""What ranks do that are asked to stop, to be run by `ranks.together`."""

import os
import random
import signal
import time

import torch
import torch.distributed as dist

from fdpo_fast.distributed import Rank, StopSignal


def stops(asked, steps=20):
    """Take steps of other lengths on every rank, reducing as training does; rank `asked` hears SIGTERM in the fifth."""
    dist.init_process_group("gloo")
    index, chance = dist.get_rank(), random.Random(dist.get_rank())  # noqa: S311
    rank = Rank(index, dist.get_world_size(), torch.device("cpu"), dist.barrier)
    with StopSignal(rank, lambda: "the start") as stop:
        for step in range(steps):
            time.sleep(chance.uniform(0, 0.1))
            if (index, step) == (asked, 5):
                os.kill(os.getpid(), signal.SIGTERM)
                time.sleep(0.2)  # the thread that hears it
            dist.all_reduce(torch.zeros(8, dtype=torch.float32))
            if number := stop.behind_step(last=step == steps - 1):
                print("ends", step, number)
                break
    dist.barrier()
    dist.destroy_process_group()
