"""The promised versions, tried: `make test-versions`, or `python -m benchmarks.versions NAME=PYTHON ...`.

Each interpreter holds a set of packages: the lowest that pyproject.toml admits, or the newest that were tested. With
each, all kernels are compiled for every target by its Triton, and the unit lane is run. Writes results/versions.md;
exit status 1 where a kernel does not compile or a test fails.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from functools import partial
from importlib.metadata import version
from pathlib import Path

from benchmarks.common.arguments import help_if_asked
from fdpo_fast.evaluate.tables import table
from fdpo_fast.files import replacing

RESULT = Path(__file__).parent / "results/versions.md"
ROOT = Path(__file__).parent.parent
PACKAGES = (
    "torch",
    "triton",
    "deepspeed",
    "diffusers",
    "transformers",
    "accelerate",
    "peft",
    "bitsandbytes",
    "safetensors",
    "huggingface_hub",
    "numpy",
    "pyarrow",
    "pillow",
    "pydantic",
    "pytest",
    "pytest-benchmark",
)


def held() -> dict[str, str | int]:
    """What this interpreter holds, and how many kernels its Triton compiled."""
    from benchmarks import static_gpu, static_optimizer

    compiled = 0
    for capability in static_gpu.TARGETS:
        runs = [partial(what, case) for what, cases in static_gpu.KERNELS for case in cases]
        for run in [*runs, *(case.step for case in static_optimizer.CASES)]:
            with static_gpu.compiling(capability) as launches:
                run()
            compiled += len(launches)
    versions = {name: version(name) for name in PACKAGES}
    return {"Python": platform.python_version(), **versions, "kernels compiled": compiled}


def tried(python: str) -> tuple[dict[str, str | int], bool]:
    """What an interpreter holds and what came of it, and whether all is well."""
    path = f"{Path(python).absolute().parent}{os.pathsep}{os.environ['PATH']}"  # tests start its commands
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"} | {"PATH": path}
    script = "import json; from benchmarks.versions import held; print(json.dumps(held()))"
    done = subprocess.run([python, "-c", script], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode:
        return {"kernels compiled": "failed"}, False
    versions = json.loads(done.stdout.splitlines()[-1])
    lane = subprocess.run([python, "-m", "pytest", "-q"], cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    print(lane.stdout, flush=True)
    return versions | {"unit lane": lane.stdout.splitlines()[-1].strip("= ")}, lane.returncode == 0


def main() -> None:
    named = dict(argument.split("=", 1) for argument in sys.argv[1:])
    if not named:
        sys.exit("name the interpreters: python -m benchmarks.versions lowest=OTHER/bin/python newest=HERE/bin/python")
    results = {name: tried(python) for name, python in named.items()}
    rows = list(dict.fromkeys(row for versions, _ in results.values() for row in versions))
    lines = table(["", *results], ([row, *(versions.get(row, "") for versions, _ in results.values())] for row in rows))
    text = "\n".join(lines) + "\n"
    print(text)
    with replacing(RESULT) as partial:
        partial.write_text(text)
    sys.exit(not all(fine for _, fine in results.values()))


if __name__ == "__main__":
    help_if_asked(__doc__)
    main()
