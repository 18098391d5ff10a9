"""The cache of text embeddings: every distinct caption goes through the text encoders once."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fdpo_fast.cache.build import Builder, Cache, lineage
from fdpo_fast.cache.shards import VERSION, Shard, Shards, stored
from fdpo_fast.config.errors import UserError
from fdpo_fast.config.run import Config
from fdpo_fast.data.pairs import EmbeddedSource, PairSource, brought_by
from fdpo_fast.files import digest
from fdpo_fast.models.precision import DTYPES

if TYPE_CHECKING:
    from fdpo_fast.models.family import Facts, TextEncoder

_CAPTIONS_PER_SHARD = 1024


def cache_text(
    config: Config,
    latents: Shards,
    source: PairSource,
    facts: Facts,
    load_encoder: Callable[[torch.device], TextEncoder],
    builder: Builder,
) -> tuple[Shards, dict[str, int]]:
    """Embed every distinct caption once, the empty one included; returns the shards and each caption's entry.

    Embeddings that the source brings along are taken as they are; the empty caption's, for dropout, is still encoded.
    """
    dtype = DTYPES[config.data.cache_dtype]
    captions = latents.list("captions")
    distinct = ["", *(caption for caption in dict.fromkeys(captions) if caption)]
    ready = _bringing(source, facts.text_keys)
    rows = dict(zip(reversed(captions), (latents.column("id") >> 1).flip(0).tolist(), strict=True)) if ready else {}
    manifest = {
        "version": VERSION,
        "text": facts.text,
        "captions": digest(distinct),
        "embeddings": source.identity() if ready else None,
        "dtype": config.data.cache_dtype,
    }
    encoder = cache(load_encoder)
    # of embeddings that came ready only the empty caption's is missing: no model goes to the GPU for that
    device = torch.device("cpu") if ready else builder.rank.device

    def encode(part: list[str]) -> dict[str, list[Tensor]]:
        return {key: list(value) for key, value in encoder(device)(part).items()}

    def make(shard: int, advance: Callable[[int], Any]) -> Shard:
        part = distinct[shard * _CAPTIONS_PER_SHARD : (shard + 1) * _CAPTIONS_PER_SHARD]
        items: dict[str, list[Tensor]] = {key: [] for key in facts.text_keys}
        found = _embeddings(ready, part, rows) if ready else {}
        if ready and "" in part and "" not in rows:
            found[""] = {key: value[0] for key, value in encode([""]).items()}
        step = config.data.encoded_at_once
        for at in range(0, len(part), step):
            chunk = part[at : at + step]
            encoded = {key: [found[c][key] for c in chunk] for key in facts.text_keys} if ready else encode(chunk)
            for key, values in encoded.items():
                items[key] += [stored(value, dtype) for value in values]
            advance(len(chunk))
        return Shard(items=items)

    counts = [min(_CAPTIONS_PER_SHARD, len(distinct) - at) for at in range(0, len(distinct), _CAPTIONS_PER_SHARD)]
    text = Cache("text", manifest, lineage(config), counts, facts.text_elements * dtype.itemsize, make)
    return Shards(builder.build(text), by=facts.text_keys[0]), {caption: row for row, caption in enumerate(distinct)}


def _bringing(source: PairSource, text_keys: tuple[str, ...]) -> EmbeddedSource | None:
    """Return the source if it brings the embeddings, else None; UserError when only some of them."""
    found = brought_by(source)
    missing = [key for key in text_keys if key not in found]
    if found and missing:
        raise UserError(f"data.source has the column {', '.join(found)} but not {', '.join(missing)}: give all or none")
    return source if found and isinstance(source, EmbeddedSource) else None


def _embeddings(source: EmbeddedSource, captions: list[str], rows: dict[str, int]) -> dict[str, dict[str, Tensor]]:
    """Read embeddings by caption; captions are in the order of their first row, so a shard's lie close together."""
    wanted = {rows[caption] for caption in captions if caption in rows}
    found: dict[str, dict[str, Tensor]] = {}
    if wanted:
        start = min(wanted)
        for row, (caption, values) in enumerate(source.embeddings(start, max(wanted) + 1), start):
            if row in wanted:
                found[caption] = {key: torch.from_numpy(value) for key, value in values.items()}
                bad = [key for key, value in found[caption].items() if not value.isfinite().all()]
                first = next(iter(found.values()))
                bad += [key for key, value in found[caption].items() if value.shape != first[key].shape]
                if bad:
                    raise UserError(
                        f"row {row} of data.source: {bad[0]} is not finite, or of another shape: drop the row"
                    )
    return found
