"""Screenshots of pages, as wide as a phone and a screen, light and dark.

`python -m benchmarks.pages run=RUN_DIR/report.html comparison=DIR/report/index.html label=http://127.0.0.1:PORT/TOKEN/`
writes results/pages/NAME-WIDTH-SCHEME.png, in a browser that is on the PATH.
"""

from __future__ import annotations

import argparse
from io import BytesIO
from pathlib import Path

from PIL import Image

from benchmarks.common.browser import SCHEMES, WIDTHS, browser, opened

RESULTS = Path(__file__).parent / "results/pages"
COLOURS = 52
"""Of a picture: few, so that a long page stays small; the octree keeps those of thin lines."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "pages", nargs="+", metavar="NAME=PLACE", help="files or addresses by the name of their pictures"
    )
    RESULTS.mkdir(parents=True, exist_ok=True)
    with browser() as chromium:
        for name, _, place in (page.partition("=") for page in parser.parse_args().pages):
            at = place if place.startswith("http://") else Path(place)
            for width in WIDTHS:
                for scheme in SCHEMES:
                    with opened(chromium, at, width, scheme) as (page, _):
                        shot = Image.open(BytesIO(page.screenshot(full_page=True))).convert("RGB")
                    target = RESULTS / f"{name}-{width}-{scheme}.png"
                    shot.quantize(COLOURS, Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE).save(
                        target, optimize=True
                    )
                    print(target)


if __name__ == "__main__":
    main()
