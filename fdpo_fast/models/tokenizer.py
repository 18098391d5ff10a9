"""Tokenizers: one of CLIP's kind without a download, and by how much captions are too long for a pipeline's."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, CLIPTokenizer, PreTrainedTokenizerFast

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


def t5_tokenizer(captions: Iterable[str], length: int) -> PreTrainedTokenizerFast:
    """Make a tokenizer of T5's kind: words, and signs for any other; `length`: tokens per caption, the end included."""
    words = sorted({f"\u2581{word}" for caption in captions for word in caption.split()})
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}  # their ids are those of T5
    pieces = [(piece, 0.0) for piece in special.values()] + [(word, -2.0) for word in words]
    pieces += [(sign, -9.0) for sign in ("\u2581", *map(chr, range(33, 127)))]
    learner = Tokenizer(models.Unigram(pieces, unk_id=2))
    learner.pre_tokenizer = pre_tokenizers.Metaspace()
    learner.decoder = decoders.Metaspace()
    learner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=learner, model_max_length=length, **special)


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
