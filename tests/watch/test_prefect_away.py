"""A Prefect server that is dead, hangs or refuses: the stage goes on, and its journal is kept."""

import contextlib
import http.server
import subprocess
import threading

import pytest

from flows.local.api import is_healthy
from flows.watch import journal, postman, waiting
from flows.watch.letterbox import Outcome
from flows.watch.to_prefect import PrefectBox
from prefect_fixtures import by_hand, dead_address, home
from repository import ROOT
from servers import (
    PYTHON,
    QUIET,
    opened,
)

pytestmark = [*QUIET, pytest.mark.usefixtures("home", "by_hand")]


def test_a_stage_asks_no_server(dead_address, tmp_path):
    code = """
import sys, time
from pathlib import Path
from flows.watch import journal
from flows.events import Progress
journal.start_postman = lambda root: None
start = time.perf_counter()
with journal.open_journal(Path(sys.argv[1]), stage="base", params={}, tags={}) as run:
    for done in range(11):
        run(Progress("train", done, 10))
assert time.perf_counter() - start < 0.05, time.perf_counter() - start
assert not {"prefect", "httpx", "mlflow"} & set(sys.modules)
"""
    done = subprocess.run(
        [PYTHON, "-c", code, str(tmp_path)],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    (folder,) = journal.journal_folders(tmp_path)
    text = (folder / journal.RECORDS).read_text()
    assert "http://127.0.0.1" in text
    assert "secret" not in text
    assert text.count('"progress"') == 2, "the first and the last: nobody looks more often"


def test_a_dead_server_is_told_of_and_the_journal_kept(dead_address, tmp_path):
    with opened(tmp_path):
        pass
    with contextlib.closing(PrefectBox(tmp_path)) as box:
        problems = postman.once(tmp_path, [box])
    assert problems[0].startswith("Prefect: ConnectionError: no Prefect API answers at http://127.0.0.1")
    assert "secret" not in problems[0]
    assert len(journal.journal_folders(tmp_path)) == 1
    (line,) = waiting.told(tmp_path, "a")
    assert line.startswith("Prefect lacks the last records, which are kept: ConnectionError")


class Hanging:
    """A letterbox whose server answers after half a minute."""

    reader = "prefect"
    pause_seconds = 0.01

    def __init__(self):
        self.answer = threading.Event()

    def tick(self, *, leaving):
        self.answer.wait(30)
        return Outcome(live=False, waiting=False, problems=[])


def test_a_server_that_hangs_delays_the_other_by_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(postman, "JOIN_SECONDS", 0.1)
    looked = threading.Event()

    class Well:
        reader = "mlflow"
        pause_seconds = 0.01

        def tick(self, *, leaving):
            looked.set()
            return Outcome(live=False, waiting=False, problems=[])

    with opened(tmp_path):
        pass
    hanging = Hanging()
    monkeypatch.setattr(postman, "LINGER_SECONDS", 0)
    thread = threading.Thread(target=postman.stay, args=(tmp_path, [hanging, Well()]))
    thread.start()
    assert looked.wait(1)
    hanging.answer.set()
    thread.join(10)
    assert not thread.is_alive()


@pytest.mark.parametrize(("status", "again"), [(422, False), (404, False), (403, True), (429, True), (503, True)])
def test_what_a_server_refuses_for_good_is_left_out(status, again):
    import httpx

    from flows.watch.to_prefect import refused

    request = httpx.Request("POST", "http://127.0.0.1/x")
    error = httpx.HTTPStatusError("refused", request=request, response=httpx.Response(status, request=request))
    with pytest.raises(httpx.HTTPStatusError) if again else contextlib.nullcontext(), refused():
        raise error


def test_refusal_is_an_answer_to_who_has_a_login():
    class Refusing(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(401)

        def log_message(self, *arguments):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Refusing) as refusing:
        threading.Thread(target=refusing.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{refusing.server_address[1]}/api"
        assert not is_healthy(address)
        assert is_healthy(address, "me:secret")
        refusing.shutdown()
