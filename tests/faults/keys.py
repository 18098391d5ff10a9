"""Each key of the configuration with another value than the run's."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from fdpo_fast.config.run import Config

LEFT_OUT = {"train__output_dir", "data__cache_dir"}
"""With another folder there is nothing to go on from."""


NESTED: list[tuple[str, Any]] = [
    ("deepspeed__zero_optimization", {"stage": 1}),
    ("deepspeed__zero_optimization", {"stage": 2, "offload_optimizer": {"device": "cpu"}}),
    ("deepspeed__zero_optimization", {"stage": 3}),
    ("deepspeed__bf16", {"enabled": True}),
    ("deepspeed__zero_force_ds_cpu_optimizer", False),
    ("model__lora", {"rank": 3}),
    ("model__lora", {"alpha": 3.0}),
    ("model__lora", {"targets": ["to_q"]}),
]
"""What is changed inside of sections that are keys themselves."""


def changed_keys() -> Iterator[tuple[str, Any]]:
    """Names as `section__key`, each with a value that is not the default."""
    yield from NESTED
    for section, of_section in Config.model_fields.items():
        model = of_section.annotation
        for key, field in getattr(model, "model_fields", {}).items():
            name = f"{section}__{key}"
            if name not in LEFT_OUT:
                for value in others(field):
                    yield name, value


def others(field: FieldInfo) -> list[Any]:
    """Values of a field's type; none for one that is a section, or has no simple type."""
    default, kinds = field.default, [field.annotation]
    while kinds and any(get_args(kind) and get_origin(kind) is not Literal for kind in kinds):
        kinds = [
            inner for kind in kinds for inner in ([kind] if get_origin(kind) is Literal else get_args(kind) or [kind])
        ]
    for kind in kinds:
        if get_origin(kind) is Literal:
            return [value for value in get_args(kind) if value != default][:2]
    if bool in kinds:
        return [not default]
    if int in kinds:
        return [(default or 0) + 1] if isinstance(default, int | None) else [2]
    if float in kinds:
        return [(default or 0.25) * 0.5] if isinstance(default, float | int | None) else [0.5]
    return ["another"] if str in kinds else []
