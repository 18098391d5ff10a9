"""The loss by ours, by the published expression and its torch.compile, by our eager backend: time and peak memory.

Each case times all of them AND a memory copy in turns within one run, so that a machine that slows down does so for
all. A round is one block of consecutive calls of each; before a block comes one untimed call, so that each is measured
in its own steady state. What counts is the median over the rounds, in `extra_info` of the JSON; the statistics of
pytest-benchmark itself are those of ours, per block.

Backward alone: the forward passes of a block run before it, untimed, and the clock sees `torch.autograd.grad` only. On
the host ours forms the gradient during the forward pass where pred needs one, and hands it over at the first backward
pass with an upstream gradient of one: backward alone is hardly any work then, and says little without its forward.

`test_preserving` times ours with `winner_preserving` and without it by themselves (`-k preserving`).

No speed-up is reported on a red test: before anything is timed, each provider must agree with our eager backend in
loss and gradient, but for the published expression without casts and, in bfloat16, for a flow's target as a tensor.
"""

from __future__ import annotations

import timeit
from statistics import median, quantiles

import pytest
import torch

from benchmarks.cases import Case, cases, make_inputs, preserving_cases
from benchmarks.common.clock import Call, Clock, peak_bytes
from benchmarks.common.neighbours import Neighbours
from benchmarks.providers import (
    RIVALS,
    Prepare,
    check_agreement,
    make_preserving,
    make_providers,
    prepare_copy,
    prepare_pass,
)
from fdpo_fast.ops.library import chosen

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

SECONDS, FEWEST, MOST = 1.5, 7, 40
"""To spend on the rounds of a case, and limits of their number."""


@pytest.fixture(scope="module", autouse=True)
def _allocator_at_work():
    """glibc's allocator as a process has it that has freed large tensors: it keeps what is freed up to that size.

    A fresh process gives back each temporary of some 100 KB to the system, to be faulted in again page by page.
    Torch's own operations would look twice as slow, and the result depend on what ran before.
    """
    torch.empty(31 << 20, dtype=torch.uint8)  # 32 MiB is as far as it goes


@pytest.mark.parametrize("case", list(cases()), ids=str)
def test_loss(benchmark, case: Case, quick: bool):
    inputs = make_inputs(case, DEVICE)
    providers = make_providers(case)
    check_agreement(case, providers, inputs)

    minimal_bytes = case.minimal_bytes(DEVICE)
    passes = {name: prepare_pass(provider, case, inputs) for name, provider in providers.items()}
    passes["copy"] = prepare_copy(minimal_bytes, DEVICE)
    calls = 10 if minimal_bytes < 2 << 20 else 3 if minimal_bytes < 16 << 20 else 1
    benchmark.group = f"{case.form}, {case.passes}, {case.divergence}"
    times = time_in_turns(benchmark, passes, calls, 3 if quick else None)

    backend = chosen(None, DEVICE, inputs.pred.dtype)
    benchmark.extra_info |= {
        "case": case._asdict(),
        "device": DEVICE.type,
        "backend": backend,
        "gradient_formed_ahead": backend == "cpp" and case.passes == "bwd",
        "calls_per_round": calls,
        "minimal_bytes": minimal_bytes,
        "copy_us": 1e6 * median(times["copy"]),
        "providers": {
            name: {"peak_bytes": peak_bytes(passes[name](), DEVICE), **speed(name, times, minimal_bytes)}
            for name in providers
        },
    }


@pytest.mark.parametrize("case", list(preserving_cases()), ids=str)
def test_preserving(benchmark, case: Case, quick: bool):
    inputs = make_inputs(case, DEVICE)
    providers = make_preserving(case)
    losses = {name: provider(*inputs)[0] for name, provider in providers.items()}
    assert torch.equal(losses["ours"], losses["without"])
    assert providers["ours"](*inputs)[1].loser_scale.min() < 1

    passes = {name: prepare_pass(provider, case, inputs) for name, provider in providers.items()}
    benchmark.group = f"{case.form}, {case.passes}, winner_preserving"
    times = time_in_turns(benchmark, passes, 3, 3 if quick else None)
    with_it, without = (median(times[name]) for name in ("ours", "without"))
    benchmark.extra_info |= {
        "case": case._asdict(),
        "device": DEVICE.type,
        "preserving": {"us": 1e6 * with_it, "us_without": 1e6 * without, "more": with_it / without - 1},
    }


def time_in_turns(benchmark, passes: dict[str, Prepare], calls: int, rounds: int | None) -> dict[str, list[float]]:
    """Seconds per call of each pass, by rounds; ours is the one that pytest-benchmark sees.

    Rounds during which other programs took the cores are left out; where hardly any is left, the case is marked.
    """
    clock = Clock(DEVICE)

    def block(name: str) -> list[Call]:
        passes[name]()()  # brings its data back into the cache; untimed
        return [passes[name]() for _ in range(calls)]

    if rounds is None:
        # by the better of two looks, since the first calls of a provider are slow
        looks = timeit.repeat(lambda: [clock(block(name)) for name in passes], repeat=2, number=1)
        rounds = max(FEWEST, min(MOST, int(SECONDS / min(looks))))
    times = {name: [] for name in passes}
    rivals = [name for name in passes if name != "ours"]
    neighbours = Neighbours()

    def time_rivals() -> tuple[tuple[list[Call]], dict]:
        if neighbours.judge(len(times["ours"])):
            neighbours.wait()
        for name in rivals:
            times[name].append(clock(block(name)))
        return (block("ours"),), {}

    def time_ours(ready: list[Call]) -> None:
        times["ours"].append(clock(ready))

    benchmark.pedantic(time_ours, setup=time_rivals, rounds=rounds)
    rounds = len(times["ours"])  # a single one with --benchmark-disable
    neighbours.judge(rounds, final=True)
    quiet = [i for i in range(rounds) if i not in neighbours.disturbed]
    disturbed = len(quiet) < min(rounds, 3)
    benchmark.extra_info |= {"rounds": rounds, "quiet_rounds": len(quiet), "disturbed": disturbed}
    return {name: [values[i] for i in (range(rounds) if disturbed else quiet)] for name, values in times.items()}


def speed(name: str, times: dict[str, list[float]], minimal_bytes: int) -> dict[str, float]:
    """What the JSON keeps of a provider's times. share_of_copy: of the speed of a copy of as many bytes."""
    seconds = median(times[name])
    low, _, high = quantiles(times[name], n=4, method="inclusive") if len(times[name]) > 1 else (seconds,) * 3
    return {
        "median_us": 1e6 * seconds,
        "quartiles_us": [1e6 * low, 1e6 * high],
        "gb_per_s": minimal_bytes / seconds / 1e9,
        "share_of_copy": median(times["copy"]) / seconds,
        **{f"times_faster_than_{r}": median(times[r]) / seconds for r in RIVALS if r in times},
    }
