"""Models in MLflow's registry: what a version says, who gets an alias, and that what comes out is the model."""

import json
import os
import re
import signal
import subprocess
import sys
from importlib.metadata import packages_distributions, requires

import numpy as np
import pytest
import torch
from PIL import Image

import flows
import fmcore
from flows.local import tracking
from flows.registry import versions
from flows.registry.card import SHA
from flows.registry.packing import NEEDED
from flows.watch import database
from fmcore.flow.pixels import quantise
from fmcore.models.folder import save_model
from fmcore.models.networks import MLP, initialised
from repository import ROOT
from servers import answer_to, free_port, wait_until

pytestmark = pytest.mark.native


def model_in(folder, seed=0, shape=(1, 4, 4), classes=None, **manifest):
    """A small model with random weights; a network begins with zeros where it ends."""
    network = initialised(MLP(width=8, depth=1, fourier=0), shape, classes, seed)
    with torch.no_grad():
        for weight in network.parameters():
            weight.normal_(generator=torch.Generator().manual_seed(seed))
    about = {"stage": "base", "rounds": 0} | manifest
    config = MLP(width=8, depth=1, fourier=0)
    save_model(folder, network, network_config=config, shape=shape, num_classes=classes, manifest=about)
    return folder


def sha(folder):
    return json.loads((folder / "manifest.json").read_text())["sha256"]


@pytest.fixture
def root(tmp_path, monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", *tracking.SETTINGS):
        monkeypatch.setenv(name, "")  # so that what is set is undone
        monkeypatch.delenv(name)
    database.make(tmp_path, os.environ | tracking.SETTINGS)
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    return tmp_path


@pytest.fixture
def registry(root):
    """Registers a model, and rates one."""
    tracking.configure(root)
    from mlflow import MlflowClient

    class Registry:
        client = MlflowClient()
        experiment = client.create_experiment("fmcore", artifact_location=(root / "mlartifacts").as_uri())
        run = client.create_run(experiment).info.run_id

        def add(self, folder, name="base", data="digits"):
            tags = {"fmcore.model": name, "fmcore.data": data}
            return versions.register(self.client, self.experiment, self.run, folder, tags)

        def rate(self, folder, *scores, by="fd"):
            picture = root / "samples.png"
            Image.new("L", (8, 8)).save(picture)
            found = dict(zip(("1", "4"), ((score, "euler at 1") for score in scores), strict=True))
            versions.rate(self.client, "digits", sha(folder), by, found, picture)

        def best(self):
            return {
                alias: int(v) for alias, v in self.client.get_registered_model("fmcore-digits").aliases.items()
            }

        def version(self, number):
            return self.client.get_model_version("fmcore-digits", str(number))

    return Registry()


def test_a_version_says_where_it_comes_from_and_is_there_once(registry, tmp_path):
    base = model_in(tmp_path / "base")
    made_of = {"init": {"model": "base", "sha256": sha(base)}}
    made_of["couplings"] = {"round": "r1", "teacher": {"model": "base", "sha256": sha(base), "ema": None}}
    round_ = model_in(tmp_path / "r1", seed=1, stage="reflow@r1", rounds=1, **made_of)
    for folder, name in ((base, "base"), (round_, "r1"), (base, "base")):
        registry.add(folder, name)
    registry.rate(round_, 0.5, 0.25)
    first, second = registry.version(1), registry.version(2)
    assert len(registry.client.search_model_versions("name = 'fmcore-digits'")) == 2
    short = sha(base)[:12]
    assert second.tags["fmcore.starts_from"] == f"base ({short}, version 1)"
    assert second.tags["fmcore.couplings"] == f"r1, made by base ({short}, version 1)"
    assert (first.tags[SHA], second.tags[SHA]) == (sha(base), sha(round_))
    assert "| 1 | 0.5 by euler at 1 |\n| 4 | 0.25 by euler at 1 |" in second.description
    assert 'flows.load("models:/fmcore-digits/2")' in second.description
    files = [
        file.path for file in registry.client.list_logged_model_artifacts(second.source.removeprefix("models:/"))
    ]
    assert {"MLmodel", "samples.png", "artifacts", "code"} <= set(files)


def test_aliases_go_to_the_best_by_the_same_yardstick(registry, tmp_path):
    folders = [model_in(tmp_path / str(seed), seed) for seed in range(4)]
    for folder in folders:
        registry.add(folder)
    registry.rate(folders[0], 0.5, 0.4)
    assert registry.best() == {"best-at-1": 1, "best-at-4": 1}
    registry.rate(folders[1], 0.6, 0.3)
    assert registry.best() == {"best-at-1": 1, "best-at-4": 2}
    registry.rate(folders[2], 0.5, 0.9)
    assert registry.best() == {"best-at-1": 3, "best-at-4": 2}, "the newest of equals"
    registry.rate(folders[3], 100.0, 100.0, by="another distance")
    assert registry.best() == {"best-at-1": 4, "best-at-4": 4}
    registry.rate(model_in(tmp_path / "unknown", 9), 0.0, 0.0)
    assert registry.best() == {"best-at-1": 4, "best-at-4": 4}


def test_an_alias_loads_and_samples(registry, tmp_path):
    folder = model_in(tmp_path / "base")
    registry.add(folder)
    registry.rate(folder, 0.5, 0.4)
    expected = fmcore.load(folder).sample(5, 2, seed=3)
    for name in ("models:/fmcore-digits@best-at-1", "models:/fmcore-digits/1"):
        torch.testing.assert_close(flows.load(name).sample(5, 2, seed=3), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "models:/fmcore-digits@best",
            "models:/fmcore-digits@best: fmcore-digits has 1 versions and the aliases none",
        ),
        ("models:/fmcore-digits/7", "models:/fmcore-digits/7: fmcore-digits has 1 versions and the aliases none"),
        ("models:/fmcore-cats/1", "models:/fmcore-cats/1: the registry has no fmcore-cats, it has fmcore-digits"),
        ("models/base", "model: expected models:/NAME@ALIAS or models:/NAME/VERSION, got 'models/base'"),
    ],
)
def test_a_wrong_name_is_told_in_a_line(registry, tmp_path, name, said):
    registry.add(model_in(tmp_path / "base"))
    with pytest.raises(ValueError, match=r".") as error:
        flows.load(name)
    assert str(error.value) == said


ASK = """
import json, sys, warnings
import mlflow, pandas
warnings.simplefilter("ignore")
model = mlflow.pyfunc.load_model(sys.argv[1])
rows = pandas.DataFrame(json.loads(sys.argv[2]))
answer = model.predict(rows)
print(json.dumps([str(answer.dtype), answer.tolist()]))
"""


def asked(root, *rows, name="models:/fmcore-digits/1", check=True):
    """What `mlflow.pyfunc` answers, in a process that may read no pickle and knows no pipeline."""
    env = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    env |= {"MLFLOW_TRACKING_URI": tracking.address(root), "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false"}
    command = [sys.executable, "-c", ASK, name, json.dumps(rows)]
    done = subprocess.run(command, cwd=root, env=env, capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, done.stderr
    return json.loads(done.stdout) if check else done.stderr


@pytest.mark.slow
def test_pyfunc_gives_the_same_samples(registry, root, tmp_path):
    images = model_in(tmp_path / "images", classes=3)
    points = model_in(tmp_path / "points", shape=(2,))
    registry.add(images)
    registry.add(points, data="moons")
    assert not [path for path in (root / "mlartifacts").rglob("*") if path.suffix in (".pkl", ".pickle", ".pt")]
    model = fmcore.load(images)
    parts = [model.sample(2, 1, seed=0, label=None), model.sample(3, 4, seed=7, label=2)]
    kind, found = asked(root, {"count": 2, "nfe": 1}, {"count": 3, "nfe": 4, "seed": 7, "label": 2})
    assert kind == "uint8"
    assert np.array_equal(np.array(found, dtype=np.uint8), quantise(torch.cat(parts)).numpy())
    kind, found = asked(root, {"count": 4, "nfe": 2, "seed": 1}, name="models:/fmcore-moons/1")
    assert kind == "float32"
    np.testing.assert_array_equal(np.array(found, np.float32), fmcore.load(points).sample(4, 2, seed=1).numpy())
    assert "expected rows of 1 or more, and at most 10000 together" in asked(
        root, {"count": 0, "nfe": 1}, check=False
    )


@pytest.mark.slow
def test_a_served_model_gives_images(registry, root, tmp_path):
    folder = model_in(tmp_path / "base")
    registry.add(folder)
    registry.rate(folder, 0.5, 0.4)
    port = free_port()
    command = [sys.executable, "-m", "mlflow", "models", "serve", "-m", "models:/fmcore-digits@best-at-1"]
    command += ["--env-manager", "local", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    env = os.environ | {"MLFLOW_TRACKING_URI": tracking.address(root), "PYTHONPATH": str(ROOT)}
    with (root / "served.log").open("w") as log:
        process = subprocess.Popen(command, cwd=root, env=env, stdout=log, stderr=log, start_new_session=True)
    try:
        wait_until(lambda: process.poll() is not None or _is_up(f"http://127.0.0.1:{port}/ping"), 240)
        request = {"dataframe_records": [{"count": 3, "nfe": 2, "seed": 5}]}
        status, answer = answer_to(f"http://127.0.0.1:{port}/invocations", request)
        assert status == 200, (root / "served.log").read_text()[-2000:]
        expected = quantise(fmcore.load(folder).sample(3, 2, seed=5)).numpy()
        assert np.array_equal(json.loads(answer)["predictions"], expected)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _is_up(url):
    try:
        return answer_to(url)[0] == 200
    except OSError:
        return False


def test_a_served_model_has_all_that_loading_one_imports():
    code = "import sys, fmcore; fmcore.load; from fmcore.models import folder, networks, autoencoder; "
    code += "print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    own = {re.match(r"[\w-]+", need)[0].lower() for need in requires("fmcore") if "extra ==" not in need}
    of = packages_distributions()
    loaded = {package.lower() for name in done.stdout.split() for package in of.get(name, [])}
    assert loaded & own <= set(NEEDED)


def test_importing_flows_stays_light():
    code = "import sys, flows; print(sorted({'torch', 'mlflow', 'numpy', 'pandas'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
