"""What is said of wrong values: our words for every kind of mistake, whatever JSON stands wherever."""

import json
import re

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from fdpo_fast.config.errors import UserError
from fdpo_fast.config.keys import keys
from fdpo_fast.config.load import load
from fdpo_fast.config.mistakes import checked
from fdpo_fast.config.run import Config
from fdpo_fast.config.schema import Model

RAW = {
    "model": {"family": "sd", "base": "some/model"},
    "data": {"source": "pairs"},
    "loss": {"beta": 1.0, "ratio_scale": 2500.0},
    "optimizer": {"lr": 1e-5},
    "train": {"output_dir": "out", "max_steps": 10, "pairs_per_step": 8, "pairs_per_micro_batch": 2},
}
COMPARE = {"divergences": ["jeffreys"], "strengths": [1.0], "alignment": "a", "preference": "p", "diversity": "d"}


def refusal(make):
    """What is said against something; nothing where it is taken."""
    try:
        make()
    except UserError as error:
        return str(error)
    return ""


def changed(path, value):
    """The configuration with a value at a key, in a list where the key is of one."""
    raw = json.loads(json.dumps(RAW | ({"compare": COMPARE} if path.startswith("compare.") else {})))
    *sections, key = path.split(".")
    node = raw
    for section in sections:
        name = section.removesuffix("[]")
        if section.endswith("[]"):
            node[name] = [{}]
            node = node[name][0]
        else:
            node = node.setdefault(name, {})
    node[key] = value
    return raw


@pytest.mark.parametrize(
    ("path", "value", "says"),
    [
        ("train.max_steps", "ten", "'train.max_steps' must be an integer >= 1, got \"ten\""),
        ("train.max_steps", 1.5, "'train.max_steps' must be an integer >= 1, got 1.5"),
        ("train.max_steps", 1e3, "'train.max_steps' must be an integer >= 1, got 1000.0: write 1000"),
        ("train.max_steps", None, "'train.max_steps' must be an integer >= 1, got null"),
        ("train.seed", 2**32, "'train.seed' must be an integer >= 0, < 2^32, got 4294967296"),
        ("optimizer.lr", "1E-5", "'optimizer.lr' must be a number >= 0, got \"1E-5\": write 1e-05"),
        ("optimizer.lr", float("nan"), "'optimizer.lr' must be a number >= 0, got NaN"),
        ("optimizer.betas", [0.9], "'optimizer.betas' must be a list of 2, each number >= 0, < 1, got [0.9]"),
        ("optimizer.betas", [0.9] * 3, "'optimizer.betas' must be a list of 2, each number >= 0, < 1, got [0.9, 0.9"),
        ("optimizer.betas", [0.9, "x"], "'optimizer.betas.1' must be a number >= 0, < 1, got \"x\""),
        ("model.compile", "True", "'model.compile' must be a boolean, got \"True\": write true"),
        ("model.train", "half", "'model.train' must be one of full, lora, got \"half\""),
        ("model.base", 3, "'model.base' must be a string, got 3: write \"3\""),
        ("model.lora", 8, "'model.lora' must be an object of keys, got 8"),
        ("model.lora.targets", [], "'model.lora.targets' must be a list of string, not empty, got []"),
        ("model.lora.targets", "to_q", 'must be a list of string, not empty, got "to_q": write ["to_q"]'),
        ("log.prompts", ["a cat", 5], "'log.prompts.1' must be a string, got 5: write \"5\""),
        ("evaluate.prompts", 5, "'evaluate.prompts' must be a string or list of string, got 5: write \"5\""),
        ("evaluate.prompts", [{}], "'evaluate.prompts' must be a string or list of string, got [{}]"),
        ("evaluate.scorers", [5], "'evaluate.scorers.0' must be an object of keys or a name, got 5"),
        ("evaluate.scorers[].model", 5, "'evaluate.scorers.0.model' must be a string or null, got 5"),
        ("compare.strengths", [1, -1], "'compare.strengths.1' must be a number > 0, got -1"),
        ("deepspeed", [], "'deepspeed' must be an object, got []"),
        ("model.base", ["x" * 300], "..."),
    ],
)
def test_every_kind_of_mistake_has_words_of_ours(path, value, says):
    with pytest.raises(UserError) as caught:
        checked(Config, changed(path, value))
    assert says in str(caught.value)
    assert len(str(caught.value)) < 300


KEYS = [key.name for key in keys(Config)]
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(KEYS),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text() | st.sampled_from(KEYS), inner, max_size=3),
    max_leaves=6,
)
THEIRS = re.compile(r"pydantic|https?:|[Ii]nput should|valid (string|list|dict|integer|number|boolean)|ctx|None\b")


@settings(max_examples=600)
@given(st.sampled_from(KEYS), JSON)
@example("data.max_rows", 10**400)
@example("optimizer.lr", 10**400)
@example("deepspeed.zero_optimization", {"offload_param": {"device": []}, "stage": []})
@example("deepspeed.bf16", {"enabled": [], "bf16_master_weights_and_grads": {}})
def test_whatever_stands_anywhere_is_taken_or_refused_in_our_words(path, value):
    said = refusal(lambda: checked(Config, changed(path, value)).for_deepspeed(1))
    said = said.replace(json.dumps(value)[:97], "")
    assert not THEIRS.search(said), said
    assert "\n" not in said
    assert not [name for name in ("Config", "DigitsRecipe", "Model", "LoRA", "Measure", "Kind") if name in said]


@settings(max_examples=100)
@given(JSON)
def test_whatever_stands_in_place_of_a_configuration_is_refused_in_our_words(raw):
    with pytest.raises(UserError) as caught:
        checked(Config, raw)
    assert not THEIRS.search(re.sub(r"unknown key '.*?'[,;]?", "", str(caught.value)))  # which is the user's


def test_a_section_alone_is_checked_by_its_own_keys():
    with pytest.raises(
        UserError, match=r"^a file: the key 'base' is missing; unknown key 'bse', did you mean 'base'\?$"
    ):
        checked(Model, {"family": "sd", "bse": "x"}, "a file: ")


@pytest.mark.parametrize("place", ["model.base", "deepspeed", "log.prompts"])
@pytest.mark.parametrize("text", ["\ud800", "a\0b"])
def test_characters_that_nothing_can_have(tmp_path, place, text):
    value = {"model.base": text, "deepspeed": {text: 1}, "log.prompts": ["a cat", text]}[place]
    file = tmp_path / "config.json"
    file.write_text(json.dumps(changed(place, value)))
    with pytest.raises(UserError, match=r"has a character that no file, caption or name can have"):
        load(file)


def test_a_file_that_is_nested_too_deeply(tmp_path):
    file = tmp_path / "config.json"
    file.write_text("[" * 100_000)
    with pytest.raises(UserError, match="nested too deeply"):
        load(file)
