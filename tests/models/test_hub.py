"""Models of the hub: asked for once, and what is said where it does not answer."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
import time

import pytest

from fdpo_fast.config.errors import UserError
from fdpo_fast.config.schema import Model
from fdpo_fast.files import read_json
from fdpo_fast.models import find
from tests.helpers import ROOT

ASK = """
from fdpo_fast.config.errors import UserError
from fdpo_fast.models.hub import folder_of

for name in ("owner/one", "owner/one", "owner/two"):
    try:
        folder_of("evaluate.scorers", name, ("*.json",))
    except UserError as error:
        print(error)
"""


@pytest.fixture
def silent():
    """The address of a server that takes every connection and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        kept = []

        def take():
            try:
                while True:
                    kept.append(server.accept())
            except OSError:  # it is closed
                pass

        threading.Thread(target=take, daemon=True).start()
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def ask(tmp_path, **environment):
    start = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", ASK],
        cwd=ROOT,
        env=os.environ | {"HF_HOME": str(tmp_path), "HF_HUB_ETAG_TIMEOUT": "2", "HF_HUB_OFFLINE": "0"} | environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines(), time.monotonic() - start


def test_a_hub_that_does_not_answer_is_asked_once(silent, tmp_path):
    (asking, *lines), seconds = ask(tmp_path, HF_ENDPOINT=silent)
    assert asking == "asking the hub for owner/one, 2 s at most"
    why = f"is not here and cannot be fetched from the hub: {silent} does not answer (timed out)"
    assert lines == [f"evaluate.scorers 'owner/{name}' {why}" for name in ("one", "one", "two")]
    assert seconds < 20  # of them 2 wait, the others import


def test_offline_nobody_is_asked(silent, tmp_path):
    lines, _ = ask(tmp_path, HF_ENDPOINT=silent, HF_HUB_OFFLINE="1")
    why = "is not here and cannot be fetched from the hub: HF_HUB_OFFLINE is set"
    assert lines == [f"evaluate.scorers 'owner/{name}' {why}" for name in ("one", "one", "two")]


def test_a_base_that_is_no_pipeline_is_found_without_processes(tmp_path):
    with pytest.raises(ValueError, match=r"has no model_index\.json"):
        find(Model(family="sd", base=str(tmp_path)))


@pytest.mark.parametrize(
    "name", ["link", "vae", "vae/diffusion_pytorch_model.safetensors", "..", "", "link/../../secret"]
)
def test_a_base_that_leads_out_of_its_folder_is_refused_before_training(pipelines, tmp_path, name):
    """What lies there would be published by the export."""
    base = shutil.copytree(pipelines["sd"], tmp_path / "base")
    secret = tmp_path / "secret"
    shutil.copytree(base / "vae", secret)
    index = base / "model_index.json"
    index.write_text(json.dumps({name: [None, None]} | read_json(index)))
    target = base / name
    if "vae" not in name:  # no name of a component: it is neither read nor written
        (base / "link").symlink_to(secret)
        find(Model(family="sd", base=str(base)))
        return
    if target.is_dir():
        shutil.rmtree(target)
    target.unlink(missing_ok=True)
    target.symlink_to(secret / name.partition("/")[2])
    with pytest.raises(UserError, match=r"is a link out of model\.base"):
        find(Model(family="sd", base=str(base)))


def alter(base, **parts):
    index = base / "model_index.json"
    index.write_text(json.dumps(read_json(index) | parts))


def shards(base, name):
    for path in (base / "text_encoder").glob("*.safetensors"):
        path.rename(path.with_name("plain.safetensors"))
    index = base / "text_encoder/model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "plain.safetensors", "b": name}}))


HARMS = {
    "scheduler/scheduler_config.json": lambda base: shutil.rmtree(base / "scheduler"),
    "no class of diffusers or transformers for 'scheduler'": lambda base: alter(base, scheduler=5),
    "for 'text_encoder'": lambda base: alter(base, text_encoder=["subprocess", "Popen"]),
    "no StableDiffusionPipeline has, 'keys'": lambda base: alter(base, keys=["diffusers", "AutoencoderKL"]),
    "has no vae": lambda base: alter(base, vae=[None, None]),
    "weights that are not files beside it": lambda base: shards(base, "../../secret/t.safetensors"),
    "gone.safetensors is missing, which model.safetensors.index.json names": lambda base: shards(
        base, "gone.safetensors"
    ),
    "notes.json is no regular file": lambda base: (base / "tokenizer/notes.json").mkdir(),
    "y.txt is no regular file": lambda base: os.mkfifo(base / "tokenizer/y.txt"),
    "x.json is a link to nowhere": lambda base: (base / "tokenizer/x.json").symlink_to("nowhere.json"),
}


@pytest.mark.parametrize("says", HARMS)
def test_a_base_that_cannot_be_exported_is_refused_before_training(pipelines, tmp_path, says):
    base = shutil.copytree(pipelines["sd"], tmp_path / "base")
    find(Model(family="sd", base=str(base)))
    HARMS[says](base)
    with pytest.raises(UserError, match=re.escape(says)):
        find(Model(family="sd", base=str(base)))


def test_a_base_in_the_layout_of_the_hubs_cache(pipelines, tmp_path):
    snapshot, blobs = tmp_path / "models--o--n/snapshots/1", tmp_path / "models--o--n/blobs"
    blobs.mkdir(parents=True)
    for number, path in enumerate(sorted(path for path in pipelines["sd"].rglob("*") if path.is_file())):
        place = snapshot / path.relative_to(pipelines["sd"])
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, blobs / f"{number}")
        place.symlink_to(os.path.relpath(blobs / f"{number}", place.parent))
    find(Model(family="sd", base=str(snapshot)))
    (tmp_path / "named").symlink_to(snapshot)
    find(Model(family="sd", base=str(tmp_path / "named")))
