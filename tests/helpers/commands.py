"""Commands as a user runs them, in a process of their own, while they run."""

import signal
import subprocess
import sys
from contextlib import contextmanager

from benchmarks import launcher
from tests.helpers import ROOT


def hears():
    """Hear Ctrl-C also where the tests do not, as in the background of a script."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Run:
    """A process whose output, of both kinds, is read as it comes."""

    def __init__(self, words, environment):
        self.said = ""
        self.process = subprocess.Popen(
            words,
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            bufsize=1,
            preexec_fn=hears,
        )

    def wait_for(self, sign):
        for line in self.process.stdout:
            self.said += line
            if sign in line:
                return
        raise AssertionError(f"it ended without '{sign}':\n{self.said}")

    def end(self, patience=120):
        rest, _ = self.process.communicate(timeout=patience)
        return self.said + rest


@contextmanager
def begun(*words, script=None, **environment):
    """Start `fdpo` with these words, or a script in Python; it does not outlive the block."""
    start = ["-c", script] if script else ["-m", "fdpo_fast.cli"]
    run = Run([sys.executable, *start, *words], launcher.environment(threads=1) | environment)
    try:
        yield run
    finally:
        run.process.kill()
        run.process.wait()
        run.process.stdout.close()
