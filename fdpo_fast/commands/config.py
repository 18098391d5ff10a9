"""`fdpo config`: the keys and what they mean, and what a configuration sets otherwise than by default."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from fdpo_fast.commands.common import Commands, add_config, imports, read_config
from fdpo_fast.config.errors import UserError, near

if TYPE_CHECKING:
    from fdpo_fast.config.keys import Key


def add(commands: Commands) -> None:
    """Add the parser of `fdpo config`."""
    parser = commands.add_parser(
        "config",
        help="the keys with their defaults and meanings; what a configuration sets",
        description="Explain the keys, or list what a configuration sets otherwise than by default, then the rest.",
    )
    parser.add_argument(
        "--explain", nargs="?", const="", metavar="KEY", help="what keys mean: one, those of a section, or all"
    )
    add_config(parser, required=False)
    parser.set_defaults(run=run, left="nothing was written")


def run(config_file: str | None, overrides: list[str], explain: str | None) -> None:
    """Explain keys, or else list those of a configuration."""
    if explain is not None:
        print(_explained(explain))
    elif config_file is not None:
        print(_listed(config_file, overrides))
    else:
        raise UserError("pass --explain [KEY] for what keys mean, or --config FILE for what a configuration sets")


def _keys() -> tuple[Key, ...]:
    with imports():
        from fdpo_fast.config.keys import keys
        from fdpo_fast.config.run import Config
    return keys(Config)


def _explained(name: str) -> str:
    """Return the lines about a key, or about all that are in a section; about everything without a name."""
    known = _keys()
    found = [key for key in known if not name or key.name == name or key.name.startswith((f"{name}.", f"{name}[]."))]
    if not found:
        ends = {key.name.rpartition(".")[2]: key.name for key in known}  # "betta" alone is not near "loss.beta"
        nearest = near(name, [key.name for key in known]) or ends.get(near(name, ends) or "")
        ask = f"did you mean '{nearest}'?" if nearest else "--explain alone lists all"
        raise UserError(f"there is no key or section '{name}': {ask}")
    return "\n".join(_lines(key) for key in found)


def _lines(key: Key) -> str:
    """Return what there is to know of a key, or of a section."""
    if not key.kind:
        return f"{key.name}: {key.meaning}"
    default = key.default if key.default == "required" else f"default {key.default}"
    return f"{key.name}: {key.kind}; {default}".replace("`", "") + f"\n    {key.meaning}"


def _listed(config_file: str, overrides: list[str]) -> str:
    """Return the keys of a configuration with their values: those with another than the default's first."""
    config = read_config(config_file, overrides).model_dump(mode="json")
    from fdpo_fast.config.keys import shown

    own: list[str] = []
    rest: list[str] = []
    for key in (key for key in _keys() if key.kind and "[]" not in key.name):
        *sections, last = key.name.split(".")
        found: Any = config
        for section in sections:
            found = found and found[section]  # a section may be left out
        if found is not None:
            text = shown(found[last])
            (rest if key.default == f"`{text}`" else own).append(f"{key.name} = {text}")
    return "\n".join([*own, "", "as by default:", *rest])
