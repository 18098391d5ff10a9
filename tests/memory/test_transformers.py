"""What the plan says of a transformer's steps beside what they hold, at 100 M and 500 M parameters."""

import pytest

from benchmarks.full_sdxl import config, prepare
from benchmarks.plan_accuracy import NOTHING, SIZES
from tests.helpers.held import held

pytestmark = pytest.mark.slow
TUNED = {"A": "full", "B": "full", "lora": "lora"}
"""The rungs, of which B steps inside backward, and an adapter; each is planned otherwise."""


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """Make the base of a size and its pairs, once."""
    root = tmp_path_factory.mktemp("bases")

    def make(size):
        folder = root / f"{size.preset}_{size.changes.get('num_attention_heads')}"
        if not folder.exists():
            prepare(size.preset, folder, size.side, size.changes, pairs=2, text_tokens=size.text_tokens)
        return folder

    return make


def settings(base, size, scratch, tuned, checkpointing):
    made = config(size.preset, base(size), scratch, "B" if tuned == "B" else "A", size.side)
    made["model"] |= {
        "gradient_checkpointing": checkpointing, "train": TUNED[tuned], "text_tokens": size.text_tokens,
    }  # fmt: skip
    made["train"]["pairs_per_step"] = 1 if tuned == "B" else 2
    return made


@pytest.mark.parametrize("checkpointing", ["off", "per_block"])
@pytest.mark.parametrize("tuned", TUNED)
@pytest.mark.parametrize("name", ["100M transformer", "500M transformer"])
def test_a_plan_is_within_a_tenth_of_what_steps_hold(base, tmp_path, name, tuned, checkpointing):
    runs = [
        settings(base, size, tmp_path / folder, tuned, checkpointing)
        for size, folder in ((SIZES[name], "run"), (NOTHING[SIZES[name].preset], "tiny"))
    ]
    found = held(*runs, tmp_path)
    assert found["predicted"] == pytest.approx(found["measured"], rel=0.1)
