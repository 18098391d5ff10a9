"""What every section of the configuration is: a frozen pydantic model that refuses what it does not know."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict
from typing_extensions import Self

from fdpo_fast.config.errors import UserError
from fdpo_fast.config.mistakes import checked


class Section(BaseModel):
    """Keys that belong together, each with its type, its limits and its default."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    def replace(self, changes: Mapping[str, Any]) -> Self:
        """Return a copy with other values by key: "beta" of the section of the loss, "loss.beta" of the whole.

        A value may be a section. Raises UserError where the result is refused, as it would be in a file.
        """
        raw = self.model_dump(mode="json")
        for path, value in changes.items():
            *sections, key = path.split(".")
            node: Any = raw
            for section in sections:
                node = node.get(section) if isinstance(node, dict) else None
            if not isinstance(node, dict):
                raise UserError(f"'{path}' is no key of the configuration")
            node[key] = value.model_dump(mode="json") if isinstance(value, Section) else value
        return checked(type(self), raw)
