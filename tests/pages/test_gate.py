"""Who may reach the pages, by which name and from which page."""

import socket

import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from flows.pages import gate
from servers import free_port

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

LOGIN = "fmcore:a-long-password"


async def page(request):
    return PlainTextResponse("the page")


async def channel(websocket):
    await websocket.accept()
    await websocket.send_text("the channel")


INSIDE = Starlette(routes=[Route("/", page, methods=["GET", "POST"]), WebSocketRoute("/channel", channel)])


@pytest.fixture(params=[None, LOGIN], ids=["open", "login"])
def client(request):
    found = TestClient(gate._gated(INSIDE, request.param), base_url="http://127.0.0.1:4200")
    if request.param:
        found.auth = tuple(request.param.split(":"))
    return found


@pytest.mark.parametrize(
    "name", ["127.0.0.1", "127.0.0.1:8080", "localhost", "LocalHost:1", "[::1]:4200", "[::1]"]
)
def test_its_own_names_are_let_in_whatever_the_port(client, name):
    """`ssh -L 8080:127.0.0.1:4200` gives the page another port."""
    assert client.get("/", headers={"Host": name}).text == "the page"


@pytest.mark.parametrize(
    "name",
    [
        *("evil.com", "127.0.0.1.evil.com", "evil.com:4200", "localhost.evil.com", "evil.com#127.0.0.1", ""),
        *("127.0.0.2", "0.0.0.0", "[::]", "127.0.0.1@evil.com", "2130706433"),
    ],
)
def test_foreign_names_are_refused(client, name):
    """DNS rebinding: the page of evil.com asks for evil.com, which now means this machine."""
    assert client.get("/", headers={"Host": name}).status_code == 400
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/channel", headers={"Host": name}):
        pass


@pytest.mark.parametrize(
    "origin", ["http://evil.com", "null", "http://127.0.0.1:9999", "http://127.0.0.1", "", "http://localhost:4200"]
)
def test_foreign_pages_are_refused(client, origin):
    """Behind the next port may be another user's page."""
    assert client.post("/", headers={"Origin": origin}).status_code == 403
    with pytest.raises(WebSocketDisconnect), client.websocket_connect("/channel", headers={"Origin": origin}):
        pass


def test_its_own_page_is_let_in(client):
    for name in ("127.0.0.1:4200", "localhost:8080"):
        assert client.post("/", headers={"Host": name, "Origin": f"http://{name}"}).text == "the page"


@pytest.mark.parametrize(
    "shown", [None, "", "fmcore:", "fmcore:wrong", "root:a-long-password", LOGIN + "x", "a-long-password", "é"]
)
def test_nothing_is_shown_without_the_login(shown):
    client = TestClient(gate._gated(INSIDE, LOGIN), base_url="http://127.0.0.1:4200")
    headers = {} if shown is None else {"Authorization": f"Basic {shown}".encode()}
    if shown and shown.isascii():
        client.auth = tuple(shown.partition(":")[::2])
        headers = {}
    answer = client.get("/", headers=headers)
    assert answer.status_code == 401
    assert answer.headers["WWW-Authenticate"].startswith("Basic ")


def test_mlflow_is_not_served_without_a_word_on_its_login(monkeypatch):
    monkeypatch.delenv(gate.LOGIN, raising=False)
    with pytest.raises(KeyError, match=gate.LOGIN):
        gate.mlflow_app()


@pytest.mark.parametrize("one", [False, True])
def test_a_port_is_held_on_both_loopbacks(one):
    """Also against who allows others to share it, as another user might."""
    sockets = gate.bound(free_port(), one=one)
    try:
        port = sockets[0].getsockname()[1]
        for family, host in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"))[: len(sockets)]:
            for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
                with socket.socket(family) as other:
                    other.setsockopt(socket.SOL_SOCKET, option, 1)
                    with pytest.raises(OSError, match="in use"):
                        other.bind((host, port)) or other.listen()
        with pytest.raises(OSError, match="in use"):
            gate.bound(port, one=one)
    finally:
        for each in sockets:
            each.close()


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
@pytest.mark.parametrize(
    ("mode", "dest", "method", "status"),
    [
        ("no-cors", "image", "GET", 403),
        ("no-cors", "script", "GET", 403),
        ("navigate", "iframe", "GET", 403),
        ("navigate", "document", "POST", 403),
        ("navigate", "document", "GET", 200),
    ],
)
def test_other_pages_may_link_here_but_show_nothing_of_it(client, site, mode, dest, method, status):
    """Browsers send pictures, scripts and frames without an origin, and with the login."""
    headers = {"Sec-Fetch-Site": site, "Sec-Fetch-Mode": mode, "Sec-Fetch-Dest": dest}
    assert client.request(method, "/", headers=headers).status_code == status
    own = client.get("/", headers=headers | {"Sec-Fetch-Site": "same-origin"})
    assert own.status_code == 200
    assert own.headers["X-Frame-Options"] == "SAMEORIGIN"
