"""The page by HTTP, on the loopback address, for whoever knows the token in its address.

Images are asked for by pair and side, so that no request names a path; each is decoded and encoded anew, so that
browsers show what training sees, and nothing but pixels. The page fetches and runs nothing from elsewhere.
"""

from __future__ import annotations

import hmac
import io
import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.concurrency import run_in_threadpool
from starlette.middleware import Middleware
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fdpo_fast import faults
from fdpo_fast.config.errors import UserError
from fdpo_fast.data.decode import Unreadable, decode
from fdpo_fast.data.reading import UnreachableError, UnusableError
from fdpo_fast.label.session import Session, UnknownError
from fdpo_fast.report import theme

HOSTS = ("127.0.0.1", "localhost")
"""The names by which the page may be asked for: a web page elsewhere whose name is bent to this address has another."""
HEADERS = {
    "content-security-policy": "default-src 'none'; connect-src 'self'; img-src 'self' data:; script-src 'self'; "
    "style-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "cache-control": "no-store",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
_HERE = Path(__file__).parent


class Guard:
    """Answers 403 to every request whose path does not begin with the token, and adds `HEADERS` to every answer."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self.app, self.token = app, token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand a request on, or refuse it."""

        async def safe(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message.get("headers", []), *added]
            await send(message)

        given = scope["path"].split("/")[1:2]
        app = self.app
        if scope["type"] != "http" or not hmac.compare_digest("".join(given).encode(), self.token):
            app = _error("this address has no token, or an old one: open the one that the command has printed", 403)
        await app(scope, receive, safe)


def _error(words: str, status: int) -> JSONResponse:
    return JSONResponse({"error": words}, status)


def app(
    session: Session, results: Callable[[], dict[str, Any]], megapixels: float, token: str, end: Callable[[], None]
) -> Starlette:
    """Build the application. `results` says what the answers have shown, `end` ends the server.

    An image of more than `megapixels` millions of pixels is not shown.
    """

    @lru_cache(maxsize=8)  # a pair, the next one, and those that an undo asks for
    def png(id: int, side: str) -> bytes:
        buffer = io.BytesIO()
        decode(session.picture(id, side), megapixels).save(buffer, format="PNG", compress_level=1)
        return buffer.getvalue()

    def image(request: Request) -> Response:
        return Response(png(request.path_params["id"], request.path_params["side"]), media_type="image/png")

    def state(request: Request) -> Response:
        return JSONResponse(session.state())

    async def answer(request: Request) -> Response:
        sent = _sent(await request.body())
        id = sent["id"]
        if not isinstance(id, str) or not id.isdecimal() or len(id) > 20:
            raise UnknownError(f"there is no pair {id!r:.40}")
        return JSONResponse(await run_in_threadpool(session.answer, int(id), str(sent["choice"])))

    def undo(request: Request) -> Response:
        return JSONResponse(session.undo())

    def shown(request: Request) -> Response:
        return JSONResponse(results())

    def ended(request: Request) -> Response:
        words = "The command has ended; this page can be closed."
        return JSONResponse({"words": words}, background=BackgroundTask(end))

    routes = [
        Route("/", _file("page.html", "text/html")),
        Route("/page.js", _file("page.js", "text/javascript")),
        Route("/style.css", _style),
        Route("/state", state),
        Route("/image/{id:int}/{side}", image),
        Route("/answer", answer, methods=["POST"]),
        Route("/undo", undo, methods=["POST"]),
        Route("/results", shown),
        Route("/end", ended, methods=["POST"]),
    ]
    return Starlette(
        routes=[Mount(f"/{token}", routes=routes)],
        middleware=[Middleware(TrustedHostMiddleware, allowed_hosts=list(HOSTS)), Middleware(Guard, token=token)],
        exception_handlers=HANDLERS,
    )


def _sent(body: bytes) -> Mapping[str, Any]:
    """Read what the page has sent; UnknownError for anything else."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict) or not {"id", "choice"} <= found.keys():
        raise UnknownError("an answer has an id and a choice")
    return found


def _file(name: str, kind: str) -> Callable[[Request], Response]:
    content = (_HERE / name).read_bytes()
    return lambda request: Response(content, media_type=kind)


def _style(request: Request) -> Response:
    shared = (Path(theme.__file__).parent / "style.css").read_text(encoding="utf-8")
    own = (_HERE / "page.css").read_text(encoding="utf-8")
    return Response("\n".join((theme.css(), shared, own)), media_type="text/css")


def _unknown(request: Request, error: Exception) -> Response:
    return _error(str(error), 404)


def _unusable(request: Request, error: Exception) -> Response:
    return _error(f"this image cannot be shown ({error}): skip the pair", 422)


def _unreachable(request: Request, error: Exception) -> Response:
    return _error(str(error), 503)


def _changed(request: Request, error: Exception) -> Response:
    return _error(f"The answer is not kept: {error}", 409)


def _refused(request: Request, error: Exception) -> Response:
    return _error(f"The answer is not kept: {faults.of_machine(error) or error}", 507)


HANDLERS: dict[Any, Callable[[Request, Exception], Response]] = {
    UnknownError: _unknown,
    Unreadable: _unusable,
    UnusableError: _unusable,
    UnreachableError: _unreachable,
    UserError: _changed,
    OSError: _refused,
}
"""What is answered to an error, by its class; another is a slip of ours, which the terminal shows."""
