"""Training statistics: gathered on the device without a wait, reduced and written every `log.every` steps."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from fdpo_fast.config.errors import UserError
from fdpo_fast.config.schema import Log
from fdpo_fast.distributed import largest_over_ranks
from fdpo_fast.files import flush, replacing
from fdpo_fast.loss.options import LossOptions
from fdpo_fast.loss.stats import LossStats
from fdpo_fast.optim import watch
from fdpo_fast.training.lock import gone
from fdpo_fast.training.margins import SATURATED, GradientWeight, Margins, Steepness
from fdpo_fast.training.records import BINS, FILE, read_metrics
from fdpo_fast.training.trackers import Trackers

# Sums per timestep bin; each but the count is divided by it when written.
COLUMNS = (
    *("pairs", "loss", "accuracy", "margin", "error_w", "error_l", "delta_w", "delta_l", "clipped"),
    *("gradient_weight", "saturated", "steep", "loser_scale"),
)
"""The last is of a run with `loss.winner_preserving`."""

BY_TIMESTEP = ("margin", "accuracy", "delta_w", "delta_l")
"""The figures of each bin that the trackers show."""


class Metrics:
    """One row of sums per optimizer step and timestep bin, [bins, len(columns)] float64; and the pairs' margins."""

    def __init__(self, settings: Log, options: LossOptions, num_train_timesteps: int, device: torch.device) -> None:
        self.columns = COLUMNS[:-1] if options.winner_preserving is None else COLUMNS
        self.weight, self.steepness, self.margins = GradientWeight(options), Steepness(options.link), Margins()
        self.bins, self.timesteps = settings.timestep_bins, num_train_timesteps
        self.device = device
        self.current = self._empty()
        self.steps: list[tuple[int, float, Tensor, Tensor]] = []  # (step, lr, sums, gradient norm)
        self.watched: Tensor | None = None
        """What became of the last step's updates, see `optim/watch.py`."""
        self.started = time.perf_counter()

    def _empty(self) -> Tensor:
        return torch.zeros(self.bins, len(self.columns), dtype=torch.float64, device=self.device)

    def add(self, losses: Tensor, stats: LossStats, fed: Tensor) -> None:
        """Count a micro-batch: `losses` [b] per pair, `fed` [b]: timesteps as the denoiser is told, the noise level."""
        accuracy = (stats.margin > 0).double() + 0.5 * (stats.margin == 0).double()
        delta_w, delta_l = stats.error_w - stats.ref_error_w, stats.error_l - stats.ref_error_l
        weight, steep = self.weight(stats.margin), self.steepness(stats.log_ratio_w, stats.log_ratio_l)
        values = (
            torch.ones_like(accuracy), losses.detach(), accuracy, stats.margin, stats.error_w, stats.error_l,
            delta_w, delta_l, stats.clipped, weight, weight < SATURATED, steep, stats.loser_scale,
        )  # fmt: skip
        self.margins.add(stats.margin)
        rows = torch.stack([value.double() for value in values[: len(self.columns)]], dim=1)  # the last where it is on
        of_bin = (fed * self.bins // self.timesteps).long().clamp(max=self.bins - 1)  # a flow's go up to T itself
        self.current.index_add_(0, of_bin, rows)

    def end_step(self, step: int, lr: float, grad_norm: Tensor | float | None) -> None:
        """Close the optimizer step `step` (counted from 0)."""
        norm = torch.as_tensor(
            float("nan") if grad_norm is None else grad_norm, dtype=torch.float64, device=self.device
        )
        self.steps.append((step, lr, self.current, norm))
        self.current = self._empty()

    def flush(self) -> list[dict]:
        """Return the records since the last flush, equal on all ranks; the last one carries the timestep bins."""
        sums = torch.stack([sums for _, _, sums, _ in self.steps])
        dist.all_reduce(sums)
        norms = torch.stack([norm for *_, norm in self.steps]).tolist()
        seconds = time.perf_counter() - self.started
        rate = 2 * sums[..., 0].sum().item() / seconds  # two images per pair
        records = []
        for (step, lr, *_), norm, total in zip(self.steps, norms, sums.sum(dim=1).tolist(), strict=True):
            record: dict[str, Any] = {"step": step, **self._means(total), "lr": lr}
            if norm == norm:
                record["grad_norm"] = norm
            records.append(record)
        records[-1]["images_per_second"] = rate
        records[-1] |= memory(self.device)
        if self.watched is not None:
            records[-1] |= watch.figures(self.watched.tolist())
            self.watched = None
        records[-1] |= self.margins.quantiles()
        edges = [self.timesteps * i // self.bins for i in range(self.bins + 1)]
        by_bin = sums.sum(dim=0).tolist()
        records[-1]["bins"] = [
            {"timesteps": [edges[i], edges[i + 1]], **self._means(row)} for i, row in enumerate(by_bin) if row[0]
        ]
        self.steps.clear()
        self.started = time.perf_counter()
        return records

    def _means(self, sums: list[float]) -> dict[str, float]:
        pairs, names = sums[0], self.columns[1:]
        return {"pairs": int(pairs), **{name: total / pairs for name, total in zip(names, sums[1:], strict=True)}}


def headline(record: dict) -> str:
    """Return the progress bar's figures."""
    return (
        f"loss {record['loss']:.4f}, accuracy {record['accuracy']:.2f}, margin {record['margin']:+.3f}, "
        f"lr {record['lr']:.1e}, {record['images_per_second']:.1f} images/s, {record['memory_gib']:.1f} GiB"
    )


def memory(device: torch.device) -> dict[str, float]:
    """Return this process's peak memory in GiB: what its tensors took of the GPU, what the allocator had reserved for
    them, or what was resident on the host.
    """
    if device.type == "cuda":
        return {
            "memory_gib": torch.cuda.max_memory_allocated(device) / 2**30,
            "memory_reserved_gib": torch.cuda.max_memory_reserved(device) / 2**30,
        }
    import resource

    return {"memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20}


def forget_caching(device: torch.device) -> None:
    """Start the GPU's peaks anew, without what the encoders had reserved; the host's peak cannot be."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


class FirstMargin:
    """Whether a run starts at its reference: at the first step both are the same weights, and every margin is 0.

    Where it is not, the two were computed by different kernels, and every log-ratio u of the run carries an error of
    that size. It is compared with the median |u| of training once the learning rate has warmed up.
    """

    def __init__(self, device: torch.device, starts: bool, warmup: int) -> None:
        self.open = starts
        """Whether micro-batches are still to be added."""
        self._device, self._warmup, self._off = device, warmup, 0.0
        self._margins: list[Tensor] = []
        self._log_ratios: list[Tensor] = []

    def add(self, stats: LossStats) -> None:
        """Take note of a micro-batch."""
        self._margins.append(stats.margin.abs())
        self._log_ratios.append(torch.cat([stats.log_ratio_w, stats.log_ratio_l]).abs())

    def apart(self) -> str | None:
        """Return, after the first step, a sentence where a margin was not 0. Waits for the device. Collective."""
        largest = torch.stack([torch.cat(self._margins).max(), torch.cat(self._log_ratios).max()])
        largest = largest.nan_to_num(nan=math.inf)
        largest_over_ranks(largest)
        self._off, self._margins = self._median(), []
        margin, log_ratio = largest.tolist()
        self.open = log_ratio > 0
        if not self.open:
            return None
        return (
            f"step 0: the margin is up to {margin:.3g}, where policy and reference are the same weights and it should "
            f"be 0: they were computed by different kernels, and every log-ratio u is off by about {self._off:.2g}; "
            "what that is of the median |u| will be said after the warm-up"
        )

    def judged(self, step: int) -> str | None:
        """At a flush after the warm-up, say what that is of the median |u| since the last flush. Collective."""
        if not self.open:
            return None
        self._margins = []
        if step < max(self._warmup, 1):
            self._log_ratios = []
            return None
        self.open, median = False, self._median()
        return (
            f"step {step}: the median |u| is {median:.3g}, and {self._off:.2g} at step 0 was rounding alone: "
            f"{self._off / median if median else math.inf:.0%} of it; where that is more than a tenth, compute the "
            "reference anew, in this environment"
        )

    def _median(self) -> float:
        median = torch.cat(self._log_ratios).median().nan_to_num(nan=math.inf)
        self._log_ratios = []
        largest_over_ranks(median)
        return median.item()


def _line(record: dict) -> str:
    """Return a record as JSON, which knows no NaN and no infinity: null."""
    values: dict[str, Any] = {
        k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in record.items()
    }
    for name in BINS:
        if name in values:
            values[name] = [json.loads(_line(part)) for part in values[name]]
    return json.dumps(values) + "\n"


class Writer:
    """`metrics.jsonl` and the trackers of one run, on rank 0."""

    def __init__(self, folder: Path, first_step: int, settings: Log, data_report: dict) -> None:
        with replacing(folder / "data.json") as partial:
            partial.write_text(json.dumps(data_report, indent=2))
        self.path, self.place = folder / FILE, folder.stat()
        self.lacking = ""
        """What of the steps that are done has no record any more, in words."""
        # steps after the checkpoint are about to be taken again
        kept = read_metrics(folder, first_step).records
        if first_step > len(kept):
            self.lacking = f"{self.path} lacks the records of {first_step - len(kept)} of the {first_step} steps so far"
        with replacing(self.path) as partial:
            partial.write_text("".join(map(_line, kept)))
        self.trackers = Trackers(settings, folder, first_step)

    def write(self, records: list[dict]) -> str | None:
        """Add records to `metrics.jsonl` and to the trackers; say in a sentence if those before have gone.

        Raises UserError where the run's folder is another by now.
        """
        if not os.path.samestat(self.place, self.path.parent.stat()):
            raise UserError(gone(self.path.parent))
        lost = None if self.path.exists() else records[0]["step"]
        with self.path.open("a") as file:
            file.writelines(map(_line, records))
        flush(self.path)  # before the checkpoint behind them
        for record in records:
            values = {name: value for name, value in record.items() if isinstance(value, float)}
            for part in record.get("bins", []):
                low, high = part["timesteps"]
                values |= {f"{name}/t{low}-{high}": part[name] for name in BY_TIMESTEP}
            self.trackers.scalars(record["step"], values)
        self.trackers.flush()
        return f"{self.path} has been moved or deleted: it begins anew, with step {lost}" if lost is not None else None
