"""The device that the benchmarks measure, one for all of them: the first GPU where there is one, else the host."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import torch

GIB = 2**30
CUDA = torch.cuda.is_available()  # makes no context: who asks only this holds nothing of the GPU
DEVICE = torch.device("cuda" if CUDA else "cpu")


def synchronize() -> None:
    """Wait until the device has done everything that was asked of it; on the host that is so already."""
    if CUDA:
        torch.cuda.synchronize()


def name() -> str:
    """The GPU's name, or the processor's. The driver is asked: this process takes no memory of the GPU for it."""
    return (smi("name") or torch.cuda.get_device_name()) if CUDA else _processor()


def machine(device: torch.device = DEVICE) -> str:
    """What a table's figures are of, in words: the device first."""
    host = f"{os.cpu_count()} cores, {_processor()}, {_host_bytes() / GIB:.0f} GiB"
    if device.type == "cpu":
        return f"CPU only: {host}"
    driver = smi("driver_version") or "unknown"
    return f"{name()}, driver {driver}, torch {torch.__version__}; host: {host}"


def smi(*queries: str) -> str:
    """What `nvidia-smi` says of the first GPU, comma-separated, without units; empty where it is not there."""
    if not (program := shutil.which("nvidia-smi")):
        return ""
    first = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0] or "0"
    command = [program, f"--id={first}", f"--query-gpu={','.join(queries)}", "--format=csv,noheader,nounits"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def gpu_memory() -> dict[str, float]:
    """Of this process and its GPU, in GiB; empty without one.

    allocated_gib: the most in tensors since the peaks were forgotten; reserved_gib: the most in the allocator's
    segments; driver_gib: in use now by the driver's account, all processes together.
    """
    if not CUDA:
        return {}
    free, total = torch.cuda.mem_get_info()
    return {
        "allocated_gib": torch.cuda.max_memory_allocated() / GIB,
        "reserved_gib": torch.cuda.max_memory_reserved() / GIB,
        "driver_gib": (total - free) / GIB,
    }


def forget_peaks() -> None:
    """Start the peaks of `gpu_memory` anew, with what is held now."""
    if CUDA:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()


def peak_gib() -> float:
    """The most this process has held: of the GPU in tensors, or resident on the host."""
    if CUDA:
        return torch.cuda.max_memory_allocated() / GIB
    return status("VmHWM") / GIB


def held_gib() -> float:
    """What this process holds now: of the GPU in tensors, or resident on the host."""
    return torch.cuda.memory_allocated() / GIB if CUDA else status("VmRSS") / GIB


def status(field: str) -> int:
    """Bytes, of a field of this process's /proc/self/status."""
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(field)) * 1024


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")


def _host_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
