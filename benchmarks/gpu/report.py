"""Turns lines of results into the tables of a README, in Markdown, and a picture: of each card in the file."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.gpu.cards import peak_tflops
from fdpo_fast.evaluate import tables

Line = dict[str, Any]


def report(file: Path, folder: Path) -> None:
    """Write CARD.md and CARD.png to `folder` for each card of the file, and print the tables.

    ValueError with a sentence where there are no results yet.
    """
    lines = read(file)
    if not lines:
        raise ValueError(f"there are no results in {file}: `python -m benchmarks.gpu` writes them, on a GPU machine")
    from benchmarks.gpu.roofline import draw

    folder.mkdir(parents=True, exist_ok=True)
    for device in dict.fromkeys(line["device"] for line in lines):
        ours = latest(line for line in lines if line["device"] == device)
        text = "\n".join(markdown(device, ours)) + "\n"
        name = re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")
        (folder / f"{name}.md").write_text(text)
        draw(device, ours, folder / f"{name}.png")
        print(text)


def read(file: Path) -> list[Line]:
    """The lines that are whole: a machine that is taken away leaves half of the last."""
    lines = []
    for text in file.read_text().splitlines() if file.is_file() else ():
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return lines


MEASURED = ("stage", "what", "optimizer", "layout", "size", "pairs", "dtype", "form", "divergence", "provider", "test")
"""What tells the lines of one thing measured from those of another."""


def latest(lines: Iterable[Line]) -> list[Line]:
    """Of each thing that was measured, the last time."""
    return list({tuple(line.get(key) for key in MEASURED): line for line in lines}.values())


def of(lines: list[Line], what: str, *present: str) -> list[Line]:
    """The lines of a kind that have these figures."""
    return [line for line in lines if line["what"] == what and all(line.get(key) is not None for key in present)]


Columns = dict[str, Callable[[Line], Any]]


def table(columns: Columns, rows: Iterable[Line], words: int) -> Iterator[str]:
    """Markdown; the first `words` columns are text, the others figures. Nothing without rows."""
    rows = list(rows)
    if rows:
        cells = ([cell(row) for cell in columns.values()] for row in rows)
        yield from tables.table(list(columns), cells, figures=len(columns) - words)
        yield ""


def figure(key: str, form: str = ".3g", scale: float = 1.0) -> Callable[[Line], str]:
    """A cell: a figure of the line, empty where it has none."""
    return lambda line: "" if line.get(key) is None else format(line[key] * scale, form)


def markdown(device: str, lines: list[Line]) -> Iterator[str]:
    """The whole report of a device."""
    yield f"## {device}"
    yield ""
    if any(line["rehearsal"] for line in lines):
        yield "A rehearsal with everything tiny: these figures show that the stages run, and measure nothing."
        yield ""
    yield from machine(lines)
    yield from training(device, lines)
    yield from losses(lines)
    yield from optimizers(lines)
    yield from encodings(lines)
    yield from ends(lines)


def machine(lines: list[Line]) -> Iterator[str]:
    """Versions, the card, its ceilings and the tests, in sentences."""
    for line in of(lines, "versions"):
        known = ("python", "torch", "triton", "deepspeed", "diffusers", "bitsandbytes", "torchao", "flashoptim")
        yield ", ".join(f"{name} {line[name]}" for name in known if line.get(name)) + "."
    for line in of(lines, "card", "memory_gib"):
        yield (
            f"Driver {line.get('driver_version', 'unknown')}, CUDA {line['cuda']}, {line['memory_gib']:.1f} GiB, "
            f"clocks {line.get('clocks_sm')} of {line.get('clocks_max_sm')} MHz, limit {line.get('power_limit')} W."
        )
    for line in of(lines, "ceilings"):
        peak = f", of {line['peak_tflops']:,.0f} by the maker's table" if line["peak_tflops"] else ""
        yield (
            f"A copy reads and writes {line['copy_gb_per_s']:,.4g} GB/s; a bfloat16 product runs at "
            f"{line['matmul_tflops']:.3g} TFLOP/s{peak}."
        )
    for line in of(lines, "tests"):
        failed = "".join(f"; failed: `{name}`" for name in line["failures"])
        yield (
            f"`pytest -m gpu`: {line['passed']} passed, {line['failed'] + line['error']} failed, "
            f"{line['skipped']} skipped{failed}."
        )
    yield ""


def training(device: str, lines: list[Line]) -> Iterator[str]:
    """The trainer and the rivals; without a known peak, arithmetic as a share of the product that was measured."""
    ceilings = of(lines, "ceilings")
    peak, share = peak_tflops(device), "MFU"
    if peak is None:
        peak, share = (ceilings[0]["matmul_tflops"] if ceilings else None), "share of the measured product"

    def utilisation(line: Line) -> str:
        return f"{line['tflops'] / peak:.1%}" if peak and "tflops" in line else ""

    columns: Columns = {
        "one step of SDXL at 1024 x 1024": lambda line: line["stage"],
        "s / pair": figure("seconds_per_pair"),
        "TFLOP/s": figure("tflops"),
        share: utilisation,
        "allocated, GiB": figure("allocated_gib", ".2f"),
        "planned": figure("plan_gib", ".2f"),
        "reserved": figure("reserved_gib", ".2f"),
        "driver": figure("driver_gib", ".2f"),
        "start: allocated": figure("start_allocated_gib", ".2f"),
        "first margin": figure("first_margin"),
        "first loss": figure("first_loss", ".6f"),
    }
    rows = [line for line in lines if line["what"] in ("train", "rival")]
    yield from table(columns, sorted(rows, key=lambda line: line["what"] == "rival"), 1)


def losses(lines: list[Line]) -> Iterator[str]:
    columns: Columns = {
        "latents": lambda line: line["size"],
        "dtype": lambda line: line["dtype"],
        "input": lambda line: line["form"],
        "divergence": lambda line: line["divergence"],
        "pairs": lambda line: line["pairs"],
        "published, us": figure("published_us", ",.1f"),
        "compiled": figure("published_compiled_us", ",.1f"),
        "without casts": figure("uncast_us", ",.1f"),
        "compiled, without casts": figure("uncast_compiled_us", ",.1f"),
        "our own eager backend": figure("eager_us", ",.1f"),
        "ours, target stored": figure("stored_us", ",.1f"),
        "ours": figure("ours_us", ",.1f"),
        "GB/s": figure("gb_per_s", ",.0f"),
        "share of a copy": figure("share_of_copy", ".0%"),
    }
    rows = of(lines, "loss", "copy_us")
    if rows and not rows[0]["graphs"]:
        yield "The loss, forward and backward, without CUDA graphs:\n"
    yield from table(columns, rows, 4)


def optimizers(lines: list[Line]) -> Iterator[str]:
    ceilings = of(lines, "ceilings")
    columns: Columns = {
        "optimizer": lambda line: line["optimizer"],
        "tensors": lambda line: f"{line['layout']}: {line['tensors']:,}",
        "parameters, M": figure("elements", ",.4g", 1e-6),
        "ms a step": figure("ms"),
        "of which the host": figure("host_ms"),
        "GB/s": figure("gb_per_s", ",.3g"),
        "share of a copy": lambda line: f"{line['gb_per_s'] / ceilings[0]['copy_gb_per_s']:.0%}" if ceilings else "",
        "state, bytes a parameter": figure("state_bytes", ".2f"),
    }
    yield from table(columns, sorted(of(lines, "optimizer", "ms"), key=lambda line: line["layout"], reverse=True), 2)


def encodings(lines: list[Line]) -> Iterator[str]:
    columns: Columns = {
        "`fdpo cache`": lambda line: f"{line['images']} images of {line['size']}",
        "VAE": lambda line: line["form"],
        "s": figure("seconds"),
        "processor, s": figure("processor_seconds"),
        "images/s": figure("images_per_second"),
    }
    yield from table(columns, of(lines, "encoding", "seconds"), 2)


def ends(lines: list[Line]) -> Iterator[str]:
    """What did not come about, and why."""
    for line in lines:
        name = ", ".join(str(line[key]) for key in ("stage", *MEASURED[2:]) if line.get(key))
        if line.get("skipped") and line["what"] != "tests":
            yield f"- {name}: skipped, {line['skipped']}"
        elif why := line.get("why") or line.get("error"):
            yield f"- {name}: {line.get('status', 'failed')}, {why}"
