"""How long a call takes and how much memory it asks for, on the host or on a GPU."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

Call = Callable[[], object]


class Clock:
    """Mean seconds per call of a block of consecutive calls: `Clock(device)(calls)`.

    On the host: wall time of the block. Data stay in the cache between the calls as far as they fit, as they do in a
    training step that has just made them.

    On a GPU: CUDA events around each call. Before each, untimed, a buffer of twice the L2 cache is written, since in a
    training step a whole UNet lies between two calls. What the host needs to launch the kernels counts where the GPU
    has to wait for it.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size
            self._flush = torch.empty(2 * l2_bytes, dtype=torch.int8, device=device)

    def __call__(self, calls: Sequence[Call]) -> float:
        return self._cuda(calls) if self.device.type == "cuda" else self._host(calls)

    def _host(self, calls: Sequence[Call]) -> float:
        start = time.perf_counter()
        for call in calls:
            call()
        return (time.perf_counter() - start) / len(calls)

    def _cuda(self, calls: Sequence[Call]) -> float:
        events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in calls]
        for call, (start, end) in zip(calls, events, strict=True):
            self._flush.zero_()
            start.record()
            call()
            end.record()
        torch.cuda.synchronize(self.device)
        return sum(start.elapsed_time(end) for start, end in events) / 1e3 / len(calls)


def peak_bytes(call: Call, device: torch.device) -> int:
    """The most memory that one call holds at a time, beyond what was there before it; results count, inputs do not.

    On a GPU: `torch.cuda.max_memory_allocated`. On the host: the running sum over every allocation and release of
    torch's CPU allocator that `torch.profiler` saw during the call. What C++ code takes past that allocator is not
    seen there: for the kernels of `csrc` this is, for regenerated noise only, one float32 buffer per thread for the
    noise of one pair.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    held = peak = 0
    for change in _host_allocations(profile):
        held += change
        peak = max(peak, held)
    return peak


def _host_allocations(profile: torch.profiler.profile) -> Iterator[int]:
    """Bytes of each allocation (positive) and release (negative), in the order of time."""
    # The trace is the profiler's only public output that has single allocations: tables sum them up by operator.
    with TemporaryDirectory() as folder:
        trace = Path(folder) / "trace.json"
        profile.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    for event in sorted((e for e in events if e["name"] == "[memory]"), key=lambda e: e["ts"]):
        yield event["args"]["Bytes"]
