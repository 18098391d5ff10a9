"""The page's server against whoever else asks it: without the token, by another name, for what it does not serve."""

import http.client
import io
import json
import signal
import socket

import numpy as np
import pytest
from PIL import Image

from fdpo_fast.cli import main
from tests.helpers.labelling import labelling, lines
from tests.helpers.pictures import BLUE, RED, as_folders, encoded, jpeg, noisy_jpeg, write

HOSTILE = '<img src=x onerror="document.title=1"><script>document.title="ran"</script>'
PRIVATE = "not for the network"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("label")
    (root / "secret.txt").write_text(PRIVATE)
    rows = [(f"{HOSTILE} {n}", noisy_jpeg(2 * n), noisy_jpeg(2 * n + 1), 1.0) for n in range(8)]
    return as_folders(root, rows)


@pytest.fixture(scope="module")
def page(folder):
    with labelling(folder) as page:
        yield page


def test_nothing_is_said_without_the_token(page):
    token = page.path.strip("/")
    wrong = (token[:-1], f"{token}0", f"x/{token}", f"%20{token}", "%00", "gr%C3%B6%C3%9Fe", "%ff", "image/0/left")
    for path in ["/", "//", "/state", "/page.js", f"/?{token}", f"/state?{token}", *(f"/{one}/state" for one in wrong)]:
        for method in ("GET", "POST", "HEAD", "DELETE"):
            status, _, body = page.request(path, method=method)
            assert status == 403, (method, path)
            assert token.encode() not in body
    for name, sent in {"answer": {"id": "0", "choice": "left"}, "undo": {}, "end": {}}.items():
        assert page.request(f"/{name}", sent)[0] == 403
    assert page.ask("state")["done"] == 0


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "", "[::1]"])
def test_a_name_that_is_bent_to_this_address_is_refused(page, host):
    status, _, body = page.request(page.path + "state", Host=host)
    assert status == 400
    assert b"caption" not in body


def test_localhost_is_a_name_of_this_address(page):
    assert page.request(page.path + "state", Host=f"localhost:{page.port}")[0] == 200


def test_it_listens_on_the_loopback_address_alone(page):
    addresses = {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)}
    for address in addresses - {"127.0.0.1"}:
        with pytest.raises(OSError, match=r"refused|timed out"):
            socket.create_connection((address, page.port), timeout=2)
    with open(f"/proc/{page.run.process.pid}/net/tcp") as table:
        own = [line.split()[1] for line in table if line.split()[1].endswith(f":{page.port:04X}")]
    assert {entry.partition(":")[0] for entry in own} == {"0100007F"}


ESCAPES = [
    *(
        "../secret.txt",
        "../../secret.txt",
        "..%2f..%2fsecret.txt",
        "%2e%2e/%2e%2e/secret.txt",
        "image/../../secret.txt",
    ),
    *("image/0/../../../secret.txt", "image/%2e%2e/left", "image//etc/passwd", "image/0//etc/passwd", "/etc/passwd"),
    *("image/0/left/../../../../etc/passwd", "image/0/w%2f000.jpg", "page.html", "page.css", "session.py", "page.js/x"),
    *("image/0/left%00", "image/-1/left", "image/1/left", "image/0/up", "image/99999999999999999999999999/left"),
    *("..;/secret.txt", "image/0/..%5c..%5csecret.txt", "image/0/left?path=../secret.txt&x=/etc/passwd"),
]


@pytest.mark.parametrize("escape", ESCAPES)
def test_no_path_leads_to_a_file(page, escape):
    status, headers, body = page.request(page.path + escape)
    assert PRIVATE.encode() not in body
    assert b"root:" not in body
    if "?" in escape:  # what follows is not looked at
        assert (status, headers["content-type"]) == (200, "image/png")
    else:
        assert status in (403, 404), (status, body)


def test_every_answer_forbids_what_the_page_does_not_need(page):
    for path in (page.path, page.path + "page.js", page.path + "style.css", page.path + "nothing", "/"):
        _, headers, _ = page.request(path)
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-store"
        assert "access-control-allow-origin" not in headers


NO_ANSWERS = [
    *(b"", b"{", b"[]", b"null", b"[" * 100_000, b'{"id": "0"}', b"\xff\xfe"),
    *({"id": id, "choice": "left"} for id in (0, "x", "9" * 30, "1", "-2", "\u0663", None)),
    *({"id": "0", "choice": choice} for choice in ("both", ["left"], "")),
]


@pytest.mark.parametrize("sent", NO_ANSWERS)
def test_what_is_no_answer_is_named_and_changes_nothing(page, folder, sent):
    status, headers, body = page.request(page.path + "answer", sent)
    assert status == 404
    assert headers["content-type"] == "application/json"
    assert len(json.loads(body)["error"]) > 10
    assert page.ask("state")["done"] == 0
    assert not folder.with_name("folders.labels.jsonl").exists()


def test_reading_changes_nothing(page):
    for name in ("answer", "undo", "end"):
        assert page.request(page.path + name)[0] == 405
    assert page.ask("state")["total"] == 8


def test_images_are_shown_as_training_sees_them(tmp_path):
    """Turned by EXIF, clear parts over white, TIFF and CMYK as PNG in RGB; a damaged one is named and skipped."""
    turned = Image.new("RGB", (8, 4), "red")
    turned.paste("blue", (0, 0, 4, 4))
    exif = Image.Exif()
    exif[0x0112] = 6
    rows = [
        ("a", encoded(turned, quality=100, subsampling=0, exif=exif), encoded(turned, "TIFF"), 1.0),
        ("b", jpeg("red", "CMYK"), encoded(Image.new("RGBA", (4, 4), (0, 0, 0, 0)), "PNG"), 1.0),
        ("c", RED[:60], BLUE, 1.0),
    ]
    with labelling(write(tmp_path / "pairs.parquet", rows), "--labels", tmp_path / "new/x.jsonl") as page:
        found, state = {}, page.ask("state")
        while state["question"]:
            id, caption = state["question"]["id"], state["question"]["caption"]
            found[caption] = [page.request(f"{page.path}image/{id}/{side}") for side in ("left", "right")]
            state = page.ask("answer", {"id": id, "choice": "skip"})
    images = {caption: [np.asarray(Image.open(io.BytesIO(body))) for status, _, body in sides if status == 200]
              for caption, sides in found.items()}  # fmt: skip
    assert sorted(image.shape for image in images["a"]) == [(4, 8, 3), (8, 4, 3)]
    (upright,) = (image for image in images["a"] if image.shape == (8, 4, 3))
    assert upright[0, 0].argmax() == 2  # its first row is what was its left
    assert upright[-1, 0].argmax() == 0
    assert sorted(int(image[0, 0].min()) for image in images["b"]) == [0, 255]
    (bad,) = ((status, json.loads(body)) for status, _, body in found["c"] if status != 200)
    assert bad[0] == 422
    assert "this image cannot be shown (" in bad[1]["error"]
    assert "skip the pair" in bad[1]["error"]
    assert [line["label"] for line in lines(tmp_path / "new/x.jsonl")] == [None] * 3


def test_the_page_ends_the_command_which_says_what_was_answered(folder, tmp_path):
    file = tmp_path / "x.jsonl"
    with labelling(folder, "--labels", file, by=" ann  b ") as page:
        for _ in range(3):
            page.ask("answer", {"id": page.ask("state")["question"]["id"], "choice": "left"})
        with pytest.raises(SystemExit, match=r"another `fdpo label` is at work on \S+: end it, or name another file"):
            main(["label", str(folder), "--as", "bob", "--labels", str(file), "--no-browser"])
        with pytest.raises(SystemExit, match=rf"port {page.port} of 127\.0\.0\.1 cannot be had \(in use\)"):
            main(["label", str(folder), "--as", "b", "--labels", f"{file}2", "--no-browser", "--port", str(page.port)])
        shown = page.ask("results")
        page.ask("end", {})
        said = page.run.end()
    assert page.run.process.returncode == 0
    for words in (shown["heading"], *shown["words"], f"labels: {file}"):
        assert f"\n{words}\n" in said
    assert shown["heading"] == "ann b: 3 of 8 answered"
    assert {line["by"] for line in lines(file)} == {"ann b"}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_it_in_a_sentence(folder, tmp_path, number):
    with labelling(folder, "--labels", tmp_path / "x.jsonl") as page:
        page.ask("answer", {"id": page.ask("state")["question"]["id"], "choice": "tie"})
        idle = http.client.HTTPConnection("127.0.0.1", page.port)  # as a browser holds one open
        idle.request("GET", page.path + "state")
        idle.getresponse().read()
        page.run.process.send_signal(number)
        said = page.run.end(patience=30)
        idle.close()
    assert page.run.process.returncode == 128 + number
    assert "ann: 1 of 8 answered" in said
    assert said.endswith("stopped; every answer is in the file, and the same command goes on behind them\n")
    assert "Traceback" not in said
    assert len(lines(tmp_path / "x.jsonl")) == 1


def test_a_full_disk_is_named_and_the_question_stays(folder, tmp_path):
    """A limit on the size of files stands for it."""
    import resource

    file = tmp_path / "x.jsonl"
    with labelling(folder, "--labels", file) as page:
        state = page.ask("answer", {"id": page.ask("state")["question"]["id"], "choice": "left"})
        resource.prlimit(page.run.process.pid, resource.RLIMIT_FSIZE, (file.stat().st_size, -1))
        status, _, body = page.request(page.path + "answer", {"id": state["question"]["id"], "choice": "left"})
        assert status == 507
        assert json.loads(body)["error"].startswith("The answer is not kept: File too large")
        assert page.ask("state") == state
        resource.prlimit(page.run.process.pid, resource.RLIMIT_FSIZE, (-1, -1))
        page.ask("answer", {"id": state["question"]["id"], "choice": "left"})
    assert len(lines(file)) == 2


def test_what_a_file_says_commands_no_terminal(folder, tmp_path):
    """Nor does another program's change of the file get lost, and the page says so."""
    file = tmp_path / "x.jsonl"
    line = {"id": 0, "place": "", "caption": f"{HOSTILE} 0", "label": 1.0, "by": "\x1b[31mbob"}
    file.write_text(json.dumps(line) + "\n")
    with labelling(folder, "--labels", file) as page:
        while (state := page.ask("state"))["question"]:
            page.ask("answer", {"id": state["question"]["id"], "choice": "left"})
        file.write_text(json.dumps(line) + "\n")
        status, _, body = page.request(page.path + "undo", {})
        page.ask("end", {})
        said = page.run.end()
    assert status == 409
    assert "has been changed by another program" in json.loads(body)["error"]
    assert "bob agree on" in said
    assert "\x1b[31m" not in said
    assert lines(file) == [line]


@pytest.mark.parametrize(("words", "says"), [
    (["--as", "x"], "name a SOURCE of pairs, or a --config"),
    (["a", "--compare", "a", "b", "--as", "x"], "name a SOURCE of pairs, or a --config"),
    (["--compare", "a", "b", "--as", "x", "--choose", "disagreement"], "--compare asks captions at random"),
    (["a", "--as", "x", "--choose", "unsure"], "--choose unsure takes a --config and the --policy"),
    (["--compare", "/none/a", "/none/b", "--as", "x"], "there is no folder /none/a"),
])  # fmt: skip
def test_what_cannot_be_asked_is_named(words, says):
    with pytest.raises(SystemExit, match=says):
        main(["label", *words])


@pytest.mark.parametrize("name", ["", "  ", "a\x1b[31m", "x" * 81])
def test_a_name_is_one_that_a_line_can_have(name, capsys):
    with pytest.raises(SystemExit):
        main(["label", "a", "--as", name])
    assert "is no name of up to 80 letters" in capsys.readouterr().err
