"""What tests of Prefect's letterbox share: a home of its own, a server, a postman who waits to be told."""

import pytest

from flows.watch import journal
from servers import free_port, make_project, prefect_home, running_server


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    with prefect_home(tmp_path_factory.mktemp("prefect-home")):
        yield


@pytest.fixture
def by_hand(monkeypatch):
    """The postman works when a test tells it to, but for those that start processes."""
    monkeypatch.setattr(journal, "start_postman", lambda root: None)


@pytest.fixture(scope="module")
def _server(home, tmp_path_factory):
    with running_server(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def server(_server, monkeypatch):
    monkeypatch.setenv("PREFECT_API_URL", _server.address)
    return _server


@pytest.fixture
def project(tmp_path):
    return make_project(tmp_path)


@pytest.fixture
def dead_address(monkeypatch):
    address = f"http://user:secret@127.0.0.1:{free_port()}/api"
    monkeypatch.setenv("PREFECT_API_URL", address)
    return address
