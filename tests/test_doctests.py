"""Every example in a docstring of fmcore runs and says what it prints."""

import doctest
import pkgutil
from importlib import import_module

import pytest

import fmcore

MODULES = [
    f"fmcore.{module.name}" for module in pkgutil.iter_modules(fmcore.__path__) if module.name != "__main__"
]


@pytest.mark.parametrize("name", ["fmcore", *MODULES])
def test_examples(name):
    found = doctest.testmod(import_module(name), optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert found.failed == 0


def test_there_are_examples():
    finder = doctest.DocTestFinder(exclude_empty=True)
    assert any(test.examples for name in MODULES for test in finder.find(import_module(name)))
