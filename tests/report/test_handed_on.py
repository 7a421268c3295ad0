"""`python -m flows.report`: what made the page, and another result beside it; the page itself stays as it is."""

import json
import re
import shutil
import sqlite3
import subprocess
from pathlib import Path

import pandas as pd
import psutil
import pytest

from flows.launch import origin
from flows.local import api
from flows.local.process import PIPELINE, Process
from flows.report import __main__ as command
from flows.report import against
from flows.report.made import made as known
from fmcore.disk.files import sha256
from report_inputs import made_once

TAGS = {
    "mlflow.source.git.commit": "1a2b3c4d5e6f7a8b",
    "mlflow.source.git.branch": "main",
    "fmcore.dirty": "params.yaml",
}


@pytest.fixture
def place(tmp_path, tmp_path_factory, monkeypatch):
    """A copy of the usual report, as the working directory."""
    shutil.copytree(made_once("images", tmp_path_factory).reports, tmp_path / "reports")
    shutil.copyfile(Path(__file__).parents[2] / "params.yaml", tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DVC_ROOT", raising=False)
    monkeypatch.setenv(PIPELINE, "4194304-1000.00")
    return tmp_path


def test_what_made_the_page_is_in_another_file(place):
    before = {path.name: path.read_bytes() for path in (place / "reports").iterdir()}
    origin.note(place, TAGS)
    line = {
        "pipeline": "4194304-1000.00",
        "pipeline_started": 1000.0,
        "stage": "distill@student",
        "started": 1001.0,
    }
    mine = line | {"ended": 1013.5, "worked": 12.0, "peak_mb": 600.0}
    other = mine | {"pipeline": "1-1.00", "stage": "base"}
    (place / "work/timing.jsonl").write_text(f"{json.dumps(mine)}\n{json.dumps(other)}\n")
    assert command.main([]) == 0
    page = (place / "work/report.html").read_text()
    assert "1a2b3c4d5e6f on main, edited: params.yaml" in page
    assert re.search(r"<dt>versions</dt><dd>Python 3[^<]*torch \d", page)
    assert re.findall(r'<th scope="row" class="label">(.*?)</th><td>12.5</td><td>12.0</td>', page) == [
        "distill@student"
    ]
    assert "<!--MADE-->" not in page
    assert "<script" not in page
    assert before == {path.name: path.read_bytes() for path in (place / "reports").iterdir()}


def test_a_page_that_was_made_elsewhere_says_so(place):
    assert command.main(["--no-speed", "--out", "there.html"]) == 0
    assert "nothing is known of the run" in Path("there.html").read_text()
    origin.note(place, TAGS)
    file = place / "reports/index.html"
    file.write_text(file.read_text().replace("One evaluation", "Two evaluations"))
    assert known(place, sha256(file)) is None


@pytest.mark.parametrize("port", [None, 5007], ids=["of a page that is not up", "of the page"])
def test_records_are_linked(place, port, monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    if port:
        me = Process.of(psutil.Process())
        api.write_record(place, api.Record("", *me, login=False, mlflow=f"http://127.0.0.1:{port}"))
    origin.note(place, TAGS)
    with sqlite3.connect("mlflow.db") as database:
        database.execute("create table runs (run_uuid, experiment_id)")
        database.execute("create table tags (key, value, run_uuid)")
        database.executemany("insert into runs values (?, 1)", [("p",), ("s",), ("other",)])
        tags = [("fmcore.pipeline", "4194304-1000.00", "p"), ("fmcore.pipeline", "4194304-1000.00", "s")]
        tags += [
            ("fmcore.model", "student", "s"),
            ("prefect.page.distill@student", "http://127.0.0.1:4200/runs/1", "s"),
        ]
        tags += [("fmcore.pipeline", "1-1.00", "other"), ("prefect.page.base", "javascript:alert(1)", "p")]
        database.executemany("insert into tags values (?, ?, ?)", tags)
    assert known(place, sha256(place / "reports/index.html")).links == {
        "MLflow: pipeline": f"http://127.0.0.1:{port or 5000}/#/experiments/1/runs/p",
        "MLflow: student": f"http://127.0.0.1:{port or 5000}/#/experiments/1/runs/s",
        "Prefect: distill@student": "http://127.0.0.1:4200/runs/1",
    }


@pytest.mark.parametrize("page", [None, "<h1>of version 0.1</h1>"], ids=["missing", "old"])
def test_no_page_is_one_line(place, capsys, page):
    file = place / "reports/index.html"
    file.unlink() if page is None else file.write_text(page)
    assert command.main([]) == 2
    assert re.fullmatch(
        r"report: reports/index\.html is .*: `dvc repro` makes it( anew)?\n", capsys.readouterr().err
    )


def git(*words):
    subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *words], check=True, capture_output=True)


def test_another_commit_is_read_without_touching_the_workspace(place, capsys):
    """As an experiment is: DVC reads both by what git says."""
    git("init", "-q")
    subprocess.run(["dvc", "init", "-q"], check=True, capture_output=True)
    text = (place / "params.yaml").read_text()
    (place / "params.yaml").write_text(text.replace("  nfe: 16 ", "  nfe: 8 "))
    curves = pd.read_csv("reports/curves.csv", keep_default_na=False)
    worse = curves.assign(
        value=[2 * v if m == "student" else v for m, v in zip(curves.model, curves.value, strict=True)]
    )
    worse.to_csv("reports/curves.csv", index=False)
    git("add", "-A")
    git("commit", "-qm", "before")
    git("update-ref", "refs/exps/ab/cdef/lucky-newt", "HEAD")
    curves.to_csv("reports/curves.csv", index=False)
    (place / "params.yaml").write_text(text)
    state = subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True).stdout
    for asked, name in ((["--against", "HEAD"], "HEAD"), (["--against"], "lucky-newt")):
        assert command.main(["--no-speed", *asked]) == 0
        page = (place / "work/report.html").read_text()
        assert f"<h3>Against {name}</h3>" in page
        assert "Student at one evaluation: 1.78 before, 0.89 now, 50 % nearer to the data." in page
        assert '<td class="best">1.78 → 0.89 (-50 %)</td>' in page
        assert "1.22 → 1.22 (+0 %)" in page
        assert re.search(r"<code>couple.nfe</code></dt><dd>8 → 16</dd>", page)
    shutil.rmtree("work")
    assert subprocess.run(["git", "status", "--porcelain"], capture_output=True, text=True).stdout == state
    assert command.main(["--no-speed", "--against", "nowhere"]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_other_yardsticks_are_said_and_not_compared(place):
    mine = against.here(place)
    other = mine._replace(name="x", scores=mine.scores.assign(n_samples=500))
    found = against.compared(mine, other)
    assert found.problems == ["n_samples is 10000 here and 500 there, so distances do not compare"]
    assert (found.sentence, found.table, found.chart, found.changed) == ("", None, None, [])
