"""`fdpo`'s own part of a command line: names of one or two words, launchers' words, what is not known."""

import pytest

import fdpo_fast
from fdpo_fast.cli import main, parse


def end(*words):
    with pytest.raises(SystemExit) as error:
        main(list(words))
    return error.value.code


def test_what_a_command_does_not_know_is_refused_with_its_own_usage(capsys):
    assert end("plan", "--config", "x", "--image", "3") == 2
    said = capsys.readouterr().err
    assert said.startswith("usage: fdpo plan [-h] --config CONFIG")
    assert said.endswith("fdpo plan: error: unrecognized arguments: --image 3\n")
    assert end("nothing") == 2
    assert "argument COMMAND: invalid choice: 'nothing'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "usage"),
    [
        (["cache", "--help"], "usage: fdpo cache [-h]"),
        (["cache", "verify", "--help"], "usage: fdpo cache verify [-h]"),
        (["data", "check", "--help"], "usage: fdpo data check [-h]"),
        (["data", "--help"], "usage: fdpo data check [-h]"),
        (["--local_rank=1", "cache", "verify", "--help"], "usage: fdpo cache verify [-h]"),
        (["--help"], "usage: fdpo [-h] [--version] COMMAND"),
        (["completion", "--help"], "usage: fdpo completion [-h]"),
        (["--version"], f"fdpo_fast {fdpo_fast.__version__}\n"),
    ],
)
def test_help(capsys, words, usage):
    assert not end(*words)
    assert capsys.readouterr().out.startswith(usage)


@pytest.mark.parametrize("words", [["data"], ["data", "--config", "x"], ["data", "chek"]])
def test_half_a_name_is_one_sentence(words):
    assert end(*words) == "fdpo data: the command is `fdpo data check --config FILE`"


@pytest.mark.parametrize("words", [["--local_rank=0", "plan"], ["plan", "--local_rank", "0"]])
def test_words_of_launchers_are_taken(words, tmp_path):
    assert end(*words, "--config", str(tmp_path / "none.json")).startswith("fdpo plan: cannot read the config")


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["trian", "--config", "x"], "there is no command 'trian', did you mean 'train'?"),
        (["evalute"], "there is no command 'evalute', did you mean 'evaluate'?"),
        (["cache", "verfy", "--config", "x"], "there is no command 'cache verfy', did you mean 'cache verify'?"),
        (["dat", "chek"], "there is no command 'dat chek', did you mean 'data check'?"),
    ],
)
def test_a_mistyped_command_is_one_sentence(words, says):
    assert end(*words) == f"fdpo: {says}"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["train", "--confg", "x"], "fdpo train: error: unrecognized arguments: --confg, did you mean '--config'?"),
        (["train", "--config=x", "--dryrun"], "arguments: --dryrun, did you mean '--dry-run'?"),
        (["sample", "--config", "x", "--promts=y"], "arguments: --promts=y, did you mean '--prompts'?"),
        (["--versoin"], "fdpo: error: unrecognized arguments: --versoin, did you mean '--version'?"),
        (
            ["plan", "--card", "RTX 4091"],
            "argument --card: 'RTX 4091' is no card that we know: did you mean 'RTX 4090'?",
        ),
        (["plan", "--card", "Voodoo"], "is no card that we know: use one of A100, H100, "),
    ],
)
def test_a_mistyped_option_is_named_before_what_is_missing(capsys, words, says):
    assert end(*words) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("word", ["rtx4090", "NVIDIA GeForce RTX 4090", "RTX-4090"])
def test_a_card_is_known_however_it_is_spelled(word):
    assert parse(["plan", "--config", "x", "--card", word])[2]["card"] == "RTX 4090"
