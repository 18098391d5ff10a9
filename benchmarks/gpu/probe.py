"""What this machine is, and its two ceilings: what its memory copies, and what its matrix units multiply."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil

import torch
from torch import Tensor
from torch.nn.functional import conv2d, scaled_dot_product_attention

from benchmarks.common.device import CUDA, DEVICE, GIB, smi
from benchmarks.gpu.cards import peak_tflops
from benchmarks.gpu.lab import Lab, Work, seconds

PACKAGES = (
    "torch", "triton", "numpy", "transformers", "diffusers", "deepspeed", "accelerate", "peft", "bitsandbytes",
    "torchao", "flashoptim", "xformers", "pyarrow", "pydantic", "pytest", "pytest-xdist", "ninja",
)  # fmt: skip


def ready(lab: Lab) -> Work:
    return lambda: probe(lab)


def probe(lab: Lab) -> None:
    """Versions, the machine, the card, and what of its ceilings is reached."""
    lab.line(what="versions", python=platform.python_version(), **{name: version(name) for name in PACKAGES})
    lab.line(
        what="host", cores=os.cpu_count(), gcc=shutil.which("gcc") is not None, nvcc=shutil.which("nvcc") is not None,
        ram_gib=round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / GIB, 1),
    )  # fmt: skip
    if CUDA:
        card(lab)
    lab.line(what="ceilings", copy_gb_per_s=copy(lab), matmul_tflops=matmul(lab), peak_tflops=peak_tflops(lab.device))
    lab.line(what="attention", sdpa_tflops=attention(lab))
    lab.line(what="convolution", **{name: convolution(lab, form) for name, form in FORMATS.items()})


def version(name: str) -> str | None:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def card(lab: Lab) -> None:
    """Driver and clocks by `nvidia-smi`, sizes by torch."""
    queries = ("driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "power.limit", "temperature.gpu")
    said = dict(zip(queries, smi(*queries).split(", "), strict=False))
    properties = torch.cuda.get_device_properties(DEVICE)
    lab.line(
        what="card", **{key.replace(".", "_"): value for key, value in said.items()}, cuda=torch.version.cuda,
        multiprocessors=properties.multi_processor_count, l2_mb=properties.L2_cache_size / 1e6,
        memory_gib=properties.total_memory / GIB,
    )  # fmt: skip


def copy(lab: Lab) -> float:
    """GB/s, read and written, of float32."""
    source = torch.ones(2**22 if lab.rehearse else 2**30, device=DEVICE)
    to = torch.empty_like(source)
    return 2 * source.nbytes / seconds(lambda: to.copy_(source))[0] / 1e9


def matmul(lab: Lab) -> float:
    """TFLOP/s of the best of two large products of bfloat16 matrices."""
    rates = []
    for side in (128, 256) if lab.rehearse else (4096, 8192):
        a, b = (torch.randn(side, side, dtype=torch.bfloat16, device=DEVICE) for _ in range(2))
        rates.append(2 * side**3 / seconds(lambda a=a, b=b: a @ b)[0] / 1e12)
    return max(rates)


def attention(lab: Lab) -> float:
    """TFLOP/s of the self-attention in SDXL's middle resolution, a pair at 1024 x 1024, forward."""
    tokens = (lab.side // 2) ** 2
    q, k, v = (torch.randn(2, 10, tokens, 64, dtype=torch.bfloat16, device=DEVICE) for _ in range(3))
    return 4 * 2 * 10 * tokens**2 * 64 / seconds(lambda: scaled_dot_product_attention(q, k, v))[0] / 1e12


FORMATS = {"nchw_tflops": torch.contiguous_format, "channels_last_tflops": torch.channels_last}


def convolution(lab: Lab, form: torch.memory_format) -> float:
    """TFLOP/s of a resnet's convolution in SDXL's first resolution, a pair at 1024 x 1024, forward."""
    width = 32 if lab.rehearse else 320

    def laid(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.bfloat16, device=DEVICE).to(memory_format=form)

    x, weight = laid(2, width, lab.side, lab.side), laid(width, width, 3, 3)
    took, _ = seconds(lambda: conv2d(x, weight, padding=1))
    return 2 * 2 * width**2 * 9 * lab.side**2 / took / 1e12
