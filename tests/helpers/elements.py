"""Pages as HTML: their elements and letters, and that they fetch and run nothing."""

import re
from html.parser import HTMLParser


class Elements(HTMLParser):
    """The elements of a page, and the letters between them."""

    def __init__(self, page):
        super().__init__()
        self.found, self.letters = [], []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.found.append((tag, dict(attributes)))

    def handle_data(self, data):
        self.letters.append(data)


def holds_itself(page):
    """Whether the page fetches and runs nothing, and its pictures take its colours and letters."""
    elements = Elements(page).found
    assert not {"script", "iframe", "object", "embed", "link"} & {
        tag for tag, a in elements if a.get("href") != "data:,"
    }
    assert not [key for _, attributes in elements for key in attributes if key.startswith("on")]
    for tag, attributes in elements:
        for key in ("src", "href", "xlink:href"):
            assert re.match(r"data:|#|\./", attributes.get(key) or "#"), (tag, attributes)
    ids = [attributes["id"] for tag, attributes in elements if "id" in attributes and tag in ("section", "g")]
    assert len(set(ids)) == len(ids)
    for svg in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL):
        drawn = re.sub(r'href="[^"]*"|url\(#\w+\)', "", svg)
        assert not re.search(r"#[0-9a-f]{6}|DejaVu", drawn)
