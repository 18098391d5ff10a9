"""A training set over tiny models, its caches filled on the way."""

import pytest
import torch

from fdpo_fast.cache.build import Builder
from fdpo_fast.cache.dataset import TrainingSet
from fdpo_fast.config.load import load
from fdpo_fast.data.readers.detect import open_source
from fdpo_fast.distributed import Rank
from fdpo_fast.models import load_family
from tests.helpers.caches import ROWS
from tests.helpers.pictures import write

RANK = Rank(0, 1, torch.device("cpu"), lambda: None)


@pytest.fixture
def training_set(tiny_config, write_config, tmp_path):
    """Make a TrainingSet from rows (caption, jpg_0, jpg_1, label_0) or from a source."""

    def make(rows=None, *overrides, family="sd", source=None, requested=False):
        if source is None:
            source = tmp_path / "rows.parquet"
            if rows or not source.exists():
                write(source, rows or ROWS)
        settings = load(write_config(tiny_config(family, source)), overrides)
        model = load_family(settings.model)
        builder = Builder(tmp_path / "cache", RANK, requested)
        data = TrainingSet(settings, model, open_source(settings.data), builder)
        if settings.reference.mode == "cached":
            data.cache_reference(lambda: model.denoiser(torch.float32))
        return data

    return make
