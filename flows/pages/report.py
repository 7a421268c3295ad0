"""The report behind MLflow's gate: `/report/` shows reports/index.html and the files beside it.

A page can hold names that a user's files gave it, and shares its origin with MLflow's, which may delete runs. So
browsers are told to run no script in it and to load nothing (`sandbox`), whatever stands there.
"""

import os
import re
import stat
from pathlib import Path

from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from flows.layout import REPORTS

PLACE = "/report"
PAGE = "index.html"
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}")  # of a file in the folder itself, never of a path
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".png": "image/png",
    ".gif": "image/gif",
    ".svg": "image/svg+xml",
    ".json": "application/json",
    ".csv": "text/plain; charset=utf-8",
}
GUARDED = {
    "Content-Security-Policy": "sandbox; default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}


class Report:
    """Answers what is asked below `/report`, and leaves all else to the app behind it."""

    def __init__(self, app: ASGIApp, root: Path) -> None:
        self.app, self.folder = app, root / REPORTS

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if scope["type"] != "http" or not (path == PLACE or path.startswith(f"{PLACE}/")):
            await self.app(scope, receive, send)
        elif scope["method"] not in ("GET", "HEAD"):
            await PlainTextResponse("the report is there to be read", 405)(scope, receive, send)
        elif path == PLACE:
            await RedirectResponse(f"{PLACE}/")(scope, receive, send)
        else:
            await self._answer(path.removeprefix(f"{PLACE}/") or PAGE)(scope, receive, send)

    def _answer(self, name: str) -> Response:
        kind = KINDS.get(Path(name).suffix)
        text = self._read(name) if kind else None
        if text is None:
            return PlainTextResponse("no such page; make the report with: dvc repro report", 404, GUARDED)
        return Response(text, media_type=kind, headers=GUARDED)

    def _read(self, name: str) -> bytes | None:
        """A file of the folder, None if there is none or if it is a link, which may lead anywhere."""
        if not NAME.fullmatch(name):
            return None
        try:
            folder = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            return None
        try:
            handle = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
        except OSError:
            return None
        finally:
            os.close(folder)
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            os.close(handle)
            return None
        with os.fdopen(handle, "rb") as file:
            return file.read()
