"""The page of `dvc plots` draws its charts without the web."""

import os
import subprocess

import pytest

from browser import CHROMIUM, FLAGS
from flows.local import charts
from repository import ROOT
from servers import PYTHON
from small_pipelines import dvc, git

PLOTS = """
plots:
  - curve:
      x: step
      y: {losses.csv: loss}
"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (apt-get install chromium)")
def test_charts_are_drawn_without_the_web(tmp_path):
    pytest.importorskip("vl_convert")
    project = tmp_path / "project"
    project.mkdir()
    git(project, "init", "-q")
    dvc(project, "init", "-q")
    (project / "losses.csv").write_text("step,loss\n" + "".join(f"{i},{9 / (i + 1)}\n" for i in range(9)))
    (project / "dvc.yaml").write_text(PLOTS)
    assert charts.write(project)
    dvc(project, "plots", "show")
    page = project / "dvc_plots/index.html"
    assert "<script src" not in page.read_text()
    flags = [*FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--host-resolver-rules=MAP * ~NOTFOUND"]
    flags += ["--virtual-time-budget=10000", "--dump-dom"]
    done = subprocess.run([CHROMIUM, *flags, page.as_uri()], capture_output=True, text=True, timeout=120)
    assert "<canvas" in done.stdout or "<svg" in done.stdout, done.stderr


def test_without_the_library_nothing_is_changed(tmp_path):
    code = "import sys, runpy; sys.modules['vl_convert'] = None; "
    code += "runpy.run_module('flows.local.charts', {}, '__main__')"
    done = subprocess.run([PYTHON, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "pip install vl-convert-python" in done.stderr
    assert not list(tmp_path.iterdir())


def test_outside_of_a_project_it_is_one_line(tmp_path):
    pytest.importorskip("vl_convert")
    command = [PYTHON, "-m", "flows.local.charts"]
    env = os.environ | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert done.stderr.startswith("charts: no folder .dvc in ")
