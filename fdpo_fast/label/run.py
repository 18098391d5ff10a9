"""`fdpo label`: from what is to be judged to a page that waits for answers."""

from __future__ import annotations

import errno
import os
import secrets
import socket
import sys
import threading
import webbrowser
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import uvicorn
from starlette.types import ASGIApp

from fdpo_fast.config.errors import UserError
from fdpo_fast.data.reading import printable
from fdpo_fast.label import results
from fdpo_fast.label.book import Book, alone
from fdpo_fast.label.order import Order
from fdpo_fast.label.questions import Questions
from fdpo_fast.label.server import HOSTS, app
from fdpo_fast.label.session import Session
from fdpo_fast.progress import say

_PATIENCE = 2  # seconds that open requests have at the end


@dataclass(frozen=True)
class Desk:
    """How a person is asked: who it is, where the answers go, and where the page is."""

    by: str
    labels: Path
    seed: int
    port: int
    """That of the page; 0 for any that is free."""
    browse: bool
    """Whether the page is opened in the browser of this machine."""


def label(questions: Questions, order: Order, desk: Desk) -> None:
    """Ask a person until all is answered and the page ends it, or a signal does; then say what the answers have shown.

    Raises UserError where another process is at work on the file of labels, the file is of another source, or the port
    is taken.
    """
    with alone(desk.labels), _listener(desk.port) as listener:
        book = Book(desk.labels, desk.by, questions.every)
        asked = order(questions, book.labels)
        session = Session(questions, asked, book, desk.seed, lambda: results.note(book, questions))
        if questions.refused:
            say(f"{questions.refused} rows give no pair to look at: `fdpo data check` says why")

        def shown() -> dict[str, object]:
            return {"heading": results.heading(book, questions), "words": results.words(book, questions)}

        try:
            build = partial(app, session, shown, questions.megapixels)
            serve(build, listener, desk.browse)
        finally:
            for words in (results.heading(book, questions), *results.words(book, questions)):
                say(printable(words))  # a file may name anybody
            say(f"labels: {desk.labels}")


def serve(build: Callable[[str, Callable[[], None]], ASGIApp], listener: socket.socket, browse: bool) -> None:
    """Serve the application that `build` makes of a token, and of what ends it, where `listener` listens."""
    token = secrets.token_hex(16)

    def end() -> None:
        server.should_exit = True

    server = uvicorn.Server(
        uvicorn.Config(
            build(token, end),
            log_level="warning",
            access_log=False,
            lifespan="off",
            ws="none",
            proxy_headers=False,
            server_header=False,
            timeout_graceful_shutdown=_PATIENCE,
        )
    )
    address = f"http://{HOSTS[0]}:{listener.getsockname()[1]}/{token}/"
    say(f"open {address} (Ctrl-C ends; every answer is kept at once)")
    if browse and _has_screen():
        threading.Thread(target=webbrowser.open, args=(address,), daemon=True).start()
    server.run(sockets=[listener])


def _has_screen() -> bool:
    """Say whether a browser would open in a window: one for a terminal would take the command's own."""
    return sys.platform == "darwin" or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))


def _listener(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOSTS[0], port))
        listener.listen()  # a browser may come before the server does
    except OSError as error:
        listener.close()
        why = "in use" if error.errno == errno.EADDRINUSE else str(error.strerror)
        raise UserError(f"port {port} of {HOSTS[0]} cannot be had ({why}): name another by --port") from None
    return listener
