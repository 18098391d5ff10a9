"""The labelling page in a real browser, by keyboard, mouse and touch; and kills while somebody labels."""

import random
import signal
import threading
from http.client import HTTPException

import numpy as np
import pytest

from benchmarks.common.browser import CHROMIUM, SCHEMES, WIDTHS, browser, opened
from fdpo_fast.data.labels import read_labels
from fdpo_fast.report.theme import DARK, LIGHT
from tests.helpers.colours import contrast
from tests.helpers.labelling import drawn, labelling, lines
from tests.helpers.looks import PROBE
from tests.helpers.pictures import BLUE, RED, as_folders, as_pickapic, noisy_jpeg

pytestmark = pytest.mark.slow
in_browser = pytest.mark.skipif(not CHROMIUM, reason="no chromium on the PATH to label in")

HOSTILE = '<img src="x" onerror="document.title=1"><script>document.title = "ran"</script>"\'`|</h1>\u202e\u2028$x_1$ '
KEYS = {"ArrowLeft": "left", "ArrowRight": "right", "ArrowDown": "tie", "s": "skip"}
READY = "[data-choice=left]:not([disabled])"
LEFT_IS_RED = """() => {
  const pen = document.createElement("canvas").getContext("2d");
  pen.drawImage(document.querySelector("#left img"), 0, 0);
  const [red, , blue] = pen.getImageData(4, 4, 1, 1).data;
  return red > blue;
}"""

PLACES = """() => ["left", "right"].map(at).map(frame => {
  const [width, height] = scrolled(frame);
  return [frame.scrollLeft / (width || 1), frame.scrollTop / (height || 1)];
})"""


@pytest.fixture(scope="module")
def chromium():
    pytest.importorskip("playwright", reason="needs playwright to drive a browser")
    with browser() as started:
        yield started


def asked(page, but=""):
    """Wait for a question other than `but`, and return its id."""
    page.wait_for_selector(f'body:not([data-question="{but}"]) {READY}')
    return page.get_attribute("body", "data-question")


@in_browser
def test_five_hundred_answers_are_those_that_were_pressed(chromium, tmp_path):
    """Image 0, the one in w, is red, and the test looks at the page for where it stands; some answers are undone."""
    source = as_folders(tmp_path, [(f"{HOSTILE} {n}", RED, BLUE, 1.0) for n in range(500)])
    rng, truth, undone = random.Random(0), {}, 0  # noqa: S311
    with labelling(source) as served, opened(chromium, served.address, 1280, "light") as (page, said):
        id = asked(page)
        while len(truth) < 500:
            key = rng.choice([*KEYS])
            share = {"left": 1.0, "right": 0.0, "tie": 0.5, "skip": None}[KEYS[key]]
            label = share if share is None or page.evaluate(LEFT_IS_RED) else 1 - share
            page.keyboard.press(key)
            truth[int(id)] = label
            if len(truth) < 500 and rng.random() < 0.05:
                following = asked(page, id)
                before = source.with_name("folders.labels.jsonl").read_text().split("\n")
                page.keyboard.press(rng.choice(["u", "Backspace", "Control+z"]))
                assert asked(page, following) == id
                after = source.with_name("folders.labels.jsonl").read_text().split("\n")
                assert after == before[:-2] + before[-1:]  # one line
                del truth[int(id)]
                undone += 1
            elif len(truth) < 500:
                id = asked(page, id)
        page.wait_for_selector("#results:not([hidden])")
        assert page.inner_text("#heading") == "ann: 500 of 500 answered"
        assert page.title() == "ann: folders"  # no caption ran
        page.click("#end")
        page.wait_for_selector("#message:has-text('has ended')")
        assert served.run.end()
        assert said == []
    found = lines(source.with_name("folders.labels.jsonl"))
    assert {line["id"]: line["label"] for line in found} == truth
    assert [line["id"] for line in found] == [*truth]  # in the order of the keys
    assert undone > 10
    assert {line["label"] for line in found} == {1.0, 0.0, 0.5, None}


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A page of pairs whose captions would run if they could, of images of unlike sizes, one of which is damaged."""
    root = tmp_path_factory.mktemp("label")
    rows = [
        (f"{n} {HOSTILE * 8}", noisy_jpeg(2 * n, (300, 200)), noisy_jpeg(2 * n + 1, (160, 400)), 1.0) for n in range(9)
    ]
    rows.append(("b" * 20_000, noisy_jpeg(0, (3000, 2)), RED[:50], 0.0))
    with labelling(as_pickapic(root, rows), "--labels", root / "x.jsonl") as page:
        yield page


@in_browser
@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_the_page_can_be_read(chromium, served, width, scheme):
    colours = {"light": LIGHT, "dark": DARK}[scheme]
    with opened(chromium, served.address, width, scheme) as (page, said):
        for shown in ("question", "closer", "results"):
            page.wait_for_selector(READY)
            if shown == "closer":
                page.keyboard.press("z")
            if shown == "results":
                page.keyboard.press("Escape")
                page.click("#stop")
                page.wait_for_selector("#results:not([hidden])")
            found = page.evaluate(PROBE)
            back = tuple(found["back"])
            assert "#" + bytes(back).hex() == colours["back"]
            assert found["overflow"] == 0
            assert (found["outside"], found["images"]) == (0, 0) or shown != "question"
            assert [text for text, colour, _ in found["letters"] if contrast(colour, back) < 4.5] == []
            assert [text for text, _, size in found["letters"] if size < 9] == []
            small = page.eval_on_selector_all(
                "button",
                "all => all.filter(b => b.clientHeight && Math.min(b.offsetWidth, b.offsetHeight) < 44).length",
            )
            assert small == 0  # to be hit by a finger
        assert page.title() == "ann: pairs.parquet"
    assert said == []


@in_browser
def test_a_caption_is_letters(chromium, served):
    with opened(chromium, served.address, 390, "dark") as (page, _):
        asked(page)
        captions = {item["caption"] for item in (served.ask("state")["question"], served.ask("state")["next"])}
        assert page.evaluate("document.getElementById('caption').textContent") in captions
        assert page.evaluate("document.querySelectorAll('#caption *, script:not([src]), img[onerror]').length") == 0


@in_browser
def test_both_images_are_looked_at_closer_in_one_place(chromium, served):
    with opened(chromium, served.address, 1280, "light") as (page, _):
        asked(page)
        box = page.locator("#right").bounding_box()
        page.mouse.click(box["x"] + 0.25 * box["width"], box["y"] + 0.75 * box["height"])
        assert np.allclose(page.evaluate(PLACES), [[0.25, 0.75]] * 2, atol=0.01)
        page.mouse.wheel(150, -100)
        page.wait_for_timeout(500)
        moved = page.evaluate(PLACES)
        assert moved[0][0] > 0.3
        assert moved[0][1] < 0.7
        assert np.allclose(moved[0], moved[1], atol=0.01)
        page.keyboard.press("Shift+ArrowLeft")
        page.wait_for_timeout(500)
        assert page.evaluate(PLACES)[0][0] < moved[0][0] - 0.05
        page.mouse.click(box["x"] + 9, box["y"] + 9)
        assert not page.evaluate("isCloser()")
        for key in ("z", "Escape", "z", "z"):
            page.keyboard.press(key)
        assert not page.evaluate("isCloser()")
        page.focus("#left")
        page.keyboard.press("Enter")
        assert page.evaluate("isCloser()")
        assert served.ask("state")["done"] == 0


@in_browser
def test_keys_and_fingers_reach_everything(chromium, tmp_path):
    source = as_folders(tmp_path, [(f"{n}", RED, BLUE, 1.0) for n in range(6)])
    with labelling(source, by="bob") as served:
        context = chromium.new_context(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True)
        page = context.new_page()
        page.goto(served.address)
        first = asked(page)
        page.tap("#left")
        assert page.evaluate("isCloser()")
        page.tap("[data-choice=right]")
        second = asked(page, first)
        assert not page.evaluate("isCloser()")
        page.tap("#undo")
        assert asked(page, second) == first
        page.tap("[data-choice=tie]")
        asked(page, first)
        seen = []
        for _ in range(12):
            page.keyboard.press("Tab")
            seen.append(page.evaluate("document.activeElement.id || document.activeElement.dataset.choice"))
            outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
            assert outline == "solid" or seen[-1] is None
        assert {"undo", "stop", "caption", "left", "right", "tie", "skip"} <= set(seen)
        page.focus("[data-choice=skip]")
        page.keyboard.press("Enter")
        asked(page, second)
        assert [line["label"] for line in lines(source.with_name("folders.labels.jsonl"))] == [0.5, None]
        context.close()


@in_browser
def test_a_key_counts_for_what_is_shown(chromium, tmp_path):
    """A key that is held down, or comes while images are on their way, answers nothing."""
    source = as_folders(tmp_path, [(f"{n}", RED, BLUE, 1.0) for n in range(6)])
    with labelling(source) as served, opened(chromium, served.address, 1280, "light") as (page, _):
        first = asked(page)
        for key in ("Control+ArrowLeft", "Alt+ArrowLeft", "x", "ArrowUp", "Meta+s"):
            page.keyboard.press(key)
        assert served.ask("state")["done"] == 0
        page.evaluate("""() => {
          const press = repeat => document.dispatchEvent(new KeyboardEvent("keydown", {key: "ArrowLeft", repeat}));
          press(false); press(true); press(true); press(false); press(false);
        }""")
        second = asked(page, first)
        assert served.ask("state")["done"] == 1
        served.run.process.kill()
        served.run.process.wait()
        page.keyboard.press("ArrowLeft")
        page.wait_for_selector("#message.bad")
        assert page.inner_text("#message").startswith("The command does not answer: has it ended?")
        assert page.get_attribute("body", "data-question") == second
    with labelling(source) as served, opened(chromium, served.address, 1280, "light") as (page, _):
        assert asked(page) == second


@in_browser
def test_an_image_that_cannot_be_shown_says_why(chromium, tmp_path):
    source = as_folders(tmp_path, [("a", RED, BLUE[:50], 1.0), ("b", RED, BLUE, 1.0)])
    with labelling(source) as served, opened(chromium, served.address, 1280, "light") as (page, _):
        shown = {}
        for _ in range(2):
            id = asked(page, *shown)
            shown[id] = page.locator(".why").all_inner_texts()
            page.keyboard.press("s")
        page.wait_for_selector("#results:not([hidden])")
    (words,) = (words for found in shown.values() for words in found)
    assert words.startswith("this image cannot be shown (")
    assert words.endswith("): skip the pair")


@in_browser
def test_a_comparison_says_when_the_answers_suffice_and_not_for_whom(chromium, tmp_path):
    """The one who answers prefers what is blue, the second model's."""
    for model, content in {"base": RED, "policy": BLUE}.items():
        for path in drawn(tmp_path, model, [f"caption {number}" for number in range(12)], images=1).glob("*.png"):
            path.write_bytes(content)
    words = ("--compare", tmp_path / "base", tmp_path / "policy")
    with labelling(*words) as served, opened(chromium, served.address, 390, "light") as (page, said):
        id, notes = asked(page), []
        for _ in range(11):
            notes.append(page.inner_text("#message"))
            page.keyboard.press("ArrowRight" if page.evaluate(LEFT_IS_RED) else "ArrowLeft")
            id = asked(page, id)
            assert "policy" not in page.inner_text("main:not([hidden])")
        page.click("#stop")
        page.wait_for_selector("#results:not([hidden])")
        told = page.inner_text("#results")
        page.click("#on")
        assert asked(page) == id
    assert notes[:6] == [""] * 6
    assert "you may stop here" in notes[-1]
    assert "policy" not in notes[-1]
    assert "ann prefers policy to base in 100.0% [" in told
    assert "policy is preferred" in told
    assert said == []


def test_kills_lose_nothing(tmp_path):
    """kill -9 at random moments while answers come as fast as they can: each that was confirmed is in the file."""
    source = as_folders(tmp_path, [(f"{n}", RED, BLUE, 1.0) for n in range(400)])
    rng = random.Random(0)  # noqa: S311
    file, confirmed, killed = source.with_name("folders.labels.jsonl"), {}, 0
    while len(confirmed) < 400:
        with labelling(source) as page:
            state = page.ask("state")
            on_disk = {label.id for label in read_labels(file)} if file.exists() else set()
            assert set(confirmed) <= on_disk
            assert len(on_disk) <= len(confirmed) + killed  # written, and killed before the word
            assert state["question"] is None or int(state["question"]["id"]) not in on_disk
            assert state["done"] == len(on_disk)
            # by answers, as a machine may be fast or slow, and a part of the time that one takes
            last = len(confirmed) + rng.randrange(60) if killed < 6 else None
            killer = threading.Timer(rng.uniform(0, 0.005), page.run.process.send_signal, [signal.SIGKILL])
            try:
                while state["question"]:
                    if last is not None and len(confirmed) >= last and killer.ident is None:
                        killer.start()
                    id, choice = state["question"]["id"], rng.choice(["left", "right", "tie", "skip"])
                    state = page.ask("answer", {"id": id, "choice": choice})
                    confirmed[int(id)] = choice
                break
            except (OSError, HTTPException):  # none, or half of an answer
                killed += 1
            finally:
                killer.cancel()
    labels = {label.id: label for label in read_labels(file)}
    assert len(labels) == 400
    share = {"left": 1.0, "tie": 0.5, "right": 0.0, "skip": None}
    for id, choice in confirmed.items():
        value, left = share[choice], labels[id].more["left"]
        assert labels[id].label == (value if value is None or left == 0 else 1 - value)
    assert killed == 6
    assert not [path for path in tmp_path.iterdir() if path.name.endswith(".partial")]
