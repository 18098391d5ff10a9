"""`fdpo init`: a configuration from a few answers."""

from __future__ import annotations

import json
import sys
from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from fdpo_fast.commands.common import Commands, card, count, given, imports, output_file, say_next, size
from fdpo_fast.config.errors import UserError
from fdpo_fast.memory.cards import CARDS

if TYPE_CHECKING:
    from fdpo_fast.memory.recipe import Recipe, Wish

Answer = TypeVar("Answer")


def add(commands: Commands) -> None:
    """Add the parser of `fdpo init`."""
    parser = commands.add_parser(
        "init",
        help="a configuration for your model, pairs and card, from a few answers",
        description="Write a configuration that fits a card, by `fdpo plan`. What is missing is asked for.",
    )
    parser.add_argument("file", nargs="?", type=output_file, default="fdpo.json", help="to write (default fdpo.json)")
    parser.add_argument("--model", help="diffusers folder or hub name of the pipeline to align")
    parser.add_argument("--family", help="sd, sdxl, sd3, flux or z_image, where the model is not here to say so")
    parser.add_argument(
        "--pairs",
        help="file, folder or hub data set of the pairs, or the folder that "
        "`fdpo pairs --output` is to make; data.source",
    )
    parser.add_argument("--train", choices=("lora", "full"), help="an adapter, or all weights (default lora)")
    parser.add_argument("--gpu", type=size, metavar="24GB", help="memory of one GPU")
    parser.add_argument("--card", type=card, choices=CARDS, metavar="NAME", help=f"or your GPU: {', '.join(CARDS)}")
    parser.add_argument("--gpus", type=count, default=1, metavar="N", help="GPUs of the machine (default 1)")
    parser.add_argument("--host", type=size, metavar="32GB", help="memory of the machine (default: no limit)")
    parser.add_argument("--force", action="store_true", help="write over a file that is there")
    parser.set_defaults(run=run, left="nothing was written")


def run(
    file: Path,
    model: str | None,
    family: str | None,
    pairs: str | None,
    train: Any,
    gpu: float | None,
    card: str | None,
    gpus: int,
    host: float | None,
    force: bool,
) -> None:
    """Ask for what is missing, find settings that fit, write them, and say how to go on."""
    if file.exists() and not force:
        raise UserError(f"{file} is there already: pass --force to write over it, or name another file")
    if card and gpu:
        raise UserError("pass --gpu or --card: a card says its memory")
    asked = {"--model": model, "--pairs": pairs, "--gpu or --card": card or gpu}
    missing = [flag for flag, value in asked.items() if value is None]
    if missing and not sys.stdin.isatty():
        raise UserError(f"there is nobody to ask: pass {' and '.join(missing)}")
    model = model or _ask("model, a diffusers folder or a hub name", str)
    with imports():
        from fdpo_fast.memory import recipe
        from fdpo_fast.models import FAMILIES
    family = family or recipe.family_of(model)
    if family is None and sys.stdin.isatty():
        family = _ask(f"its family: {' or '.join(FAMILIES)}", str)
    if family not in FAMILIES:
        if not Path(model).expanduser().is_dir():
            with imports():
                from fdpo_fast.models.hub import check_name
            check_name("--model", model)
        why = "is of a kind that is not trained" if Path(model).expanduser().is_dir() else "is not here to say so"
        raise UserError(f"--family must be {' or '.join(FAMILIES)}: {model} {why}")
    pairs = pairs or _ask("pairs, a file, a folder or a hub data set", str)
    train = train or (_ask("train: lora, or full", _kind, "lora") if missing else "lora")
    if card:
        gpu = CARDS[card].memory * 2.0**30
    gpu = gpu or _ask("GPU, its memory or its name", _memory)
    wish = recipe.Wish(model, family, pairs, train, gpu, gpus, host, f"runs/{file.stem}")
    made = recipe.fitting(wish)
    file.write_text(json.dumps(made.raw, indent=2) + "\n", encoding="utf-8")
    shown = str(file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file)
    print("\n".join(_report(shown, wish, made)))
    say_next("fdpo", "data", "check", *given(shown, []))


def _report(shown: str, wish: Wish, made: Recipe) -> list[str]:
    """Return what was written, and why it is so."""
    gib = 2.0**30
    return [
        f"{shown}: {made.needs.gpu_total / gib:.1f} GiB of {wish.gpu / gib:g} on each GPU, "
        f"{made.needs.host / gib:.1f} GiB of the host, by plan",
        *(f"    to fit: {change}" for change in made.changes),
    ]


def _ask(question: str, read: Callable[[str], Answer], default: str = "") -> Answer:
    """Ask until there is an answer that can be read."""
    while True:
        try:
            answer = input(f"{question}{f' [{default}]' if default else ''}: ").strip() or default
            if answer:
                return read(answer)
        except EOFError:
            raise UserError("nothing was written, as there was no answer") from None
        except ArgumentTypeError as error:
            print(error)


def _kind(text: str) -> str:
    if text not in ("lora", "full"):
        raise ArgumentTypeError(f"'{text}' is neither lora nor full")
    return text


def _memory(text: str) -> float:
    """Bytes of a GPU, given by its memory or by its name."""
    return size(text) if text[0].isdigit() else CARDS[card(text)].memory * 2.0**30
