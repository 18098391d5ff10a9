"""What the optimizer's GPU kernel is made of, without a GPU: `python -m benchmarks.static_optimizer`.

As `benchmarks.static_gpu` does for the loss. Weights and gradients are read and written by 128 bits, eight codes at a
time by 64. Exit status 1 on spills, on narrower accesses, or on more than one launch for a bucket of parameters.
"""

from __future__ import annotations

import sys
from typing import NamedTuple

import torch

from benchmarks.common.arguments import help_if_asked
from benchmarks.static_gpu import BF16, F16, F32, TARGETS, compiling, disassemble
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


def check(case: Case, capability: int) -> tuple[str, list[str]]:
    """A row of the table, of the step's kernel, and what is wrong with it and with that before it."""
    with compiling(capability) as launches:
        case.step()
    *before, sass = (disassemble(launch.kernel.asm["cubin"]) for launch in launches)
    wrong = []
    if len(launches) != 1 + case.clipped:
        wrong.append(f"{len(launches)} launches")
    if sass.spills or any(norm.spills for norm in before):
        wrong.append(f"{sass.spills} spills")
    if case.elements % 16 == 0 and not (sass.loads[128] >= 2 and sass.stores[128] >= 1):
        wrong.append("weights or gradients below 128 bits")
    if any(not norm.loads[128] for norm in before):
        wrong.append("gradients below 128 bits where their norms are taken")
    widths = [f"{counts[128]} / {counts[64]} / {counts[32]}" for counts in (sass.loads, sass.stores)]
    return (
        row((case.name, f"sm_{capability}", sass.registers, sass.spills, sass.shared, *widths, len(launches))),
        [f"{case.name}, sm_{capability}: {reason}" for reason in wrong],
    )


def main() -> None:
    print(
        f"A bucket of {TENSORS} tensors. Loads of 32 bits are look-ups in the map's lines, which stay in the cache.\n"
    )
    columns = ("case", "target", "registers", "spills", "shared bytes", "loads of 128 / 64 / 32 bit", "stores")
    print("\n".join(table((*columns, "launches"), ())))
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
