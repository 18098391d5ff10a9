"""What a training run has written so far."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fdpo_fast.config.load import load
from fdpo_fast.config.run import Config
from fdpo_fast.files import read_json
from fdpo_fast.training.records import Records, read_metrics


@dataclass(frozen=True)
class Run:
    """The records of a run's folder; it may still be training."""

    folder: Path

    @cached_property
    def config(self) -> Config:
        """Read the configuration of the run; UserError where it cannot be."""
        return load(self.folder / "config.json")

    @cached_property
    def metrics(self) -> Records:
        """Read the records of every step that is on disk, of a run of a comparison maybe without its configuration."""
        begun = (self.folder / "config.json").exists()
        return read_metrics(self.folder, *([self.config.train.max_steps] if begun else []))

    @property
    def records(self) -> list[dict]:
        """List the records of every step that is on disk."""
        return self.metrics.records

    @property
    def done(self) -> int:
        """Count the steps that are on disk."""
        return self.records[-1]["step"] + 1 if self.records else 0

    def series(self, key: str) -> tuple[list[int], list[float]]:
        """Return the steps, counted from 1, and the values of a key of the records."""
        there = [(record["step"] + 1, record[key]) for record in self.records if key in record]
        return [step for step, _ in there], [value for _, value in there]

    def bin_series(self, edge: list[int], key: str) -> tuple[list[int], list[float]]:
        """Return the same of a bin of timesteps."""
        there = [
            (step + 1, part[key])
            for step, parts in self.bins
            for part in parts
            if part["timesteps"] == list(edge) and key in part
        ]
        return [step for step, _ in there], [value for _, value in there]

    @property
    def bins(self) -> list[tuple[int, list[dict]]]:
        """List (step, bins) of the records that have bins."""
        return [(record["step"], record["bins"]) for record in self.records if "bins" in record]

    @property
    def edges(self) -> list[list[int]]:
        """List the edges of the bins that are filled in all of the run, or at times."""
        edges = {tuple(part["timesteps"]) for _, parts in self.bins for part in parts}
        return [list(edge) for edge in sorted(edges)]

    @property
    def warnings(self) -> list[tuple[int, str]]:
        """List the warnings of all records, each with the number of steps that were done, from 1."""
        return [
            (record["step"] + 1, re.sub(r"^step \d+: ", "", warning))  # their own steps count from 0
            for record in self.records
            for warning in record.get("warnings", [])
        ]

    @property
    def data(self) -> dict:
        """Read the run's report about its data; empty where there is none yet."""
        file = self.folder / "data.json"
        return read_json(file) if file.is_file() else {}

    @property
    def grids(self) -> list[Path]:
        """List the pictures of samples, by step."""
        return sorted(file for file in (self.folder / "samples").glob("step-*.png") if file.stem[5:].isdecimal())
