"""`fdpo config`: the keys as the schema has them, and what a file sets."""

import re

import pytest

from fdpo_fast.cli import main
from fdpo_fast.config.keys import keys
from fdpo_fast.config.run import Config
from tests.helpers import ROOT


def explained(capsys, *name):
    main(["config", "--explain", *name])
    return capsys.readouterr().out


def test_everything_is_explained(capsys):
    said = explained(capsys)
    assert re.findall(r"^([\w.\[\]]+):", said, re.M) == [key.name for key in keys(Config)]
    assert all(key.meaning in said and key.meaning for key in keys(Config))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("loss.beta", ["loss.beta: number > 0; required\n    strength"]),
        ("model.train", ["model.train: full, lora; default \"full\"\n"]),
        ("log", ["log: What a run tells", "log.every: integer >= 1; default 10\n"]),
        ("evaluate.scorers", ["evaluate.scorers: list of objects", "evaluate.scorers[].name: string; required\n"]),
        ("reference.mode", ["cached, live, adapter; default adapter for LoRA, else cached\n"]),
        ("deepspeed", ["deepspeed: object; default {}\n    DeepSpeed's own keys"]),
    ],
)  # fmt: skip
def test_a_key_or_a_section_is_explained(capsys, name, says):
    said = explained(capsys, name)
    assert all(part in said for part in says)
    assert all(line.startswith((name, "    ")) for line in said.splitlines())


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--explain", "loss.betta"], "no key or section 'loss.betta': did you mean 'loss.beta'?"),
        (["--explain", "betta"], "did you mean 'loss.beta'?"),
        (["--explain", "optimiser"], "did you mean 'optimizer'?"),
        (["--explain", "qqqqq"], "--explain alone lists all"),
        ([], r"pass --explain \[KEY\] .*, or --config FILE"),
        (["--config", "nothing.json"], "cannot read the config"),
    ],
)
def test_mistakes(words, says):
    with pytest.raises(SystemExit, match=says):
        main(["config", *words])


def test_what_a_file_sets_comes_first(capsys):
    main(["config", "--config", str(ROOT / "configs/sd15_js.json"), "--set", "train.seed=3"])
    own, rest = capsys.readouterr().out.split("\nas by default:\n")
    assert {"train.seed = 3", 'data.cache_dtype = "fp16"', 'model.family = "sd"'} <= set(own.splitlines())
    assert {"data.workers = 4", 'evaluate.scorers = ["clip"]', "model.lora.rank = 8"} <= set(rest.splitlines())
    assert "compare" not in own + rest
