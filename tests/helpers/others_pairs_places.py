"""Where the files of a source lie: brackets, folders of editors, splits, subfolders, and what lies beside."""

from __future__ import annotations

import shutil
import unicodedata
from pathlib import Path

from tests.helpers.others_pairs_case import Case, folders, images, jsonl, pair, parquet, record, rows
from tests.helpers.pictures import noisy_jpeg, write

SHARDS = {"train": 4, "validation": 2, "test": 3}
"""How many rows a split has."""
OTHERS = tuple(f"{name}-00000-of-00001.parquet" for name in SHARDS if name != "train")
HEIC = b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(64)
JXL = b"\xff\x0a" + bytes(64)


def brackets_beside(folder: Path) -> Path:
    parquet(folder / "set1/a.parquet", 5)
    return parquet(folder / "set[12]/a.parquet", 3, 10).parent


def brackets(folder: Path) -> Path:
    return parquet(folder / "pairs [v2]/train.parquet", 3)


def pattern_in_brackets(folder: Path) -> Path:
    for number, name in enumerate("ab"):
        parquet(folder / f"pairs [v2]/{name}.parquet", 3, 3 * number)
    return folder / "pairs [v2]/*.parquet"


def notebook(folder: Path) -> Path:
    made = parquet(folder / "pairs/a.parquet", 3)
    (made.parent / ".ipynb_checkpoints").mkdir()
    shutil.copy(made, made.parent / ".ipynb_checkpoints/a-checkpoint.parquet")
    return made.parent


def split_shards(folder: Path) -> Path:
    for number, (name, count) in enumerate(SHARDS.items()):
        parquet(folder / f"set/{name}-00000-of-00001.parquet", count, 10 * number)
    return folder / "set"


def five_splits(folder: Path) -> Path:
    """Pick-a-Pic's own names, on its hub."""
    for number, (name, count) in enumerate({**SHARDS, "validation_unique": 1, "test_unique": 2}.items()):
        parquet(folder / f"set/data/{name}-00000-of-00001-0d4b8d0ba11c5b6b.parquet", count, 10 * number)
    return folder / "set"


def split_folders(folder: Path) -> Path:
    parquet(folder / "set/train/0.parquet", 4)
    parquet(folder / "set/test/0.parquet", 3, 10)
    return folder / "set"


def split_halves(folder: Path) -> Path:
    folders(folder / "set/train", 4)
    folders(folder / "set/test", 3, 10)
    return folder / "set"


def split_records(folder: Path) -> Path:
    jsonl(folder / "set/train", [record(row) for row in range(4)])
    jsonl(folder / "set/test", [record(row) for row in range(3)])
    return folder / "set"


def places(folder: Path) -> Path:
    parquet(folder / "set/a/train-0.parquet", 3)
    return parquet(folder / "set/b/train-1.parquet", 4, 10, broken=[2]).parents[1]


def wide_and_tall(folder: Path) -> Path:
    wide = ("wide and tall", noisy_jpeg(7, (160, 80)), noisy_jpeg(8, (80, 160)), 1.0)
    square = ("square", noisy_jpeg(5, (96, 96)), noisy_jpeg(6, (96, 96)), 1.0)
    return write(folder / "a.parquet", [wide, square])


def long_captions(folder: Path) -> Path:
    tags = ", ".join(f"tag{number}" for number in range(60))
    captions = ["猫" * 240, tags, "a cat"]
    made = [(caption, *row[1:]) for caption, row in zip(captions, rows(3), strict=True)]
    return write(folder / "a.parquet", made)


def subfolders(folder: Path) -> Path:
    root = folders(folder / "set", 1)
    pair(root, "sub/1", 5)
    pair(root, "sub/deeper/1", 6)
    return root


def document_beside(folder: Path) -> Path:
    root = folders(folder / "set", 3)
    (root / "w/000.pdf").write_bytes(b"%PDF-1.4\n")
    return root


def no_extensions(folder: Path) -> Path:
    root = folders(folder / "set", 2)
    for name in ("digest1", "digest2"):
        pair(root, name, 7, suffix="")
    return root


def every_kind_of_file(folder: Path) -> Path:
    """Of two images and other files of one name, of formats that few decode, and of none."""
    root = folders(folder / "set", 3)
    for half in "wl":
        (root / half / "b.heic").write_bytes(HEIC)
        (root / half / "c.jxl").write_bytes(JXL)
    (root / "w/000.pdf").write_bytes(b"%PDF-1.4\n")
    (root / "l/001.psd").write_bytes(b"8BPS" + bytes(64))
    (root / "w/README").write_text("about these pictures")
    (root / "w/Thumbs.db").write_bytes(bytes(16))
    return root


def unnamed_images(folder: Path) -> Path:
    root = jsonl(folder / "set", [record(row) for row in range(3)])
    images(root, "spare.jpg", "more/spare.png")
    return root


def other_captions(folder: Path) -> Path:
    root = folders(folder / "set", 3)
    for text in (root / "w").glob("*.txt"):
        text.rename(text.with_suffix(".caption"))
    return root


def two_normal_forms(folder: Path) -> Path:
    """The same name as Linux and as macOS write it: w composed, l decomposed."""
    root = folders(folder / "set", 2)
    pair(root, "größe", 5)
    (root / "l/größe.jpg").rename(root / "l" / unicodedata.normalize("NFD", "größe.jpg"))
    return root


def another_normal_form(folder: Path) -> Path:
    root = jsonl(folder / "set", [record(0), record(1, image_0="größe.jpg"), record(2)])
    (root / "1-0.jpg").rename(root / unicodedata.normalize("NFD", "größe.jpg"))
    return root


SPLIT_SAID = {"split": "train"}
CASES = (
    Case("a folder with brackets beside one that they match", brackets_beside, 3),
    Case("a file in a folder with brackets", brackets, 3),
    Case("a pattern under a folder with brackets", pattern_in_brackets, 6),
    Case("parquet that a notebook's editor keeps", notebook, 3,
         left_out=(".ipynb_checkpoints/a-checkpoint.parquet",)),
    Case("shards of three splits", split_shards, 4, left_out=OTHERS, counts=SPLIT_SAID, says=("train",)),
    Case("shards of three splits: test", split_shards, 3, settings={"split": "test"}, counts={"split": "test"}),
    Case("shards of three splits: all", split_shards, 9, settings={"split": "all"}),
    Case("shards of three splits: one that is not there", split_shards, None, settings={"split": "holdout"},
         says=("holdout", "train", "validation", "test"), stops=("data check", "cache")),
    Case("Pick-a-Pic's five splits", five_splits, 4, counts=SPLIT_SAID),
    Case("Pick-a-Pic's five splits: test", five_splits, 3, settings={"split": "test"}),
    Case("Pick-a-Pic's five splits: test_unique", five_splits, 2, settings={"split": "test_unique"}),
    Case("folders of two splits, parquet", split_folders, 4, left_out=("test/0.parquet",), counts=SPLIT_SAID),
    Case("folders of two splits, parquet: test", split_folders, 3, settings={"split": "test"}),
    Case("folders of two splits, parquet: all", split_folders, 7, settings={"split": "all"}),
    Case("folders of two splits, w and l", split_halves, 4, counts=SPLIT_SAID, says=("test",)),
    Case("folders of two splits, w and l: all", split_halves, 7, settings={"split": "all"}),
    Case("folders of two splits, records", split_records, 4, left_out=("test/metadata.jsonl",), counts=SPLIT_SAID),
    Case("folders of two splits, records: test", split_records, 3, settings={"split": "test"}),
    Case("folders of two splits, records: all", split_records, 7, settings={"split": "all"}),
    Case("places of two files", places, 6, 1, says=("b/train-1.parquet row 2",)),
    Case("a wide and a tall image in one pair", wide_and_tall, 2, counts={"different_shapes": 1},
         settings={"buckets": True, "bucket_step": 8}),
    Case("captions longer than the encoder's tokens", long_captions, 3, counts={"over_length": 2}),
    Case("subfolders of w and l", subfolders, 3),
    Case("a document beside an image of its name", document_beside, 3, left_out=("w/000.pdf",)),
    Case("images whose names have no extension", no_extensions, 4),
    Case("files of every kind in w and l", every_kind_of_file, None, None,
         accounted=("b.heic", "c.jxl", "000.pdf", "001.psd", "README", "Thumbs.db")),
    Case("images that no record names", unnamed_images, 3, left_out=("spare.jpg", "more/spare.png")),
    Case("captions in NAME.caption", other_captions, 3),
    Case("composed names in w, decomposed ones in l", two_normal_forms, 3),
    Case("composed names in records, decomposed ones on disk", another_normal_form, 3),
)  # fmt: skip
