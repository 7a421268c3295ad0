"""How Sphinx makes the documentation site: `make docs`. It reads sources and imports nothing of the project."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

ROOT = Path(__file__).parents[1]
project = "fmcore"
release = re.findall(r'^__version__ = "(.*)"', (ROOT / "fmcore/__init__.py").read_text(), re.MULTILINE)[0]
extensions = ["myst_parser", "autoapi.extension", "sphinx.ext.napoleon"]
root_doc = "index"
exclude_patterns = ["_build", "README.md"]  # index.md has its place here
suppress_warnings = [
    "myst.xref_missing",  # links to files of the repository beside docs/; tests follow them there
    "autoapi.python_import_resolution",
]

myst_heading_anchors = 4  # links to headings are written as GitHub makes them
myst_links_external_new_tab = False

html_theme = "furo"
html_title = "fmcore"
html_static_path: list[str] = []

# The reference is made from the docstrings, without an import: torch need not be there.
autoapi_dirs = ["../fmcore"]
autoapi_root = "reference"
autoapi_options = ["members", "show-module-summary", "imported-members"]
autoapi_member_order = "bysource"
autoapi_add_toctree_entry = False
autoapi_python_class_content = "class"
autoapi_ignore = ["*/__main__.py"]
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = [(name, "params_style") for name in ("Main arguments", "Other arguments")]


def escaped(app: object, what: str, name: str, thing: object, options: object, lines: list[str]) -> None:
    """Docstrings are plain text with code in backticks: what reStructuredText would take for markup is escaped."""
    found: list[str] = []
    for line in lines:
        is_set_off, was_set_off = (each.startswith("    ") for each in (line, found[-1] if found else ""))
        if what in ("module", "package") and is_set_off != was_set_off and line:
            found += ["", "::", ""] if is_set_off else [""]
        code = is_set_off and what in ("module", "package")
        found.append(line if code or line.lstrip().startswith((">>>", "...", ":", "..")) else _escaped(line))
    lines[:] = found


def _escaped(line: str) -> str:
    parts = re.split(r"(``[^`]*``|`[^`]*`)", line)
    parts[::2] = [re.sub(r"([*|]|(?<=\w)_(?=\W|$))", r"\\\1", part) for part in parts[::2]]
    parts[1::2] = [f"``{part.strip('`')}``" for part in parts[1::2]]
    for i in range(2, len(parts), 2):  # code ends at a space, which the backslash takes away
        parts[i] = f"\\ {parts[i]}" if parts[i][:1].isalnum() or parts[i].startswith("^") else parts[i]
    return "".join(parts)


def setup(app: "Sphinx") -> None:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", escaped, priority=100)  # before napoleon
