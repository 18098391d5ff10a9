"""The cache of text embeddings: every distinct caption goes through the text encoders once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fdpo_fast.cache.build import Builder, Cache, lineage
from fdpo_fast.cache.pairs import Pairs
from fdpo_fast.cache.shards import VERSION, Shard, Shards, fitting
from fdpo_fast.config.errors import UserError
from fdpo_fast.config.run import Config
from fdpo_fast.data.pairs import EmbeddedSource, PairSource, brought_by
from fdpo_fast.files import digest
from fdpo_fast.models.precision import DTYPES
from fdpo_fast.progress import Bar

if TYPE_CHECKING:
    from fdpo_fast.models.family import Facts, TextEncoder
    from fdpo_fast.models.tokenizer import Excess

_CAPTIONS_PER_SHARD = 1024


def check_embeddings(config: Config, source: PairSource, facts: Facts, captions: list[str] | None = None) -> None:
    """Raise UserError where embeddings that the source brings along do not fit the model.

    captions: of the pairs, once they are known; an empty one is needed beside `data.caption_dropout`, and the one that
    the model's encoder makes has its own number of tokens.
    """
    found = brought_by(source)
    if not found:
        return
    if missing := [key for key in facts.text_keys if key not in found]:
        raise UserError(f"data.source has the column {', '.join(found)} but not {', '.join(missing)}: give all or none")
    for key in facts.text_keys:
        shape, taken = found[key], facts.text_shapes[key]
        if len(shape) != len(taken) or shape[-1] != taken[-1]:
            raise UserError(
                f"'{key}' of data.source is {list(shape)}, and model.base takes {list(taken)}: encode the captions "
                "with its own text encoders, or leave the columns out"
            )
        if shape != taken and config.data.caption_dropout and captions is not None and "" not in captions:
            raise UserError(
                f"'{key}' of data.source is {list(shape)}, and the empty caption of data.caption_dropout is "
                f"{list(taken)}: bring a row with an empty caption, or set data.caption_dropout to 0"
            )


def cache_text(
    config: Config,
    pairs: Pairs,
    source: PairSource,
    facts: Facts,
    load_encoder: Callable[[torch.device], TextEncoder],
    load_excess: Callable[[], Excess | None],
    builder: Builder,
) -> tuple[Shards, dict[str, int]]:
    """Embed every distinct caption once, the empty one included; returns the shards and each caption's entry.

    Embeddings that the source brings along are taken as they are; the empty caption's, for dropout, is still encoded.
    The column `excess` has by how many tokens a caption is longer than what the encoders read. Collective.
    """
    dtype = DTYPES[config.data.cache_dtype]
    distinct = ["", *(caption for caption in dict.fromkeys(pairs.captions) if caption)]
    ready = source if brought_by(source) and isinstance(source, EmbeddedSource) else None
    rows = dict(zip(reversed(pairs.captions), pairs.row.flip(0).tolist(), strict=True)) if ready else {}
    manifest = {
        "version": VERSION,
        "text": facts.text,
        "captions": digest(distinct),
        "embeddings": source.identity() if ready else None,
        "dtype": config.data.cache_dtype,
    }
    encoder, excess = cache(load_encoder), cache(load_excess)
    # of embeddings that came ready only the empty caption's is missing: no model goes to the GPU for that
    device = torch.device("cpu") if ready else builder.rank.device

    def encode(part: list[str]) -> dict[str, list[Tensor]]:
        return {key: list(value) for key, value in encoder(device)(part).items()}

    def make(shard: int, bar: Bar) -> Shard:
        part = distinct[shard * _CAPTIONS_PER_SHARD : (shard + 1) * _CAPTIONS_PER_SHARD]
        items: dict[str, list[Tensor]] = {key: [] for key in facts.text_keys}
        found = _embeddings(ready, part, rows) if ready else {}
        if ready and "" in part and "" not in rows:
            found[""] = {key: value[0] for key, value in encode([""]).items()}
        step = config.data.encoded_at_once
        for at in range(0, len(part), step):
            chunk = part[at : at + step]
            encoded = {key: [found[c][key] for c in chunk] for key in facts.text_keys} if ready else encode(chunk)
            by = "data.source" if ready else "the text encoder"
            for key, values in encoded.items():
                items[key] += [
                    fitting(value, dtype, f"'{key}' of the caption {caption[:60]!r}", by)
                    for value, caption in zip(values, chunk, strict=True)
                ]
            bar.update(len(chunk))
        over = [0] * len(part) if ready or not (count := excess()) else count(part)
        return Shard(columns={"excess": torch.tensor(over, dtype=torch.int64, device="cpu")}, items=items)

    counts = [min(_CAPTIONS_PER_SHARD, len(distinct) - at) for at in range(0, len(distinct), _CAPTIONS_PER_SHARD)]
    shapes = brought_by(source) or facts.text_shapes
    size = sum(torch.Size(shape).numel() for shape in shapes.values()) * dtype.itemsize
    sizes = [float(count * size) for count in counts]
    text = Cache("text", manifest, lineage(config), counts, "captions", make, sizes)
    return Shards(builder.build(text), by=facts.text_keys[0]), {caption: row for row, caption in enumerate(distinct)}


def _embeddings(source: EmbeddedSource, captions: list[str], rows: dict[str, int]) -> dict[str, dict[str, Tensor]]:
    """Read embeddings by caption; captions are in the order of their first row, so a shard's lie close together."""
    wanted = {rows[caption] for caption in captions if caption in rows}
    found: dict[str, dict[str, Tensor]] = {}
    if wanted:
        for row, caption, values in source.embeddings(min(wanted), max(wanted) + 1):
            if row in wanted:
                found[caption] = {key: torch.from_numpy(value) for key, value in values.items()}
    return found
