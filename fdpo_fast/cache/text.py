"""The cache of text embeddings: every distinct caption goes through the text encoders once.

An entry is a text: a caption, and what tells its embeddings apart where rows bring them along. ("", 0) is the empty
caption of dropout.
"""

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
from fdpo_fast.models.placement import collect
from fdpo_fast.models.precision import DTYPES
from fdpo_fast.progress import Bar

if TYPE_CHECKING:
    from fdpo_fast.models.facts import Facts
    from fdpo_fast.models.family import TextEncoder
    from fdpo_fast.models.tokenizer import Excess

_CAPTIONS_PER_SHARD = 1024
EMPTY = ("", 0)
"""The text that dropped captions become."""


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
    lengths = {found[key][0] for key in facts.text_keys if len(facts.text_shapes[key]) == 2 or key in facts.masks}
    if len(lengths) > 1:
        raise UserError(f"{' and '.join(found)} of data.source have other numbers of tokens: give one for each")
    for key in facts.text_keys:
        if key in facts.masks:
            continue
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
) -> tuple[Shards, dict[tuple[str, int], int]]:
    """Embed every distinct text once, `EMPTY` included; returns the shards and each text's entry.

    Embeddings that the source brings along are taken as they are; `EMPTY` has those of the first row with an empty
    caption, and is encoded where there is none.
    The column `excess` has by how many tokens a caption is longer than what the encoders read. Collective.
    """
    dtype = DTYPES[config.data.cache_dtype]
    texts = pairs.texts()
    distinct = list(dict.fromkeys([EMPTY, *texts]))
    ready = source if brought_by(source) and isinstance(source, EmbeddedSource) else None
    rows: dict[tuple[str, int], int] = {}
    if ready:
        for text, row in zip(texts, pairs.row.tolist(), strict=True):
            rows.setdefault(text, row)
            if not text[0]:
                rows.setdefault(EMPTY, row)
    manifest = {
        "version": VERSION,
        "text": facts.text,
        "captions": digest(distinct),
        "embeddings": source.identity() if ready else None,
        "dtype": config.data.cache_dtype,
    }
    if facts.text_tokens:
        manifest["text_tokens"] = facts.text_tokens
    encoder, excess = cache(load_encoder), cache(load_excess)
    # of embeddings that came ready only the empty caption's is missing: no model goes to the GPU for that
    device = torch.device("cpu") if ready else builder.rank.device

    def encode(captions: list[str]) -> dict[str, list[Tensor]]:
        return {key: list(value) for key, value in encoder(device)(captions).items()}

    def make(shard: int, bar: Bar) -> Shard:
        part = distinct[shard * _CAPTIONS_PER_SHARD : (shard + 1) * _CAPTIONS_PER_SHARD]
        tokens = facts.text_tokens
        if tokens and not ready and (count := excess()) and (beyond := count([""])[0]) > 0:
            raise UserError(
                f"model.text_tokens is {tokens}, and what stands around a caption already takes {tokens + beyond}: "
                "raise it"
            )
        items: dict[str, list[Tensor]] = {key: [] for key in facts.text_keys}
        found = _embeddings(ready, part, rows) if ready else {}
        if ready and EMPTY in part and EMPTY not in rows:
            found[EMPTY] = {key: value[0] for key, value in encode([""]).items()}
        step = config.data.encoded_at_once
        for at in range(0, len(part), step):
            chunk = part[at : at + step]
            if ready:
                encoded = {key: [found[text][key] for text in chunk] for key in facts.text_keys}
            else:
                encoded = encode([caption for caption, _ in chunk])
            by = "data.source" if ready else "the text encoder"
            for key, values in encoded.items():
                items[key] += [
                    fitting(value, dtype, f"'{key}' of the caption {caption[:60]!r}", by)
                    for value, (caption, _) in zip(values, chunk, strict=True)
                ]
            bar.update(len(chunk))
        over = [0] * len(part) if ready or not (count := excess()) else count([caption for caption, _ in part])
        return Shard(columns={"excess": torch.tensor(over, dtype=torch.int64, device="cpu")}, items=items)

    counts = [min(_CAPTIONS_PER_SHARD, len(distinct) - at) for at in range(0, len(distinct), _CAPTIONS_PER_SHARD)]
    shapes = brought_by(source) or facts.text_shapes
    size = sum(torch.Size(shape).numel() for shape in shapes.values()) * dtype.itemsize
    sizes = [float(count * size) for count in counts]
    cache_of = Cache("text", manifest, lineage(config), counts, "captions", make, sizes)
    built = builder.build(cache_of)
    encoder.cache_clear()
    collect()
    return Shards(built, by=facts.text_keys[0]), {text: entry for entry, text in enumerate(distinct)}


def _embeddings(
    source: EmbeddedSource, texts: list[tuple[str, int]], rows: dict[tuple[str, int], int]
) -> dict[tuple[str, int], dict[str, Tensor]]:
    """Read embeddings by text; texts are in the order of their first row, so a shard's lie close together.

    Raises UserError where a row cannot be read any more.
    """
    first = {text: rows[text] for text in texts if text in rows}
    wanted, found = set(first.values()), {}
    if wanted:
        for row, _, values in source.embeddings(min(wanted), max(wanted) + 1):
            if row in wanted:
                found[row] = {key: torch.from_numpy(value) for key, value in values.items()}
    if lost := wanted - set(found):
        raise UserError(
            f"row {min(lost)} of data.source has changed since it was looked at: run the same command again"
        )
    return {text: found[row] for text, row in first.items()}
