"""Every example in a docstring of fmcore and in the pages runs and says what it prints; links lead somewhere."""

import doctest
import pkgutil
import re
from importlib import import_module

import pytest
from ruamel.yaml import YAML

import fmcore
from flows.params.files import lay_over
from flows.params.reading import load_yaml, validate
from repository import ROOT

MODULES = [m.name for m in pkgutil.walk_packages(fmcore.__path__, "fmcore.") if not m.name.endswith("__main__")]


@pytest.mark.parametrize("name", ["fmcore", *MODULES])
def test_examples(name):
    found = doctest.testmod(import_module(name), optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert found.failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    assert any(test.examples for name in MODULES for test in finder.find(import_module(name)))


PAGES = sorted((ROOT / "docs").glob("*.md"))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_code_in_the_pages_runs(page):
    names: dict[str, object] = {}
    for language, text in BLOCK.findall(page.read_text()):
        if language == "python":
            test = doctest.DocTestParser().get_doctest(text, names, page.name, str(page), 0)
            runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE)
            assert runner.run(test, clear_globs=False).failed == 0
            names = test.globs


TEXTS = sorted([*ROOT.glob("*.md"), *PAGES])
LINK = re.compile(r"\]\((?!https?:)([^)#]+)")


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: page.stem)
def test_links_lead_somewhere(page):
    prose = BLOCK.sub("", page.read_text())
    assert [link for link in LINK.findall(prose) if not (page.parent / link).exists()] == []


PARAMS = [text for page in PAGES for language, text in BLOCK.findall(page.read_text()) if language == "yaml"]


@pytest.mark.parametrize("text", PARAMS, ids=range(len(PARAMS)))
def test_params_in_the_pages_are_valid(text):
    whole = load_yaml(ROOT / "presets/digits.yaml")
    lay_over(whole, YAML(typ="safe").load(text))
    validate(whole, "page")
