"""`fdpo`'s own part of a command line: names of one or two words, launchers' words, what is not known."""

import pytest

from fdpo_fast.cli import main


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
        (["--help"], "usage: fdpo [-h] COMMAND"),
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
