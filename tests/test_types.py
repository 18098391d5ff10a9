"""The public names as a user's type checker sees them."""

import re
import subprocess
import sys

from tests.helpers import ROOT, typed_user

SCRIPT, MISTAKES = (ROOT / "tests/helpers" / name for name in ("typed_user.py", "typed_mistakes.py"))


def test_strict_mypy_passes_a_typed_script_and_finds_each_mistake(pytestconfig):
    cache = pytestconfig.cache.mkdir("mypy")  # torch's types take half a minute, once
    words = ["--strict", "--config-file=", "--follow-imports=silent", "--no-error-summary", f"--cache-dir={cache}"]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *words, SCRIPT, MISTAKES], cwd=ROOT, capture_output=True, text=True
    )
    errors = re.findall(r"^tests/helpers/(\w+\.py):(\d+): error: ", done.stdout, re.MULTILINE)
    lines = enumerate(MISTAKES.read_text().splitlines(), 1)
    wanted = [(MISTAKES.name, str(number)) for number, line in lines if line.endswith("# refused")]
    assert sorted(set(errors), key=lambda error: int(error[1])) == wanted, done.stdout + done.stderr


def test_the_typed_script_runs():
    typed_user.main()


def test_the_package_says_that_it_is_typed():
    assert (ROOT / "fdpo_fast/py.typed").is_file()
