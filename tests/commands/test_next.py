"""Each command of a first run names the one that follows, and that is the README's."""

import shlex

from fdpo_fast.cli import main, parse
from tests.helpers.pictures import as_pickapic, difficult_rows

WAY = ["data", "plan", "calibrate", "train", "sample", "evaluate", "report"]


def next_of(said):
    (line,) = [line for line in said.splitlines() if line.startswith("next: ")]
    return shlex.split(line.removeprefix("next: "))


def test_the_way_leads_from_the_pairs_to_the_report(command, tiny_config, write_config, tmp_path, capsys):
    raw = tiny_config("sdxl", as_pickapic(tmp_path, difficult_rows()))
    raw["evaluate"] = {"prompts": ["a cat"], "sampling_steps": 1, "images_per_prompt": 2, "diversity": ["rmse"]}
    raw["evaluate"]["scorers"] = []
    words, walked = ["data", "check", "--config", str(write_config(raw)), "--set", "train.max_steps=2"], []
    while words[0] != "report":
        walked.append(words[0])
        some = ["--pairs", "4", "--steps", "2"] if words[0] == "calibrate" else []
        main([*words, *some])
        program, *words = next_of(capsys.readouterr().out)
        assert program == "fdpo"
        parse(words)
    assert [*walked, words[0]] == WAY
    assert words[1] == raw["train"]["output_dir"]
    main(words)


def test_what_was_found_is_what_is_trained_with(command, tiny_config, tmp_path):
    raw = tiny_config("sd", as_pickapic(tmp_path, difficult_rows()))
    said = command(raw, "calibrate", "--pairs", "4", "--steps", "2")
    line = next(line for line in said.splitlines() if '"ratio_scale"' in line)
    words = next_of(said)
    for key in ("beta", "ratio_scale"):
        (value,) = [word.partition("=")[2] for word in words if word.startswith(f"loss.{key}=")]
        assert f'"{key}": {value}' in line


def test_captions_are_named_where_there_are_none(command, tiny_config, tmp_path):
    raw = tiny_config("sd", as_pickapic(tmp_path, difficult_rows()))
    words = next_of(command(raw, "train"))[1:]
    assert words[-1] == 'evaluate.prompts=["a cat", "a red car"]'
    main([*words, "--set", "evaluate.sampling_steps=1"])
