"""The account of a training step: which part takes how many bytes, where and when.

Activations are traced (`trace.py`); the rest follows from what the trainer and DeepSpeed 0.19 allocate for P trained
elements on W ranks, of which a rank keeps S = P / W where ZeRO splits them.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

from fdpo_fast.config.run import Config
from fdpo_fast.memory.trace import Trace
from fdpo_fast.optim.in_backward import BUCKET_BYTES

GIB = 2**30
PHASES = ("forward", "backward", "step")
_EIGHT_BIT = dict.fromkeys(("adamw8bit", "adamw8bit_bnb"), 2 * (1 + 4 / 256))
"""Bytes of an element's moments by optimizer: a code each, and a float32 absmax per block of 256."""
_BUCKET = 500_000_000
"""DeepSpeed's default of its bucket sizes, in elements; also that of stage 0, which no key sets."""


@dataclass(frozen=True)
class Entry:
    """A part of what a rank holds, in some phases of a training step."""

    part: str
    device: str
    """"gpu" or "host"; a machine without a GPU has both in one memory."""
    size: float
    """Bytes on one rank."""
    phases: tuple[str, ...] = PHASES


class Account:
    """What one rank holds, by parts, devices and phases."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []

    def add(self, part: str, device: str, size: float, *phases: str) -> None:
        """Enter bytes of a part on a device, for the phases named or for all of them; nothing where `size` is 0."""
        if size:
            self.entries.append(Entry(part, device, size, phases or PHASES))

    def total(self, phase: str, *devices: str) -> float:
        """Return the bytes in a phase, on the devices together."""
        return sum(entry.size for entry in self.entries if phase in entry.phases and entry.device in devices)

    def peak(self, *devices: str) -> str:
        """Name the phase in which the devices together hold most."""
        return max(PHASES, key=lambda phase: self.total(phase, *devices))

    def parts(self, phase: str, device: str) -> dict[str, float]:
        """Return the bytes by part in a phase on a device."""
        sizes: dict[str, float] = defaultdict(float)
        for entry in self.entries:
            if phase in entry.phases and entry.device == device:
                sizes[entry.part] += entry.size
        return dict(sizes)


@dataclass(frozen=True)
class Engine:
    """What the configuration's DeepSpeed section decides about memory; its sizes are in elements."""

    stage: int
    ranks: int
    accumulates: bool
    offload_optimizer: bool
    offload_param: bool
    overlap: bool
    bucket: int
    prefetch: int
    reuse: int
    persistent: int
    sub_group: int
    master: int
    """Bytes of a master's element; 0 where there is none."""

    @classmethod
    def of(cls, config: Config, ranks: int) -> Engine:
        """Read a configuration for a run on `ranks` ranks, with DeepSpeed's defaults for what it leaves open."""
        zero: dict[str, Any] = config.zero
        stage = config.stage

        return cls(
            stage,
            ranks,
            config.accumulation(ranks) > 1,
            stage > 0 and config.offloaded("optimizer"),
            config.parameters_on_host,
            zero.get("overlap_comm", stage == 3),
            int(zero.get("reduce_bucket_size", _BUCKET)),
            int(zero.get("stage3_prefetch_bucket_size", 50_000_000)),
            int(zero.get("stage3_max_reuse_distance", 1_000_000_000)),
            int(zero.get("stage3_param_persistence_threshold", 100_000)),
            int(zero.get("sub_group_size", 1_000_000_000)),
            config.master_bytes,
        )


def step_account(config: Config, trace: Trace, ranks: int, gpu: bool) -> Account:
    """Account for what a rank holds while it trains: on a GPU if `gpu`, else on the host alone."""
    engine, account = Engine.of(config, ranks), Account()
    _activations(account, trace, engine, config)
    _weights(account, trace, engine, config, gpu)
    _optimizer(account, trace, engine, config, gpu)
    (_gradients_split if engine.stage else _gradients_whole)(account, trace, engine, config, gpu)
    return account


def states(config: Config, trace: Trace) -> float:
    """Return the bytes of an element's states: two moments, as codes or in the dtype of what is stepped; a low byte."""
    whole = 2 * (config.master_bytes or trace.trained_bytes / trace.trained)
    return _EIGHT_BIT.get(config.optimizer.type, whole) + (config.optimizer.weights != "plain")


def _activations(account: Account, trace: Trace, engine: Engine, config: Config) -> None:
    account.add("loss and data", "gpu", trace.data, "forward", "backward")
    if config.model.cuda_graphs:  # they keep what they were captured on, and the gradients that they write
        account.add("activations", "gpu", max(trace.forward, trace.backward))
        account.add("gradients in the graph", "gpu", trace.trained_bytes)
        return
    account.add("activations", "gpu", max(trace.forward, trace.inference), "forward")
    # where gradients come during backward, the peak may lie before all are there: less than the sum of both peaks
    beside = float(trace.backward)
    if config.train.step_in_backward:
        beside = trace.backward_with_bucket - _bucket(trace)
    elif not engine.stage and not engine.accumulates:
        beside = trace.backward_with_gradients - trace.trained_bytes
    account.add("activations", "gpu", beside if beside > 0 else trace.backward, "backward")


def _weights(account: Account, trace: Trace, engine: Engine, config: Config, gpu: bool) -> None:
    frozen = trace.frozen_bytes
    beside = engine.stage == 3 and engine.offload_param
    account.add("buffers", "gpu", trace.buffer_bytes)  # on every rank: ZeRO splits none
    account.add("frozen weights", "host" if beside else "gpu", frozen / (engine.ranks if engine.stage == 3 else 1))
    if config.reference.mode == "live":
        account.add("reference model", "host" if beside else "gpu", trace.model_bytes)
        if beside:  # a layer and the next
            account.add(
                "reference model", "gpu", 2 * trace.trained_bytes / trace.trained * max(trace.all_shapes), "forward"
            )
    if config.train.ema_decay:
        account.add("average", "gpu", 4 * trace.trained / (engine.ranks if engine.stage == 3 else 1))
    if engine.stage < 3:
        account.add("weights", "gpu", trace.trained_bytes)
        return
    width = trace.trained_bytes / trace.trained
    account.add("weights", "host" if engine.offload_param else "gpu", trace.trained_bytes / engine.ranks)
    if gpu or engine.ranks > 1:  # on the host alone, a fetched parameter is the one that is there
        whole = sum(trace.all_shapes)  # frozen ones are fetched as trained ones are
        kept = sum(n for n in trace.all_shapes if n <= engine.persistent)
        fetched = 2 * max(trace.all_shapes) + engine.prefetch + min(engine.reuse, whole) / 2
        account.add("weights fetched", "gpu", width * (kept + min(fetched, whole)))
        if config.model.gradient_checkpointing == "off":  # torch's linear layer keeps what was gathered
            account.add("weights fetched", "gpu", width * whole, "forward", "backward")


def _optimizer(account: Account, trace: Trace, engine: Engine, config: Config, gpu: bool) -> None:
    """Enter master and moments, and what the step makes for itself."""
    mine = trace.trained / engine.ranks if engine.stage else trace.trained
    device = "host" if engine.offload_optimizer else "gpu"
    width = engine.master or trace.trained_bytes / trace.trained
    beside_weights = engine.offload_optimizer == engine.offload_param or not gpu
    if not (engine.master == 2 and beside_weights):  # then they are one, see optim/zero.py
        account.add("master", device, engine.master * mine)
    if engine.offload_optimizer and engine.stage < 3 and engine.master == 4:
        account.add("master", device, 2 * mine)  # the rounded copy on its way to the device
    account.add("optimizer states", device, states(config, trace) * mine)
    if config.optimizer.type == "adamw" and device == "gpu":
        account.add("optimizer step", "gpu", width * mine, "step")  # torch's, for all parameters at once


def _bucket(trace: Trace) -> float:
    """Return the bytes of the gradients that are stepped together inside backward: a bucket, and what has filled it."""
    return min(BUCKET_BYTES + max(trace.shapes) * trace.trained_bytes / trace.trained, trace.trained_bytes)


def _gradients_whole(account: Account, trace: Trace, engine: Engine, config: Config, gpu: bool) -> None:
    """Enter the gradients under ZeRO 0: every rank has all of them, in the weights' dtype, where the optimizer is."""
    largest, width = max(trace.shapes), trace.trained_bytes / trace.trained
    if config.train.step_in_backward:
        # joined where they are averaged; and one's norm
        account.add("gradients", "gpu", _bucket(trace) * (2 if engine.ranks > 1 else 1) + 4 * largest, "backward")
        return
    account.add("gradients", "gpu", trace.trained_bytes, "backward", "step", *(("forward",) * engine.accumulates))
    if engine.master:
        # the master's, and one's norm, and clipping
        account.add("gradients", "gpu", 4 * trace.trained + (4 if gpu else 12) * largest, "step")
    if engine.ranks > 1:
        flat = min(trace.trained, _BUCKET + largest)
        account.add("communication buckets", "gpu", (width if engine.master else width + 4) * flat, "step")


def _gradients_split(account: Account, trace: Trace, engine: Engine, config: Config, gpu: bool) -> None:
    """Enter the gradients under ZeRO 1 to 3, which go through a bucket to the rank of their optimizer."""
    largest, mine = max(trace.shapes), trace.trained / engine.ranks
    width = trace.trained_bytes / trace.trained
    bucket = width * min(engine.bucket, trace.trained) * (2 if engine.overlap else 1)
    always = PHASES if engine.stage == 3 else ("backward",)
    account.add("communication buckets", "gpu", bucket, *always)
    if engine.stage == 3:
        account.add("communication buckets", "gpu", bucket, "backward")  # joined for the reduction
    account.add("gradients", "gpu", (width + 12) * largest, "backward")  # one: itself, its norm, its cast
    if engine.offload_optimizer:
        lean = engine.master == 2
        account.add("gradients", "host", (engine.master or width) * mine)
        if engine.stage == 3 and not lean:
            account.add("gradients", "host", width * mine)
        if engine.stage < 3 and engine.accumulates and not lean:
            account.add("gradients", "host", width * trace.trained)  # summed over micro-batches
        account.add("gradients", "gpu", width * largest)  # staging, both ends
        account.add("gradients", "host", width * largest)
        return
    if engine.stage == 1:
        account.add("gradients", "gpu", trace.trained_bytes, "backward", *(("forward",) * engine.accumulates))
    copies = 2 if engine.stage == 2 and engine.accumulates else 1
    account.add("gradients", "gpu", copies * width * mine, "backward")
    if engine.stage == 3:
        account.add("gradients", "gpu", width * mine, "forward", "step")
        account.add("gradients", "gpu", 4 * min(mine, engine.sub_group + largest), "step")
    else:
        account.add("gradients", "gpu", (2 * width + 4) * mine, "step")  # averaged, made flat, cast for the master
