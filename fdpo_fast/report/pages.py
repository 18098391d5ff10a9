"""The blocks that pages are made of, and their files: a page holds all that it shows, and runs nothing."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from urllib.parse import quote

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape
from PIL import Image

from fdpo_fast.files import clear_partial, replacing
from fdpo_fast.report import theme
from fdpo_fast.report.pictures import Picture
from fdpo_fast.report.words import Word

_PAGES = Environment(
    loader=PackageLoader("fdpo_fast.report", "."),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
LONGEST, SIDE, QUALITY = 300, 192, 90
"""Bounds of what a page shows of a user's words, in letters, and of an image, in pixels; and the quality of images."""


@dataclass(frozen=True)
class Table:
    """A header and rows, whose cells may have a word of explanation.

    `align` has a letter for each column: l or r, or w for words that may wrap.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[str | Word, ...], ...]
    align: str


@dataclass(frozen=True)
class Strip:
    """Images beside one another, by the name of what drew them."""

    name: str
    uri: str


@dataclass(frozen=True)
class Samples:
    """Strips of one caption."""

    caption: str
    strips: tuple[Strip, ...]


@dataclass(frozen=True)
class Part:
    """A section of a page; any of its blocks may be empty."""

    title: str
    text: tuple[str, ...] = ()
    done: float | None = None
    """The share of the work that is done, for a bar."""
    terms: tuple[Word, ...] = ()
    picture: Picture | None = None
    table: Table | None = None
    samples: tuple[Samples, ...] = ()
    sheet: bool = False
    """Whether samples are many and small, several beside one another."""
    commands: tuple[tuple[str, str], ...] = ()
    """Commands to go on with, each behind the words that say what for."""
    links: tuple[tuple[str, str], ...] = ()
    """Paths beside the page, each with its name there."""
    file: str = ""
    """The name under which a picture lies beside the page; none, and it lies in the page alone."""
    folded: str = ""
    """What a reader opens the blocks by where they are folded."""


def write(path: Path, title: str, parts: Iterable[Part]) -> None:
    """Write the page, and each picture that has a file's name."""
    parts = list(parts)
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_partial(path.parent)
    for part in parts:
        if part.file and part.picture:
            with replacing(path.parent / part.file) as partial:
                partial.write_bytes(part.picture.png())
    page = _PAGES.get_template("page.html").render(title=title, parts=parts, theme=theme.css(), href=href, prose=prose)
    with replacing(path) as partial:
        partial.write_text(page, encoding="utf-8", errors="backslashreplace")


def prose(text: str) -> Markup:
    """Return words as HTML, in which nothing of them is markup but `code`."""
    return Markup(re.sub(r"`([^`]+)`", r"<code>\1</code>", str(escape(text))))  # noqa: S704


def href(path: str) -> str:
    """Return the link to a path beside the page, whatever letters it has."""
    return "./" + quote(path)


def short(text: str) -> str:
    """Cut a user's words to what a page shows of them."""
    return text if len(text) <= LONGEST else text[:LONGEST].rstrip() + " …"


def strip(name: str, images: Iterable[Image.Image]) -> Strip:
    """Put images of one size beside one another, none larger than a page shows it."""
    shown = [image.convert("RGB") for image in images]
    for number, image in enumerate(shown):
        image.thumbnail((SIDE, SIDE))
        if (times := SIDE // max(image.size)) > 1:  # a browser would blur what is so small
            shown[number] = image.resize((image.width * times, image.height * times), Image.Resampling.NEAREST)
    row = Image.new("RGB", (sum(image.width for image in shown), max(image.height for image in shown)))
    left = 0
    for image in shown:
        row.paste(image, (left, 0))
        left += image.width
    buffer = BytesIO()
    row.save(buffer, format="WEBP", quality=QUALITY)
    return Strip(name, "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode())
