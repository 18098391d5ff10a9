"""Tokenizers: one of CLIP's kind without a download, and by how much captions are too long for a pipeline's."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, CLIPTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

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
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"}  # their ids are those of T5
    learner = _of_words(captions, [*special.values()])
    learner.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=learner, model_max_length=length, **special)


CHAT = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""How a conversation is written for a language model, as Qwen's own template has it."""


def chat_tokenizer(captions: Iterable[str], length: int) -> PreTrainedTokenizerFast:
    """Make a tokenizer of a language model's kind: words, signs for any other, and a template of conversations."""
    special = {"pad_token": "<|endoftext|>", "eos_token": "<|im_end|>", "unk_token": "<unk>"}
    learner = _of_words(captions, [*special.values()])
    made = PreTrainedTokenizerFast(
        tokenizer_object=learner, model_max_length=length, additional_special_tokens=["<|im_start|>"], **special
    )
    made.chat_template = CHAT
    return made


def _of_words(captions: Iterable[str], special: list[str]) -> Tokenizer:
    """Make a tokenizer of the captions' words, and of signs for any other; the third of `special` is for the rest."""
    words = sorted({f"\u2581{word}" for caption in captions for word in caption.split()})
    pieces = [(piece, 0.0) for piece in special] + [(word, -2.0) for word in words]
    pieces += [(sign, -9.0) for sign in ("\u2581", *map(chr, range(33, 127)))]
    learner = Tokenizer(models.Unigram(pieces, unk_id=2))
    learner.pre_tokenizer = pre_tokenizers.Metaspace()
    learner.decoder = decoders.Metaspace()
    return learner


Excess = Callable[[list[str]], list[int]]
"""Says of captions by how many tokens they are longer than what text encoders read; the rest is not seen."""


def excess(pipeline: Path, length: int | None = None) -> Excess | None:
    """Load the tokenizers of a pipeline's folder; None where it has none.

    length: the most tokens of an encoder that is not CLIP; None is what its tokenizer says. A caption is longer than
    what is read by what none of several encoders reads.
    """
    tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in sorted(pipeline.glob("tokenizer*"))]

    def over(captions: list[str]) -> list[int]:
        return [max(0, min(found)) for found in zip(*(_over(one, captions, length) for one in tokenizers), strict=True)]

    return over if tokenizers else None


def _over(tokenizer: PreTrainedTokenizerBase, captions: list[str], length: int | None) -> list[int]:
    if tokenizer.chat_template:
        turns = [[{"role": "user", "content": caption}] for caption in captions]
        captions = [tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True) for turn in turns]
    limit = tokenizer.model_max_length if length is None or isinstance(tokenizer, CLIPTokenizer) else length
    return [len(ids) - limit for ids in tokenizer(captions, verbose=False)["input_ids"]] if captions else []
