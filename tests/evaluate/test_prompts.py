"""Captions from the files in which prompt sets are published, and one sentence for each that is broken."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fdpo_fast.evaluate.prompts import read_prompts

CAPTIONS = ["a red cube", 'a sign that says "Hello, world"', "ein Bär, im Wald"]


def files(folder):
    """The same captions in every format, by the columns that published sets have."""
    quoted = [caption.replace('"', '""') for caption in CAPTIONS]
    tsv = ["Prompt\tCategory\tChallenge\tNote", *(f'"{caption}"\tArts\tBasic\t' for caption in quoted)]  # PartiPrompts
    texts = {
        "a.txt": "\n\n".join(CAPTIONS) + "\n",
        "a.tsv": "\n".join(tsv) + "\n",
        "a.csv": "number,caption\n" + "".join(f'{n},"{caption}"\n' for n, caption in enumerate(quoted)),
        "a.json": json.dumps(CAPTIONS),  # HPDv2
        "objects.json": json.dumps([{"prompt": caption, "id": 1} for caption in CAPTIONS]),
        "a.jsonl": "".join(json.dumps({"prompt": caption}) + "\n\n" for caption in CAPTIONS),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    pq.write_table(pa.table({"caption": CAPTIONS, "uid": [1, 2, 3]}), folder / "a.parquet")  # Pick-a-Pic
    return [folder / name for name in (*texts, "a.parquet")]


def test_every_format_gives_the_same_captions(tmp_path):
    for path in files(tmp_path):
        assert read_prompts(str(path)) == CAPTIONS, path
    assert read_prompts(CAPTIONS) == CAPTIONS


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("none.txt", None, "does not exist"),
        ("empty.txt", "\n  \n", "holds no captions"),
        ("empty.tsv", "Prompt\tCategory\n", "holds no captions"),
        ("nothing.tsv", "", "none of the columns"),
        ("column.csv", "words\ncat\n", "none of the columns prompt"),
        ("fields.tsv", "Prompt\tCategory\na cat\tArts\na dog\n", "broken in line 3: 1 fields in place of 2"),
        ("blank.csv", "caption,x\ncat,1\n,2\n", "caption 2 is empty"),
        ("half.json", '["a cat", "a d', "broken in line 1"),
        ("object.json", '{"a": 1}', "holds a dict"),
        ("number.json", "[1, 2]", "item 1: a int is no caption"),
        ("half.jsonl", '{"prompt": "a cat"}\n{"prompt": "a', "broken in line 2"),
        ("keys.jsonl", '{"words": "a cat"}\n', "none of the columns"),
        ("text.parquet", "not parquet at all", "no parquet file"),
        ("kind.docx", "a cat", "of no known kind"),
        ("latin.txt", b"a caf\xe9", "not UTF-8"),
    ],
)
def test_a_broken_file_is_told_in_a_sentence(tmp_path, name, content, words):
    path = tmp_path / name
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ValueError, match=words) as error:
        read_prompts(str(path))
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_quotes_in_tab_separated_text_are_text(tmp_path):
    path = tmp_path / "a.tsv"
    path.write_text('Prompt\tNote\r\n"Hi" on a wall\t\r\n"a ""b"" c"\t"\r\n5" nails\tx\r\n')
    assert read_prompts(str(path)) == ['"Hi" on a wall', 'a "b" c', '5" nails']


def test_each_caption_counts_once():
    assert read_prompts(["b", "a", " b "]) == ["b", "a"]


def test_no_captions_at_all():
    with pytest.raises(ValueError, match="--prompts FILE"):
        read_prompts([])
