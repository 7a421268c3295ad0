"""The shape of the code: who imports whom, and that DVC knows which code each stage runs."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from flows.running import STAGES

ROOT = Path(__file__).parents[1]
DVC = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())
# These cannot change what a stage computes. The schema of params.yaml could, so it is listed, but what it imports
# adds nothing: every field must stand in the file.
OBSERVERS = {"flows.events", "flows.layout", "fmcore", "fmcore.progress"}


def modules(package):
    return sorted(p for p in (ROOT / package).glob("*.py"))


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
                is_module = (ROOT / (full.replace(".", "/") + ".py")).exists()
                found.add(full if is_module else node.module)
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text()))
    return frozenset(found)


def file_of(module: str) -> Path | None:
    path = ROOT / (module.replace(".", "/") + ".py")
    return path if path.exists() else None


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
        if name == "flows.params":
            continue
        waiting += [other for other in imports(path) if other.split(".")[0] in ("fmcore", "flows")]
    return seen


def stages() -> list:
    found = []
    for name, stage in DVC["stages"].items():
        body = stage.get("do", stage)
        kind = name.removesuffix("_base").removesuffix("_student")
        found.append(pytest.param(kind, body, id=name))
    return found


OUTSIDE = {"prefect", "dvc", "mlflow", "pydantic", "ruamel", "yaml", "flows", "pandas"}


@pytest.mark.parametrize("path", modules("fmcore"), ids=lambda p: p.stem)
def test_the_core_knows_nothing_of_the_pipeline(path):
    assert not {name.split(".")[0] for name in imports(path)} & OUTSIDE


LEAVES = {"paths", "times", "rng", "pixels", "networks", "ema", "progress"}


@pytest.mark.parametrize("name", sorted(LEAVES))
def test_leaves_import_no_sibling(name):
    assert not {m for m in imports(ROOT / "fmcore" / f"{name}.py") if m.startswith("fmcore")}


def test_the_core_has_no_import_cycle():
    graph = {p.stem: {m.split(".")[1] for m in imports(p) if m.startswith("fmcore.")} for p in modules("fmcore")}
    graph.pop("__init__")
    while graph:
        free = {name for name, needs in graph.items() if not needs & graph.keys()}
        assert free, f"cycle among {sorted(graph)}"
        graph = {name: needs for name, needs in graph.items() if name not in free}


def test_one_importer_each():
    for tool, owners in {
        "mlflow": {"shipper", "gate"},
        "pydantic": {"params", "rules"},
        "tqdm": {"progress"},
    }.items():
        found = {
            p.stem
            for package in ("fmcore", "flows")
            for p in modules(package)
            if any(name.split(".")[0] == tool for name in imports(p))
        }
        assert found == owners


@pytest.mark.parametrize(("kind", "stage"), stages())
def test_a_stage_depends_on_all_code_it_runs(kind, stage):
    listed = {d for d in stage["deps"] if d.endswith((".py", ".html"))}
    needed = {str(file_of(m).relative_to(ROOT)) for m in closure(STAGES[kind])}
    if kind == "report":
        needed.add("flows/report.html")
    assert listed == needed


@pytest.mark.parametrize(("kind", "stage"), stages())
def test_nothing_from_params_reaches_a_shell(kind, stage):
    assert stage["cmd"] == "python -m flows.stages"


def test_no_file_holds_two_jobs():
    long = {
        str(p): n for d in ("fmcore", "flows") for p in modules(d) if (n := len(p.read_text().splitlines())) > 400
    }
    assert not long


def test_no_paths_of_any_machine_and_no_registry():
    pattern = re.compile(
        r"/work/|/root/|/home/|--(extra-)?index-url|--find-links|https?://[^ )\"']*/(simple|packages)/"
    )
    texts = [p for pat in ("*.py", "*.md", "*.toml", "*.yaml", "*.txt") for p in ROOT.glob(f"**/{pat}")]
    for path in texts:
        if not {".venv", ".git", "work"} & set(path.relative_to(ROOT).parts) and path != Path(__file__):
            assert not pattern.search(path.read_text()), path
