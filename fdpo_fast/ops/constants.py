"""Numbers and names that Python, C++ and Triton agree on, each written here once.

C++ has its own copies, which `ops.cpp` compares with these when it is imported; the Triton kernels import them.
"""

from collections.abc import Collection
from enum import IntEnum

EXP_CAP = 20.0
"""Above rate * u = EXP_CAP the exponential of a link goes on as its tangent line: value and slope stay continuous and
the worst samples keep their gradient. e^20 leaves room in float32 for |u| = 1e6, beta = 1e4 and the ipo loss's square.
"""

BLOCK = 1024
"""Elements of each sample that a program of a Triton kernel of the loss takes."""

STATE_BLOCK = 256
"""Elements of an optimizer's 8-bit state that share an absmax: bitsandbytes' block."""

BACKENDS = ("eager", "cpp", "triton")
"""Who can run an operator: plain torch for any tensor, C++ for the CPU's, Triton for the GPU's."""


class Stream(IntEnum):
    """Which of a pair's counter-based streams of random words is meant; `noise` has the layout of the counter."""

    NOISE = 0
    TIMESTEP = 1
    CAPTION = 2
    ROUNDING = 3
    GEOMETRY = 4


class Stat(IntEnum):
    """Rows of the fused loss's statistics [11, B] float32, which C++ and Triton write.

    Users see the rows up to LOSER_SCALE, by their names in lower case; of a call whose `may_undo` is zero that row
    holds what such a factor is formed of, see `Call`. The last two are c in
    d loss / d pred = c * (pred - target), which the backward pass reads.
    """

    ERROR_W = 0
    ERROR_L = 1
    REF_ERROR_W = 2
    REF_ERROR_L = 3
    LOG_RATIO_W = 4
    LOG_RATIO_L = 5
    MARGIN = 6
    CLIPPED = 7
    LOSER_SCALE = 8
    COEFFICIENT_W = 9
    COEFFICIENT_L = 10


def one_of(kind: str, value: object, known: Collection[str]) -> None:
    """Raise ValueError for a name that is not one of the known ones, which the sentence lists."""
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"unknown {kind} {value!r}: use one of {', '.join(known)}")
