"""The report beside MLflow's page: it is shown, and no other file is."""

import os

import pytest
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient

from flows.pages.report import Report


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "project"
    (root / "reports" / "inner").mkdir(parents=True)
    (root / "reports" / "index.html").write_text("<p>the report")
    (root / "reports" / "curves.png").write_bytes(b"\x89PNG")
    (root / "reports" / ".hidden.html").write_text("hidden")
    (root / "reports" / "notes").write_text("of no known kind")
    (root / "reports" / "inner" / "a.html").write_text("inner")
    (root / "secret.html").write_text("secret")
    (root / "reports" / "link.html").symlink_to(root / "secret.html")
    (root / "reports" / "inside.html").symlink_to("index.html")
    (root / "reports" / "folder.html").mkdir()
    os.mkfifo(root / "reports" / "pipe.html")
    return root


@pytest.fixture
def client(root):
    return TestClient(Report(PlainTextResponse("MLflow's own"), root), base_url="http://127.0.0.1")


def test_the_report_and_what_lies_beside_it(client):
    for path in ("/report", "/report/", "/report/index.html"):
        answer = client.get(path)
        assert (answer.status_code, answer.text) == (200, "<p>the report")
        assert answer.headers["Content-Type"] == "text/html; charset=utf-8"
    assert client.get("/report/curves.png").headers["Content-Type"] == "image/png"
    assert client.head("/report/").status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        *("../secret.html", "%2e%2e/secret.html", "..%2fsecret.html", "%2e%2e%2fsecret.html", "//etc/passwd"),
        *("link.html", "inside.html", "pipe.html", ".hidden.html", "notes", "inner", "inner/a.html", "none.html"),
        *("index.html%00.png", "x" * 300 + ".html", "folder.html"),
    ],
)
def test_no_other_file_is_shown(client, path):
    answer = client.get(f"/report/{path}")
    assert "secret" not in answer.text
    # A client takes /report/../x for /x, which is MLflow's.
    assert answer.status_code == 404 or answer.text == "MLflow's own"


def test_a_folder_that_is_a_link_shows_nothing(client, root):
    (root / "reports").rename(root / "elsewhere")
    (root / "reports").symlink_to(root / "elsewhere")
    assert client.get("/report/").status_code == 404
    (root / "reports").unlink()
    assert client.get("/report/").status_code == 404


def test_nothing_in_the_page_can_act(client):
    """It shares its origin with MLflow's page, which may delete runs."""
    for path in ("/report/", "/report/none.html"):
        headers = client.get(path).headers
        assert headers["Content-Security-Policy"].startswith("sandbox; default-src 'none'")
        assert headers["X-Content-Type-Options"] == "nosniff"
    assert client.post("/report/").status_code == 405


def test_all_else_is_mlflows(client):
    for path in ("/", "/reports", "/reporting", "/ajax-api/report/"):
        assert client.get(path).text == "MLflow's own"
