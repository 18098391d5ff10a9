"""The configurations fit the cards that their table names, by plan."""

import re

import pytest

from fdpo_fast.cli import main
from tests.helpers import ROOT

TABLE = (ROOT / "configs/README.md").read_text()
CASES = [
    (file, gpus, gpu, host)
    for line in TABLE.splitlines()
    for count, gpu, host in re.findall(r"(one|eight) GPUs? of (\d+) GB(?:, (\d+) GB of host memory)?", line)
    for gpus in [{"one": "1", "eight": "8"}[count]]
    for file in re.findall(r"`(\w+\.json)`", line.partition("|")[2].partition("|")[0])
]


def test_the_table_has_cards():
    assert len(CASES) >= 8


@pytest.mark.slow
@pytest.mark.parametrize(("file", "gpus", "gpu", "host"), CASES)
def test_a_configuration_fits_its_card(file, gpus, gpu, host, capsys):
    machine = ["--gpus", gpus, "--gpu", f"{gpu}GB", *(["--host", f"{host}GB"] if host else [])]
    main(["plan", "--config", str(ROOT / "configs" / file), *machine])
    assert "this configuration fits" in capsys.readouterr().out
