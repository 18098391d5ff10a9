"""Embeddings that rows bring along are each row's own, whatever captions are equal."""

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from fdpo_fast.cache.text import EMPTY
from fdpo_fast.config.errors import UserError
from tests.helpers.caches import folders
from tests.helpers.pictures import BLUE, RED

SHAPE = (77, 8)


@pytest.fixture
def embedded(tmp_path):
    """Make a source of rows (caption, value): every number of the row's embedding is that value, None a null."""

    def make(*rows):
        rng = np.random.default_rng(0)
        columns = {
            "caption": [caption for caption, _ in rows],
            "label_0": [1.0] * len(rows),
            "label_1": [0.0] * len(rows),
            "prompt_embeds": [value if value is None else np.full(SHAPE, value).tolist() for _, value in rows],
        }
        columns |= {f"latents_{i}": [rng.normal(size=(4, 32, 32)).tolist() for _ in rows] for i in (0, 1)}
        pq.write_table(pa.table(columns), tmp_path / "x.parquet")
        return tmp_path / "x.parquet"

    return make


def of_pairs(data):
    batch = data.batch(torch.arange(len(data)), torch.zeros(len(data), dtype=torch.int64))
    return batch.condition["prompt_embeds"][: len(data), 0, 0].tolist()


def test_equal_captions_keep_their_own_embeddings(training_set, embedded):
    data = training_set(None, "data.max_refused=1", source=embedded(("a", 1), ("", 2), ("a", 3), ("", 4), ("a", 1)))
    assert of_pairs(data) == [1, 2, 3, 4, 1]
    assert len(data.text) == 5  # four, and the one of dropout
    assert data.text.entry("prompt_embeds", data.entries[EMPTY])[0, 0] == 2  # the first row's


def test_an_empty_caption_that_no_row_has_is_encoded(training_set, embedded):
    data = training_set(source=embedded(("a", 1), ("a", 2)))
    empty = data.text.entry("prompt_embeds", data.entries[EMPTY])
    torch.testing.assert_close(empty, data.family.text_encoder(torch.device("cpu"))([""])["prompt_embeds"][0])
    assert of_pairs(data) == [1, 2]


def test_a_refused_row_between_others_is_passed_over(training_set, embedded):
    data = training_set(None, "data.max_refused=1", source=embedded(("a", 1), ("b", None), ("c", 3)))
    assert of_pairs(data) == [1, 3]


def test_captions_that_change_places_are_another_reference_cache(training_set, tmp_path):
    """Of the same distinct captions in the same order, on the same images."""
    for last in ("a", "b"):
        training_set([("a", RED, BLUE, 1.0), ("b", RED, BLUE, 1.0), (last, RED, BLUE, 1.0)])
    assert [len(folders(tmp_path, kind)) for kind in ("latents", "text", "reference")] == [1, 1, 2]


WIDTH, TOKENS = 32, 24
"""Of a caption's embeddings for `tiny_z_image`, and how many tokens rows bring."""


@pytest.fixture
def embedded_for_z_image(tmp_path):
    """Make a source of two rows whose embeddings have TOKENS tokens, all the mask's but one in the first row."""

    def make(mask=TOKENS):
        rng = np.random.default_rng(0)
        columns = {"caption": ["a", ""], "label_0": [1.0, 1.0], "label_1": [0.0, 0.0]}
        columns["prompt_embeds"] = [rng.normal(size=(TOKENS, WIDTH)).tolist() for _ in range(2)]
        columns["prompt_mask"] = [[1.0] * (mask - 1) + [0.0], [1.0] * mask]
        columns |= {f"latents_{i}": [rng.normal(size=(4, 32, 32)).tolist() for _ in range(2)] for i in (0, 1)}
        pq.write_table(pa.table(columns), tmp_path / "x.parquet")
        return tmp_path / "x.parquet"

    return make


def test_embeddings_with_a_mask_may_have_other_numbers_of_tokens(training_set, embedded_for_z_image):
    data = training_set(family="z_image", source=embedded_for_z_image())
    batch = data.batch(torch.arange(2), torch.zeros(2, dtype=torch.int64))
    assert batch.condition["prompt_embeds"].shape[1:] == (TOKENS, WIDTH)
    assert batch.condition["prompt_mask"].sum(dim=1).tolist() == [TOKENS - 1, TOKENS] * 2


def test_a_mask_of_other_tokens_than_its_embeddings_is_told(training_set, embedded_for_z_image):
    with pytest.raises(UserError, match=r"^prompt_embeds and prompt_mask of data\.source have other numbers of tokens"):
        training_set(family="z_image", source=embedded_for_z_image(mask=TOKENS - 1))


def test_fewer_tokens_than_stand_around_a_caption_are_told(training_set):
    with pytest.raises(UserError, match=r"model\.text_tokens is 2, and what stands around a caption already takes \d+"):
        training_set(None, "model.text_tokens=2", family="z_image")


def test_other_numbers_of_tokens_are_told_apart_in_words(training_set, tmp_path):
    for tokens in (128, 64):
        training_set(None, f"model.text_tokens={tokens}", family="sd3")
    found = [json.loads((folder / "manifest.json").read_text()) for folder in folders(tmp_path, "text")]
    assert {manifest["text_tokens"] for manifest in found} == {64, 128}
    assert len({manifest["text"] for manifest in found}) == 1
