"""The documentation site: it builds without a warning and without the web, and has every public name."""

import re
import shutil
import subprocess
import sys

import pytest

import fmcore
from repository import ROOT

pytest.importorskip("sphinx", reason="the extra dev is not installed")


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    place = tmp_path_factory.mktemp("site")  # a copy: pages of the reference are written beside the others
    for folder in ("docs", "fmcore"):
        shutil.copytree(
            ROOT / folder, place / folder, ignore=shutil.ignore_patterns("_build", "reference", "__pycache__")
        )
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "docs", "html"]
    done = subprocess.run(command, cwd=place, text=True, capture_output=True)
    assert not done.returncode, done.stderr[-3000:]
    return place / "html"


def test_every_page_and_every_public_name_is_there(site):
    front = (site / "index.html").read_text()
    for page in {path.stem for path in (ROOT / "docs").glob("*.md")} - {"README", "index"}:
        assert (site / f"{page}.html").is_file(), page
        assert f'href="{page}.html"' in front, page
    reference = "".join(path.read_text() for path in (site / "reference").rglob("*.html"))
    for name in dir(fmcore):
        assert re.search(rf'id="(module-)?fmcore\.([a-z_]+\.)*{name}"', reference), name


def test_nothing_is_fetched_from_elsewhere(site):
    fetched = r'<(?:script|img|iframe)[^>]* src="(https?:[^"]*)"|<link[^>]* href="(https?:[^"]*)"'
    for page in site.rglob("*.html"):
        assert not re.findall(fetched, page.read_text()), page
