"""The pages in a real browser: nothing fails, every picture is there, nothing sticks out at any width."""

import json
import re
import shutil
import subprocess

import pytest

from fdpo_fast.report.pages import write_comparison
from tests.helpers.comparison import comparison

BROWSER = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
PROBE = """<script>
const errors = [];
addEventListener("error", event => errors.push(String(event.message || event.target.src).slice(0, 80)), true);
addEventListener("load", () => parent.postMessage(JSON.stringify({
  errors, images: document.images.length, broken: [...document.images].filter(i => !i.naturalWidth).length,
  tall: [...document.images].filter(i => i.clientHeight < 40).length,
  overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
  back: getComputedStyle(document.body).backgroundColor, width: innerWidth,
  size: parseFloat(getComputedStyle(document.body).fontSize)}), "*"));
</script>"""
FRAME = """<!DOCTYPE html><body><iframe src="page.html" style="width:{width}px;height:800px;border:0"></iframe>
<script>addEventListener("message", event => document.body.textContent = "FOUND" + event.data + "END");</script>"""


def look(page, width, scheme, folder):
    """What the page says of itself in a frame of that width."""
    (folder / "page.html").write_text(page.replace("<head>", "<head>" + PROBE, 1))
    (folder / "frame.html").write_text(FRAME.format(width=width))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--allow-file-access-from-files", "--window-size=1400,900"]
    flags += [f"--user-data-dir={folder / 'profile'}", f"--blink-settings=preferredColorScheme={scheme}"]
    command = [BROWSER, *flags, "--virtual-time-budget=10000", "--dump-dom", (folder / "frame.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return json.loads(re.search(r"FOUND(.*)END", done.stdout)[1])


@pytest.mark.slow
@pytest.mark.skipif(not BROWSER, reason="needs chromium")
def test_the_comparison_in_a_browser(tmp_path):
    write_comparison(comparison(tmp_path, lambda kind, strength, seed: (0.4 * strength, 0.9 / strength)), tmp_path)
    page = (tmp_path / "report/index.html").read_text()
    backs = set()
    for width in (1280, 390):
        for scheme in (0, 1):  # dark, light
            found = look(page, width, scheme, tmp_path)
            assert found["width"] == width
            assert found["images"] == page.count("<img")
            assert not found["errors"]
            assert (found["broken"], found["overflow"], found["tall"]) == (0, 0, 0)
            assert found["size"] >= 16
            backs.add((scheme, found["back"]))
    assert len(backs) == 2  # one for each scheme
    assert {scheme for scheme, _ in backs} == {0, 1}
