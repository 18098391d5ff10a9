"""A tiny run, the processes that make it, and what came of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from queue import Queue
from typing import Any

from fdpo_fast.progress import progress
from tests.helpers import ROOT

COUNT, KILL, FULL = 0, 1, 2
STEPS, EVERY = 4, 2


@dataclass
class End:
    """How a run ended."""

    code: int
    operations: int | None
    out: str
    err: str
    export: dict[str, bytes]
    """By the names of the files of weights; empty without an export."""

    def outcome(self, want: dict[str, bytes]) -> str:
        """In a word: survived, sentence, traceback or silent."""
        if "Traceback (most recent call last)" in self.err:
            return "traceback"
        if self.code:
            return "sentence" if self.err.strip() else "silent"
        return "survived" if self.export == want else "silent"


@dataclass
class World:
    """A folder with a pipeline, pairs, a configuration, and workers that wait for runs."""

    folder: Path
    workers: Queue[subprocess.Popen] = field(default_factory=Queue)

    def build(self, jobs: int) -> None:
        from fdpo_fast.models.presets import build
        from tests.helpers.pictures import noisy_jpeg, write

        build("tiny_sd", self.folder / "base")
        rows = [(f"picture {i}", noisy_jpeg(2 * i), noisy_jpeg(2 * i + 1), float(i % 2)) for i in range(4)]
        write(self.folder / "pairs.parquet", rows)
        library = self.folder / "operations.so"
        source = Path(__file__).parent / "operations.c"
        subprocess.run(["gcc", "-shared", "-fPIC", "-O1", "-o", library, source, "-ldl"], check=True)
        env = os.environ | {"LD_PRELOAD": str(library), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        for _ in range(jobs):
            line = [sys.executable, "-m", "tests.faults.worker"]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            self.workers.put(subprocess.Popen(line, cwd=ROOT, env=env, text=True, **pipes))

    def close(self) -> None:
        while not self.workers.empty():
            worker = self.workers.get()
            worker.stdin.close()
            worker.wait()

    def config(self, root: Path, **changes: Any) -> Path:
        """Write the configuration of a run whose caches and output lie in `root`; changes: `section__key`."""
        raw: dict[str, Any] = {
            "model": {"family": "sd", "base": str(self.folder / "base"), "dtype": "fp32"},
            "data": {
                "source": str(self.folder / "pairs.parquet"),
                "resolution": 64,
                "cache_dir": str(root / "cache"),
                "shard_rows": 2,
            },
            "reference": {"visits": 2},
            "loss": {"divergence": "jensen_shannon", "beta": 1.0, "ratio_scale": 200.0},
            "optimizer": {"lr": 1e-3, "type": "adamw8bit"},
            "train": {
                "output_dir": str(root / "run"),
                "max_steps": STEPS,
                "pairs_per_step": 2,
                "pairs_per_micro_batch": 2,
                "checkpoint_every": EVERY,
                "keep_checkpoints": 2,
                "ema_decay": 0.9,
            },
            "log": {"every": 1, "tensorboard": False},
        }
        for path, value in changes.items():
            section, key = path.split("__")
            raw.setdefault(section, {})[key] = value
        file = root.with_suffix(".json")
        file.write_text(json.dumps(raw))
        return file

    def run(self, root: Path, *words: str, at: int = 0, mode: int = COUNT, **changes: Any) -> End:
        """Train in `root` to the end, or to the operation that is the last."""
        line = ["--config", str(self.config(root, **changes)), *words]
        said = root.with_suffix(".said")
        worker = self.workers.get()
        try:
            task = {"words": line, "root": str(root), "at": at, "mode": mode, "said": str(said)}
            worker.stdin.write(json.dumps(task) + "\n")
            worker.stdin.flush()
            end = json.loads(worker.stdout.readline())
        finally:
            self.workers.put(worker)
        texts = [Path(f"{said}.{name}").read_text(errors="replace") for name in ("out", "err")]
        weights = sorted((root / "run/export").rglob("*.safetensors"))
        return End(end["code"], end["operations"], *texts, {file.name: file.read_bytes() for file in weights})

    def fresh(self, name: str, like: Path | None = None) -> Path:
        """A root of its own; a copy of another one."""
        root = self.folder / "roots" / name
        shutil.rmtree(root, ignore_errors=True)
        root.parent.mkdir(exist_ok=True)
        if like:
            shutil.copytree(like, root, symlinks=True)
        else:
            root.mkdir()
        return root

    def each(self, jobs: int, cases: Iterable[Any], one: Callable[[Any], Any]) -> Iterator[Any]:
        """Take the cases, as many at a time as there are workers, and yield what comes of each, in their order."""
        every = list(cases)
        with ThreadPoolExecutor(jobs) as pool:
            yield from progress(pool.map(one, every), total=len(every), desc="runs")
