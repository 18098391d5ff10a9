"""Models of the hub: asked for once, and what is said where it does not answer."""

import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from fdpo_fast.config.schema import Model
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
