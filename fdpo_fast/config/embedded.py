"""The bases that fdpo_fast makes on the spot, by their names as `model.base` or `data.source`."""

from __future__ import annotations

from typing import NamedTuple


class Embedded(NamedTuple):
    """A base that is made when it is first asked for, with the pairs that it draws."""

    family: str
    """The `model.family` that trains it."""
    maker: str
    """The class that makes it, a `fdpo_fast.digits.maker.Maker`."""
    steps: str
    """How long its denoiser is trained: the key of `data.digits` that this base alone depends on."""
    text_tokens: int | None = None
    """The `model.text_tokens` that it is made with, and knows alone."""


EMBEDDED = {
    "digits": Embedded("sd", "fdpo_fast.digits.unet.UNet", "unet_steps"),
    "digits-flow": Embedded("sd3", "fdpo_fast.digits.flow.Flow", "flow_steps", text_tokens=1),
}
"""What is made on the spot, by name."""

NAMES = " or ".join(f"'{name}'" for name in EMBEDDED)
"""Those names in words."""
