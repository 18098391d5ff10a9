"""Peak memory of a training step by optimizer: `python -m benchmarks.optimizer_memory [million parameters]`.

Each set-up runs in a process of its own: a stack of linear layers in bfloat16 under DeepSpeed, three steps; the peak,
in tensors on a GPU or resident on the host without one, less what the process held before the model was made.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator

from benchmarks.common.arguments import help_if_asked
from benchmarks.common.device import DEVICE, held_gib, machine, peak_gib, synchronize
from fdpo_fast.evaluate.tables import table

WIDTH = 4096  # of a layer: 16.8 M parameters

SETUPS = {
    "ZeRO-2 offload, cpu_adam": {"type": "cpu_adam", "stage": 2},
    "ZeRO-2 offload, adamw8bit": {"type": "adamw8bit", "stage": 2},
    "bf16 weights, adamw8bit": {"type": "adamw8bit", "stage": 0},
    "bf16 weights, adamw8bit, step_in_backward": {"type": "adamw8bit", "stage": 0, "inside": True},
}


def run(millions: float, type: str, stage: int, inside: bool = False) -> None:
    """One set-up, in this process; prints its figures as JSON."""
    import deepspeed
    import torch

    from fdpo_fast.config.schema import Optimizer
    from fdpo_fast.distributed import start_processes
    from fdpo_fast.optim import build
    from fdpo_fast.optim.in_backward import StepInBackward

    start_processes()
    if type == "cpu_adam":
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        DeepSpeedCPUAdam([torch.nn.Parameter(torch.zeros(8))])  # compiled and loaded before the base is taken
    base = held_gib()
    layers = max(1, round(millions * 1e6 / WIDTH**2))
    model = torch.nn.Sequential(
        *(torch.nn.Linear(WIDTH, WIDTH, bias=False, dtype=torch.bfloat16) for _ in range(layers))
    )
    parameters = list(model.parameters())
    optimizer = build.optimizer(Optimizer(type=type, lr=1e-5), parameters, 0)
    zero = {"stage": stage}
    if stage:
        zero |= {"offload_optimizer": {"device": "cpu"}, "reduce_bucket_size": 2**24, "allgather_bucket_size": 2**24}
    engine, *_ = deepspeed.initialize(
        model=model,
        model_parameters=parameters,
        optimizer=optimizer,
        dist_init_required=False,
        config={
            "train_micro_batch_size_per_gpu": 1,
            "gradient_clipping": 0.0,
            "bf16": {"enabled": stage > 0},
            "zero_optimization": zero,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
        },
    )
    if inside:
        StepInBackward(optimizer, parameters, 1.0, None)
        engine.enable_backward_allreduce = False
    x, seconds = torch.randn(1, WIDTH, dtype=torch.bfloat16, device=DEVICE), 0.0
    for _ in range(3):
        start = time.perf_counter()
        engine.backward(engine(x).float().square().mean())
        engine.step()
        synchronize()
        seconds = time.perf_counter() - start
    count = sum(p.numel() for p in parameters)
    print(json.dumps({"millions": count / 1e6, "peak_gib": peak_gib() - base, "seconds": seconds}))


def main() -> None:
    millions = float(sys.argv[1]) if len(sys.argv) > 1 else 500
    print(f"{machine()}\n")
    columns = ("set-up", "million parameters", "peak GiB", "bytes a parameter", "seconds of the last step")
    for line in table(columns, rows(millions), figures=4):
        print(line, flush=True)


def rows(millions: float) -> Iterator[tuple[str, ...]]:
    """Measure one set-up after the other, each in a process of its own."""
    for name, options in SETUPS.items():
        call = f"from benchmarks.optimizer_memory import run; run({millions}, **{options!r})"
        done = subprocess.run([sys.executable, "-c", call], check=True, capture_output=True, text=True)
        figures = json.loads(done.stdout.splitlines()[-1])
        bytes_each = figures["peak_gib"] * 2**30 / figures["millions"] / 1e6
        memory = f"{figures['peak_gib']:.2f}", f"{bytes_each:.1f}"
        yield name, f"{figures['millions']:.0f}", *memory, f"{figures['seconds']:.1f}"


if __name__ == "__main__":
    help_if_asked(__doc__)
    main()
