"""The optimizers that a host can train by, beside ours: `python -m benchmarks.rivals`, or `make rivals`.

Each runs in a process of its own, since one of them is imported as bitsandbytes too. A round steps each once, on the
same gradients of one large tensor, while all others wait; medians over the rounds, with one thread and with two, beside
a memory copy. Then each trains a small tensor by 1,000 steps of noisy gradients with a drift, and its weights are held
against AdamW in float64 on the same gradients: the distance as a share of the movement. Writes results/rivals.csv with
the versions.

`--python` names the interpreter that has torchao, torch-optimi and bitsandbytes-cpu-fork over this environment's
packages: `make rivals` makes it.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.nn import Parameter
from torch.optim import Optimizer

from benchmarks.common.device import machine
from benchmarks.common.tables import write_csv
from benchmarks.optimizer import OPTIONS, state_bytes

ROOT = Path(__file__).parent.parent
CSV = Path(__file__).parent / "results/rivals.csv"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
STEPS, SMALL = 1000, 65_536
"""Of the run that is held against float64, and its elements."""


@dataclass(frozen=True)
class Rival:
    """An optimizer with the settings that are measured."""

    package: str
    make: Callable[[list[Parameter]], Optimizer]
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    environment: dict[str, str] = field(default_factory=dict)
    elsewhere: bool = False
    """Whether it is in the other interpreter alone."""


def _fused(parameters: list[Parameter]) -> Optimizer:
    return torch.optim.AdamW(parameters, **OPTIONS, fused=True)


def _deepspeed(**options: Any) -> Callable[[list[Parameter]], Optimizer]:
    def make(parameters: list[Parameter]) -> Optimizer:
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return DeepSpeedCPUAdam(parameters, adamw_mode=True, **OPTIONS, **options)

    return make


def _bitsandbytes(parameters: list[Parameter]) -> Optimizer:
    from bitsandbytes.optim import AdamW8bit

    return AdamW8bit(parameters, **OPTIONS)


def _torchao(name: str) -> Callable[[list[Parameter]], Optimizer]:
    def make(parameters: list[Parameter]) -> Optimizer:
        from torchao import optim

        return getattr(optim, name)(parameters, **OPTIONS, bf16_stochastic_round=parameters[0].dtype == torch.bfloat16)

    return make


def _optimi(parameters: list[Parameter]) -> Optimizer:
    from optimi import AdamW

    return AdamW(parameters, **OPTIONS)  # its default is Kahan's summation where weights are bfloat16


def _ours(**options: Any) -> Callable[[list[Parameter]], Optimizer]:
    def make(parameters: list[Parameter]) -> Optimizer:
        from fdpo_fast import AdamW8bit

        return AdamW8bit(parameters, **OPTIONS, **options)

    return make


_BFLOAT16 = ("bfloat16",)
_FORK = "bitsandbytes-cpu-fork"
RIVALS: dict[str, Rival] = {
    "torch fused": Rival("torch", _fused),
    "DeepSpeedCPUAdam": Rival("deepspeed", _deepspeed()),
    "DeepSpeedCPUAdam, bf16 states": Rival("deepspeed", _deepspeed(fp32_optimizer_states=False), _BFLOAT16),
    "bitsandbytes AdamW8bit": Rival("bitsandbytes", _bitsandbytes),
    f"{_FORK}, AVX-512": Rival(_FORK, _bitsandbytes, elsewhere=True),
    f"{_FORK}, AVX2": Rival(_FORK, _bitsandbytes, environment={"BNB_CPU_DISABLE_AVX512": "1"}, elsewhere=True),
    "torchao AdamW8bit": Rival("torchao", _torchao("AdamW8bit"), elsewhere=True),
    "torchao AdamW4bit": Rival("torchao", _torchao("AdamW4bit"), elsewhere=True),
    "torch-optimi AdamW, Kahan": Rival("torch-optimi", _optimi, elsewhere=True),
    "fdpo_fast AdamW8bit": Rival("fdpo_fast", _ours()),
    "fdpo_fast AdamW8bit, to nearest": Rival("fdpo_fast", _ours(rounding="nearest"), _BFLOAT16),
    "fdpo_fast AdamW8bit, 24 bits": Rival("fdpo_fast", _ours(weights="bf16+8"), _BFLOAT16),
}


# --- in a rival's own process ---


def serve(name: str, dtype: str, elements: int, threads: int) -> None:
    """Say what the optimizer is, then step it once for each line that comes, and answer with the seconds."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    p = Parameter(torch.randn(elements).to(DTYPES[dtype]))
    p.grad = torch.randn(elements).to(DTYPES[dtype])
    optimizer = RIVALS[name].make([p])
    optimizer.step()
    answer = {"state_bytes": round(state_bytes(optimizer), 3), "version": version(RIVALS[name].package)}
    print(json.dumps(answer), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        optimizer.step()
        print(time.perf_counter() - start, flush=True)


def drift(name: str, dtype: str) -> None:
    """Print how far 1,000 steps lead from those of AdamW in float64, as a share of what these move the weights by.

    Gradients have magnitudes from 1e-9 to 1e-5 by rows of 1,024, and a few times more or less within a row, as those
    of preference losses have; their means are a fifth of that.
    """
    torch.manual_seed(0)
    start = (0.02 * torch.randn(SMALL)).to(DTYPES[dtype])
    scales = (10 ** (4 * torch.rand(SMALL // 1024, 1) - 9) * torch.randn(SMALL // 1024, 1024).exp()).flatten()
    mean = 0.2 * torch.randn(SMALL)
    options = OPTIONS | {"lr": 1e-5}
    ours, exact = Parameter(start.clone()), Parameter(start.double())
    reference = torch.optim.AdamW([exact], **options)
    optimizer = RIVALS[name].make([ours])
    for group in optimizer.param_groups:
        group["lr"] = torch.tensor(options["lr"]) if isinstance(group["lr"], torch.Tensor) else options["lr"]
    for _ in range(STEPS):
        grad = ((mean + torch.randn(SMALL)) * scales).to(DTYPES[dtype])
        ours.grad, exact.grad = grad, grad.double()
        optimizer.step()
        reference.step()
    moved = (exact.detach() - start.double()).norm()
    print(json.dumps(((ours.detach().double() - exact.detach()).norm() / moved).item()))


# --- the rounds ---


@dataclass(frozen=True)
class Bench:
    """Where rivals run."""

    python: str | None
    """The other interpreter; None leaves those out that are there alone."""

    def command(self, name: str, *words: str, threads: int) -> tuple[list[str], dict[str, str]]:
        rival = RIVALS[name]
        python = self.python if rival.elsewhere and self.python else sys.executable
        environment = os.environ | rival.environment | {"OMP_NUM_THREADS": str(threads), "PYTHONPATH": str(ROOT)}
        return [python, "-m", "benchmarks.rivals", *words], environment

    def drift(self, name: str, dtype: str) -> float:
        command, environment = self.command(name, "--drift", name, dtype, threads=2)
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return json.loads(done.stdout.splitlines()[-1])

    @contextmanager
    def serving(self, name: str, dtype: str, elements: int, threads: int) -> Iterator[tuple[dict, Callable[[], float]]]:
        """Start a rival; yields what it says of itself, and what steps it and returns the seconds."""
        command, environment = self.command(
            name, "--serve", name, dtype, str(elements), str(threads), threads=threads
        )  # fmt: skip
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        with subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL, **pipes) as process:

            def answer() -> Any:
                while line := process.stdout.readline():
                    try:
                        return json.loads(line)
                    except ValueError:  # what libraries print beside
                        continue
                raise RuntimeError(f"{name} has ended: run `{' '.join(command)}` to see why")

            def step() -> float:
                process.stdin.write("\n")
                process.stdin.flush()
                return answer()

            try:
                yield answer(), step
            finally:
                process.stdin.close()


def measured(bench: Bench, dtype: str, elements: int, threads: int, rounds: int) -> list[dict]:
    """Return a row for each optimizer that takes weights of `dtype`."""
    names = [
        name for name, rival in RIVALS.items() if dtype in rival.dtypes and (bench.python or not rival.elsewhere)
    ]  # fmt: skip
    times: dict[str, list[float]] = {name: [] for name in [*names, "copy"]}
    torch.set_num_threads(threads)
    with ExitStack() as stack:
        found = {name: stack.enter_context(bench.serving(name, dtype, elements, threads)) for name in names}
        source, to = torch.ones(2, elements)
        for turn in range(rounds + 1):  # the first one warms up
            for name, (_, step) in found.items():
                if turn > 3 and median(times[name]) > 1:  # whoever is that slow is measured thrice
                    continue
                seconds = step()
                if turn:
                    times[name].append(seconds)
            start = time.perf_counter()
            to.copy_(source)
            if turn:
                times["copy"].append(time.perf_counter() - start)
    seconds = {name: median(values) for name, values in times.items()}
    width = DTYPES[dtype].itemsize
    rows = []
    for name, (said, _) in found.items():
        moved = 3 * width + 2 * said["state_bytes"]  # weight twice, gradient, states twice
        rows.append({
            "weights": dtype,
            "threads": threads,
            "optimizer": name,
            "version": said["version"],
            "million_per_s": round(elements / seconds[name] / 1e6),
            "vs_deepspeed": round(seconds["DeepSpeedCPUAdam"] / seconds[name], 3),
            "state_bytes": said["state_bytes"],
            "share_of_copy": round(seconds["copy"] * moved / 8 / seconds[name], 3),
            "drift_after_1000": f"{bench.drift(name, dtype):.2e}",
            "machine": machine(torch.device("cpu")),
        })  # fmt: skip
        print(*rows[-1].values(), sep=", ", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--python", help="the interpreter with the rivals that are not here")
    parser.add_argument("--elements", type=int, default=100_000_000)
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--results", type=Path, default=CSV)
    parser.add_argument("--serve", nargs=4, metavar="WORD", help=argparse.SUPPRESS)
    parser.add_argument("--drift", nargs=2, metavar="WORD", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        name, dtype, elements, threads = options.serve
        return serve(name, dtype, int(elements), int(threads))
    if options.drift:
        return drift(*options.drift)
    bench = Bench(options.python)
    rows = [
        row
        for dtype in DTYPES
        for threads in options.threads
        for row in measured(bench, dtype, options.elements, threads, options.rounds)
    ]
    write_csv(options.results, list(rows[0]), [list(row.values()) for row in rows])


if __name__ == "__main__":
    main()
