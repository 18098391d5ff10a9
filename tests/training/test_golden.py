"""Recorded curves: six steps of a tiny run take the same bits as when they were recorded, whatever was moved since.

Bits depend on the processor and on torch, so the record is by both; elsewhere the losses are compared as numbers.
`pytest tests/training/test_golden.py -m "slow or not slow" --record` records this machine's.
"""

import hashlib
import json
import platform
from pathlib import Path

import pytest
import torch

from fdpo_fast.ops import library
from tests.helpers.pictures import noisy_pairs
from tests.helpers.training import run

slow = pytest.mark.slow
RECORD = Path(__file__).parent / "golden.json"
CASES = [
    pytest.param(family, dtype, backend, marks=() if (family, dtype) == ("sdxl", "bf16") else slow)
    for family in ("sd", "sdxl")
    for dtype in ("fp32", "bf16")
    for backend in ("cpp", "eager")
]
CLOSE = {"fp32": 1e-4, "bf16": 0.05}


def machine():
    """What the bits depend on beside the code."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    processor = names[0] if names else platform.processor()
    return f"{processor}, {torch.backends.cpu.get_cpu_capability()}, torch {torch.__version__}"


@pytest.fixture
def raw(tiny_config, tmp_path):
    source = noisy_pairs(tmp_path, [row % 2 for row in range(6)])

    def make(family, dtype):
        made = tiny_config(family, source)
        made["model"]["dtype"] = dtype
        made["optimizer"] |= {"type": "adamw8bit", "warmup_steps": 2}
        made["train"] |= {"pairs_per_micro_batch": 2, "export_dtype": dtype}
        made["log"]["every"] = 1
        if dtype == "bf16":
            made["deepspeed"] = {"bf16": {"enabled": False}}
        return made

    return make


def digest(export):
    """Of the denoiser's weights."""
    (file,) = (export / "unet").glob("*.safetensors")
    return hashlib.sha256(file.read_bytes()).hexdigest()


@pytest.mark.parametrize(("family", "dtype", "backend"), CASES)
def test_the_curve_is_the_recorded_one(raw, monkeypatch, request, family, dtype, backend):
    monkeypatch.setattr(library, "_BEST", {"cpu": backend})
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        records = run(made := raw(family, dtype))
    finally:
        torch.set_num_threads(threads)
    found = {
        "losses": [float(record["loss"]).hex() for record in records],
        "export": digest(Path(made["train"]["output_dir"]) / "export"),
    }
    assert len(found["losses"]) == 6
    recorded, case = json.loads(RECORD.read_text()), f"{family} {dtype} {backend}"
    if request.config.getoption("--record"):
        recorded.setdefault(machine(), {})[case] = found
        RECORD.write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n")
    elif machine() in recorded:
        assert found == recorded[machine()][case]
    else:
        want = [float.fromhex(loss) for loss in next(iter(recorded.values()))[case]["losses"]]
        assert [float.fromhex(loss) for loss in found["losses"]] == pytest.approx(want, rel=CLOSE[dtype])
