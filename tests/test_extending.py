"""docs/extending.md does what it says: its changes, made in a copy of the project."""

import re
from pathlib import Path

import pytest

from checkouts import Checkout
from fmcore.disk.files import read_json
from repository import ROOT

pytestmark = pytest.mark.slow
BLOCKS = re.findall(r"^```(py|yml)\n(.*?)^```", (ROOT / "docs/extending.md").read_text(), re.MULTILINE | re.DOTALL)


def insert(file: Path, text: str, before: str) -> None:
    whole = file.read_text()
    assert whole.count(before) == 1
    file.write_text(whole.replace(before, text + before))


def test_one_of_each_is_added(tmp_path):
    checkout = Checkout(tmp_path, "smoke")
    at = checkout.folder
    path, solver, coupling, stage, entry = (text for _, text in BLOCKS)
    insert(at / "fmcore/flow/paths.py", f"{path}\n\n", "ContinuousPath = ")
    union = (at / "fmcore/flow/paths.py").read_text()
    (at / "fmcore/flow/paths.py").write_text(union.replace("Polynomial | VP", "Polynomial | Arc | VP"))
    insert(at / "fmcore/ode/solvers.py", solver, '    "heun": ')
    insert(at / "fmcore/flow/couplings.py", f"{coupling}\n\n", "# Couplings of data with fresh noise")
    insert(at / "fmcore/flow/couplings.py", '    "ordered": Ordered,\n', '    "minibatch_ot": ')
    (at / "flows/stages/sizes.py").write_text(stage)
    insert(at / "dvc.yaml", f"{entry}\n", "  features:\n")

    checkout.edit("base.path", {"name": "arc"})
    checkout.edit("base.coupling", "ordered")
    checkout.edit("evaluate.solvers", {"euler": [1, 4], "ralston": [4]})
    for section in ("base", "reflow", "distill"):
        checkout.edit(f"{section}.train.images", 20_000)
    checkout.edit("reflow.rounds", {"r1": {"teacher": "base", "couple": {}, "train": {}}})
    done = checkout.repro()
    assert "sizes" in done.ran
    assert 2 < read_json(at / "sizes.json")["size"] < 3
    made = read_json(at / "models/base/manifest.json")
    assert made["coupling"] == "ordered"
    assert read_json(at / "models/base/config.json")["convention"]["path"]["name"] == "arc"
    assert ",ralston,uniform,4," in (at / "scores/base/scores.csv").read_text()
    code = "import sys; sys.path.insert(0, 'tests'); import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    (at / "tests").symlink_to(ROOT / "tests")
    paths = ("paths", "conversions", "exact_fields", "path_losses", "path_peers")
    solvers = ("solvers", "every_solver", "stochastic_solvers", "optimised_grids")
    family = [f"tests/flow/test_{name}.py" for name in paths] + [f"tests/ode/test_{name}.py" for name in solvers]
    family += ["-k", "arc or ralston", "-q", "-p", "no:cacheprovider"]
    said = checkout.run("python", "-c", code, *family, PYTHONPATH=str(at)).stdout
    assert re.search(r"\d\d passed", said), said
