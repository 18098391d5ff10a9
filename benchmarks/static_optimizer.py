"""What the optimizer's GPU kernel is made of, without a GPU: `python -m benchmarks.static_optimizer`.

As `benchmarks.static_gpu` does for the loss. Weights and gradients are read and written by 128 bits, eight codes or
low bytes at a time by 64. Bytes an element are those of a thread's accesses of these widths over its elements, and its
share of the two absmax of a block; the least is each tensor read once, and all but the gradient written once. Numbers
that all threads of a program share, and the map's lines, stay in caches. Exit status 1 on spills, on narrower accesses,
on more than 1.02 times the least bytes, or on more than one launch for a bucket of parameters.
"""

from __future__ import annotations

import re
import sys
from typing import NamedTuple

import torch

from benchmarks.common.arguments import help_if_asked
from benchmarks.static_gpu import BF16, F16, F32, MOST_BYTES, TARGETS, Launch, Sass, compiling, disassemble
from fdpo_fast.evaluate.tables import row, table
from fdpo_fast.ops.constants import STATE_BLOCK
from fdpo_fast.optim import triton
from fdpo_fast.optim.update import Clip, Rule, Update, Updates

TENSORS = 5  # of a bucket
_GROUP = {"betas": (0.9, 0.999), "lr": 1e-3, "weight_decay": 0.0, "eps": 1e-8, "seed": 0, "first_element": 0}


class Case(NamedTuple):
    """A bucket: what its tensors have in common."""

    name: str
    data: torch.dtype
    grad: torch.dtype
    coded: bool = True
    copied: bool = False
    low: bool = False
    elements: int = 1 << 20
    stochastic: bool = True
    clipped: bool = False  # by a launch before that of the step

    def updates(self) -> Updates:
        def room(dtype: torch.dtype, count: int = self.elements):
            return torch.empty(count, dtype=dtype)

        def update(index: int) -> Update:
            state = torch.uint8 if self.coded else F32
            absmax = [room(F32, -(-self.elements // STATE_BLOCK)) if self.coded else None for _ in range(2)]
            copy = room(BF16) if self.copied else None
            low = room(torch.int8) if self.low else None
            tensors = (room(self.data), room(self.grad), room(state), room(state), *absmax, copy, low)
            return Update(*tensors, index, rule)

        rule = Rule.of(_GROUP | {"rounding": "stochastic" if self.stochastic else "nearest"}, 1)
        return Updates.of([update(index) for index in range(TENSORS)])

    @property
    def aligned(self) -> bool:
        """Whether tensors can be read by 128 bits throughout."""
        return self.elements % 16 == 0

    @property
    def states_bytes(self) -> float:
        """The bytes of absmax read and written, an element."""
        return 2 * 2 * F32.itemsize / STATE_BLOCK if self.coded else 0.0

    @property
    def least_bytes(self) -> float:
        """The bytes that a step has to move, an element."""
        moment = torch.uint8.itemsize if self.coded else F32.itemsize
        both_ways = self.data.itemsize + 2 * moment + (torch.int8.itemsize if self.low else 0)
        return 2 * both_ways + self.grad.itemsize + (BF16.itemsize if self.copied else 0) + self.states_bytes

    def step(self) -> None:
        triton.Stepper()(self.updates(), Clip(1.0, torch.zeros(())) if self.clipped else None)


CASES = (
    Case("bf16, stochastic, clipped", BF16, BF16, clipped=True),
    Case("fp16, stochastic, fp32 gradient, clipped", F16, F32, clipped=True),
    Case("bf16, stochastic", BF16, BF16),
    Case("bf16, nearest", BF16, BF16, stochastic=False),
    Case("bf16+8, stochastic", BF16, BF16, low=True),
    Case("bf16+8, nearest", BF16, BF16, low=True, stochastic=False),
    Case("bf16+8, stochastic, clipped", BF16, BF16, low=True, clipped=True),
    Case("fp16, stochastic, fp32 gradient", F16, F32),
    Case("fp32", F32, F32),
    Case("fp32, bf16 gradient and copy", F32, BF16, copied=True),
    Case("bf16, stochastic, fp32 states", BF16, BF16, coded=False, elements=4080),
    Case("bf16, stochastic, odd size", BF16, BF16, elements=10_007),
    Case("bf16+8, stochastic, fp32 states", BF16, BF16, low=True, coded=False, elements=4080),
    Case("bf16+8, stochastic, odd size", BF16, BF16, low=True, elements=10_007),
)


def streamed_bytes(launch: Launch, sass: Sass) -> float:
    """Return the bytes that a kernel of the step moves by accesses of 64 bits and more, an element.

    Addresses are read by 64 bits too, and look alike in SASS; in PTX those that read elements are vectors.
    """
    vectors = len(re.findall(r"\bld\.global[\w.:]*\.v2\.[bu]32", launch.kernel.asm["ptx"]))
    wide = sum(bits // 8 * count for counts in (sass.loads, sass.stores) for bits, count in counts.items() if bits > 64)
    elements = triton.ROWS * STATE_BLOCK / (32 * launch.kernel.metadata.num_warps)
    return (wide + 8 * (min(vectors, sass.loads[64]) + sass.stores[64])) / elements


def check(case: Case, capability: int) -> tuple[str, list[str]]:
    """A row of the table, of the step's kernel, and what is wrong with it and with that before it."""
    with compiling(capability) as launches:
        case.step()
    *before, sass = (disassemble(launch.kernel.asm["cubin"]) for launch in launches)
    moved = streamed_bytes(launches[-1], sass) + case.states_bytes
    ratio = moved / case.least_bytes
    wrong = []
    if len(launches) != 1 + case.clipped:
        wrong.append(f"{len(launches)} launches")
    if sass.spills or any(norm.spills for norm in before):
        wrong.append(f"{sass.spills} spills")
    if case.aligned and not (sass.loads[128] >= 2 and sass.stores[128] >= 1):
        wrong.append("weights or gradients below 128 bits")
    if case.aligned and not 1 <= ratio <= MOST_BYTES:
        wrong.append(f"{ratio:.4f} times the least bytes" + (", so some by less than 64 bits" if ratio < 1 else ""))
    if any(not norm.loads[128] for norm in before):
        wrong.append("gradients below 128 bits where their norms are taken")
    widths = [f"{counts[128]} / {counts[64]} / {counts[32]}" for counts in (sass.loads, sass.stores)]
    bytes_ = (f"{moved:.2f}", f"{ratio:.4f}") if case.aligned else ("-", "-")
    held = sass.registers, sass.spills, sass.shared
    return (
        row((case.name, f"sm_{capability}", *held, *widths, len(launches), *bytes_)),
        [f"{case.name}, sm_{capability}: {reason}" for reason in wrong],
    )


def main() -> None:
    print(
        f"A bucket of {TENSORS} tensors. Loads of 32 bits are look-ups in the map's lines, which stay in the cache.\n"
        "Where gradients are clipped one by one, a launch before the step's reads them once more. Bytes are those of\n"
        "the step's, and stand over the least that it has to move.\n"
    )
    columns = ("case", "target", "registers", "spills", "shared bytes", "loads of 128 / 64 / 32 bit", "stores")
    print("\n".join(table((*columns, "launches", "bytes an element", "of the least"), ())))
    wrong = []
    for case in CASES:
        for capability in TARGETS:
            line, reasons = check(case, capability)
            print(line, flush=True)
            wrong += reasons
    for line in wrong:
        print("WRONG:", line)
    sys.exit(bool(wrong))


if __name__ == "__main__":
    help_if_asked(__doc__)
    main()
