r"""Links whose ends are straight: beyond a log-ratio of c in magnitude they go on as their tangent there.

    h_c(u) = h(v) + h'(v) (u - v),    v: u, brought into [-c, c]

Its slope is h'(v), which neither grows without an end nor vanishes, however far a policy has gone from its reference.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fdpo_fast.loss.divergences import Divergence
from fdpo_fast.loss.eager import one_for_each

if TYPE_CHECKING:  # a configuration is checked without torch
    from torch import Tensor


@dataclass(frozen=True)
class ClippedDivergence(Divergence):
    """A divergence whose link is a tangent beyond `at` > 0; its row is that of the whole one."""

    at: float = 1.0

    def __call__(self, u: Tensor) -> Tensor:
        """Return h_c(u) - h(0), shape and dtype of `u`, float32 or float64."""
        return _with_tangents(super().__call__, super().slope(_ends(u, self.at)), u, self.at)

    def slope(self, u: Tensor) -> Tensor:
        """Return h_c'(u) >= 0, shape and dtype of `u`."""
        return super().slope(u.clamp(-self.at, self.at))

    def clipped(self, u: Tensor) -> Tensor:
        """Mark samples past `at` or past the exponential's cap: boolean, shape of `u`."""
        return (u.abs() > self.at) | super().clipped(u)


@dataclass(frozen=True)
class ClippedLink:
    """A callable u -> h(u) that is a tangent beyond `at` > 0, by autograd of the callable."""

    whole: Callable[[Tensor], Tensor]
    at: float

    def __call__(self, u: Tensor) -> Tensor:
        """Return h_c(u), shape and dtype of `u`; parameters of the callable get their gradient through h' too."""
        ends = _ends(u, self.at)
        # second derivatives of a link are formed, and have to exist, only where somebody asks for them
        learnt = self.whole(ends).requires_grad
        slopes = slope_of(self.whole, ends, create_graph=learnt)
        return _with_tangents(self.whole, slopes, u, self.at)

    def clipped(self, u: Tensor) -> Tensor:
        """Mark samples past `at`: boolean, shape of `u`. A callable has no other cap that could be counted."""
        return u.abs() > self.at


def clipped(link: Callable[[Tensor], Tensor], at: float | None) -> Callable[[Tensor], Tensor]:
    """Return a link with straight ends beyond a log-ratio `at`, or as it is for None."""
    if at is None:
        return link
    if isinstance(link, Divergence):
        return ClippedDivergence(link.name, *link.row, at=at)
    return ClippedLink(link, at)


def slope_of(link: Callable[[Tensor], Tensor], u: Tensor, *, create_graph: bool = False) -> Tensor:
    """Return h'(u), shape and dtype of `u`: by the formula of a row of numbers, else by autograd."""
    import torch

    from fdpo_fast.ops.library import transformed

    if isinstance(link, Divergence):
        return link.slope(u)
    if isinstance(link, ClippedLink):
        return slope_of(link.whole, u.clamp(-link.at, link.at), create_graph=create_graph)
    if torch.compiler.is_compiling() or transformed():
        slope: Tensor = torch.func.grad(lambda v: link(v).sum())(u)
        return slope
    with torch.inference_mode(False), torch.enable_grad():
        u = u.clone().requires_grad_()
        value = link(u)
        if not value.requires_grad:  # a constant, or detached
            return torch.zeros_like(u, requires_grad=False)
        return torch.autograd.grad(value.sum(), u, materialize_grads=True, create_graph=create_graph)[0]


def _ends(u: Tensor, at: float) -> Tensor:
    """Return [-at, at] like u, without a copy from the host."""
    import torch

    return torch.linspace(-at, at, 2, dtype=u.dtype, device=u.device)


def _with_tangents(link: Callable[[Tensor], Tensor], slopes: Tensor, u: Tensor, at: float) -> Tensor:
    low, high = slopes.unbind()
    inside = u.clamp(-at, at)
    # a slope at an end that is not reached may be infinite
    slope = high.where(u > at, low.where(u < -at, 0.0))
    return one_for_each(link(inside), u) + slope * (u - inside)
