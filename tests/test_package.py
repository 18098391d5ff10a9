"""What the package says of itself."""

import importlib.metadata
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fdpo_fast
from tests.helpers import ROOT


def test_the_version_is_pyprojects():
    (written,) = re.findall(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.M)
    assert fdpo_fast.__version__ == written
    assert "__version__" in dir(fdpo_fast)


def test_a_checkout_that_is_not_installed_has_no_version(monkeypatch):
    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    monkeypatch.delitem(vars(fdpo_fast), "__version__", raising=False)
    assert fdpo_fast.__version__ == "0+unknown"
    monkeypatch.delitem(vars(fdpo_fast), "__version__")


def test_a_name_that_is_not_there():
    with pytest.raises(AttributeError, match="no attribute 'version'"):
        fdpo_fast.version  # noqa: B018


def test_type_checkers_read_the_package():
    assert (ROOT / "fdpo_fast/py.typed").is_file()


def test_the_version_waits_for_nothing_heavy():
    script = "import sys, fdpo_fast; fdpo_fast.__version__; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


def test_an_installation_has_the_configurations_that_init_starts_from():
    installed = {Path(str(file)).name for file in importlib.metadata.files("fdpo_fast") if "configs" in file.parts}
    assert installed == {file.name for file in (ROOT / "configs").glob("*.json")}


def test_the_package_is_its_own_folder_alone():
    """Where an editable installation maps other folders into it, `fdpo_fast.tests` would be found."""
    assert {Path(place).name for place in fdpo_fast.__path__} == {"fdpo_fast"}
