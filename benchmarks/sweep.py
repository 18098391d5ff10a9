"""Four divergences on the digits from one reference cache, beside four runs with a live reference.

`python -m benchmarks.sweep` trains configs/digits_js.json, eight runs of `fdpo train`, cached and live in turns; wall
seconds of the commands, the making of the reference cache in the first. The base pipeline, the pairs, and their latents
and embeddings are made before, untimed: both sides need them. The losses of both sides must agree. Writes
results/sweep.csv.
"""

from __future__ import annotations

import argparse
import json
import math
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.common.tables import write_csv

ROOT = Path(__file__).parent.parent
DIVERGENCES = {"jensen_shannon": 2.0, "reverse_kl": 1.0, "forward_kl": 1.0, "squared_hellinger": 2.0}
"""With beta = 1 / f''(1): equal strength at the reference."""
COLUMNS = ("divergence", "reference", "seconds", "steps", "last_loss", "last_accuracy")


def fdpo(command: str, *settings: str) -> float:
    """Run a command on the digits; returns its seconds."""
    words = [word for setting in settings for word in ("--set", setting)]
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "fdpo_fast.cli", command, "--config", "configs/digits_js.json", *words],
        cwd=ROOT,
        check=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return time.perf_counter() - start


def train(divergence: str, mode: str, folder: Path, cache: Path) -> tuple[float, list[dict]]:
    """Seconds and records of one run."""
    output = folder / f"{divergence}-{mode}"
    seconds = fdpo(
        "train",
        f"loss.divergence={divergence}",
        f"loss.beta={DIVERGENCES[divergence]}",
        f"reference.mode={mode}",
        f"data.cache_dir={cache}",
        f"train.output_dir={output}",
        "log.samples_every=0",
        "log.tensorboard=false",
    )
    return seconds, [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/fdpo_fast").expanduser(), help="with the digits")
    cache = parser.parse_args().cache
    fdpo("cache", "reference.mode=live", f"data.cache_dir={cache}")
    for old in cache.glob("reference-*"):  # the first cached run is to make it
        for path in old.iterdir():
            path.unlink()
        old.rmdir()
    rows, total = [], {"cached": 0.0, "live": 0.0}
    with TemporaryDirectory() as scratch:
        for divergence in DIVERGENCES:
            losses = {}
            for mode in total:
                seconds, records = train(divergence, mode, Path(scratch), cache)
                total[mode] += seconds
                losses[mode] = [record["loss"] for record in records]
                last = records[-10:]
                loss, accuracy = (sum(record[key] for record in last) / len(last) for key in ("loss", "accuracy"))
                rows.append((divergence, mode, f"{seconds:.1f}", len(records), f"{loss:.4f}", f"{accuracy:.3f}"))
                print(", ".join(f"{name} {value}" for name, value in zip(COLUMNS, rows[-1], strict=True)), flush=True)
            same = [math.isclose(*pair, rel_tol=1e-6) for pair in zip(*losses.values(), strict=True)]
            assert all(same), f"{divergence}: cached and live differ from step {same.index(False)} on"
    print(f"cached {total['cached']:.0f} s, live {total['live']:.0f} s: {total['live'] / total['cached']:.2f} times")
    write_csv(ROOT / "benchmarks/results/sweep.csv", COLUMNS, rows)


if __name__ == "__main__":
    main()
