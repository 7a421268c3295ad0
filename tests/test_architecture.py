"""The shape of the code: who imports whom, and that dvc.yaml names all code a stage runs."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from flows.launch.stages import code_of as code_of_stage
from flows.workshop.entry import sources
from repository import ROOT

DVC = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())
FILES = [path for package in ("fmcore", "flows") for path in sorted((ROOT / package).rglob("*.py"))]
OUTSIDE = {"prefect", "dvc", "mlflow", "pydantic", "ruamel", "yaml", "flows", "pandas"}

# What each room may import. A room is a folder of the package, or a file beside the folders.
FMCORE = {
    "flow": set(),
    "ode": {"flow"},
    "disk": {"flow"},
    "models": {"flow", "disk"},
    "endings": {"flow", "models"},
    "intake": {"flow", "disk", "models"},
    "model": {"flow", "ode", "models"},
    "score": {"flow", "disk"},
    "fitting": {"flow", "models", "model", "progress"},
    "verdict": {"score"},
    "analytic": {"flow"},
    "pictures": {"flow", "disk"},
    "progress": set(),
    "export": {"flow", "ode", "disk", "models", "model", "pictures"},
    "cli": {"flow", "ode", "disk", "intake", "model", "score", "pictures", "progress", "export"},
    "__main__": {"cli"},
    "__init__": set(),
}
FLOWS = {
    "events": set(),
    "layout": set(),
    "params": set(),
    "local": set(),
    "workshop": {"layout", "events", "params"},
    "scores": {"layout", "events", "params", "workshop"},
    "report": {"layout", "params", "local", "workshop"},
    "stages": {"layout", "events", "params", "workshop", "scores", "report"},
    "registry": {"local"},
    "watch": {"events", "local", "params", "registry"},
    "launch": {"layout", "events", "params", "workshop", "local", "watch"},
    "pages": {"layout", "local", "watch"},
    "where": {"layout", "local", "registry", "watch"},
    "pipeline": {"local", "params"},
    "preview": {"params", "workshop", "scores", "pipeline"},
    "disk": {"layout", "local", "workshop", "where"},
    "__init__": {"registry"},
}

# These cannot change what a stage computes. The schema of params.yaml could, so it is named, but what it imports
# adds nothing: every field must stand in the file, and a stage imports what it calls.
OBSERVERS = {"flows.events", "flows.layout", "fmcore", "fmcore.progress"}
# Stages of seconds name whole folders, of which they need a part.
CHEAP = {"check", "intake", "evaluate_base", "evaluate", "evaluate_student", "evaluate_pairs", "report"}
# Of the folders that costly stages name, these they do not need: too small to be folders of their own.
BESIDE = {
    "fmcore/disk/dataset.py",
    "fmcore/disk/pairs.py",
    "fmcore/disk/checkpoint.py",
    "fmcore/endings/regression.py",
    "fmcore/ode/likelihood.py",
    "fmcore/score/fidelity.py",
    "fmcore/score/pair_quality.py",
    "fmcore/score/points.py",
    "fmcore/score/scoring.py",
    "fmcore/score/straightness.py",
}


def name_of(path: Path) -> str:
    """The module in a file."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


@cache
def file_of(module: str) -> Path | None:
    path = ROOT / module.replace(".", "/")
    found = [path.with_suffix(".py"), path / "__init__.py"]
    return next((file for file in found if file.exists()), None)


@cache
def imports(path: Path) -> frozenset[str]:
    """Everything a file imports, inside functions too, except for type checkers only."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            return
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, f"{path}: relative import"
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                found.add(full if file_of(full) else node.module)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return frozenset(found)


def ours(path: Path) -> set[str]:
    """The project's own modules among them."""
    return {name for name in imports(path) if name.split(".")[0] in ("fmcore", "flows")}


def closure(module: str) -> set[str]:
    """The project's modules that `module` reaches, itself included."""
    seen: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = file_of(name)
        if path is None or name in seen or name in OBSERVERS:
            continue
        seen.add(name)
        waiting += [] if name == "flows.params.schema" else ours(path)
    return seen


def room_of(module: str) -> tuple[str, str]:
    """Package and room."""
    package, *rest = module.split(".")
    return package, rest[0] if rest else "__init__"


def stages() -> list:
    return [pytest.param(name, stage.get("do", stage), id=name) for name, stage in DVC["stages"].items()]


@pytest.mark.parametrize("path", [path for path in FILES if path.is_relative_to(ROOT / "fmcore")], ids=name_of)
def test_the_core_knows_nothing_of_the_pipeline(path):
    assert not {name.split(".")[0] for name in imports(path)} & OUTSIDE


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_rooms_import_along_the_arrows(path):
    package, room = room_of(name_of(path))
    allowed = {"fmcore": FMCORE, "flows": FLOWS}[package][room] | {room, "__init__"}
    rooms = {room_of(name) for name in ours(path)}
    assert {other for of, other in rooms if of == package} <= allowed


@pytest.mark.parametrize("rooms", [FMCORE, FLOWS], ids=["fmcore", "flows"])
def test_arrows_between_rooms_have_no_circle(rooms):
    assert_no_circle({room: allowed & rooms.keys() for room, allowed in rooms.items()})


def test_files_have_no_import_circle():
    names = {name_of(path): ours(path) for path in FILES}
    for package in ("fmcore", "flows"):
        names.pop(package)  # which loads what it offers when it is asked for
    assert_no_circle({name: needs & names.keys() for name, needs in names.items()})


def assert_no_circle(graph):
    while graph:
        free = {name for name, needs in graph.items() if not needs & graph.keys()}
        assert free, f"circle among {sorted(graph)}"
        graph = {name: needs for name, needs in graph.items() if name not in free}


def test_one_importer_each():
    for tool, owners in {
        "mlflow": {
            *("flows.watch.to_mlflow", "flows.watch.store", "flows.watch.monitors", "flows.pages.gate"),
            *(
                "flows.registry.loading",
                "flows.registry.packing",
                "flows.registry.served",
                "flows.registry.versions",
            ),
        },
        "prefect": {
            *("flows.watch.to_prefect", "flows.pages.gate", "flows.pipeline.__main__", "flows.pipeline.flow"),
            *("flows.pipeline.naming", "flows.pipeline.shown", "flows.pipeline.sweep"),
        },
        "pydantic": {
            *("flows.params.schema", "flows.params.reading", "flows.params.messages", "flows.params.rules"),
            *("flows.params.student_rules", "flows.pipeline.form"),
        },
        "tqdm": {"fmcore.progress"},
    }.items():
        found = {name_of(p) for p in FILES if any(name.split(".")[0] == tool for name in imports(p))}
        assert found == owners


def code_of(stage) -> set[Path]:
    deps = [ROOT / dep for dep in stage["deps"] if dep.startswith(("flows/", "fmcore/"))]
    assert all(dep.exists() for dep in deps)
    return {file for dep in deps for file in sources(dep)}


@pytest.mark.parametrize(("kind", "stage"), stages())
def test_a_stage_names_all_code_it_runs_and_little_else(kind, stage):
    named = {str(file.relative_to(ROOT)) for file in code_of(stage) if file.name != "__init__.py"}
    reached = closure(f"flows.stages.{code_of_stage(kind).file}")
    needed = {str(file_of(name).relative_to(ROOT)) for name in reached if file_of(name).name != "__init__.py"}
    if kind == "report":
        needed.add("flows/report/page.html")
    # What the base needs may be named after it, for an edit there makes all of them anew.
    of_base = {str(file.relative_to(ROOT)) for file in code_of(DVC["stages"]["base"])}
    assert needed <= named
    assert kind in CHEAP or named - needed - of_base <= BESIDE


LASTING = (
    "ode/solvers",
    "ode/sampling",
    "endings/matched",
    "intake/images",
    "intake/known",
    "verdict",
    "pictures",
)


@pytest.mark.parametrize("name", [f"fmcore/{name}.py" for name in LASTING] + ["flows/report/page.html"])
def test_an_edit_of_what_is_edited_often_leaves_the_base(name):
    assert ROOT / name not in code_of(DVC["stages"]["base"])


def test_an_edit_of_the_page_reaches_the_report_alone():
    page = {ROOT / "flows/report/page.html", ROOT / "flows/report/page.py"}
    assert [kind.id for kind in stages() if page & code_of(kind.values[1])] == ["report"]


@pytest.mark.parametrize("kind", ["base", "couple", "reflow", "distill"])
def test_what_scores_models_trains_none(kind):
    """Neither the fitted features nor code that makes features reaches a stage whose outputs are trained on."""
    body = DVC["stages"][kind]
    deps = body.get("do", body)["deps"]
    assert not [dep for dep in deps if dep.split("/")[0] == "features"]
    reached = closure(f"flows.stages.{code_of_stage(kind).file}")
    assert not reached & {"fmcore.score.extractors", "fmcore.score.reference", "flows.scores.judging"}


@pytest.mark.parametrize(("kind", "stage"), stages())
def test_nothing_from_params_reaches_a_shell(kind, stage):
    assert stage["cmd"] == ("python -m flows.stages.look" if kind == "look" else "python -m flows.launch")


def test_no_file_holds_two_jobs():
    beside = [path for folder in ("tests", "benchmarks", "scripts") for path in (ROOT / folder).rglob("*.py")]
    long = {name_of(path): n for path in FILES + beside if (n := len(path.read_text().splitlines())) > 400}
    assert not long
    assert len((ROOT / "dvc.yaml").read_text().splitlines()) <= 300


FUNCTION = (ast.FunctionDef, ast.AsyncFunctionDef)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_functions_fit_a_screen(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, FUNCTION):
            assert node.end_lineno - node.lineno < 60, node.name
            positional = [*node.args.posonlyargs, *node.args.args]
            assert len(positional) <= 8, node.name


def test_no_paths_of_any_machine_and_no_registry():
    pattern = re.compile(
        r"/work/|/root/|/home/|--(extra-)?index-url|--find-links|https?://[^ )\"']*/(simple|packages)/"
    )
    texts = [p for pat in ("*.py", "*.md", "*.toml", "*.yaml", "*.txt") for p in ROOT.glob(f"**/{pat}")]
    for path in texts:
        if not {".venv", ".git", "work"} & set(path.relative_to(ROOT).parts) and path != Path(__file__):
            assert not pattern.search(path.read_text()), path
