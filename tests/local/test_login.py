"""The login to Prefect: whose it is, and to whom it goes."""

import http.server
import os
import stat
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path

import psutil
import pytest

from flows.events import Note
from flows.local import api, private
from flows.local.api import Record, live_api, running, write_record
from flows.local.process import Process
from flows.watch import journal
from flows.watch.journal import open_journal
from flows.watch.to_prefect import PrefectBox
from repository import ROOT
from servers import Server, free_port, make_project, pipeline, someone_else, spelled, told

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

other_user = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to act as another user")


# --- the login ----------------------------------------------------------------------------------------------


@pytest.fixture
def settings(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    return tmp_path / "settings" / "fmcore"


def test_the_login_is_made_once_and_is_nobody_elses(settings):
    assert private.login() is None
    with ThreadPoolExecutor(8) as threads:
        (login,) = set(threads.map(lambda _: private.made_login(), range(8)))
    assert private.login() == login == private.made_login()
    assert [p.name for p in settings.iterdir()] == ["login"]
    assert stat.S_IMODE(settings.stat().st_mode) == 0o700
    assert stat.S_IMODE((settings / "login").stat().st_mode) == 0o600
    assert len(login.partition(":")[2]) >= 20


def test_a_login_that_others_can_read_or_set_is_refused(settings):
    private.made_login()
    path = settings / "login"
    for mode in (0o640, 0o604, 0o620):
        path.chmod(mode)
        with pytest.raises(private.NotPrivate, match=r"login is open to other users.*chmod go= "):
            private.login()
    path.chmod(0o600)
    settings.chmod(0o770)
    with pytest.raises(private.NotPrivate, match="fmcore is open to other users"):
        private.made_login()
    settings.chmod(0o700)
    path.write_text("me:short\n")
    with pytest.raises(ValueError, match="holds no login: expected NAME:PASSWORD"):
        private.login()
    path.rename(settings / "elsewhere")
    path.symlink_to(settings / "elsewhere")
    with pytest.raises(private.NotPrivate, match="login is a link; expected a file"):
        private.login()


@other_user
def test_a_login_of_somebody_else_is_refused(settings):
    private.made_login()
    os.chown(settings / "login", 65534, -1)
    with pytest.raises(private.NotPrivate, match="belongs to another user"):
        private.login()


def test_no_login_where_it_cannot_be_kept(tmp_path):
    (tmp_path / "file").touch()
    done = subprocess.run(
        [sys.executable, "-m", "flows.pages", "--prefect-port", str(free_port())],
        cwd=tmp_path, env=os.environ | {"XDG_CONFIG_HOME": str(tmp_path / "file"), "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "file/fmcore" in done.stderr
    assert len(done.stderr.splitlines()) == 1


# --- to whom it goes ----------------------------------------------------------------------------------------


class Harvester(http.server.BaseHTTPRequestHandler):
    """Answers as a healthy Prefect server would, and keeps what callers show."""

    seen: list[str]

    def do_GET(self):
        self.seen.append(f"{self.command} {self.path} {self.headers.get('Authorization')}")
        self.send_response(200)
        self.send_header("Content-Length", "4")
        self.end_headers()
        self.wfile.write(b"true")

    do_POST = do_GET

    def log_message(self, *arguments):
        pass


@contextmanager
def harvesting(port=0):
    """A false server in this process: its port, and what it was shown."""
    seen: list[str] = []
    kind = type("Mine", (Harvester,), {"seen": seen})
    http.server.ThreadingHTTPServer.allow_reuse_address = True
    with http.server.ThreadingHTTPServer(("127.0.0.1", port), kind) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_address[1], seen
        server.shutdown()


@pytest.fixture
def alone(monkeypatch, tmp_path):
    for name in (api.URL, api.AUTH):
        monkeypatch.delenv(name, raising=False)
    private.made_login()
    return tmp_path


def me():
    return Process.of(psutil.Process())


def test_a_stage_asks_no_port_that_was_not_named(alone, monkeypatch):
    """Whatever answers on Prefect's usual port may be another checkout's, or another user's."""
    asked = []
    monkeypatch.setattr(api, "asked", lambda *arguments, **options: asked.append(arguments) or (200, b"true"))
    assert live_api(alone) is None
    assert not asked


def test_a_stage_finds_the_server_of_its_checkout_while_it_runs(alone):
    with harvesting() as (port, seen):
        address = f"http://127.0.0.1:{port}/api"
        write_record(alone, Record(address, *me(), login=True))
        assert stat.S_IMODE(api.record_file(alone).stat().st_mode) == 0o600
        assert live_api(alone) == (address, private.login(), True)
        write_record(alone, Record(address, *me(), login=False))
        assert live_api(alone) == (address, None, True)
        write_record(alone, Record(address, os.getpid(), me().created - 100, login=True))
        assert live_api(alone) is None, "the process id is another process's by now"
        write_record(alone, Record(address, *me(), login=True))
        api.record_file(alone).chmod(0o644)
        assert running(alone) is None, "others may have written it"
        assert all(line.endswith("None") for line in seen), "nobody need know who asks whether it is well"


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"address": 1, "pid": "x", "started": 0, "login": 1}', "\xff"])
def test_a_torn_record_is_none(alone, text):
    write_record(alone, Record("", *me(), login=True))
    api.record_file(alone).write_text(text)
    assert running(alone) is None


def test_an_address_that_is_named_gets_what_belongs_to_it(alone, monkeypatch):
    with harvesting() as (port, _):
        address = f"http://127.0.0.1:{port}/api"
        monkeypatch.setenv(api.URL, address)
        assert live_api(alone) == (address, private.login(), True)
        monkeypatch.setenv(api.AUTH, "team:their-password")
        assert live_api(alone) == (address, "team:their-password", False)
        monkeypatch.setenv(api.AUTH, private.login())  # as in what `make ui` starts
        assert live_api(alone) == (address, private.login(), True)
    assert not private.listener_is_mine(address)


def test_only_this_machine_is_ones_own():
    for address in (
        "http://example.com/api",
        "http://10.0.0.1:4200",
        "http://127.0.0.1.evil.com",
        "x",
        "http://[",
    ):
        assert not private.is_loopback(address)
        assert not private.listener_is_mine(address)
    for address in ("http://localhost:1", "http://127.0.0.1", "http://[::1]:4200/api"):
        assert private.is_loopback(address)


def listens_as_someone_else(port):
    """A false server of another user."""

    def serve(say):
        with harvesting(port) as (_, seen):
            say("listening")
            while True:
                if seen:
                    say(seen.pop(0))
                time.sleep(0.02)

    return someone_else(serve)


@other_user
@pytest.mark.parametrize("named", [False, True])
def test_another_users_server_gets_no_login(alone, monkeypatch, named):
    port = free_port()
    address = f"http://127.0.0.1:{port}/api"
    with listens_as_someone_else(port) as said:
        assert said() == "listening"
        assert not private.listener_is_mine(address)
        if named:
            monkeypatch.setenv(api.URL, address)
            assert live_api(alone) == (address, None, False)
            assert said() == "GET /api/health None"
        else:  # `make ui` was killed, and its process's number given to another
            write_record(alone, Record(address, *me(), login=True))
            assert live_api(alone) is None


@pytest.fixture
def server(alone, monkeypatch, tmp_path):
    """A server of this user's, and a postman that works when it is told to."""
    (tmp_path / "server").mkdir()
    found = Server(tmp_path / "server")
    found.start()
    monkeypatch.setenv(api.URL, found.address)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "client"))
    monkeypatch.setattr(journal, "start_postman", lambda root: None)
    yield found
    found.kill()


@other_user
def test_a_server_that_takes_the_port_of_one_that_died_gets_no_login(alone, server):
    with open_journal(alone, stage="base", params={}, tags={}) as run, closing(PrefectBox(alone)) as box:
        run(Note("one"))
        assert not box.tick(leaving=False).problems
        server.kill()
        with listens_as_someone_else(server.port) as said:
            assert said() == "listening"
            run(Note("two"))
            assert box.tick(leaving=False).problems
            assert PrefectBox(alone).tick(leaving=False).problems
            assert said(seconds=1) is None, "nothing is asked of it at all"
    assert journal.journal_folders(alone), "to be told another time"


def test_no_proxy_is_shown_the_login(alone, server, monkeypatch, tmp_path):
    with harvesting() as (port, seen):
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{port}")
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        with open_journal(alone, stage="base", params={}, tags={}):
            pass
        told(alone)
        (tmp_path / "project").mkdir()
        done = pipeline(make_project(tmp_path / "project"), server.address, "a")
        assert done.returncode == 0, done.stdout + done.stderr
    assert not seen
    assert set(api.past_proxies()["NO_PROXY"].split(",")) == {"127.0.0.1", "localhost", "::1"}


def test_the_login_is_in_no_file_and_no_argument(alone, server, tmp_path):
    login = private.login()
    with open_journal(alone, stage="base", params={"seed": 0}, tags={}) as run:
        run(Note("at work"))
        with closing(PrefectBox(alone)) as box:
            assert not box.tick(leaving=False).problems
        words = [word for process in psutil.process_iter() for word in arguments_of(process)]
    told(alone)
    server.kill()
    assert not [word for word in words if any(text.decode() in word for text in spelled(login))]
    texts = {p: p.read_bytes() for p in Path(tmp_path).rglob("*") if p.is_file()}
    assert not [p for p, found in texts.items() if any(text in found for text in spelled(login))]


def arguments_of(process):
    try:
        return process.cmdline()
    except psutil.Error:
        return []
