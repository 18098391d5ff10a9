"""Of which pairs a policy is least sure: its implicit margins, measured once and kept in a file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from fdpo_fast.config.errors import UserError
from fdpo_fast.config.run import Config
from fdpo_fast.config.schema import Loss
from fdpo_fast.data.pairs import number
from fdpo_fast.data.reading import UnusableError, printable, read_file, text
from fdpo_fast.files import replacing


def margins(config: Config | None, policy: Path | None, pairs: int, file: Path | None) -> dict[int, float]:
    """Return the margin of up to `pairs` pairs by id: from a file where it exists, else measured, and written there.

    It is beta (h(u_w) - h(u_l)) of the configuration's loss on one draw of timestep and noise, that of training's first
    visit of the pair; positive where the policy prefers what the label says. Raises UserError where the file is broken,
    or nothing says which policy is meant.
    """
    if file is not None and file.is_file():
        return read_margins(file)
    if config is None or policy is None:
        raise UserError("--choose unsure measures margins with a --config and its --policy, or reads them by --margins")
    from fdpo_fast.compare.calibrate import drift  # DeepSpeed and diffusers come with it

    measured = drift(config, pairs, 0, policy)
    found = dict(zip(measured.id.tolist(), of_drift(config.loss, measured.delta).tolist(), strict=True))
    if file is not None:
        with replacing(file) as partial:
            lines = (json.dumps({"id": id, "margin": margin}) + "\n" for id, margin in found.items())
            partial.write_text("".join(lines), encoding="utf-8")
    return found


def of_drift(loss: Loss, delta: Tensor) -> Tensor:
    """Return the margins [n] of errors less reference errors [n, 2] float64, of preferred and dispreferred samples."""
    h = loss.link()(-loss.ratio_scale * delta)
    return loss.beta * (h[:, 0] - h[:, 1])


def read_margins(file: Path) -> dict[int, float]:
    """Read a file of margins, JSON Lines of `{"id": 24, "margin": -0.3}`; UserError with the line that is none."""
    name = printable(str(file))
    try:
        content = text(read_file(file, name))
    except UnusableError as error:
        raise UserError(f"the file of margins {name} cannot be read: {error}") from None
    found: dict[int, float] = {}
    for at, line in enumerate(content.split("\n"), 1):
        if not line.strip():
            continue
        try:
            raw = json.loads(line)
        except ValueError:
            raw = None
        id, margin = (raw.get("id"), number(raw.get("margin"))) if isinstance(raw, dict) else (None, None)
        if type(id) is not int or margin is None:
            raise UserError(
                f'the file of margins {name} is broken in line {at}: it is to be {{"id": 24, "margin": -0.3}}'
            )
        found[id] = margin
    if not found:
        raise UserError(f"the file of margins {name} holds no margin")
    return found


def sureness(found: Mapping[int, float]) -> dict[int, float]:
    """Return a key by which the pairs of which a policy is least sure are first: minus the magnitude of a margin."""
    return {id: -abs(margin) for id, margin in found.items()}
