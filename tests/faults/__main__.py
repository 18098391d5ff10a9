"""Tries out whatever can happen to a run: `python -m tests.faults [SECTION ...]`, half an hour on two cores.

kills: at every operation on its files the run is killed, and gone on with. disk: from every one on the disk is full.
files: everything that can happen to each file of a run with checkpoints. keys: each key of the configuration changed
when it is resumed. losses, steps: random calls of the loss within their bounds, random steps by eager and C++ with the
same bits. Prints how often a run survived bit for bit, or said in a sentence what was wrong; exit status 1 where there
was a traceback, or silence.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import time
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.faults.damage import damages
from tests.faults.keys import changed_keys
from tests.faults.world import FULL, KILL, End, World

SECTIONS = ("kills", "disk", "files", "keys", "losses", "steps")
LOSSES, STEPS = 100_000, 20_000


class Faults:
    """The sections, and the tally of what came of their cases."""

    def __init__(self, world: World, jobs: int, some: int) -> None:
        self.world, self.jobs, self.some = world, jobs, some
        self.tally: dict[str, Counter[str]] = {}

    def note(self, section: str, case: Any, outcome: str, end: End | None = None) -> None:
        """Count a case, and show one that went wrong."""
        self.tally.setdefault(section, Counter())[outcome] += 1
        if outcome in ("traceback", "silent"):
            last = (end.err.strip().splitlines() or ["nothing"])[-1] if end else ""
            print(f"{section}, {case}: {outcome}: {last[:300]}", flush=True)

    def chosen(self, count: int) -> range:
        return range(1, count + 1, max(1, count // self.some) if self.some else 1)

    def whole(self) -> tuple[End, Path]:
        root = self.world.fresh("whole")
        end = self.world.run(root)
        if end.code:
            sys.exit(f"the run itself fails:\n{end.out}{end.err}")
        return end, root

    def kills(self) -> None:
        want, _ = self.whole()

        def one(at: int) -> tuple[int, End]:
            root = self.world.fresh(f"kill{at}")
            self.world.run(root, at=at, mode=KILL)
            end = self.world.run(root, "--resume")
            shutil.rmtree(root)
            return at, end

        for at, end in self.world.each(self.jobs, self.chosen(want.operations or 0), one):
            self.note("kills", f"operation {at}", end.outcome(want.export), end)

    def disk(self) -> None:
        want, _ = self.whole()

        def one(at: int) -> tuple[int, End, End]:
            root = self.world.fresh(f"full{at}")
            first = self.world.run(root, at=at, mode=FULL)
            after = self.world.run(root, "--resume")
            shutil.rmtree(root)
            return at, first, after

        for at, first, after in self.world.each(self.jobs, self.chosen(want.operations or 0), one):
            self.note("disk: full", f"operation {at}", first.outcome(want.export), first)
            self.note("disk: gone on with", f"operation {at}", after.outcome(want.export), after)

    def files(self) -> None:
        want, whole = self.whole()
        begun = self.world.fresh("begun", whole)
        shutil.rmtree(begun / "run/export")
        cases = list(damages(begun))

        def one(case: tuple[int, Any]) -> tuple[str, End, End | None]:
            number, damage = case
            root = self.world.fresh(f"file{number}", begun)
            damage.do(root)
            end = self.world.run(root, "--resume")
            again = None
            if end.code and damage.of_newest:
                again = self.world.run(root, "--resume-from", "step-000002")
            shutil.rmtree(root)
            return damage.name, end, again

        for name, end, again in self.world.each(self.jobs, enumerate(cases), one):
            self.note("files: resumed", name, end.outcome(want.export), end)
            if again:
                self.note("files: from the one before", name, again.outcome(want.export), again)

    def keys(self) -> None:
        want, whole = self.whole()
        begun = self.world.fresh("before", whole)
        shutil.rmtree(begun / "run/export")
        shutil.rmtree(begun / "run/checkpoints/step-000004")
        (begun / "run/checkpoints/latest").write_text("step-000002\n")

        def one(case: tuple[int, tuple[str, Any]]) -> tuple[str, Any, End]:
            number, (key, value) = case
            root = self.world.fresh(f"key{number}", begun)
            end = self.world.run(root, "--resume", **{key: value})
            shutil.rmtree(root)
            return key, value, end

        for key, value, end in self.world.each(self.jobs, enumerate(changed_keys()), one):
            outcome = end.outcome(want.export)
            if outcome == "silent" and key.replace("__", ".") in end.out + end.err:
                outcome = "said"
            self.note("keys", f"{key}={value}", outcome, end)

    def losses(self) -> None:
        from tests.helpers.fuzz_losses import call, misses

        for seed in self.chosen(LOSSES):
            found = misses(call(seed), "cpp")
            self.note("losses", f"{seed} {found}", "silent" if found else "within its bounds")

    def steps(self) -> None:
        from tests.helpers.fuzz_steps import differing, run

        for seed in self.chosen(STEPS // 4):
            found = differing(run(seed), "cpp")
            self.note("steps", f"{seed} {found}", "silent" if found else "the same bits")

    def lines(self) -> Iterator[str]:
        for section, counts in self.tally.items():
            yield f"{section}: " + ", ".join(f"{name} {count}" for name, count in counts.most_common())


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__.splitlines()[0])
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)} (default: all)")
    parser.add_argument("--jobs", type=int, default=2, help="runs at a time (default 2)")
    parser.add_argument("--some", type=int, default=0, metavar="N", help="about so many operations, calls and steps")
    options = parser.parse_args()
    if unknown := set(options.sections) - set(SECTIONS):
        parser.error(f"there is no section {', '.join(sorted(unknown))}: they are {', '.join(SECTIONS)}")
    warnings.simplefilter("ignore")
    sections = options.sections or SECTIONS
    with TemporaryDirectory(prefix="fdpo_faults_") as folder:
        world = World(Path(folder).resolve())
        if set(sections) - {"losses", "steps"}:
            world.build(options.jobs)
        faults = Faults(world, options.jobs, options.some)
        try:
            for section in sections:
                began = time.monotonic()
                getattr(faults, section)()
                print(f"{section} took {time.monotonic() - began:.0f} s", flush=True)
        finally:
            world.close()
    print("\n".join(faults.lines()))
    sys.exit(any(counts["traceback"] or counts["silent"] for counts in faults.tally.values()))


if __name__ == "__main__":
    main()
