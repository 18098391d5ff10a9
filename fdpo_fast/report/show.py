"""A page about a training run, also while it runs: `fdpo report RUN_DIR`."""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image
from pydantic_core import PydanticUndefined

from fdpo_fast.config.errors import UserError
from fdpo_fast.config.run import Config
from fdpo_fast.config.section import Section
from fdpo_fast.files import read_json
from fdpo_fast.report import curves, figures, verdict, words
from fdpo_fast.report.pages import Part, Samples, Table, short, strip, write
from fdpo_fast.report.run import Run
from fdpo_fast.report.words import Word
from fdpo_fast.training.samples import Layout

FILES = ("metrics.jsonl", "config.json", "data.json", "data.html", "samples", "evaluation", "alignment.png", "export")
"""What a page about a run links to, where it is there."""


def report(folder: Path) -> None:
    """Write `report.html` into a run's folder, and print its path; UserError where a file of the run is broken."""
    page = folder / "report.html"
    write(page, f"Run {short(folder.resolve().name)}", parts(Run(folder)))
    print(page)


def parts(run: Run) -> Iterator[Part]:
    """Yield the parts of a page about a run that is finished or still training."""
    config = run.config
    done, total = run.done, config.train.max_steps
    if run.records:
        yield Part("What the curves say", tuple(verdict.of_run(run)))
    yield Part(
        "Where it stands",
        (f"Step {done} of {total}, {'finished' if done >= total else 'not finished'}.", *_state(run)),
        done=done / total,
        table=_latest(run),
    )
    if run.warnings:
        yield Part("Warnings", tuple(f"After step {step}: {short(warning)}" for step, warning in run.warnings))
    evaluation = run.folder / "evaluation/evaluation.json"
    if evaluation.is_file():
        yield _evaluation(evaluation)
    if run.records:
        about = f"Faint: every step; full: means of {figures.SMOOTH}. Dashed: where a figure starts."
        yield Part("Curves", (about,), picture=curves.sheet(run))
    if run.bins:
        about = "Timesteps of the noise that the pairs were seen under: a large one is much noise."
        yield Part("By timesteps", (about,), picture=figures.timestep_bins(run))
    if run.grids:
        yield _samples(run.grids[-1], config)
    yield Part("What next", commands=tuple(_commands(run, config, evaluation.is_file())))
    yield Part("Files", links=tuple((name, name) for name in FILES if (run.folder / name).exists()))
    yield Part("Data", table=Table(("figure", "value"), tuple((k, _json(v)) for k, v in run.data.items()), "lw"))
    yield from _configuration(config)


def _latest(run: Run) -> Table:
    """Tabulate the means of the last steps; what is not drawn from batches as it is."""
    rows = []
    for key, word in words.FIGURES.items():
        values = run.series(key)[1]
        if values:
            recent = values[-figures.SMOOTH :] if key in curves.FOUND or key.startswith("error") else values[-1:]
            rows.append((word, f"{sum(recent) / len(recent):.4g}"))
    return Table(("figure", "latest"), tuple(rows), "lr")


def _state(run: Run) -> Iterator[str]:
    peak = max(run.series("memory_gib")[1], default=math.nan)
    if peak == peak:
        yield f"Peak memory of the first rank so far: {peak:.2f} GiB."
    if out := run.metrics.left_out:
        yield f"Left out: {out} lines of metrics.jsonl that are no record of a step, or of one that is there twice."
    if not run.records:
        yield "Nothing is written yet."
        return
    since = max(1, run.done - figures.SMOOTH + 1)
    yield f"Latest: means of steps {since} to {run.done}, where a figure differs from batch to batch."


def _evaluation(file: Path) -> Part:
    """Tabulate what `fdpo evaluate` has found of the base and the policy."""
    found = read_json(file)
    rows: list[tuple[str | Word, ...]] = []
    try:
        about = f"{found['captions']} captions, {found['images_per_prompt']} images each"
        for kind in ("scores", "diversity"):
            for name, by_model in found[kind].items():
                word = words.measure(name)
                for model, summary in by_model.items():
                    cells = (_estimate(summary[figure]) for figure in ("mean", "win_rate"))
                    rows.append((word, short(model), *cells))
    except (KeyError, TypeError, AttributeError, ValueError):
        raise UserError(f"{file} is not what `fdpo evaluate` writes: delete it, and evaluate again") from None
    return Part(
        "Evaluation",
        (
            f"{about}; intervals of 95 %. Of all measures more is better; a win rate of 0.5 is a draw with the base "
            "from the same noise.",
        ),
        table=Table(("measure", "model", "mean", "win rate"), tuple(rows), "llrr"),
    )


def _estimate(figures: dict | None) -> str:
    if not figures:
        return ""
    value, low, high = (figures[key] for key in ("value", "low", "high"))
    return f"{value:.4g}" if low is None else f"{value:.4g} [{low:.4g}, {high:.4g}]"


def _opened(path: Path) -> Image.Image:
    """Open and decode a sheet of samples; UserError where it is none."""
    try:
        sheet = Image.open(path)
        sheet.load()
    except (OSError, SyntaxError) as error:  # PIL's of what is broken
        raise UserError(f"{path} is no picture that can be read ({error}): delete it") from None
    return sheet


def _samples(path: Path, config: Config) -> Part:
    """Cut the newest sheet into strips that a page can arrange by its width."""
    log, side = config.log, config.data.resolution
    with _opened(path) as sheet:
        layout = Layout.of(log.prompts, [log.images_per_prompt * side] * 2, side)
        if layout.size != sheet.size:  # drawn for other captions, before the run went on with these
            rows: tuple[Samples, ...] = (Samples("", (strip(path.stem, [sheet]),)),)
        else:
            rows = tuple(
                Samples(
                    short(caption),
                    tuple(
                        strip(name, layout.images(sheet, column, row, log.images_per_prompt))
                        for column, name in enumerate(("base", "policy"))
                    ),
                )
                for row, caption in enumerate(log.prompts)
            )
    step = int(path.stem.rpartition("-")[2])
    return Part(f"Samples after step {step}", ("The same captions and start noise.",), samples=rows)


def _commands(run: Run, config: Config, evaluated: bool) -> Iterator[tuple[str, str]]:
    own = shlex.quote(str(run.folder / "config.json"))
    if run.done < config.train.max_steps:
        yield "Go on with it, if it does not run:", f"fdpo train --config {own} --resume"
        yield "Look again:", f"fdpo report {shlex.quote(str(run.folder))}"
    elif not evaluated:
        captions = "" if config.evaluate.prompts else " --prompts CAPTIONS.txt"
        yield "Draw with base and policy from the same noise:", f"fdpo sample --config {own}{captions}"
        yield "Score what was drawn; then this page shows it:", f"fdpo evaluate --config {own}"
    else:
        use = "load_lora_weights" if config.model.train == "lora" else "from_pretrained"
        owner = "pipe" if config.model.train == "lora" else "DiffusionPipeline"
        yield "Use the model:", f"{owner}.{use}({str(run.folder / 'export')!r})"
        yield "Find the strength for other divergences:", f"fdpo calibrate --config {own}"


def _configuration(config: Config) -> Iterator[Part]:
    """Yield two parts: the keys that differ from the defaults, and the others."""
    chosen: list[tuple[Word, str]] = []
    left: list[tuple[Word, str]] = []
    for name, section in config:
        for key, value, default, about in _keys(name, section):
            (left if value == default else chosen).append((Word(key, about), _json(value)))
    for title, rows in (("Configuration", chosen), ("Defaults", left)):
        what = "keys that have their default" if rows is left else "keys that have no default, or another value"
        table = Table(("key", "value"), tuple(rows), "lw")
        yield Part(title, table=table, folded=f"{len(rows)} {what}")


def _keys(name: str, section: Any) -> Iterator[tuple[str, Any, Any, str]]:
    """Yield key, value, default and description of all keys of a section; of one without fields, the whole."""
    if not isinstance(section, Section):
        if section:
            yield name, section, None, "DeepSpeed's own keys"
        return
    values = section.model_dump(mode="json")
    for key, field in type(section).model_fields.items():
        default = field.get_default(call_default_factory=True)
        if isinstance(default, Section):
            default = default.model_dump(mode="json")
        default = PydanticUndefined if field.is_required() else json.loads(json.dumps(default, default=_plain))
        yield f"{name}.{key}", values[key], default, field.description or ""


def _plain(value: Any) -> Any:
    return value.model_dump(mode="json")


def _json(value: Any) -> str:
    return short(json.dumps(value, ensure_ascii=False))
