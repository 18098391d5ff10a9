"""A user's own function by `module:function`: found, or one line that says what is wrong, and where."""

import sys

import pytest

from fdpo_fast.config.errors import UserError
from fdpo_fast.evaluate.judging import Tool, judged, try_out
from fdpo_fast.evaluate.plugins import named

OURS = {"clip": "ours"}


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a module; returns its name, which no other test has imported, and its file."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(content):
        file = tmp_path / f"written_{abs(hash(content))}.py"
        file.write_text(content)
        return file.stem, file

    return write


def test_a_function_with_its_options(module):
    name, _ = module("def f(images, prompts, by=1):\n    return by * len(images)\n")
    assert named(f"{name}:f", OURS, "key", {"by": 3})([1, 2], []) == 6
    assert named("clip", OURS, "key") == "ours"


@pytest.mark.parametrize("name", ["", ":", "clip2", "a:", ":f", ".a:f", "a.:f", "a b:f", "a:f.g", "a/b.py:f"])
def test_what_is_no_name_of_a_function(name):
    with pytest.raises(UserError, match=r"^key has no '.*': use clip, or a function of yours as 'module:function'$"):
        named(name, OURS, "key")


@pytest.mark.parametrize(
    ("content", "words", "line"),
    [
        ("def f(:\n", "SyntaxError: .*", 1),
        ("import os\nraise ValueError('no\\nway')\n", "ValueError: no", 2),
        ("x = 1\n\n1 / 0\n", "ZeroDivisionError: division by zero", 3),
        ("def f():\n    pass\nimport nowhere_to_be_found\n", "ModuleNotFoundError: No module named .*", 3),
        ("raise ValueError\n", "ValueError: ValueError", 1),
    ],
)
def test_a_module_that_cannot_be_read(module, content, words, line):
    name, file = module(content)
    with pytest.raises(UserError, match=rf"^key '{name}:f': {words} \({file}, line {line}\)$"):
        named(f"{name}:f", OURS, "key")


@pytest.mark.parametrize("package", [False, True])
def test_a_short_name_is_told_from_the_files_it_occurs_in(tmp_path, monkeypatch, package):
    """`e` is in every path; the fault is deep in a library, and its place is where the user's code called it."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "e", raising=False)
    file = tmp_path / ("e/__init__.py" if package else "e.py")
    file.parent.mkdir(exist_ok=True)
    file.write_text("import json\n\n\njson.loads('{')\n")
    with pytest.raises(UserError, match=rf"^key 'e:f': JSONDecodeError: .* \({file}, line 4\)$"):
        named("e:f", OURS, "key")


def test_what_is_not_in_a_module(module):
    name, file = module("f = 3\n")
    with pytest.raises(UserError, match=rf"^key '{name}:g': the module {name} \({file}\) has no 'g'$"):
        named(f"{name}:g", OURS, "key")
    with pytest.raises(UserError, match=rf"^key '{name}:f' is no function, but int$"):
        named(f"{name}:f", OURS, "key")
    with pytest.raises(UserError, match=r"^key 'nowhere.at_all:f': No module named 'nowhere'$"):
        named("nowhere.at_all:f", OURS, "key")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return {}['score']", r"KeyError: 'score' \(.*, line 2\)"),
        ("import json; return json.loads('{')", r"JSONDecodeError: .* \(.*, line 2\)"),
        ("return None", "gave None in place of 1 scores"),
        ("return ['a']", r"gave \['a'\] in place of 1 scores"),
        ("return {'a': 1}", "gave {'a': 1} in place of 1 scores"),
        ("return [float('nan')]", "gave nan for an image of 'a', and is to give finite scores"),
        ("return []", "gave 0 scores for 1 images"),
    ],
)
def test_a_function_that_fails_is_named_with_its_place(module, body, words):
    name, _ = module(f"def f(images, prompts):\n    {body}\n")
    function = named(f"{name}:f", OURS, "key")
    with pytest.raises(UserError, match=rf"^evaluate.scorers '{name}:f': {words}$"):
        judged(Tool(f"{name}:f", "yours", [], lambda: function), [None], ["a"], 1)


def test_a_tool_is_tried_out_and_let_go():
    loaded = []
    try_out([Tool("a", "", [], lambda: loaded.append(1) or len)])
    assert loaded == [1]

    def absent():
        raise OSError("no such weights\nand more")

    with pytest.raises(UserError, match=r"^mine 'b' cannot be loaded: no such weights$"):
        try_out([Tool("b", "", [], absent)], "mine")
