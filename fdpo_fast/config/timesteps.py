"""The keys of how likely each timestep is; what they mean is in `densities`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator

from fdpo_fast.config.errors import UserError
from fdpo_fast.config.section import Section

if TYPE_CHECKING:
    from torch import Tensor

_TAKES = {
    "logit_normal": ("mean", "std"),
    "mode": ("scale",),
    "range": ("range",),
    "only": ("only",),
    "weights": ("weights",),
}
"""By density, the keys that it takes; those of the last three it needs."""


class Timesteps(Section):
    """How likely each timestep is to be drawn; of what a schedule shifts, before it does."""

    density: Literal["auto", "uniform", "logit_normal", "mode", "cosmap", "range", "only", "weights"] = Field(
        "auto", description="over the timesteps; auto: logit_normal for rectified flows, else uniform"
    )
    mean: float | None = Field(None, description="of logit_normal; null: 0, above it is more noise")
    std: float | None = Field(None, gt=0, description="of logit_normal; null: 1")
    scale: float | None = Field(None, ge=-1, le=1.75, description="of mode; null: 1.29, above 0 is more in the middle")
    range: tuple[int, int] | None = Field(
        None, strict=False, description="of range: the first timestep, and the one behind the last"
    )
    only: list[int] | None = Field(None, min_length=1, description="of only: the timesteps that are drawn, all alike")
    weights: list[float] | None = Field(
        None, min_length=1, description="of weights: one number a timestep, in proportion to how likely it is"
    )

    @model_validator(mode="after")
    def _fitting(self) -> Timesteps:
        takes = _TAKES.get(self.density, ())
        given = [name for names in _TAKES.values() for name in names if getattr(self, name) is not None]
        if other := [name for name in given if name not in takes]:
            raise ValueError(
                f"reference.timesteps.{other[0]} is set but the density is '{self.density}': it would be ignored"
            )
        if lacking := [name for name in takes if name in ("range", "only", "weights") and name not in given]:
            raise ValueError(f"reference.timesteps.{lacking[0]} is missing: density '{self.density}' takes it")
        return self

    def settled(self, flow: bool) -> Timesteps:
        """Return the same with the density that `auto` stands for, of a rectified `flow` or another process."""
        named = "logit_normal" if flow else "uniform"
        return self.model_copy(update={"density": named}) if self.density == "auto" else self

    def table(self, steps: int) -> Tensor | None:
        """Return the table of the density over so many timesteps, see `densities.cumulative`; None for a uniform one.

        Raises UserError where the density names timesteps that are not there.
        """
        if self.density == "uniform":
            return None
        from fdpo_fast.densities import DENSITIES, cumulative

        named = {name: getattr(self, name) for name in _TAKES.get(self.density, ())}
        try:
            return cumulative(DENSITIES[self.density](steps, **{k: v for k, v in named.items() if v is not None}))
        except ValueError as error:
            raise UserError(f"reference.timesteps: {error}") from None
