"""A program on a terminal of its own, typed to and read from."""

import fcntl
import os
import pty
import select
import subprocess
import sys
import termios
import time
from pathlib import Path


class Terminal:
    """A program that believes somebody sits at it."""

    def __init__(self, command, folder):
        self.master, slave = pty.openpty()
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        environment = os.environ | {"PATH": path, "TERM": "dumb", "COLUMNS": "200", "HOME": str(folder)}
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            cwd=folder,
            env=environment,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # fish wants a terminal that is its own
        )
        os.close(slave)
        self.said = ""

    def type(self, keys):
        os.write(self.master, keys.encode())

    def wait(self, text, seconds=60):
        """Read until a text is there, and forget what came up to its end."""
        end = time.monotonic() + seconds
        while text not in self.said:
            assert time.monotonic() < end, f"no {text!r} in {self.said!r}"
            if select.select([self.master], [], [], 0.1)[0]:
                self.said += os.read(self.master, 65536).decode(errors="replace")
        self.said = self.said.partition(text)[2]

    def end(self):
        self.process.kill()
        self.process.wait()
        os.close(self.master)
