"""What the package says of itself."""

import importlib.metadata
import re
import subprocess
import sys

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


def test_a_wheel_has_the_configurations_that_init_starts_from():
    packages = (ROOT / "pyproject.toml").read_text().partition("[tool.scikit-build.wheel.packages]\n")[2]
    assert '"fdpo_fast/configs" = "configs"' in packages.partition("\n[")[0]
    assert (ROOT / "configs/sdxl_lora_js.json").is_file()
