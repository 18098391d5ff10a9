"""Where a training step's time goes, by torch's profiler: `python -m benchmarks.step_profile`.

The trainer itself (fdpo_fast/train.py, in-process) on a UNet of SDXL's block types at 104 M parameters, latents 32 x
32, bf16, cached reference, the rungs of the memory ladder, with 2 and with 16 pairs a step: in micro-batches of one
where the rung accumulates, all at once on B. Methods are wrapped in `record_function`; a part's time is its own, less
that of the parts inside it. On a GPU the device is waited for at both ends of a part: what runs side by side otherwise
is taken one after the other, so that each part's time is its own. Two steps warm up, five are profiled. Writes
results/step_profile.csv, or results/gpu/step_profile.csv: seconds a step, and shares.
"""

from __future__ import annotations

import json
import multiprocessing
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.common.arguments import help_if_asked
from benchmarks.common.device import CUDA, machine, synchronize
from benchmarks.common.tables import write_csv
from benchmarks.full_sdxl import config, prepare
from benchmarks.plan_accuracy import SIZES

CSV = Path(__file__).parent / ("results/gpu" if CUDA else "results") / "step_profile.csv"
UNET = ("forward", "backward")
WARM, PROFILED = 2, 5
SIZE = "100M"
CASES = [(2, "A"), (2, "B"), (2, "C"), (2, "D"), (16, "A"), (16, "B"), (16, "C")]
"""Pairs a step, and the rung. Of D with 16 pairs torch's profiler keeps some 12 GiB of events."""


def wrapped() -> dict[tuple[Any, str], str]:
    """The part of a step that each method is, by owner and name."""
    from deepspeed.runtime.engine import DeepSpeedEngine
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator
    from deepspeed.runtime.zero.stage3 import DeepSpeedZeroOptimizer_Stage3
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    from fdpo_fast.cache import dataset
    from fdpo_fast.loss.function import FDPOLoss
    from fdpo_fast.models import prediction
    from fdpo_fast.ops.autograd import FusedLoss
    from fdpo_fast.optim.adamw8bit import AdamW8bit
    from fdpo_fast.optim.finite import SkipNonFinite
    from fdpo_fast.training.metrics import Metrics

    reduce = "reduce_ready_partitions_and_remove_grads"
    return {
        (dataset.TrainingSet, "batch"): "data",
        (prediction, "predict"): "data",  # noise is added, less the forward inside
        (DeepSpeedEngine, "forward"): "forward",
        (FDPOLoss, "forward"): "loss",
        (FusedLoss, "backward"): "loss",
        (DeepSpeedEngine, "backward"): "backward",
        (DeepSpeedZeroOptimizer, reduce): "ZeRO: gradients to their place",
        (DeepSpeedZeroOptimizer_Stage3, reduce): "ZeRO: gradients to their place",
        (PartitionedParameterCoordinator, "fetch_sub_module"): "ZeRO: parameters fetched",
        (PartitionedParameterCoordinator, "release_sub_module"): "ZeRO: parameters fetched",
        (DeepSpeedEngine, "step"): "norm, clipping, bookkeeping",
        (SkipNonFinite, "_hide"): "norm, clipping, bookkeeping",
        (AdamW8bit, "step"): "optimizer",
        (AdamW8bit, "step_by"): "optimizer",
        (Metrics, "add"): "metrics",
    }


def recorded(method: Callable, part: str) -> Callable:
    from torch.profiler import record_function

    def run(*args: Any, **kwargs: Any) -> Any:
        synchronize()
        with record_function(f"part: {part}"):
            result = method(*args, **kwargs)
            synchronize()
            return result

    return run


def profile(settings: dict) -> dict[str, float]:
    """Seconds a step by part; "step" is the whole. In a process of its own."""
    import torch
    from torch.profiler import ProfilerActivity, record_function, schedule

    from fdpo_fast.config.run import Config
    from fdpo_fast.train import check_output, train
    from fdpo_fast.training.metrics import Metrics

    for (owner, name), part in wrapped().items():
        static = isinstance(vars(owner)[name], staticmethod)
        run = recorded(getattr(owner, name), part)
        setattr(owner, name, staticmethod(run) if static else run)
    totals: dict[str, float] = {}

    def keep(profiler: Any) -> None:
        totals.update(own_times(profiler.events()))

    made = Config.model_validate(settings)
    check_output(Path(made.train.output_dir), resume=False)
    whole = record_function("part: other")
    times = schedule(wait=0, warmup=WARM, active=PROFILED, repeat=1)
    with torch.profiler.profile(activities=[ProfilerActivity.CPU], schedule=times, on_trace_ready=keep) as profiler:
        whole.__enter__()
        end_step = Metrics.end_step

        def turn(metrics: Metrics, *args: Any) -> None:
            nonlocal whole
            end_step(metrics, *args)
            synchronize()
            whole.__exit__(None, None, None)
            profiler.step()
            whole = record_function("part: other")
            whole.__enter__()

        Metrics.end_step = turn
        train(made, resume=False)
    return {part: seconds / PROFILED for part, seconds in totals.items()}


def own_times(events: Iterable[Any]) -> dict[str, float]:
    """Seconds of each part without those within it, and of the "step", their sum."""
    spans = [
        (e.time_range.start, e.time_range.end, e.name.removeprefix("part: ")) for e in events if "part: " in e.name
    ]
    times: dict[str, float] = defaultdict(float)
    open_: list[tuple[float, str]] = []
    for start, end, part in sorted(spans, key=lambda span: (span[0], -span[1])):
        while open_ and open_[-1][0] <= start:
            open_.pop()
        seconds = (end - start) / 1e6
        times[part] += seconds
        if open_:
            times[open_[-1][1]] -= seconds
        else:
            times["step"] += seconds
        open_.append((end, part))
    return times


def main() -> None:
    rows = []
    size, spawn = SIZES[SIZE], multiprocessing.get_context("spawn")
    with TemporaryDirectory() as folder:
        base = Path(folder) / "base"
        with spawn.Pool(1) as pool:
            pool.apply(prepare, (size.preset, base, size.side, size.changes))
        for pairs, rung in CASES:
            scratch = Path(folder) / f"{rung}-{pairs}"
            scratch.mkdir()
            settings = config(size.preset, base, scratch, rung, size.side)
            settings["train"] |= {
                "pairs_per_step": pairs,
                "pairs_per_micro_batch": pairs if rung == "B" else 1,
                "max_steps": WARM + PROFILED + 1,
            }
            settings["log"]["every"] = WARM + PROFILED + 1
            with spawn.Pool(1) as pool:
                by_part = pool.apply(profile, (json.loads(json.dumps(settings)),))
            step = by_part.pop("step")
            for part, seconds in sorted(by_part.items(), key=lambda item: -item[1]):
                rows.append((rung, pairs, part, f"{seconds:.4g}", f"{seconds / step:.4f}", machine()))
                print(*rows[-1][:-1], sep=", ", flush=True)
            rest = sum(seconds for part, seconds in by_part.items() if part not in UNET)
            print(
                f"rung {rung}, {pairs} pairs: a step takes {step:.3g} s, of which all but the UNet {rest / step:.1%}",
                flush=True,
            )
    write_csv(CSV, ("rung", "pairs", "part", "seconds", "share", "machine"), rows)


if __name__ == "__main__":
    help_if_asked(__doc__)
    main()
