"""Fills a folder with what a GPU machine without a network lacks: `python -m benchmarks.gpu pack FOLDER`.

Wheels for its Python, in the versions of constraints.txt: what the trainer and the tests need beyond torch, less what
is installed there. Our own compiled part, and DeepSpeed as a wheel without its compiled operators. And activate.sh, to
be sourced there from the project's root. Everything comes through pip, from wherever pip is set up to look.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterable, Iterator
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from tempfile import TemporaryDirectory

from packaging.markers import default_environment
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
EXTRAS = ("train", "eval", "dev")
THERE = ("torch", "triton")
"""Taken to be there, with NVIDIA's libraries: a GPU machine is one that has torch for its GPU."""
NOT_WANTED = ("clang-format", "import-linter", "mypy", "playwright", "ruff")
"""Of the developers' extra: what measures nothing, and is half of a pack."""
SOURCES = ("deepspeed",)
"""Made into wheels here, without compiled operators: there are none to download."""
COLLECT = ("--no-deps", "--only-binary=:all:", "--implementation", "cp")

ACTIVATE = """\
# Source it from the project's root: installs what lies beside it, without a network, and puts it on the path.
pack=$(cd "$(dirname "${BASH_SOURCE[0]:-$0}")" && pwd)
site=${FDPO_SITE:-$(mktemp -d)/site}
python3 -m pip install -q --no-index --no-deps --no-compile --upgrade --target "$site" "$pack"/wheels/*.whl || return 1
cp "$pack"/native/*.so fdpo_fast/ 2>/dev/null || echo "no compiled part in the pack: the host computes in eager torch"
export PYTHONPATH="$site:$PWD${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false
export NCCL_SOCKET_IFNAME="${NCCL_SOCKET_IFNAME:-lo}"  # it may be the only interface
"""


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu pack", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="made, or emptied of an earlier pack")
    here = ".".join(map(str, sys.version_info[:2]))
    parser.add_argument("--python-version", default=here, metavar="3.N", help=f"of that machine (default: {here})")
    parser.add_argument("--python", metavar="PROGRAM", help="an interpreter of that version (default: python3.N)")
    parser.add_argument("--glibc", type=int, default=28, metavar="N", help="of that machine: 2.N (default: 28)")
    parser.add_argument("--machine", default="x86_64", help="of that machine (default: x86_64)")
    parser.add_argument("--installed", type=Path, metavar="FILE", help="what `pip freeze` prints there: left out")
    parser.add_argument("--also", default="", metavar="NAME,...", help="more packages, such as torchao,flashoptim")
    parser.add_argument("--cuda", metavar="130", help="of bitsandbytes' libraries keep the one for this CUDA alone")
    options = parser.parse_args(arguments)
    try:
        pack(options)
    except ValueError as error:
        sys.exit(str(error))


def pack(options: argparse.Namespace) -> None:
    """Fill the folder; ValueError with a sentence where something cannot be had."""
    folder = options.folder.resolve()
    if folder.exists() and any(folder.iterdir()) and not (folder / "activate.sh").exists():
        raise ValueError(f"{folder} is not empty and no earlier pack: name another folder")
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "native").mkdir(parents=True)
    (folder / "activate.sh").write_text(ACTIVATE)
    wheels = folder / "wheels"
    names = lacking(installed(options.installed))
    more = [canonicalize_name(name) for name in filter(None, options.also.split(","))]
    download([pinned(name) for name in names if name not in SOURCES], options, wheels)
    download(more, options, wheels)
    for name in SOURCES:
        if name in names:
            wheel(pinned(name), wheels)
    if options.cuda:
        for file in wheels.glob("bitsandbytes-*.whl"):
            keep_one_cuda(file, options.cuda)
    compiled = native(options, folder / "native")
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 2**20
    print(f"{folder}: {len(list(wheels.iterdir()))} wheels, {size:.0f} MiB; {compiled}")
    print(f"there, in the project's root: . {folder.name}/activate.sh && python3 -m benchmarks.gpu")


def installed(freeze: Path | None) -> dict[str, str]:
    """Names and versions in the output of `pip freeze`; no version where a package came from elsewhere."""
    if freeze is None:
        return {}
    if not freeze.is_file():
        raise ValueError(f"there is no {freeze}: write `pip freeze` of the GPU machine to it")
    matches = (re.match(r"([A-Za-z0-9._-]+)(?:==([^ ;]+))?", line.strip()) for line in freeze.read_text().splitlines())
    return {canonicalize_name(match[1]): match[2] or "" for match in matches if match}


def lacking(there: dict[str, str]) -> list[str]:
    """What our extras bring that is not there, or not in a version that will do; by the metadata of what is here."""
    required: dict[str, SpecifierSet] = {}
    waiting = list(needed("fdpo_fast", EXTRAS))
    while waiting:
        requirement = waiting.pop()
        name, known = canonicalize_name(requirement.name), required.get(canonicalize_name(requirement.name))
        required[name] = requirement.specifier if known is None else known & requirement.specifier
        if known is None and name not in (*THERE, *NOT_WANTED):
            waiting += needed(name, requirement.extras)
    return sorted(
        name
        for name, versions in required.items()
        if name not in (*THERE, *NOT_WANTED) and is_here(name) and not suits(versions, there.get(name))
    )


def suits(versions: SpecifierSet, there: str | None) -> bool:
    """Whether a version is one of those; None: there is none, empty: one that is not known, which is believed in."""
    return there == "" or (there is not None and versions.contains(there, prereleases=True))


def is_here(name: str) -> bool:
    try:
        return bool(version(name))
    except PackageNotFoundError:
        return False


def needed(name: str, extras: Iterable[str]) -> Iterator[Requirement]:
    """What a package requires on a machine like this, with some of its extras; nothing where it is not installed."""
    for one in map(Requirement, (requires(name) or []) if is_here(name) else []):
        markers = [default_environment() | {"extra": extra} for extra in ("", *extras)]
        if one.marker is None or any(map(one.marker.evaluate, markers)):
            yield one


def pinned(name: str) -> str:
    """`name==version` of constraints.txt; of what is installed here for a package that it does not have."""
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        package, sign, number = line.partition("==")
        if sign and canonicalize_name(package) == name:
            return f"{name}=={number}"
    return f"{name}=={version(name)}"


def pip(*words: object, env: dict[str, str] | None = None, python: object = sys.executable) -> None:
    """Run pip to its end; ValueError with its last line where it fails."""
    command = [str(python), "-m", "pip", *map(str, words)]
    done = subprocess.run(command, env=os.environ | (env or {}), capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise ValueError(f"pip {words[0]} failed: {said[-1] if said else 'it said nothing'}")


def download(names: list[str], options: argparse.Namespace, to: Path) -> None:
    """Wheels for that machine's Python and glibc, as they are, without what they need."""
    to.mkdir(exist_ok=True)
    kinds = [f"manylinux_2_{n}_{options.machine}" for n in range(options.glibc, 4, -1)]
    kinds += [f"manylinux{old}_{options.machine}" for old in ("2014", "2010", "1")]
    platforms = [word for kind in kinds for word in ("--platform", kind)]
    if names:
        target = ["--python-version", options.python_version, *platforms]
        pip("download", "-q", *COLLECT, *target, "-d", to, *names)


def wheel(name: str, to: Path) -> None:
    """Of a package that is published as source, made beside this interpreter's torch."""
    pip("wheel", "-q", "--no-deps", "--no-build-isolation", "-w", to, name, env={"DS_BUILD_OPS": "0"})


def keep_one_cuda(file: Path, cuda: str) -> None:
    """Drop the libraries of other versions of CUDA from bitsandbytes' wheel, which are most of it."""
    wanted = f"libbitsandbytes_cuda{cuda}.so"

    def stays(name: str) -> bool:
        library = Path(name).name
        return not library.startswith("libbitsandbytes_cuda") or library == wanted

    with zipfile.ZipFile(file) as whole:
        if not any(Path(name).name == wanted for name in whole.namelist()):
            raise ValueError(f"{file.name} has no library for CUDA {cuda}")
        partial = file.with_suffix(".partial")
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as small:
            for name in filter(stays, whole.namelist()):
                content = whole.read(name)
                if name.endswith(".dist-info/RECORD"):
                    lines = content.decode().splitlines(keepends=True)
                    content = "".join(line for line in lines if stays(line.split(",")[0])).encode()
                small.writestr(name, content)
    partial.replace(file)


def native(options: argparse.Namespace, to: Path) -> str:
    """Compile our part for that Python, where there is one of its version here; how it went, in words."""
    ours = ".".join(map(str, sys.version_info[:2])) == options.python_version
    python = options.python or (sys.executable if ours else shutil.which(f"python{options.python_version}"))
    if python is None:
        return f"without our compiled part: there is no python{options.python_version} here, name one with --python"
    with TemporaryDirectory() as scratch:
        pip("wheel", "-q", "--no-deps", "-C", f"build-dir={scratch}/build", "-w", scratch, ROOT, python=python)
        (file,) = Path(scratch).glob("fdpo_fast-*.whl")
        with zipfile.ZipFile(file) as whole:
            for name in whole.namelist():
                if Path(name).match("fdpo_fast/_native*.so"):
                    (to / Path(name).name).write_bytes(whole.read(name))
    return f"our compiled part is for fdpo_fast {version('fdpo_fast')} and Python {options.python_version}"
