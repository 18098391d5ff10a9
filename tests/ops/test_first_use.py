"""Tables that are kept for the process, first asked for under modes of torch's, and under other defaults of it."""

import pytest

from tests.helpers.first_use import main
from tests.helpers.ranks import together


@pytest.mark.parametrize("backend", ["cpp", "eager", "triton"])
def test_what_is_used_first_under_a_mode_is_right_afterwards(backend, tmp_path):
    """Under another default dtype or device it is right from the start: tensors that are given decide."""
    said = {}
    for mode in ("none", "fake", "inference", "make_fx", "bfloat16", "float16", "float64", "meta"):
        done = together(1, main, (mode, backend), tmp_path / mode)
        assert done.returncode == 0, (mode, done.stderr)
        said[mode] = done.stdout
    assert said["none"]
    assert {mode: text for mode, text in said.items() if text != said["none"]} == {}
