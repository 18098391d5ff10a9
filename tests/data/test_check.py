"""What `fdpo data check` says of a source, in figures and on a page."""

import base64
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from fdpo_fast.config.schema import Data
from fdpo_fast.data.check import SHOWN, SHOWN_REFUSED, examine
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
    assert [row["reason"].split(": ")[:2] for row in found["refused"]] == [["an image does not decode", "jpg_0"]] * 2
    assert found["sizes"] == {"96x80": 23, "64x96": 22, "1x1": 1, "24x16": 1}
    assert found["smaller_than_resolution"] == 2
    assert found["over_length"] == 1  # of distinct captions
    assert found["different_shapes"] == 24
    for line in ("rows        27", "image 0 preferred in 11 (47.8%)", "pairs.parquet row 26: an image does not decode"):
        assert line in said
    assert not (tmp_path / "cache").exists()


def test_without_a_model_tokens_are_not_counted(command, tiny_config, tmp_path):
    raw = tiny_config("sd", as_pickapic(tmp_path, difficult_rows()))
    raw["model"]["base"] = str(tmp_path / "nowhere")
    said = command(raw, "data", "check", "--json", str(tmp_path / "report.json"))
    assert json.loads((tmp_path / "report.json").read_text())["over_length"] is None
    assert "tokens not counted, as model.base is not here" in said


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
    data = Data(source=str(as_rankings(tmp_path, rows)), resolution=64, ties="half")
    source = open_source(data)
    found, sheet = examine(source.read(0, len(source)), data, len(source))
    assert (found.rows, found.pairs, found.ties) == (2, 5, 1)  # ranks 2 1 3 and 2 1 2
    assert found.distinct_images == 6
    assert found.over_length is None
    assert len(sheet.pairs) == 6


def test_captions_are_counted_by_whoever_knows_their_tokens(tmp_path):
    data = Data(source=str(write(tmp_path / "a.parquet", [(c, RED, BLUE, 1.0) for c in ("a", "bcd", "bcd", "efghi")])))
    asked = []

    def over_length(captions):
        asked.append(captions)
        return [len(caption) - 2 for caption in captions]

    source = open_source(data)
    found, _ = examine(source.read(0, 4), data, 4, over_length)
    assert asked == [["a", "bcd", "efghi"]]
    assert found.over_length == 2


class Page(HTMLParser):
    """The elements of a page, its words, and whether each element that opens is closed."""

    VOID = ("meta", "img", "br", "hr", "link", "input", "col")

    def __init__(self, text):
        super().__init__()
        self.found, self.words, self.open = [], [], []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    def images(self):
        """Its images, decoded from the page itself."""
        uris = [attributes["src"] for tag, attributes in self.found if tag == "img"]
        assert all(uri.startswith("data:image/") for uri in uris)
        return [Image.open(io.BytesIO(base64.b64decode(uri.split(",", 1)[1]))) for uri in uris]


HOSTILE = '<script>alert("1")</script><img src=x onerror=alert(1)>&amp;`'


def page_of(path):
    text = Path(path).read_text(encoding="utf-8")
    page = Page(text)
    assert text.lower().startswith("<!doctype html>")
    assert page.open == []
    assert not {"script", "iframe", "object", "embed"} & {tag for tag, _ in page.found}
    assert not [key for _, attributes in page.found for key in attributes if key.startswith("on")]
    return page


def test_the_page_shows_pairs_and_refused_rows(command, tiny_config, tmp_path):
    rows = [(HOSTILE, noisy_jpeg(0), noisy_jpeg(1, (64, 96)), 1.0), ("half", noisy_jpeg(2)[:900], BLUE, 1.0)]
    rows += [("no image", RED, b"<script>", 1.0), ("x" * 5000, RED, noisy_jpeg(3), 0.0)]
    raw = tiny_config("sd", as_pickapic(tmp_path, rows))
    said = command(raw, "data", "check")
    path = Path(raw["train"]["output_dir"]) / "data.html"
    assert str(path) in said
    page = page_of(path)
    words = "".join(page.words)
    assert HOSTILE.rstrip("`") in words
    assert "x" * 300 in words
    assert "x" * 301 not in words
    assert "pairs.parquet row 1: an image does not decode: jpg_0: " in words
    assert "pairs.parquet row 2: an image does not decode: jpg_1: " in words
    shown = page.images()  # two pairs as they are cut, and what of the refused rows decodes
    assert len(shown) == 6
    assert all(max(image.size) <= 192 for image in shown)
    assert all(image.width == image.height for image in shown[:4])


def test_the_page_does_not_grow_with_the_source(command, tiny_config, tmp_path):
    rows = [(f"caption {i}.", RED, BLUE, 1.0) for i in range(60)] + [(f"broken {i}.", RED, b"", 1.0) for i in range(60)]
    raw = tiny_config("sd", as_pickapic(tmp_path, rows))
    command(raw, "data", "check", "--page", str(tmp_path / "page.html"))
    assert not Path(raw["train"]["output_dir"]).exists()
    page = page_of(tmp_path / "page.html")
    words = "".join(page.words)
    pairs = set(re.findall(r"caption \d+\.", words))
    assert 0 < len(pairs) <= SHOWN == 24
    assert len(page.images()) == 2 * len(pairs) + SHOWN_REFUSED
    assert f"The first {SHOWN_REFUSED} of 60" in words
    command(raw, "data", "check", "--page", str(tmp_path / "again.html"))
    assert (tmp_path / "again.html").read_bytes() == (tmp_path / "page.html").read_bytes()


def test_a_page_of_latents_has_no_images(command, tiny_config, tmp_path):
    raw = tiny_config("sd", FORMATS["latents"](tmp_path, difficult_rows()))
    command(raw, "data", "check")
    assert page_of(Path(raw["train"]["output_dir"]) / "data.html").images() == []


@pytest.mark.parametrize("size", [(1, 3000), (3000, 1)])
def test_a_sliver_among_the_refused_is_shown(command, tiny_config, tmp_path, size):
    rows = [("a", RED, BLUE, 1.0), (None, noisy_jpeg(0, size), RED, 1.0)]
    raw = tiny_config("sd", as_pickapic(tmp_path, rows))
    command(raw, "data", "check")
    page = page_of(Path(raw["train"]["output_dir"]) / "data.html")
    assert len(page.images()) == 4
