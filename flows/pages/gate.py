"""What stands in front of the two pages: who may reach them, by which name, from which page.

    python -m flows.pages.gate HANDLE...     Prefect's server, on sockets that its parent has bound
    mlflow server --app-name fmcore ...      MLflow's, by the entry point in pyproject.toml, on a socket likewise

Loopback is no border. Any web page can make a browser send requests to it, also under a name of the page's own
(DNS rebinding), and so can every user of the machine; whoever reaches Prefect's API can run commands. So a
request must name this machine, must not come from another page, and must show the login. Prefect asks for it
itself (`PREFECT_SERVER_API_AUTH_STRING`). In front of MLflow it is asked for here: MLflow's own login is for many
users with rights on each model, keeps a database of them, and guards route by route what this guards as a whole.

The parent binds the sockets and keeps them, so a port is nobody else's from before the first request until after
the last.
"""

import base64
import hmac
import os
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flows.pages.front import Front
from flows.pages.report import Report

if TYPE_CHECKING:
    from fastapi import FastAPI

NAMES = ("127.0.0.1", "localhost", "[::1]")
LOGIN = "FMCORE_LOGIN"  # of the environment: what MLflow's gate asks for, or `off`
OFF = "off"


class Gate:
    """Lets in what comes from its own page or from none, and shows the login, if there is one."""

    def __init__(self, app: ASGIApp, login: str | None = None) -> None:
        self.app = app
        self.login = login

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        refusal = self._refusal(scope) if scope["type"] in ("http", "websocket") else None
        if refusal is None:
            await self.app(scope, receive, _unframed(send))
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
        else:
            await refusal(scope, receive, send)

    def _refusal(self, scope: Scope) -> PlainTextResponse | None:
        headers = Headers(scope=scope)
        if _is_of_another_page(scope, headers):
            return PlainTextResponse("a request of another page is refused here", 403)
        if self.login is not None and not _shows(headers.get("authorization", ""), self.login):
            asks = {"WWW-Authenticate": 'Basic realm="fmcore", charset="UTF-8"'}
            return PlainTextResponse("log in as `make ui` says", 401, asks)
        return None


def _is_of_another_page(scope: Scope, headers: Headers) -> bool:
    """Whether a page of another origin has sent a request, or shows this one inside of itself."""
    # By the whole name, port included: behind the next port may be another user's page.
    origin = headers.get("origin")
    if origin is not None and origin.partition("://")[2] != headers.get("host"):
        return True
    # Pictures, scripts and frames come without an origin; browsers tell of them here. A link may lead here.
    if headers.get("sec-fetch-site") not in ("cross-site", "same-site"):
        return False
    opened = (headers.get("sec-fetch-mode"), headers.get("sec-fetch-dest")) == ("navigate", "document")
    return not (opened and scope.get("method") == "GET")


def _unframed(send: Send) -> Send:
    """Tells browsers to show the answer in frames of its own page only: clicks there could be another's."""

    async def sending(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).setdefault("X-Frame-Options", "SAMEORIGIN")
        await send(message)

    return sending


def _shows(header: str, login: str) -> bool:
    expected = f"Basic {base64.b64encode(login.encode()).decode()}"
    return hmac.compare_digest(header.encode(), expected.encode())


def _gated(app: ASGIApp, login: str | None) -> ASGIApp:
    return TrustedHostMiddleware(Gate(app, login), allowed_hosts=NAMES, www_redirect=False)


def mlflow_app() -> ASGIApp:
    """MLflow's server behind its gate; `mlflow server --app-name fmcore` calls this."""
    login = os.environ[LOGIN]  # must be there: without, it would stand open
    from mlflow.server.fastapi_app import app

    return _gated(Report(Front(app), Path.cwd()), None if login == OFF else login)


def prefect_app() -> ASGIApp:
    """Prefect's server behind its gate; its own login is in the environment."""
    from prefect.server.api.server import create_app

    app: FastAPI = create_app(final=True)
    return _gated(app, None)


def bound(port: int, *, one: bool = False) -> list[socket.socket]:
    """Sockets that listen on a port of this machine's loopback, IPv6 too where there is one.

    Browsers take `localhost` for either, so whoever had the other one would be asked for the login. A server that
    takes `one` socket gets the first; IPv6's half of its port then refuses everybody.

    Raises:
        OSError: if it is taken.
    """
    sockets = [_listening(socket.AF_INET, "127.0.0.1", port)]
    port = sockets[0].getsockname()[1]
    try:
        if _has_loopback6():
            sockets.append(_refusing(port) if one else _listening(socket.AF_INET6, "::1", port))
    except OSError:
        sockets[0].close()
        raise
    return sockets


def _refusing(port: int) -> socket.socket:
    """Holds IPv6's half of a port without listening."""
    made = socket.socket(socket.AF_INET6, socket.SOCK_STREAM)
    try:
        # Not to be shared: of two that both allow it and do not listen, the second may be another user's.
        made.bind(("::1", port))
    except OSError:
        made.close()
        raise
    return made


def _listening(family: socket.AddressFamily, host: str, port: int) -> socket.socket:
    made = socket.socket(family, socket.SOCK_STREAM)
    try:
        # A port in its rest after a close may be taken again; one that somebody listens on may not.
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((host, port))
        made.listen(2048)
    except OSError:
        made.close()
        raise
    return made


def _has_loopback6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def main(handles: list[str]) -> int:
    """Serves Prefect until it is told to stop."""
    import uvicorn
    from prefect.settings import get_current_settings

    settings = get_current_settings().server
    api = settings.api
    config = uvicorn.Config(
        prefect_app,
        factory=True,
        timeout_keep_alive=api.keepalive_timeout,
        ws_ping_interval=api.websocket_ping_interval,
        ws_ping_timeout=api.websocket_ping_timeout,
        log_level=settings.logging_level.lower(),
        proxy_headers=False,
    )
    uvicorn.Server(config).run(sockets=[socket.socket(fileno=int(handle)) for handle in handles])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
