"""What users and strangers name things: letters on every page and sheet, and cheap however long they are."""

import json
import subprocess
import sys

import pytest
from PIL import Image

from fdpo_fast.config.run import Config
from fdpo_fast.report.data import check
from tests.helpers import ROOT
from tests.helpers.elements import Elements, holds_itself
from tests.helpers.pictures import BLUE, RED

WORDS = {
    "script": "<script>alert(1)</script>",
    "attribute": "\" onerror=alert(1) x='",
    "tag": "</h3></section><img src=x onerror=alert(1)>",
    "style": "</style><style>*{display:none}",
    "entity": "&lt;script&gt;&#x3c;b&#62;",
    "url": "javascript:alert(1)",
    "link": "[a](javascript:alert(1))",
    "code": "`<b>`<i>`",
    "template": "{{ 7 * 7 }}{% raw %}",
    "comment": "--><!--]]>",
}


@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
def test_the_page_about_data_runs_nothing_of_them(tmp_path, raw_config, words):
    """Of captions, of files and folders by their names, of what is refused and of what is left out."""
    root = tmp_path / words.replace("/", "")
    root.mkdir()
    name = words.replace("/", "") + ".jpg"
    (root / name).write_bytes(RED)
    (root / "b.jpg").write_bytes(BLUE)
    (root / f"left {name}").write_bytes(BLUE)
    good = {"image_0": name, "image_1": "b.jpg", "caption": words, "prefer_0": 1, "prefer_1": 0}
    bad = {**good, "image_1": words}
    (root / "metadata.jsonl").write_text("".join(json.dumps(record) + "\n" for record in (good, bad, {words: 1})))
    raw_config["data"]["source"] = str(root)
    raw_config["model"]["base"] = str(tmp_path)
    page = tmp_path / "page.html"
    check(Config.model_validate(raw_config), None, page)
    written = page.read_text()
    holds_itself(written)
    letters = "".join(Elements(written).letters)
    shown = words.replace("`", "") if "`" in words else words
    assert letters.replace("`", "").count(shown) >= 3


LONG = {
    "one word": "b" * 20_000,
    "words": "many words " * 2_000,
    "breaks": "a-" * 10_000,
    "lines": "\n" * 20_000,
    "wide": "\u732b" * 20_000,
    "combining": "a" + "\u0301" * 20_000,
}
COST = """
import json, resource, sys
from pathlib import Path
from tests.helpers.comparison import comparison
from tests.helpers.run import written
from fdpo_fast.report.comparison import write_comparison
from fdpo_fast.report.show import report

captions, folder = json.loads(sys.stdin.read()), Path(sys.argv[1])

def pages(captions, folder):
    report(written(folder / "run", captions=captions))
    write_comparison(comparison(folder, lambda kind, strength, seed: (0.5, 0.5), captions=captions), folder)

pages(("a", "b"), folder / "short")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
pages(tuple(captions), folder / "long")
print("MiB", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""


@pytest.mark.parametrize("kind", ["one word", pytest.param("words", marks=pytest.mark.slow)])
def test_a_long_caption_costs_little_and_is_cut(tmp_path, kind):
    """Each beside the others, so that the pages are made once."""
    captions = [LONG[kind], *(long for name, long in LONG.items() if name != kind)][:: 1 if kind == "words" else 3]
    done = subprocess.run(
        [sys.executable, "-c", COST, str(tmp_path)],
        input=json.dumps(captions),
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) < 200
    for page in (tmp_path / "long/run/report.html", tmp_path / "long/report/index.html"):
        letters = Elements(page.read_text()).letters
        assert any(words.endswith(" …") for words in letters)
        assert LONG[kind][:250] in "".join(letters)
        assert LONG[kind][:400] not in "".join(letters)
    for sheet in (tmp_path / "long/run/samples/step-000040.png", tmp_path / "long/report/samples.png"):
        assert Image.open(sheet).width < 1200
