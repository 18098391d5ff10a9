"""The pages in a real browser: nothing fails or runs, every picture is there, all can be read at any width."""

import pytest

from benchmarks.common.browser import CHROMIUM, SCHEMES, WIDTHS, browser, opened
from fdpo_fast.config.schema import Data
from fdpo_fast.data.check import examine
from fdpo_fast.data.readers.detect import open_source
from fdpo_fast.report import pages as blocks
from fdpo_fast.report.comparison import write_comparison
from fdpo_fast.report.data import parts
from fdpo_fast.report.show import report
from fdpo_fast.report.theme import DARK, LIGHT
from tests.helpers.colours import contrast
from tests.helpers.comparison import comparison
from tests.helpers.looks import PROBE
from tests.helpers.pictures import BLUE, RED, noisy_jpeg, write
from tests.helpers.run import written

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="no chromium on the PATH to look at pages with"),
]

HOSTILE = '<img src="x" onerror="document.title=1"><script>document.title = "ran"</script>"\'`|$x_1$ ' * 3


@pytest.fixture(scope="module")
def chromium():
    pytest.importorskip("playwright", reason="needs playwright to drive a browser")
    with browser() as started:
        yield started


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Both pages, of a run and a comparison whose names and captions would run if they could."""
    root = tmp_path_factory.mktemp("pages")
    found = comparison(root / "grid", lambda kind, strength, seed: (0.4 * strength, 0.9 / strength + 0.01 * seed),
                       kinds=KINDS, captions=(HOSTILE, "b" * 20_000))  # fmt: skip
    write_comparison(found, root / "grid")
    run = written(root / HOSTILE[:60].replace("/", ""), captions=(HOSTILE, "b" * 20_000))
    report(run)
    return {"run": run / "report.html", "comparison": root / "grid/report/index.html", "data": data_page(root)}


def data_page(root):
    """The page about pairs of which one is a sliver and another is refused, under hostile captions and names."""
    source = root / "pairs.parquet"
    rows = [(f"{HOSTILE} {row}", noisy_jpeg(2 * row), noisy_jpeg(2 * row + 1), 1.0) for row in range(30)]
    rows += [("b" * 20_000, noisy_jpeg(0, (3000, 2)), RED, 0.0), (HOSTILE, RED[:50], BLUE, 1.0)]
    write(source, rows)
    data = Data(source=str(source), ties="half", resolution=64)
    findings, sheet = examine(open_source(data).read(0, len(rows)), data, len(rows))
    findings.left_out = [{"file": f"{HOSTILE}.txt", "reason": "no parquet file"}]
    page = root / "data.html"
    blocks.write(page, f"Data of {HOSTILE[:80]}", parts(findings, sheet, str(source), "half"))
    return page


KINDS = ("reverse_kl", "forward_kl", "jensen_shannon", "squared_hellinger", "jeffreys")


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["run", "comparison", "data"])
def test_a_page_can_be_read(chromium, pages, name, width, scheme):
    with opened(chromium, pages[name], width, scheme) as (page, said):
        found = page.evaluate(PROBE)
    assert said == []
    assert (found["overflow"], found["images"], found["outside"]) == (0, 0, 0)
    assert found["pictures"] > 5 or name == "data"
    titles = {"run": "Run <img src", "comparison": "Divergences", "data": "Data of <img src"}
    assert found["title"].startswith(titles[name])  # no script changed it
    colours = {"light": LIGHT, "dark": DARK}[scheme]
    back = tuple(found["back"])
    assert "#" + bytes(back).hex() == colours["back"]
    assert len(found["letters"]) > 100
    assert [text for text, colour, _ in found["letters"] if contrast(colour, back) < 4.5] == []
    assert [text for text, _, size in found["letters"] if size < 9] == []
    rule = tuple(bytes.fromhex(colours["rule"][1:]))
    assert [colour for colour in map(tuple, found["lines"]) if colour != rule and contrast(colour, back) < 3] == []
    assert len({tuple(colour) for colour in found["lines"]}) > 4 or name == "data"
