"""Before and after of the digits, and of nothing else."""

import json
from pathlib import Path

import pytest


def test_a_run_of_another_base_is_refused_before_a_base_is_made(raw_config, command, tmp_path):
    folder = Path(raw_config["train"]["output_dir"])
    (folder / "export").mkdir(parents=True)
    raw_config["data"]["cache_dir"] = str(tmp_path / "empty")
    other = raw_config | {"model": raw_config["model"] | {"base": "/models/other"}}
    for run, config, said in ((other, raw_config, str(folder)), (raw_config, other, "this model.base")):
        (folder / "config.json").write_text(json.dumps(run))
        with pytest.raises(SystemExit, match="is not of the embedded digits") as refused:
            command(config, "demo")
        assert str(refused.value).startswith(f"fdpo demo: {said}")
    assert not (tmp_path / "empty").exists()
