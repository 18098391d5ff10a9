"""What Python costs of a training step, without a GPU: `python -m benchmarks.host_cost`.

CPU time of the thread, medians, with a driver that compiles for sm_90 and launches nothing
(`benchmarks.static_gpu`): of the optimizer over the 1,680 tensors of SDXL's UNet, at once and inside backward, of the
fused loss, and of a step's other parts. Tensors are small and lie on the CPU, since none of this depends on their size;
inside backward the bucket is made smaller in the measure, so that there are as many as the real gradients fill. What
only happens beside a GPU is not in it: copies into pinned memory, Triton's call of the driver, torch's launches.
Operations of torch count with what they do to small tensors on the CPU.

Writes results/host_cost.csv, where the column `before` is kept as it is.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor
from torch.nn import Parameter

from benchmarks.common.arguments import help_if_asked
from benchmarks.common.tables import write_csv
from benchmarks.static_gpu import compiling
from fdpo_fast import AdamW8bit, FDPOLoss, draws
from fdpo_fast.config.schema import Log
from fdpo_fast.evaluate.tables import table
from fdpo_fast.loss.options import LossOptions
from fdpo_fast.noise import add_noise
from fdpo_fast.ops.triton import launch
from fdpo_fast.optim import in_backward
from fdpo_fast.optim.finite import SkipNonFinite
from fdpo_fast.training.metrics import Metrics

CSV = Path(__file__).parent / "results/host_cost.csv"
CAPABILITY = 90
LARGEST = 4096
"""Elements of the small tensors; states have eight bits from there on."""


def cost(work: Callable[[], object], rounds: int) -> float:
    """Median CPU seconds of this thread, behind three turns that compile and fill caches."""
    times = []
    with compiling(CAPABILITY) as launches:
        for turn in range(rounds + 3):
            start = time.thread_time()
            work()
            if turn >= 3:
                times.append(time.thread_time() - start)
            launches.clear()
    return median(times)


def sdxl() -> list[int]:
    """Elements of each of the UNet's parameters."""
    from diffusers import UNet2DConditionModel

    from fdpo_fast.models import presets

    with torch.device("meta"):
        unet = UNet2DConditionModel(**presets.unet_config("sdxl"))
    return [p.numel() for p in unet.parameters()]


def small(sizes: list[int]) -> list[Parameter]:
    return [Parameter(torch.zeros(min(size, LARGEST), dtype=torch.bfloat16)) for size in sizes]


def at_once(sizes: list[int]) -> float:
    """`AdamW8bit.step()`; gradients are other tensors at every step."""
    parameters = small(sizes)
    optimizer = AdamW8bit(parameters, backend="triton")
    spent = []

    def step() -> None:
        for p in parameters:
            p.grad = torch.zeros_like(p)
        start = time.thread_time()
        optimizer.step()
        spent.append(time.thread_time() - start)

    cost(step, 20)
    return median(spent[3:])


class _Gradients(torch.autograd.Function):
    """Parameters to a scalar; backward gives each a fresh gradient, one after the other."""

    @staticmethod
    def forward(ctx, *parameters: Tensor) -> Tensor:
        ctx.save_for_backward(*parameters)
        return parameters[0].new_zeros(())

    @staticmethod
    def backward(ctx, _: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.zeros_like(p) for p in ctx.saved_tensors)


def inside(sizes: list[int]) -> float:
    """`StepInBackward` in a whole backward, less one without it."""
    real = getattr(in_backward, "BUCKET_BYTES", 0)
    if real:
        filled = sum(min(size, LARGEST) for size in sizes) / sum(sizes)
        in_backward.BUCKET_BYTES = int(real * filled)
    costs = []
    for stepped in (True, False):
        parameters = small(sizes)
        if stepped:
            in_backward.StepInBackward(
                AdamW8bit(parameters, backend="triton"), parameters, 1.0, None if real else _alone
            )
        # in this thread, as CPU tensors are; those of a GPU have one of their own
        costs.append(cost(partial(_backward, parameters), 10))
    if real:
        in_backward.BUCKET_BYTES = real
    return costs[0] - costs[1]


def _alone(tensor: Tensor) -> None:
    """The mean over one rank."""


def _backward(parameters: list[Parameter]) -> None:
    _Gradients.apply(*parameters).backward()
    for p in parameters:
        p.grad = None


def skip_non_finite(sizes: list[int]) -> float:
    """`SkipNonFinite` around an optimizer that does nothing: norms of the gradients, on the CPU, and clipping."""
    parameters = small(sizes)
    for p in parameters:
        p.grad = torch.zeros_like(p)
    nothing = torch.optim.SGD(parameters[:1], lr=0.0)
    nothing.param_groups[0]["params"] = parameters
    watching = SkipNonFinite(nothing, _alone, 1.0)
    return cost(lambda: (watching._hide(nothing), watching._show()), 20)


SAMPLES = (2, 4, 128, 128)
"""Of one pair of SDXL at 1024 x 1024."""


def loss(reduction: str) -> float:
    """The fused loss of one pair, forward and backward, by errors of the reference and draws of the noise."""
    loss_of = FDPOLoss(beta=1.0, ratio_scale=2500.0, reduction=reduction, backend="triton")
    pred = torch.zeros(SAMPLES, dtype=torch.bfloat16, requires_grad=True)
    ref, noise, weight = torch.zeros(2, dtype=torch.float64), draws(0, torch.arange(1), 0), torch.ones(1)

    def work() -> None:
        value, _ = loss_of(pred, ref, noise, weight)
        (value.mean() if reduction == "none" else value).backward()
        pred.grad = None

    return cost(work, 300)


def noisy() -> float:
    """`add_noise` to the latents of one pair."""
    latents, table, noise = torch.zeros(SAMPLES), torch.ones(1000), draws(0, torch.arange(1), 0)
    return cost(lambda: add_noise(latents, noise, table, table, dtype=torch.bfloat16, backend="triton"), 300)


def metrics() -> tuple[float, float]:
    """`Metrics.add` of a micro-batch, and `end_step`."""
    pred = torch.zeros(SAMPLES)
    loss_of = FDPOLoss(beta=1.0, ratio_scale=2500.0, reduction="none")
    losses, stats = loss_of(pred, torch.zeros(2), torch.zeros(SAMPLES))
    kept, at = Metrics(Log(), LossOptions(**loss_of.options), 1000, torch.device("cpu")), torch.tensor([7])
    adding = cost(lambda: kept.add(losses, stats, at), 300)
    return adding, cost(lambda: kept.end_step(0, 1e-4, None), 300)


def batch() -> float:
    """`TrainingSet.batch` of one pair from its caches: of the embedded digits, whose rows are smaller than SDXL's."""
    from tempfile import TemporaryDirectory

    from fdpo_fast.cache.build import Builder
    from fdpo_fast.cache.open import cache_root, caches_of
    from fdpo_fast.config.run import Config
    from fdpo_fast.distributed import start_processes

    recipe = {"vae_steps": 2, "unet_steps": 2, "pairs": 30, "sampling_steps": 2, "batch": 8, "tie_below": 0.0}
    with TemporaryDirectory() as folder:
        config = Config.model_validate({
            "model": {"family": "sd", "base": "digits", "dtype": "fp32"},
            "data": {"source": "digits", "resolution": 32, "cache_dir": folder, "digits": recipe},
            "loss": {"divergence": "jensen_shannon", "beta": 1.0, "ratio_scale": 200.0},
            "optimizer": {"lr": 1e-4},
            "train": {"output_dir": f"{folder}/run", "max_steps": 1, "pairs_per_step": 1, "pairs_per_micro_batch": 1},
        })  # fmt: skip
        rank = start_processes()
        data = caches_of(config, rank, Builder(cache_root(config), rank)).data
        at = torch.tensor([3])
        return cost(lambda: data.batch(at, torch.tensor([1])), 100)


def measure() -> dict[str, float]:
    """Milliseconds by what was measured."""
    torch.set_num_threads(1)
    launch.devices = lambda: ("cuda", "cpu")
    sizes = sdxl()
    seconds = {
        "AdamW8bit.step, 1680 tensors": at_once(sizes),
        "inside backward, 1680 tensors": inside(sizes),
        "SkipNonFinite, 1680 tensors": skip_non_finite(sizes),
        "fused loss, forward and backward": loss("mean"),
        "loss of each pair, its mean and backward": loss("none"),
        "Batch of one pair": batch(),
        "add_noise": noisy(),
    }
    seconds["Metrics.add"], seconds["Metrics.end_step"] = metrics()
    parts = list(seconds)[4:]
    seconds["a step without UNet, SkipNonFinite and optimizer"] = sum(seconds[part] for part in parts)
    return {part: 1e3 * value for part, value in seconds.items()}


def main() -> None:
    before = {}
    if CSV.exists():
        with CSV.open(newline="") as file:
            before = {row["part"]: row["before"] for row in csv.DictReader(file)}
    rows = [(part, before.get(part, ""), f"{value:.3f}") for part, value in measure().items()]
    print("\n".join(table(("ms of CPU time", "before", "after"), rows, figures=2)))
    write_csv(CSV, ("part", "before", "after"), rows)


if __name__ == "__main__":
    help_if_asked(__doc__)
    main()
