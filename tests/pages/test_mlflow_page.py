"""MLflow's address, as a browser opens it for the first time."""

import os
import signal
import subprocess
import sys

import pytest

from browser import CHROMIUM
from devtools import browsing
from flows.local import tracking
from flows.pages import gate
from flows.params.files import PRESETS, load_yaml
from flows.watch import naming
from mlflow_records import MODELS, NFES, distance, drain, make_root, play_pipeline
from repository import ROOT
from servers import answer_to, free_port, wait_until

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium (apt-get install chromium)"),
]
# Each line has a second one behind it, a shade.
DRAWN = """[...document.querySelectorAll(".js-plotly-plot")].map(plot => ({
  lines: plot.data.filter((_, i) => i % 2 === 0).map(l => [l.name, l.marker?.color, [...l.x], [...l.y]]),
  log: [plot.layout.xaxis.type, plot.layout.yaxis.type],
}))"""


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two pipelines, of which the second trained the last model only."""
    with pytest.MonkeyPatch.context() as patch:
        root = make_root(tmp_path_factory.mktemp("root"), patch)
        (root / PRESETS).symlink_to(ROOT / PRESETS)
        params = load_yaml(ROOT / PRESETS / "digits.yaml")
        play_pipeline(root, 1_000_000_000, params=params)
        params["distill"]["train"]["images"] = 100_000
        play_pipeline(root, 1_000_003_600, run=MODELS[-1:], params=params)
        drain(root)
    return root


@pytest.fixture(scope="module")
def address(root):
    """MLflow behind the gate, as `make ui` starts it, with no login to type."""
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    command += ["--backend-store-uri", f"sqlite:///{root}/mlflow.db", "--app-name", "fmcore"]
    command += ["--default-artifact-root", str(root / "mlartifacts"), "--allowed-hosts", "127.0.0.1:*"]
    env = os.environ | tracking.SETTINGS | {gate.LOGIN: gate.OFF, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    env |= {"PYTHONPATH": str(ROOT)}
    output = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, cwd=root, env=env, start_new_session=True, **output) as process:
        try:
            url = f"http://127.0.0.1:{port}"
            wait_until(lambda: _answers(url), 300)
            yield url
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def _answers(url):
    try:
        return answer_to(f"{url}/health")[0] == 200
    except OSError:
        return False


def drawing(tab, lines):
    """Waits until a chart has so many lines."""
    tab.wait_for(
        f'[...document.querySelectorAll(".js-plotly-plot")].some(plot => plot.data.length >= 2 * {lines})', 240
    )


def test_the_bare_address_draws_each_model_of_the_latest_pipeline(address, tmp_path):
    with browsing(tmp_path) as tab:
        tab.open(address)
        drawing(tab, len(MODELS))
        quality = tab.value(DRAWN)[0]
        tab.picture(tmp_path / "page.png")
        assert quality["log"] == ["log", "log"]
        drawn = {name.split(" / ")[0]: (colour, x, y) for name, colour, x, y in quality["lines"]}
        assert list(drawn) == list(MODELS)
        assert {name.split(" / ", 1)[1] for name, *_ in quality["lines"]} == {
            "distill.train.images=100k / digits 2"
        }
        assert len({colour for colour, _, _ in drawn.values()}) == len(MODELS)
        assert drawn["base"][0] == naming.colour(0, 2)
        for model, (_, x, y) in drawn.items():
            assert x == list(NFES)
            assert y == pytest.approx([distance(model, nfe) for nfe in NFES])
        text = tab.value("document.body.innerText")
        assert "Ask questions about your experiments" not in text, "a panel would cover a quarter of the page"
        assert "latest pipeline (digits)" in text


def test_an_address_that_says_where_goes_there(address, tmp_path):
    with browsing(tmp_path) as tab:
        tab.open(f"{address}/#/models")
        assert tab.wait_for('location.hash === "#/models" && document.body.innerText.includes("Registered")')
        tab.open(
            f"{address}/?page#/experiments/1/runs?workflowType=machine_learning&compareRunsMode=CHART"
            "&viewStateShareKey=digits.student"
        )
        drawing(tab, 2)
        names = {name for name, *_ in tab.value(DRAWN)[0]["lines"]}
        assert names == {"student / digits 1", "student / distill.train.images=100k / digits 2"}
