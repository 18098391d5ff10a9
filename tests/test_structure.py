"""The house rules that are no import contract (those are in pyproject.toml), and what importing the package costs."""

import ast
import json
import subprocess
import sys

import pytest

from fdpo_fast import DIVERGENCES
from tests.helpers import ROOT

PACKAGE = ROOT / "fdpo_fast"


def imports(path):
    """Names of the modules a file imports anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found


FILES = {str(path.relative_to(PACKAGE)): path for path in PACKAGE.rglob("*.py")}
HIDDEN = sys.stdlib_module_names  # a script's folder comes first on its path
SOURCES = [path for path in (ROOT / "csrc").rglob("*") if path.is_file()]


@pytest.mark.parametrize("name", ["loss/eager.py", "loss/divergences.py", "loss/link.py"])
def test_the_mathematics_stands_on_torch_alone(name):
    ours = {module for module in imports(FILES[name]) if module.startswith("fdpo_fast")}
    allowed = ("fdpo_fast.ops.constants", "fdpo_fast.loss.link", "fdpo_fast.loss.divergences")
    assert all(module.startswith(allowed) for module in ours)


def test_no_kernel_knows_a_divergence_by_name():
    kernels = [path for name, path in FILES.items() if "/triton" in name] + SOURCES
    for path in kernels:
        assert not [name for name in [*DIVERGENCES, "robust", "ipo"] if f'"{name}"' in path.read_text()], path


def test_no_family_name_outside_models():
    for name, path in FILES.items():
        if not name.startswith(("models/", "digits/")):
            assert "StableDiffusion" not in path.read_text(), name


def test_bars_and_their_lines_are_made_in_one_place():
    assert [name for name, path in FILES.items() if "tqdm" in imports(path)] == ["progress.py"]


def test_files_stay_short():
    sources = [*FILES.values(), *SOURCES, *(ROOT / "tests").rglob("*.py"), *(ROOT / "benchmarks").rglob("*.py")]
    assert {path.name: n for path in sources if (n := len(path.read_text().splitlines())) > 300} == {}


def test_no_script_has_a_neighbour_that_hides_a_standard_module():
    tracked = {path for folder in ("fdpo_fast", "benchmarks", "tests") for path in (ROOT / folder).rglob("*.py")}
    scripts = {path.parent for path in tracked if 'if __name__ == "__main__"' in path.read_text()}
    names = {f"{path.parent.name}/{path.name}" for path in tracked if path.parent in scripts and path.stem in HIDDEN}
    assert names == set()


def test_nothing_is_imported_from_a_test_file():
    for path in (ROOT / "tests").rglob("*.py"):
        assert not [name for name in imports(path) if name and ("conftest" in name or ".test_" in f".{name}")], path


CREATE = {
    *("zeros", "ones", "empty", "full", "tensor", "arange", "linspace", "logspace", "eye", "scalar_tensor", "range"),
    *("rand", "randn", "randint", "randperm", "empty_strided", "empty_permuted", "hann_window", "tril_indices"),
    *("triu_indices", "Tensor", "FloatTensor", "normal"),
}


def unspoken(source):
    """Calls that make a tensor by a default of torch's, as (line, text)."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in CREATE:
            of_torch = isinstance(node.func.value, ast.Name) and node.func.value.id == "torch"
            if of_torch and not {"dtype", "device"} <= {keyword.arg for keyword in node.keywords}:
                found.append((node.lineno, ast.unparse(node)))
    return found


def test_tensors_are_made_by_dtype_and_device():
    assert {name: found for name, path in FILES.items() if (found := unspoken(path.read_text()))} == {}


def test_what_is_made_by_default_is_found():
    found = unspoken("torch.zeros(3)\ntorch.empty(3, dtype=a, device=b)\ntorch.arange(3, dtype=a)")
    assert [line for line, _ in found] == [1, 3]


def test_importing_the_package_needs_torch_alone():
    blocked = ["deepspeed", "diffusers", "transformers", "numpy", "triton", "xformers", "bitsandbytes", "pydantic"]
    script = f"import sys; sys.modules.update(dict.fromkeys({blocked})); import fdpo_fast; fdpo_fast.FDPOLoss"
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


def test_public_names_and_the_loss_do_without_the_compiler():
    """torch's, whose import takes a second: an optimizer of torch's kind alone imports it, as torch's own do."""
    script = (
        "import sys, torch, fdpo_fast\n"
        "for name in fdpo_fast.__all__: getattr(fdpo_fast, name)\n"
        "x = torch.ones(4, 3, dtype=torch.float32, device='cpu', requires_grad=True)\n"
        "fdpo_fast.fdpo_loss(x, x, x, beta=1.0, ratio_scale=1.0)[0].backward()\n"
        "sys.exit('torch._dynamo' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


def test_commands_without_their_packages_say_what_to_install():
    script = (
        "import sys; sys.modules['pydantic'] = None; from fdpo_fast.cli import main; main(['train', '--config', 'x'])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "fdpo train needs the package 'pydantic': pip install 'fdpo_fast[train,eval]'" in done.stderr


def test_the_labelling_page_has_an_extra_of_its_own():
    script = (
        "import sys; sys.modules['uvicorn'] = None; from fdpo_fast.cli import main; main(['label', 'x', '--as', 'ann'])"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1
    assert "fdpo label needs the package 'uvicorn': pip install 'fdpo_fast[train,eval,label]'" in done.stderr


def test_fallback_without_the_compiled_part_warns_once():
    script = (
        "import importlib.util as u, warnings; find = u.find_spec\n"
        "u.find_spec = lambda name, *a: None if name == 'fdpo_fast._native' else find(name, *a)\n"
        "with warnings.catch_warnings(record=True) as caught:\n"
        "    warnings.simplefilter('always'); import fdpo_fast\n"
        "assert fdpo_fast.pair_draw(0, 1, 2, (5,))[1].shape == (5,)\n"
        "ours = [w for w in caught if 'compiled part' in str(w.message)]; assert len(ours) == 1, caught"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


HELP = """
import contextlib, io, json, sys
import fdpo_fast, fdpo_fast.config
from fdpo_fast import cli

heavy, of_schema = ["torch", "numpy", "diffusers", "deepspeed", "transformers", "peft", "pyarrow"], ["pydantic"]
file, broken = sys.argv[1:]
names = [module.__name__.rpartition(".")[2] for module in cli.COMMANDS]
helps = [["--help"], ["--version"], ["completion", "bash"], ["__complete", "tra"], ["__complete", "train", "--"]]
helps += [[*name.split(), "--help"] for name in cli._parsers()[1]]
words = [*helps, ["config", "--explain"], ["__complete", "train", "--set", ""], ["init"]]
words += [[name, "--config", path] for name in names if name not in ("report", "verify") for path in (file, broken)]
words += [["data", "check", "--config", file], ["report", "/nowhere"], ["verify", "/nowhere"]]
words += [[name, "--config", file, "--set", "train.max_steps=0"] for name in ("plan", "train")]
for line in words:
    said = io.StringIO()
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        try:
            cli.main(line)
        except SystemExit as end:
            said.write(str(end.code or ""))
    assert len(said.getvalue()) > 10, line
    assert not [name for name in heavy + of_schema * (line in helps) if name in sys.modules], line
assert callable(fdpo_fast.divergence) and "torch" not in sys.modules
fdpo_fast.fdpo_loss
assert "torch" in sys.modules
"""


def test_help_and_mistakes_import_nothing_heavy(tmp_path):
    """Of every command: a mistake is a wrong key, a value out of range, or a file that is not there."""
    raw = json.loads((ROOT / "configs/digits_js.json").read_text())
    raw["model"]["bas"] = "digits"
    file = tmp_path / "config.json"
    file.write_text(json.dumps(raw))
    words = [sys.executable, "-c", HELP, str(file), str(tmp_path / "none.json")]
    subprocess.run(words, check=True, cwd=ROOT)


def test_every_benchmark_imports():
    script = (
        "import pkgutil, importlib, benchmarks\n"
        "for module in pkgutil.walk_packages(benchmarks.__path__, 'benchmarks.'):\n"
        "    if not module.name.endswith(('__main__', 'conftest')): importlib.import_module(module.name)"
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)


def test_errors_of_libraries_are_caught_by_their_own_names():
    # UserError is only ours: beside library errors in one `except` it stands where ValueError should
    for name, path in FILES.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler) and isinstance(node.type, ast.Tuple):
                assert "UserError" not in {getattr(item, "id", "") for item in node.type.elts}, name
