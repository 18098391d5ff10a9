"""The pages in Markdown, and what stands in their blocks of code."""

import re
import textwrap

from tests.helpers import ROOT

PLACES = ("*.md", ".github/**/*.md", "configs/*.md", "benchmarks/*.md", "benchmarks/gpu/*.md", "fdpo_fast/**/*.md")
README = (ROOT / "README.md").read_text()
PAGES = sorted(path for place in PLACES for path in ROOT.glob(place))


def blocks(text, language):
    return [textwrap.dedent(code) for code in re.findall(rf"^ *```{language}\n(.*?)^ *```$", text, re.M | re.S)]


def as_reader(path, folder):
    """Put a page's configuration into `folder`, as `my_run.json`, beside what lies beside the page."""
    code = blocks(path.read_text(), "json") or blocks(README, "json")
    beside = path.parent if code != blocks(README, "json") else ROOT
    for item in beside.iterdir():
        if not item.name.startswith("."):
            (folder / item.name).symlink_to(item)
    file = folder / "my_run.json"
    file.write_text(code[0])
    return file
