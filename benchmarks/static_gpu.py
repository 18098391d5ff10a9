"""What the GPU kernels are made of, without a GPU: `python -m benchmarks.static_gpu`.

The launches of `fdpo_fast.ops.triton.launch` are run with a driver that compiles for a target and launches nothing, so
what is inspected is what a GPU of that target would be given. From the SASS: registers, spills, shared memory, global
accesses by width. Bytes moved are those of the 128-bit accesses times threads and programs, plus the small tensors; the
minimum is every sample read, and every gradient written, once. Exit status 1 on spills, on accesses to samples below
128 bits, on more than one launch, or on more than 1.02 times the minimum.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
import triton
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from triton.backends.compiler import GPUTarget
from triton.runtime.jit import JITFunction

from benchmarks.common.arguments import help_if_asked
from benchmarks.published import DIVERGENCES, published_loss
from fdpo_fast import Target, draws, fdpo_loss
from fdpo_fast.evaluate.tables import row, table
from fdpo_fast.loss.options import LossOptions
from fdpo_fast.ops.triton import launch

TARGETS = (80, 86, 89, 90, 100, 120)
MOST_BYTES = 1.02
_TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
_CALL = LossOptions(beta=1.0, ratio_scale=2500.0).call


class CompileOnly:
    """In place of Triton's driver: the device's number is the compute capability to compile for."""

    def __init__(self, capability: int) -> None:
        self.capability = capability

    def get_current_device(self) -> int:
        return self.capability

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.capability, 32)


@dataclass
class Launch:
    """A launch that was asked for: its kernel, compiled, its programs, and the bytes of its arguments by name."""

    kernel: triton.compiler.CompiledKernel
    programs: int
    bytes: dict[str, int]


@contextmanager
def compiling(capability: int):
    """Launches compile for sm_<capability>, and are listed instead of made."""
    launches: list[Launch] = []
    run, driver = JITFunction.run, triton.runtime.driver
    before = vars(driver).copy()  # of which releases of Triton have different ones

    def record(self, *args, grid, warmup, **kwargs):
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        tensors = {name: x for name, x in zip(self.arg_names, args, strict=False) if isinstance(x, Tensor)}
        sizes = {name: x.numel() * x.element_size() for name, x in tensors.items()}
        launches.append(Launch(kernel, grid[0], sizes))
        return kernel

    driver.set_active(CompileOnly(capability))
    JITFunction.run = record
    try:
        yield launches
    finally:
        JITFunction.run = run
        vars(driver).update(before)


@dataclass
class Sass:
    """What a cubin holds."""

    registers: int
    spills: int  # local loads and stores
    shared: int  # bytes
    loads: Counter = field(default_factory=Counter)  # global, by bits
    stores: Counter = field(default_factory=Counter)


def disassemble(cubin: bytes) -> Sass:
    """Read a cubin with the tools that come with Triton."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage = subprocess.run(
            [_TOOLS / "cuobjdump", "-res-usage", file.name], check=True, capture_output=True, text=True
        )
        code = subprocess.run([_TOOLS / "nvdisasm", "-c", file.name], check=True, capture_output=True, text=True).stdout
    numbers = {name: int(value) for name, value in re.findall(r"(REG|SHARED|STACK|LOCAL):(\d+)", usage.stdout)}
    sass = Sass(numbers["REG"], len(re.findall(r"\b(?:STL|LDL)\b", code)) + numbers["LOCAL"], numbers["SHARED"])
    for kind, modifiers in re.findall(r"\b(LDG|STG)((?:\.\w+)+)", code):
        width = next((int(part) for part in modifiers.split(".") if part in ("64", "128", "256")), 32)
        (sass.loads if kind == "LDG" else sass.stores)[width] += 1
    return sass


@dataclass(frozen=True)
class Case:
    """A way of calling the operators: dtypes of pred and of ref and data, errors or predictions, and what target."""

    name: str
    pred: torch.dtype
    other: torch.dtype
    errors: bool = False
    drawn: bool = False
    data: bool = True  # is the target, or where that is drawn mixed with the noise
    pairs: int = 16
    shape: tuple[int, ...] = (4, 128, 128)  # SDXL
    strided: bool = False  # pred channels_last, the others not: no vectors, and more traffic than the minimum
    preserving: bool = False  # the preferred sample's error

    def tensors(self) -> tuple[Tensor, Tensor, Target]:
        rows = 2 * self.pairs
        pred, data = (torch.empty(rows, *self.shape, dtype=dtype) for dtype in (self.pred, self.other))
        ref = torch.empty(rows, dtype=torch.float64) if self.errors else torch.empty_like(data)
        if self.strided:
            pred = pred.to(memory_format=torch.channels_last)
        drawn = draws(0, torch.arange(self.pairs), 0) if self.drawn else None
        on = torch.empty(2, self.pairs) if self.drawn and self.data else None
        return pred, ref, Target(drawn, data if self.data else None, on)


F32, BF16, F16 = torch.float32, torch.bfloat16, torch.float16
CASES = (
    Case("fp32", F32, F32),
    Case("bf16", BF16, BF16),
    Case("fp16", F16, F16),
    Case("fp32 beside bf16", F32, BF16),
    Case("fp32, ref errors", F32, F32, errors=True),
    Case("bf16, ref errors", BF16, BF16, errors=True),
    Case("fp32, ref errors, drawn", F32, F32, errors=True, drawn=True, data=False),
    Case("bf16, ref errors, drawn", BF16, BF16, errors=True, drawn=True, data=False),
    Case("bf16, drawn", BF16, BF16, drawn=True, data=False),
    Case("fp32, ref errors, drawn and data", F32, F32, errors=True, drawn=True),
    Case("bf16 beside fp32, ref errors, drawn and data", BF16, F32, errors=True, drawn=True),
    Case("bf16, drawn and data", BF16, BF16, drawn=True),
    Case("fp32, 1 pair of SD1.5", F32, F32, pairs=1, shape=(4, 64, 64)),
    Case("bf16, 1 pair of SD1.5", BF16, BF16, pairs=1, shape=(4, 64, 64)),
    Case("fp32, SD3", F32, F32, shape=(16, 128, 128)),
    Case("bf16, SD3", BF16, BF16, shape=(16, 128, 128)),
    Case("bf16, SD3, ref errors, drawn", BF16, BF16, errors=True, drawn=True, data=False, shape=(16, 128, 128)),
    Case("bf16, SD3, ref errors, drawn and data", BF16, F32, errors=True, drawn=True, shape=(16, 128, 128)),
    Case("bf16, pred channels_last", BF16, BF16, strided=True),
    Case("bf16, pred channels_last, drawn", BF16, BF16, strided=True, drawn=True, data=False),
)


def forward(case: Case) -> None:
    pred, ref, target = case.tensors()
    launch.loss_forward(pred, ref, target, None, _CALL._replace(may_undo=0.5 if case.preserving else None), None)


def backward(case: Case) -> None:
    pred, _, target = case.tensors()
    launch.loss_backward(torch.ones(()), torch.empty(2, case.pairs), pred, target, False)


def add_noise(case: Case) -> None:
    pred, _, _ = case.tensors()
    table, density = torch.empty(1000), None if case.name == "fp32" else torch.empty(1000, dtype=torch.int64)
    launch.add_noise(pred, draws(0, torch.arange(case.pairs), 0), table, table, density, False, case.other)


def noise(case: Case) -> None:
    launch.normals(draws(0, torch.arange(case.pairs), 0), case.tensors()[0][0].numel())


KERNELS = (
    (forward, [*CASES, *(replace(c, name=f"{c.name}, preserving", preserving=True) for c in CASES)]),
    (backward, [case for case in CASES if not case.errors or case.drawn]),
    (add_noise, [case for case in CASES if not case.errors and not case.drawn]),
    (noise, CASES[:1]),
)
"""What is launched, with the cases in which it differs."""

# What is read or written once, by the kernel's names; the rest is room, or no larger than a number per pair.
_SAMPLES: dict[Callable[[Case], None], tuple[str, ...]] = {
    forward: ("pred", "ref", "data"),
    backward: ("pred", "data", "grad"),
    add_noise: ("latents", "out"),
    noise: ("out",),
}
_TWICE = ("partials", "losses")  # written by one program, read by another
_LOOKED_UP = ("signal", "sigma", "density", "counters")  # an element per program


def check(what: Callable[[Case], None], case: Case, capability: int) -> tuple[str, list[str]]:
    """A row of the table, and what is wrong with it."""
    with compiling(capability) as launches:
        what(case)
    made = launches[0]
    sass = disassemble(made.kernel.asm["cubin"])
    large = [name for name in _SAMPLES[what] if name in made.bytes]
    samples = sum(made.bytes[name] for name in large)
    small = sum(size for name, size in made.bytes.items() if name not in (*_SAMPLES[what], *_TWICE, *_LOOKED_UP))
    threads = 32 * made.kernel.metadata.num_warps * made.programs
    streamed = 16 * threads * (sass.loads[128] + sass.stores[128])
    few = sum(made.bytes[name] for name in large if made.bytes[name] <= 64 * case.pairs)  # errors
    moved = streamed + few + small + 2 * sum(made.bytes.get(name, 0) for name in _TWICE)
    ratio = moved / (samples + small)
    wrong = []
    if len(launches) != 1:
        wrong.append(f"{len(launches)} launches")
    if sass.spills:
        wrong.append(f"{sass.spills} spills")
    if not case.strided and streamed < samples - few:
        wrong.append("accesses below 128 bits")
    if not case.strided and ratio > MOST_BYTES:
        wrong.append(f"{ratio:.4f} times the minimum of bytes")
    widths = [f"{counts[128]} / {counts[64]} / {counts[32]}" for counts in (sass.loads, sass.stores)]
    name, bytes_ = what.__name__, "-" if case.strided else f"{ratio:.4f}"
    held = sass.registers, sass.spills, sass.shared
    return (
        row((name, case.name, f"sm_{capability}", *held, *widths, len(launches), bytes_)),
        [f"{name}, {case.name}, sm_{capability}: {reason}" for reason in wrong],
    )


class _Kernels(TorchDispatchMode):
    """Counts the operations that would each be a launch: all but views and allocations."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if not function.is_view and "empty" not in str(function) and "detach" not in str(function):
            self.count += 1
        return out


def operations(loss_of: Callable[..., tuple[Tensor, object]]) -> tuple[int, int]:
    """Operations of a loss in torch on float32 inputs, forward and backward."""
    pred, ref, target = (torch.randn(4, 4, 8, 8, requires_grad=i == 0) for i in range(3))
    with _Kernels() as there:
        loss, _ = loss_of(pred, ref, target)
    with _Kernels() as back:
        loss.backward()
    return there.count, back.count


def torch_launches() -> Iterator[str]:
    """Sentences on what the same loss takes in torch."""
    text = "{}: {} launches forward, {} backward."
    for name in DIVERGENCES:
        published = partial(published_loss, divergence=name, ratio_scale=2500.0)
        yield text.format(f"The published expression, {name}", *operations(published))
    eager = partial(fdpo_loss, beta=1.0, ratio_scale=2500.0, backend="eager")
    yield text.format("Our own eager backend, which makes eleven statistics", *operations(eager))


def main() -> None:
    columns = ("kernel", "case", "target", "registers", "spills", "shared bytes", "loads of 128 / 64 / 32 bit")
    print("\n".join(table((*columns, "stores", "launches", "bytes"), ())))
    wrong = []
    for what, cases in KERNELS:
        for case in cases:
            for capability in TARGETS:
                line, reasons = check(what, case, capability)
                print(line, flush=True)
                wrong += reasons
    print("\nloads and stores: instructions per thread; bytes: moved, over the minimum.")
    print("\n".join(torch_launches()))
    for line in wrong:
        print("WRONG:", line)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    help_if_asked(__doc__)
    main()
