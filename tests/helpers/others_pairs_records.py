"""JSON records of other data sets, captions in other encodings, and what is missing in either."""

from __future__ import annotations

import base64
import json
from pathlib import Path

from tests.helpers.others_pairs_case import Case, folders, images, jsonl, record
from tests.helpers.pictures import noisy_jpeg

COUNT = 4


def plain(count: int = COUNT) -> list[dict]:
    return [record(row) for row in range(count)]


def lone_surrogate(folder: Path) -> Path:
    """Half of a character beyond 16 bits, as cutting a string leaves it."""
    broken = json.dumps(record(2, caption="a cat \ud83d")).encode()
    return jsonl(folder / "set", [record(0), record(1), broken, record(3)])


def keys_that_are_null(folder: Path) -> Path:
    """As a table with all columns of several formats is exported."""
    empty = {"caption": None, "images": None, "rank": None, "file_path": None, "human_preference": None}
    first = {**record(0), **empty, "prompt": "picture 0"}
    none = {"image_0": None, "image_1": None, "prefer_0": None, "prefer_1": None, "text": None}
    second = {**none, "prompt": "picture 1", "images": ["1-0.jpg", "1-1.jpg"], "rank": [1, 2]}
    return jsonl(folder / "set", [first, second])


def hpdv2(folder: Path) -> Path:
    """HPDv2 as its authors lay it out: two lists beside two folders."""
    root, train, test = folder / "set", [], []
    for row in range(3):
        names = [f"{row:04d}-{side}.jpg" for side in (0, 1)]
        images(root / "train", *names)
        judged = {"human_preference": [1, 0] if row else [0, 1], "user_hash": "27aa1e"}
        train.append({"prompt": f"picture {row}", "file_path": names} | judged)
    for row in range(2):
        names = [f"{row:05d}{k}.jpg" for k in range(3)]
        images(root / "test", *names)
        test.append({"prompt": f"other picture {row}", "image_path": names, "rank": [2, 1, 3], "raw_annotations": []})
    (root / "train.json").write_text(json.dumps(train))
    (root / "test.json").write_text(json.dumps(test))
    return root


def hpdv2_test(folder: Path) -> Path:
    return hpdv2(folder) / "test.json"


def hpdv3(folder: Path) -> Path:
    """Each record has the preferred image first, however sure its judges were, or whether that is known."""
    made = []
    for row, votes in enumerate(([18, 2], [11, 9], None)):
        names = [f"images/{row}/{side}.jpg" for side in ("one", "two")]
        images(folder / "set", *names)
        judged = {"confidence": votes and votes[0] / sum(votes), "choice_dist": votes}
        paths = {"path1": names[0], "path2": names[1], "model1": "sdxl", "model2": "real_images"}
        made.append({"prompt": f"picture {row}"} | judged | paths)
    (folder / "set/train.json").write_text(json.dumps(made))
    return folder / "set/train.json"


def labels_as_text(folder: Path) -> Path:
    return jsonl(folder / "set", [made | {"prefer_0": "1", "prefer_1": "0"} for made in plain()])


def images_within(folder: Path) -> Path:
    """The images as base64 in the records, half of them as data: URLs."""
    made = []
    for row in range(COUNT):
        texts = [base64.b64encode(noisy_jpeg(2 * row + side)).decode() for side in (0, 1)]
        if row % 2:
            texts = [f"data:image/jpeg;base64,{text}" for text in texts]
        made.append({"image_0": texts[0], "image_1": texts[1], "caption": f"picture {row}"})
    (folder / "set").mkdir()
    lines = [json.dumps(one | {"prefer_0": 1, "prefer_1": 0}) for one in made]
    (folder / "set/metadata.jsonl").write_text("\n".join(lines))
    return folder / "set"


def truncated(folder: Path) -> Path:
    root = folders(folder / "set", COUNT)
    (root / "w/003.jpg").write_bytes(noisy_jpeg(6)[:900])
    return root


def truncated_in_records(folder: Path) -> Path:
    root = jsonl(folder / "set", plain())
    (root / "3-1.jpg").write_bytes(noisy_jpeg(6)[:900])
    return root


def unknown_keys(folder: Path) -> Path:
    other = {"chosen_picture": "2-0.jpg", "other_picture": "2-1.jpg", "words": "picture 2"}
    return jsonl(folder / "set", [record(0), record(1), other, record(3)])


def unknown_caption(folder: Path) -> Path:
    other = {key: value for key, value in record(2).items() if key != "caption"} | {"words": "picture 2"}
    return jsonl(folder / "set", [record(0), record(1), other, record(3)])


def no_caption(folder: Path) -> Path:
    root = folders(folder / "set", COUNT)
    (root / "w/002.txt").unlink()
    return root


def utf16(folder: Path) -> Path:
    """As PowerShell writes what it is given."""
    return jsonl(folder / "set", [record(row, caption=f"größe ✓ 猫 {row}") for row in range(COUNT)], encoding="utf-16")


def utf8_mark(folder: Path) -> Path:
    return jsonl(
        folder / "set", [record(row, caption=f"größe ✓ 猫 {row}") for row in range(COUNT)], encoding="utf-8-sig"
    )


def captions_in_other_encodings(folder: Path) -> Path:
    root = folders(folder / "set", COUNT)
    for row, encoding in enumerate(("utf-16", "utf-8-sig", "utf-16")):
        (root / f"w/{row:03d}.txt").write_bytes(f"größe ✓ 猫 {row}\r\n".encode(encoding))
    return root


def one_line_of_cp1252(folder: Path) -> Path:
    line = json.dumps(record(2, caption="größe"), ensure_ascii=False).encode("cp1252")
    return jsonl(folder / "set", [record(0), record(1), line, record(3)])


def one_caption_of_cp1252(folder: Path) -> Path:
    root = folders(folder / "set", COUNT)
    (root / "w/002.txt").write_bytes("größe".encode("cp1252"))
    return root


SECOND = ("metadata.jsonl record 2",)
BLOB = ("an image does not decode: ", "truncated")
CASES = (
    Case("half a character in a caption of records", lone_surrogate, 3, 1, says=SECOND),
    Case("keys that are null beside the ones that count", keys_that_are_null, 2),
    Case("HPDv2: its folder", hpdv2, 3, counts={"first_preferred": 2, "second_preferred": 1}),
    Case("HPDv2: test.json", hpdv2_test, 6, counts={"rows": 2}),
    Case("HPDv3", hpdv3, 3),
    Case("labels as text in records", labels_as_text, COUNT, counts={"first_preferred": COUNT}),
    Case("images as base64 in records", images_within, COUNT),
    Case("half an image in w", truncated, 3, 1, says=(*BLOB, "w/003.jpg")),
    Case("half an image beside records", truncated_in_records, 3, 1, says=(*BLOB, "3-1.jpg")),
    Case("a record of other keys", unknown_keys, 3, 1,
         says=(*SECOND, "chosen_picture", "other_picture", "image_0", "file_path")),
    Case("a record without a caption", unknown_caption, 3, 1, says=("no caption: found the keys", "words", "prompt")),
    Case("a pair without a caption in w and l", no_caption, 3, 1, says=("no caption", "002.txt")),
    Case("records in UTF-16", utf16, COUNT),
    Case("records in UTF-8 with a mark", utf8_mark, COUNT),
    Case("captions in UTF-16 and in UTF-8 with a mark", captions_in_other_encodings, COUNT),
    Case("a record in cp1252", one_line_of_cp1252, 3, 1, says=(*SECOND, "UTF-8")),
    Case("a caption in cp1252", one_caption_of_cp1252, 3, 1, says=("pair '002'", "UTF-8")),
)  # fmt: skip
