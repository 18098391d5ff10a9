"""Options of the benchmarks, and a JSON that says what machine it comes from but not whose."""

from __future__ import annotations

import os
import sys
from importlib.metadata import PackageNotFoundError, version

import pytest
import torch

from benchmarks.cases import SIZES
from fdpo_fast.ops import cpp

SESSION = pytest.StashKey[pytest.Session]()


def pytest_addoption(parser):
    group = parser.getgroup("fdpo_fast benchmarks")
    group.addoption("--quick", action="store_true", help="three rounds a case: a look, not a measurement")
    group.addoption("--sizes", default=",".join(SIZES), help="latents to run, of %(default)s")
    group.addoption("--threads", type=int, default=2, help="of torch and of ours, on the host; default: %(default)s")
    group.addoption("--pairs", default="", help="numbers of pairs to run, such as 1,4; default: all")


@pytest.fixture
def quick(request) -> bool:
    return request.config.getoption("--quick")


def pytest_collection_modifyitems(config, items):
    sizes = config.getoption("--sizes").split(",")
    if unknown := set(sizes) - set(SIZES):
        raise pytest.UsageError(f"unknown size {', '.join(unknown)}: use some of {', '.join(SIZES)}")
    pairs = config.getoption("--pairs").split(",") if config.getoption("--pairs") else None

    def wanted(item: pytest.Item) -> bool:
        case = getattr(item, "callspec", None) and item.callspec.params.get("case")
        return case is None or (case.size in sizes and (pairs is None or str(case.pairs) in pairs))

    config.hook.pytest_deselected(items=[item for item in items if not wanted(item)])
    items[:] = filter(wanted, items)


def pytest_sessionstart(session):
    session.config.stash[SESSION] = session
    torch.set_num_threads(session.config.getoption("--threads"))


def pytest_benchmark_update_machine_info(machine_info):
    cpu = machine_info["cpu"]
    machine_info.clear()  # among the defaults is the host's name
    machine_info |= {
        "cpu": cpu.get("brand_raw"),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch_kernels": torch.backends.cpu.get_cpu_capability(),
        "fdpo_fast_kernels": cpp.missing or cpp.active.name,
        "l2_cache_bytes": cpu.get("l2_cache_size"),
        "l3_cache_bytes": cpu.get("l3_cache_size"),
        "ram_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        **{package: _version(package) for package in ("torch", "triton", "fdpo_fast", "pytest-benchmark")},
        "python": ".".join(map(str, sys.version_info[:3])),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def pytest_benchmark_update_commit_info(commit_info):
    for key in commit_info.keys() - {"id", "time", "dirty"}:
        del commit_info[key]


def pytest_benchmark_update_json(config, output_json):
    """Keep medians and quartiles, not rounds; and whether the run was good, for `benchmarks.report`."""
    output_json["quick"] = config.getoption("--quick")
    output_json["exit_status"] = int(config.stash[SESSION].exitstatus)
    for benchmark in output_json["benchmarks"]:
        stats = benchmark["stats"]
        benchmark["stats"] = {key: stats[key] for key in ("min", "q1", "median", "q3", "max", "rounds", "iterations")}
        for key in ("options", "params", "param"):  # of the fixture; the case is in extra_info
            benchmark.pop(key)
    output_json["benchmarks"] = _rounded(output_json["benchmarks"])


def _rounded(value):
    """Numbers to five digits, all the way down."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    return [_rounded(inner) for inner in value] if isinstance(value, list) else value
