"""Two models' images, compared blindly: each caption once, of the same captions and seeds."""

import json
from io import BytesIO

import pytest
from PIL import Image

from fdpo_fast.cli import main
from fdpo_fast.config.errors import UserError
from fdpo_fast.label.galleries import OfGalleries, beside_galleries
from tests.helpers.labelling import drawn, labelling, lines
from tests.helpers.pictures import jpeg


def test_each_caption_is_asked_once_with_both_models_images_of_one_noise(tmp_path):
    one, other = drawn(tmp_path, "base"), drawn(tmp_path, "policy", weights="fedcba9876")
    found = OfGalleries(one, other, 0)
    assert [asked.caption for asked in found.every] == ["a cat", "a dog", "a red car"]
    assert len({asked.id for asked in found.every}) == 3
    assert all(asked.id % 2 == 0 and asked.id < 2**56 and asked.known is None for asked in found.every)
    for number, asked in enumerate(found.every):
        first, second = (found.picture(asked.id, image).decode().split() for image in (0, 1))
        assert (first[0], second[0]) == ("base", "policy")
        assert first[1:] == second[1:]
        assert first[1] == str(number)
    assert found.every[0].place.endswith("base (01234567) and policy (fedcba98)")
    images = {OfGalleries(one, other, seed).picture(OfGalleries(one, other, seed).every[0].id, 0) for seed in range(9)}
    assert images == {b"base 0 0", b"base 0 1"}


def test_answers_are_about_the_weights(tmp_path):
    """Of other weights in the same folder, or of the models in the other order, the pairs are others."""
    one, other = drawn(tmp_path, "base"), drawn(tmp_path, "policy")
    ids = [
        {asked.id for asked in OfGalleries(one, other, 0).every},
        {asked.id for asked in OfGalleries(other, one, 0).every},
    ]
    (other / "model.json").write_text(json.dumps({"weights": "other"}))
    ids.append({asked.id for asked in OfGalleries(one, other, 0).every})
    assert len(set().union(*ids)) == 9


@pytest.mark.parametrize(
    ("change", "what"),
    [({"prompts": ("a cat", "a dog", "a blue car")}, "captions"), ({"seed": 1}, "seeds"), ({"images": 1}, "seeds")],
)
def test_images_of_other_captions_or_seeds_are_refused(tmp_path, change, what):
    one, other = drawn(tmp_path, "base"), drawn(tmp_path, "policy", **change)
    with pytest.raises(UserError, match=f"are of other {what}: draw both by one `fdpo sample`"):
        OfGalleries(one, other, 0)
    with pytest.raises(UserError, match="is given twice"):
        OfGalleries(one, one, 0)


def test_where_answers_go(tmp_path):
    assert beside_galleries(tmp_path / "base", tmp_path / "policy") == tmp_path / "base-policy.labels.jsonl"


def test_a_comparison_is_blind_and_ends_in_a_win_rate(tmp_path):
    captions = tuple(f"caption {number}" for number in range(40))
    for model, colour in {"base": "red", "policy": "blue"}.items():
        for path in drawn(tmp_path, model, captions).glob("*.png"):
            path.write_bytes(jpeg(colour))
    with labelling("--compare", tmp_path / "base", tmp_path / "policy") as page:
        state, notes = page.ask("state"), []
        while state["question"]:
            notes.append(state["note"])
            id = state["question"]["id"]
            sides = [page.request(f"{page.path}image/{id}/{side}")[2] for side in ("left", "right")]
            blue = [Image.open(BytesIO(side)).getpixel((2, 2))[2] > 128 for side in sides]
            state = page.ask("answer", {"id": id, "choice": ("left", "right")[blue.index(True)]})
        words = " ".join(page.ask("results")["words"])
        assert state["title"] == "base and policy"
    assert "ann prefers policy to base in 100.0% [" in words
    assert "policy is preferred" in words
    first = next(number for number, note in enumerate(notes) if note)
    assert 6 <= first <= 12  # 2^n / (n + 1) reaches 20 at n = 8
    assert all("you may stop" in note for note in notes[first:])
    found = lines(tmp_path / "base-policy.labels.jsonl")
    assert {line["label"] for line in found} == {0.0}
    assert {line["left"] for line in found} == {0, 1}


def test_a_folder_that_is_none_is_named(tmp_path):
    drawn(tmp_path, "base")
    words = ["label", "--compare", str(tmp_path / "base"), str(tmp_path / "policy"), "--as", "ann"]
    with pytest.raises(SystemExit, match=r"there is no folder .*/policy: `fdpo sample` makes one of each model"):
        main(words)
    (tmp_path / "policy").mkdir()
    with pytest.raises(SystemExit, match=r"policy has no index\.parquet: `fdpo sample` has not finished it"):
        main(words)
