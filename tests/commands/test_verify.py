"""`fdpo verify`, and what draws from a folder, tell a file that has changed since it was written."""

import shutil
from pathlib import Path

import pytest

from fdpo_fast.cli import main


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def ends(words):
    with pytest.raises(SystemExit) as end:
        main(words)
    return str(end.value.code)


def test_a_run_and_its_parts(raw_config, command, write_config, capsys):
    raw_config["train"] |= {"max_steps": 2, "checkpoint_every": 1, "ema_decay": 0.5}
    command(raw_config, "train")
    run = Path(raw_config["train"]["output_dir"])
    main(["verify", str(run)])
    parts = [run / "export", run / "checkpoints/step-000001", run / "checkpoints/step-000002"]
    assert capsys.readouterr().out == "".join(f"{part}: as it was written\n" for part in parts)

    for file in [path for path in (run / "export").rglob("*") if path.is_file() and path.stat().st_size > 1]:
        flip(file)
        assert ends(["verify", str(run / "export")]) == f"fdpo verify: damaged: {run / 'export'}"
        assert file.name in capsys.readouterr().out
        flip(file)
    flip(run / "export/unet/diffusion_pytorch_model.safetensors")
    (parts[1] / "checksums.json").unlink()
    (parts[2] / "ema-rank00000.safetensors").unlink()
    assert ends(["verify", str(run)]) == f"fdpo verify: damaged: {parts[0]}, {parts[2]}"
    assert capsys.readouterr().out.splitlines() == [
        f"{parts[0]}: unet/diffusion_pytorch_model.safetensors does not match its checksum",
        f"{parts[1]}: no checksums, as of older versions",
        f"{parts[2]}: ema-rank00000.safetensors is missing",
    ]
    raw_config["evaluate"] = {"prompts": ["a handwritten two"], "sampling_steps": 1, "images_per_prompt": 1}
    for part in (parts[0], parts[2]):
        words = ["sample", "--no-base", "--checkpoint", f"one={part}", "--config", str(write_config(raw_config))]
        said = ends(words)
        assert f"{part} is damaged: " in said
        assert "where that was changed on purpose, delete" in said
    latest = run / "checkpoints/latest"
    latest.write_text("step-000009\n")
    assert ends(["verify", str(run)]) == f"fdpo verify: damaged: {parts[0]}, {parts[2]}, {latest}"
    assert capsys.readouterr().out.splitlines()[-1] == f"{latest}: it names no checkpoint that is there"
    shutil.rmtree(run / "export")
    shutil.rmtree(run / "checkpoints")
    assert "has neither an export nor checkpoints" in ends(["verify", str(run)])
