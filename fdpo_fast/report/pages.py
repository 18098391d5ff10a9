"""The reports: self-contained HTML pages, with the same pictures and tables as files beside them."""

from __future__ import annotations

import base64
import csv
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from fdpo_fast.compare.analysis import COLUMNS, FIGURES, Comparison, Spot
from fdpo_fast.config.load import load
from fdpo_fast.evaluate.gallery import contact_sheet
from fdpo_fast.evaluate.policies import BASE
from fdpo_fast.evaluate.statistics import Estimate
from fdpo_fast.evaluate.tables import table
from fdpo_fast.files import replacing
from fdpo_fast.report import figures
from fdpo_fast.report.run import Run

_PAGES = Environment(loader=PackageLoader("fdpo_fast.report", "."), autoescape=True, undefined=StrictUndefined)
ALPHA = 0.05
"""The level at which a test is called significant."""


@dataclass(frozen=True)
class Part:
    """A section of a page: words, a table, a picture; any of them may be empty."""

    title: str
    text: str = ""
    header: tuple[str, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    picture: bytes = b""
    file: str = ""
    """The name under which the picture lies beside the page; none, and it lies in the page alone."""

    @property
    def uri(self) -> str:
        """Return the picture as a data URI."""
        return "data:image/png;base64," + base64.b64encode(self.picture).decode()


def write(path: Path, title: str, parts: Iterable[Part]) -> None:
    """Write the page, and each picture that has a file's name."""
    parts = list(parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    for part in parts:
        if part.file:
            with replacing(path.parent / part.file) as partial:
                partial.write_bytes(part.picture)
    with replacing(path) as partial:
        partial.write_text(_PAGES.get_template("page.html").render(title=title, parts=parts), encoding="utf-8")


# --- a comparison ---


def write_comparison(comparison: Comparison, folder: Path) -> None:
    """Write the report of a comparison to `folder/report`: index.html, its pictures, points.csv and report.md."""
    report = folder / "report"
    report.mkdir(exist_ok=True)
    with replacing(report / "points.csv") as partial, partial.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(comparison.rows)
    parts = list(_comparison(comparison, folder))
    write(report / "index.html", "Divergences compared", parts)
    with replacing(report / "report.md") as partial:
        partial.write_text("\n".join(_markdown(parts)), encoding="utf-8")


def _comparison(comparison: Comparison, folder: Path) -> Iterator[Part]:
    yield Part("What the data say", " ".join(sentences(comparison)))
    yield Part("How it was made", " ".join(_how(comparison)))
    yield Part("Alignment against diversity", picture=figures.trade_off(comparison), file="trade_off.png")
    yield Part(
        "Preference against diversity", picture=figures.trade_off(comparison, "preference"), file="preference.png"
    )
    if comparison.volumes:
        yield _hypervolume(comparison)
    yield Part(
        "All runs",
        "Means over the seeds, with the standard error of the mean.",
        ("divergence", "strength", "alignment", "preference", "diversity", "win rate", "Pareto front"),
        (
            ("base", "", *(f"{comparison.base[key]:.4f}" for key in FIGURES), ""),
            *(_row(s, comparison) for s in comparison.spots),
        ),
    )
    yield Part(
        "Where the pull goes",
        "u is the log-ratio of policy and reference. Arrows: where a step moves the winner's and the loser's u, "
        "longer for a harder pull (by its logarithm). Red: mostly the winner is pulled up; blue: mostly the loser is "
        "pushed down.",
        picture=figures.gradient_fields(comparison),
        file="gradient_fields.png",
    )
    middle, seed = _middle([point.strength for point in comparison.points]), comparison.points[0].seed
    shown = [p for p in comparison.points if (p.strength, p.seed) == (middle, seed)]
    runs = [(point.kind.name, Run(folder / "runs" / point.name)) for point in shown]
    if runs and all(run.records for _, run in runs):
        about = f"Strength {middle:g}, seed {seed}; means of ten steps."
        yield Part("Training", about, picture=figures.training(runs), file="training.png")
        yield Part("By timesteps", about, picture=figures.timestep_bins(runs) or b"", file="timestep_bins.png")
    names = [BASE, *(point.name for point in shown)]
    sheets = [gallery for gallery in comparison.galleries if gallery.model in names]
    yield Part(
        "Samples",
        f"Base, then the divergences at strength {middle:g}, seed {seed}: the same captions and noise.",
        picture=_png(contact_sheet(sheets)),
        file="samples.png",
    )


def _hypervolume(comparison: Comparison) -> Part:
    return Part(
        "Hypervolume",
        "The area that a divergence's runs dominate, the base among them; all runs together span the unit square. It "
        "depends on the strengths that were run: a curve that reaches less far covers less.",
        ("divergence", "mean", "95 % over seeds", "seeds"),
        tuple(
            (v.kind, f"{v.area.value:.4f}", _range(v.area), ", ".join(f"{area:.3f}" for area in v.by_seed.values()))
            for v in comparison.volumes
        ),
        figures.volumes(comparison),
        "hypervolume.png",
    )


def _how(comparison: Comparison) -> Iterator[str]:
    config, report = comparison.config, comparison.report
    compare, train, runs = config.comparison, config.train, len(comparison.points)
    strengths, seeds = (", ".join(f"{value:g}" for value in values) for values in (compare.strengths, compare.seeds))
    yield f"{runs} of {compare.runs} runs: {len(comparison.kinds)} divergences, strengths {strengths},"
    yield f"seeds {seeds};"
    yield f"{train.max_steps} steps of {train.pairs_per_step} pairs each, reference: {config.reference.mode}."
    yield f"Strength 1 is the beta that `fdpo calibrate` finds at median |u| {compare.median_u:g} and gradient weight"
    yield f"{compare.weight:g}; at strength s it is divided by s."
    low, high = comparison.overlap
    if low <= high:
        yield f"Alignments from {low:.4f} to {high:.4f} lie within the curves of all divergences."
    else:
        yield "No alignment lies within the curves of all divergences: add strengths."
    yield f"{report.captions} captions, {report.images_per_prompt} images each, the same noise for every model (seed"
    yield f"{report.seed}). Alignment: {compare.alignment}; preference: {compare.preference}; diversity in a caption:"
    yield f"{compare.diversity}. Win rates by preference, against the base from the same noise."


def _middle(strengths: list[float]) -> float:
    """Return the strength that is nearest to 1, by its logarithm."""
    return min(strengths, key=lambda strength: abs(math.log(strength)))


def _png(image: Image.Image) -> bytes:
    buffer = BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


def _range(estimate: Estimate) -> str:
    return "one seed" if math.isnan(estimate.low) else f"{estimate.low:.4f} to {estimate.high:.4f}"


def _row(spot: Spot, comparison: Comparison) -> tuple[str, ...]:
    errors = {key: "" if math.isnan(error) else f" ± {error:.4f}" for key, error in spot.error.items()}
    cells = (f"{spot.mean[key]:.4f}{errors[key]}" for key in FIGURES)
    return spot.kind, f"{spot.strength:g}", *cells, "yes" if spot in comparison.front else ""


def sentences(comparison: Comparison, kind: str = "jensen_shannon") -> Iterator[str]:
    """Say plainly what the runs do and do not support; `kind` is the divergence that the paper's finding is about."""
    front = ", ".join(f"{spot.kind} at {spot.strength:g}" for spot in comparison.front)
    front = front or "none, as the base has more of both than any run, or as much"
    yield f"On the Pareto front of alignment and diversity, by means over the seeds: {front}."
    missing = comparison.config.comparison.runs - len(comparison.points)
    if missing or not comparison.volumes:
        yield f"{missing} of {comparison.config.comparison.runs} runs are not finished, so nothing more is said."
        return
    best = comparison.volumes[0]
    yield f"The largest hypervolume has {best.kind} ({best.area.value:.4f}, 95 % {_range(best.area)})."
    if kind not in comparison.kinds:
        return
    on = [spot for spot in comparison.front if spot.kind == kind]
    yield f"{kind} is {'' if on else 'not '}on the front" + (f" with {len(on)} of its strengths." if on else ".")
    rank = [volume.kind for volume in comparison.volumes].index(kind) + 1
    yield f"By hypervolume it is number {rank} of {len(comparison.volumes)}."
    differences = comparison.differences(kind)
    if not differences:
        what = "two divergences" if len(comparison.volumes) < 2 else "two seeds"
        yield f"With fewer than {what} nothing can be said about significance."
        return
    verdicts = {
        "significantly larger than that of": [d.other for d in differences if d.p < ALPHA and d.gap.value > 0],
        "significantly smaller than that of": [d.other for d in differences if d.p < ALPHA and d.gap.value < 0],
        "not significantly different from that of": [d.other for d in differences if d.p >= ALPHA],
    }
    seeds = len(next(volume for volume in comparison.volumes if volume.kind == kind).by_seed)
    said = "; ".join(f"{words} {', '.join(names)}" for words, names in verdicts.items() if names)
    yield f"Paired over {seeds} seeds (t-test, Holm), its hypervolume is {said}."
    _, worse, same = verdicts.values()
    if rank == 1 and not same and on:
        yield "So these runs support that Jensen-Shannon balances alignment and diversity best."
    elif worse:
        yield "So these runs speak against Jensen-Shannon balancing alignment and diversity best."
    else:
        yield "So these runs do not decide whether Jensen-Shannon balances alignment and diversity best."


def _markdown(parts: list[Part]) -> Iterator[str]:
    for part in parts:
        yield f"## {part.title}\n"
        if part.text:
            yield part.text + "\n"
        if part.rows:
            yield from table(part.header, part.rows)
            yield ""
        if part.file:
            yield f"![{part.title}]({part.file})\n"


# --- one training run ---


def run_page(run: Run) -> Iterator[Part]:
    """Yield the parts of a page about a run that is finished or still training."""
    config = load(run.folder / "config.json")
    last = run.records[-1] if run.records else {}
    done = last.get("step", -1) + 1
    state = "finished" if done >= config.train.max_steps else "not finished"
    memory = max((record["memory_gib"] for record in run.records if "memory_gib" in record), default=math.nan)
    yield Part(
        "Where it stands",
        f"Step {done} of {config.train.max_steps}, {state}.",
        ("figure", "last value"),
        tuple((key, f"{value:.6g}") for key, value in last.items() if isinstance(value, int | float)),
    )
    yield Part("Warnings", " ".join(run.warnings) or "None.")
    if run.records:
        yield Part("Curves", "Faint: every step; full: means of ten.", picture=figures.curves(run))
        if bins := figures.timestep_bins([(run.folder.name, run)]):
            yield Part("By timesteps", picture=bins)
    for path in dict.fromkeys([*run.grids[:1], *run.grids[-1:]]):
        yield Part(f"Samples, {path.stem.replace('-', ' ')}", picture=path.read_bytes())
    yield Part("Memory", f"Peak of the first rank so far: {memory:.2f} GiB." if memory == memory else "Not known yet.")
    yield Part("Data", header=("figure", "value"), rows=tuple((k, json.dumps(v)) for k, v in run.data.items()))
    flat = [(f"{s}.{k}", json.dumps(v)) for s, keys in run.config.items() for k, v in (keys or {}).items()]
    yield Part("Configuration", header=("key", "value"), rows=tuple(flat))


def title_of(run: Run) -> str:
    """Return the title of a run's page."""
    return f"Run {run.folder.resolve().name}"
