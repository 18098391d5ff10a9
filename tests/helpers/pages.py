"""The pages in Markdown, and what stands in their blocks of code."""

import re
import textwrap

from tests.helpers import ROOT

PLACES = ("*.md", ".github/**/*.md", "configs/*.md", "benchmarks/*.md", "benchmarks/gpu/*.md", "fdpo_fast/**/*.md")
PAGES = sorted(path for place in PLACES for path in ROOT.glob(place))


def blocks(text, language):
    return [textwrap.dedent(code) for code in re.findall(rf"^ *```{language}\n(.*?)^ *```$", text, re.M | re.S)]
