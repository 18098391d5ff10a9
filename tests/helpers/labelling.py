"""`fdpo label` as a person has it: a command that waits, its address, and requests of the page."""

import http.client
import json
import re
from contextlib import contextmanager
from urllib.parse import urlsplit

from fdpo_fast.evaluate import gallery
from tests.helpers.commands import begun


class Page:
    """The requests of the page, at its address."""

    def __init__(self, run):
        self.run = run
        run.wait_for("open http://")
        self.address = re.search(r"open (http://\S+)", run.said)[1]
        self.port, self.path = urlsplit(self.address).port, urlsplit(self.address).path

    def request(self, path, sent=None, method=None, **headers):
        """Return status, headers and body of a path that is taken as it stands."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            body = sent if sent is None or isinstance(sent, bytes) else json.dumps(sent).encode()
            connection.request(method or ("GET" if sent is None else "POST"), path, body, headers)
            answer = connection.getresponse()
            return answer.status, answer.headers, answer.read()
        finally:
            connection.close()

    def ask(self, name, sent=None):
        """Return what the command says to a request of the page."""
        status, _, body = self.request(self.path + name, sent)
        assert status == 200, (status, body)
        return json.loads(body)


@contextmanager
def labelling(*words, by="ann", **environment):
    """Run `fdpo label` with these words; it does not outlive the block."""
    with begun("label", *map(str, words), "--as", by, "--no-browser", **environment) as run:
        yield Page(run)


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def drawn(root, model, prompts=("a cat", "a dog", "a red car"), images=2, seed=0, weights="0123456789"):
    """A folder as `fdpo sample` leaves it; the content of an image tells which it is."""
    folder = root / model
    folder.mkdir(parents=True)
    rows = []
    for number, prompt in enumerate(prompts):
        for image in range(images):
            file = f"{number:05d}-{image}.png"
            (folder / file).write_bytes(f"{model} {number} {image}".encode())
            row = {"model": model, "prompt_number": number, "prompt": prompt, "image": image, "file": f"{model}/{file}"}
            rows.append(row | {"seed": seed + 10 * number + image})
    gallery.write(folder / gallery.NAME, rows)
    (folder / "model.json").write_text(json.dumps({"weights": weights}))
    return folder
