"""Train, sample and evaluate a grid of divergences and strengths: `fdpo compare --config configs/digits_sweep.json`.

Everything is made with the public commands, from one set of caches: `fdpo cache`, the measurement of `fdpo calibrate`,
then `fdpo train` and `fdpo sample` for every run of the grid, `fdpo evaluate` of all, and the report. Stopped, it goes
on where it was when it is started again.
"""

from __future__ import annotations

import re
import shutil
import time
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from fdpo_fast.compare import grid
from fdpo_fast.compare.analysis import FIGURES, Comparison
from fdpo_fast.compare.grid import Point
from fdpo_fast.compare.jobs import Crew
from fdpo_fast.config.errors import UserError
from fdpo_fast.config.load import load
from fdpo_fast.config.run import Config
from fdpo_fast.evaluate import gallery, score
from fdpo_fast.evaluate.policies import BASE
from fdpo_fast.evaluate.prompts import read_prompts
from fdpo_fast.files import clear_partial, made, replacing
from fdpo_fast.progress import progress, say
from fdpo_fast.report.comparison import write_comparison
from fdpo_fast.training import trackers
from fdpo_fast.training.lock import at_work
from fdpo_fast.training.trackers import Trackers


def compare(config: Config, jobs: int, report_only: bool) -> None:
    """Run what is missing of the grid, `jobs` at a time, then write `<train.output_dir>/report` about what is finished.

    Raises UserError for what would only show after hours, where no run is finished, and, after all else is done, where
    runs have failed.
    """
    check(config)
    folder = Path(config.train.output_dir).expanduser()
    started, failures = time.monotonic(), []
    if report_only:
        if not (folder / "calibration.json").is_file():
            raise UserError(f"no run of {folder} is finished yet")
    else:
        made(folder, "train.output_dir")
        with at_work(folder):
            claim(folder, config)
            failures = run_grid(config, folder, Crew(folder / "logs", jobs))
        gallery.merge(folder / "images")  # runs beside one another may have missed each other's
    fits = grid.calibrated(config, folder / "calibration.json")
    finished = [point for point in grid.points(config, fits, folder / "runs") if _is_drawn(folder, point)]
    if not finished:
        raise UserError("; ".join(failures) or f"no run of {folder} is finished yet")
    galleries = [gallery.gallery(folder / "images" / name) for name in (BASE, *(point.name for point in finished))]
    evaluated = score.measure(config, galleries)
    wanted = config.comparison
    if not (
        {wanted.alignment, wanted.preference} <= evaluated.scores.keys() and wanted.diversity in evaluated.diversity
    ):
        raise UserError("; ".join(evaluated.failures))
    comparison = Comparison(config, finished, evaluated, galleries)
    write_comparison(comparison, folder)
    tracker = Trackers(config.log, folder / "report")
    tracker.table("points", comparison.rows, FIGURES)
    tracker.close()
    for failure in [*evaluated.failures, *failures]:
        print(f"warning: {failure}")
    print(f"{(time.monotonic() - started) / 60:.0f} minutes; report: {folder / 'report' / 'index.html'}")
    if failures:
        raise UserError(f"not in the report, and tried again by the same command: {len(failures)} of the runs")


def check(config: Config) -> None:
    """Raise UserError for mistakes in a comparison's configuration that would only show after hours."""
    compare, settings = config.comparison, config.evaluate
    trackers.check(config.log)
    read_prompts(settings.prompts)
    scorers = [scorer.name for scorer in settings.scorers]
    spreads = [spread.name for spread in settings.diversity]
    for key, name, known in (
        ("alignment", compare.alignment, scorers),
        ("preference", compare.preference, scorers),
        ("diversity", compare.diversity, spreads),
    ):
        if name not in known:
            raise UserError(f"compare.{key} '{name}' is not among the evaluated ones: {', '.join(known)}")
    score.check(settings)
    score.check_images(settings)
    if config.loss.type != "sigmoid":
        raise UserError(f"strengths are calibrated for loss.type 'sigmoid', not '{config.loss.type}'")
    names = [point.name for point in grid.points(config, grid.losses(config, compare.divergences), Path())]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"compare has the run {twice[0]} twice")


_FREE = re.compile(r"log\.|evaluate\.(scorers|diversity|batch|resample)|compare\.(?!trial_steps|median_u|weight)")
"""Keys that no run of a comparison depends on, nor its images."""


def claim(folder: Path, config: Config) -> None:
    """Refuse a folder whose runs are of another configuration; measures of them, and their number, may change."""
    for own in (folder, folder / "runs", folder / "images"):
        clear_partial(own)
    file = folder / "comparison.json"
    if file.is_file() and (folder / "calibration.json").is_file():  # before that there is nothing to lose
        before = load(file)
        changes = [change for change in before.differences(config) if not _FREE.match(change)]
        if changes:
            raise UserError(f"{folder} holds a comparison with another {changes[0]}: name another train.output_dir")
    with replacing(file) as partial:
        partial.write_text(config.dumps())


GIVES_UP = 3
"""Runs that may fail before any has succeeded: then it is nothing that a single divergence or strength does."""


def run_grid(config: Config, folder: Path, crew: Crew) -> list[str]:
    """Fill the caches, calibrate, draw with the base, then make every run that is not there yet.

    Returns the failures in words. A run that fails leaves the others alone.
    """
    shared = folder / "comparison.json"
    images = ["--output", str(folder / "images")]
    with progress(desc="caches", unit=" stages", total=1) as bar:
        crew.run(bar, "caches", ("cache", ["--config", str(shared)]))
        bar.update()
    fits = grid.calibrated(config, folder / "calibration.json")
    with progress(desc="images of the base", unit=" stages", total=1) as bar:
        crew.run(bar, "base", ("sample", ["--config", str(shared), "--no-policy", *images]))
        bar.update()
    points = list(grid.points(config, fits, folder / "runs"))
    todo = [point for point in points if not _is_drawn(folder, point)]
    if not config.comparison.keep_models:  # leftovers of a stop
        for point in points:
            if point not in todo:
                drop_models(Path(point.config.train.output_dir))
    bar = progress(total=len(points), initial=len(points) - len(todo), desc="runs", unit=" runs")
    failures: list[str] = []

    def work(point: Point) -> None:
        own = folder / "runs" / f"{point.name}.json"
        with replacing(own) as partial:
            partial.write_text(point.config.dumps())
        run = point.config.train.output_dir
        sampling = ["--config", str(own), "--no-base", "--checkpoint", f"{point.name}={run}", *images]
        crew.run(bar, point.name, ("train", ["--config", str(own), "--resume"]), ("sample", sampling))
        if not config.comparison.keep_models:
            drop_models(Path(run))
        bar.update()

    (folder / "runs").mkdir(exist_ok=True)
    with bar, ThreadPoolExecutor(crew.jobs) as pool:
        futures = [pool.submit(work, point) for point in todo]
        try:
            for number, done in enumerate(as_completed(futures), start=1):
                try:
                    done.result()
                except UserError as error:
                    failures.append(str(error))
                    say(f"warning: {error}")
                if len(failures) == number == GIVES_UP:
                    raise UserError(f"the first {GIVES_UP} runs failed, so the others are left; {failures[-1]}")
        except BaseException:
            for future in futures:
                future.cancel()
            crew.stop()
            raise
    return failures


def _is_drawn(folder: Path, point: Point) -> bool:
    return (folder / "images" / point.name / gallery.NAME).is_file()


def drop_models(run: Path) -> None:
    """Delete the checkpoints and the export of a run, which is of no more use once its images are drawn."""
    for part in (run / "checkpoints", run / "export"):
        if part.is_dir():
            shutil.rmtree(part)
