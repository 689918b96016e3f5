"""Every example that is shown runs."""

from __future__ import annotations

import doctest
import importlib
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"
FLAGS = doctest.ELLIPSIS | doctest.FAIL_FAST


CLUSTER = {"llmlb_lock.cluster._cluster": 1, "llmlb_lock.cluster._records": 2}
MODULES = {"llmlb_lock": 5, "llmlb_lock._lock": 5} | (CLUSTER if sys.platform == "linux" else {})


@pytest.mark.parametrize(("name", "least"), MODULES.items())
def test_examples_of_the_docstrings(name: str, least: int) -> None:
    module = importlib.import_module(name)
    examples = 0
    finder = doctest.DocTestFinder()
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    seen = set[str]()
    for value in (module, *vars(module).values()):
        inside = getattr(value, "__module__", name)
        if not (value is module or str(inside).startswith("llmlb_lock")):
            continue
        for test in finder.find(value, getattr(value, "__name__", name), module=False):
            if test.name not in seen:
                seen.add(test.name)
                test.globs = dict(vars(module))
                examples += runner.run(test).attempted
    assert runner.summarize(verbose=False).failed == 0
    assert examples > least


def test_examples_of_the_readme() -> None:
    result = doctest.testfile(str(README), module_relative=False, optionflags=FLAGS)
    assert result.failed == 0
    assert result.attempted > 5
