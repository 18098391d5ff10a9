"""The configurations fit the cards that their table names, by plan."""

import re

import pytest

from fdpo_fast.cli import main
from tests.helpers import ROOT

TABLE = (ROOT / "configs/README.md").read_text()
CASES = [
    (file, gpu, host)
    for line in TABLE.splitlines()
    for gpu, host in re.findall(r"one GPU of (\d+) GB(?:, (\d+) GB of host memory)?", line)
    for file in re.findall(r"`(\w+\.json)`", line.partition("|")[2].partition("|")[0])
]


def test_the_table_has_cards():
    assert len(CASES) >= 8


@pytest.mark.slow
@pytest.mark.parametrize(("file", "gpu", "host"), CASES)
def test_a_configuration_fits_its_card(file, gpu, host, capsys):
    machine = ["--gpu", f"{gpu}GB", *(["--host", f"{host}GB"] if host else [])]
    main(["plan", "--config", str(ROOT / "configs" / file), *machine])
    assert "this configuration fits" in capsys.readouterr().out
