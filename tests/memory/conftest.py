"""A configuration to be planned."""

import pytest

from fdpo_fast.config.load import load


@pytest.fixture
def tiny(tiny_config, write_config, tmp_path):
    """A configuration over a tiny SDXL with some overrides."""

    def make(*overrides, family="sdxl"):
        return load(write_config(tiny_config(family, tmp_path / "pairs")), overrides)

    return make
