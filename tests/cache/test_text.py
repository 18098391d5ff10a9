"""Embeddings that rows bring along are each row's own, whatever captions are equal."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from fdpo_fast.cache.text import EMPTY
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
