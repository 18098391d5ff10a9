"""What `fdpo data check` says of a source."""

import json

import pytest

from fdpo_fast.config.schema import Data
from fdpo_fast.data.check import examine
from fdpo_fast.data.readers.detect import open_source
from tests.helpers.pictures import (
    BLUE,
    FORMATS,
    RED,
    as_pickapic,
    as_rankings,
    difficult_rows,
    noisy_jpeg,
    write,
)


def test_data_check_reports_what_is_there(command, tiny_config, tmp_path):
    rows = difficult_rows()
    rows += [rows[0], ("one image", RED, RED, 1.0), ("gone", RED[:60], BLUE, 0.0)]
    raw = tiny_config("sd", as_pickapic(tmp_path, rows))
    report = tmp_path / "report.json"
    said = command(raw, "data", "check", "--json", str(report))
    found = json.loads(report.read_text())
    assert (found["rows"], found["pairs"], found["ties"]) == (27, 23, 2)
    assert (found["repeated_pairs"], found["same_image_twice"]) == (1, 1)
    assert (found["first_preferred"], found["second_preferred"]) == (11, 12)
    assert [row["place"] for row in found["refused"]] == ["pairs.parquet row 3", "pairs.parquet row 26"]
    assert found["sizes"]["1x1"] == 1
    assert found["sizes"]["96x80"] == 23
    assert found["smaller_than_resolution"] == 2
    assert found["long_captions"] == 3
    for line in ("rows        27", "image 0 preferred in 11 (47.8%)", "pairs.parquet row 26: an image does not decode"):
        assert line in said
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("name", FORMATS)
def test_data_check_of_every_format(command, tiny_config, tmp_path, name):
    said = command(tiny_config("sd", FORMATS[name](tmp_path, difficult_rows())), "data", "check")
    assert ("the format has no order" in said) == (name == "folders")
    assert ("refused     none" in said) == (name == "latents")


def test_data_check_of_nothing(command, tiny_config, tmp_path):
    raw = tiny_config("sd", write(tmp_path / "x.parquet", [("a", b"", BLUE, 1.0)]))
    with pytest.raises(SystemExit, match=r"fdpo data check: data.source .* gives no pair"):
        command(raw, "data", "check")
    with pytest.raises(SystemExit, match="the command is `fdpo data check"):
        command(raw, "data", "chekc")


def test_ties_of_rankings_are_counted_once(tmp_path):
    rows = [("x", noisy_jpeg(2 * i), noisy_jpeg(2 * i + 1), 1.0) for i in range(4)]
    source = open_source(Data(source=str(as_rankings(tmp_path, rows)), ties="half"))
    found = examine(source.read(0, len(source)), 64)
    assert (found.pairs, found.ties) == (5, 1)  # ranks 2 1 3 and 2 1 2
    assert found.distinct_images == 6
