"""Tokenizers: one of CLIP's kind without a download, and by how much captions are too long for a pipeline's."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, CLIPTokenizer

BEGIN, END = 0, 1
"""Ids of the special tokens; a text encoder's configuration has to name them."""


def clip_tokenizer(folder: Path, captions: Iterable[str], length: int) -> CLIPTokenizer:
    """Write vocabulary and merges to `folder` and load them. Any other word still encodes, byte by byte.

    `length`: tokens per caption, begin and end included.
    """
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    learner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False)
    learner.train_from_iterator(captions, trainer)
    model = json.loads(learner.to_str())["model"]
    pieces = sorted(alphabet) + [f"{byte}</w>" for byte in sorted(alphabet)]
    pieces += sorted(set(model["vocab"]) - set(pieces))
    words = ["<|startoftext|>", "<|endoftext|>", *pieces]
    folder.mkdir(exist_ok=True, parents=True)
    (folder / "vocab.json").write_text(json.dumps({word: i for i, word in enumerate(words)}))
    merges = [" ".join(pair) for pair in model["merges"]]
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]) + "\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=length)


Excess = Callable[[list[str]], list[int]]
"""Says of captions by how many tokens they are longer than what text encoders read; the rest is not seen."""


def excess(pipeline: Path) -> Excess | None:
    """Load the tokenizers of a pipeline's folder; None where it has none."""
    tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in sorted(pipeline.glob("tokenizer*"))]

    def over(captions: list[str]) -> list[int]:
        most = [0] * len(captions)
        for tokenizer in tokenizers:
            found = tokenizer(captions, verbose=False)["input_ids"] if captions else []
            most = [max(at, len(ids) - tokenizer.model_max_length) for at, ids in zip(most, found, strict=True)]
        return most

    return over if tokenizers else None
