"""Importing is quiet and cheap."""

from __future__ import annotations

import json
import sys

from support import run_python


def test_importing_is_quiet_in_development_mode() -> None:
    """Children are run under -X dev -W error."""
    code = "import llmlb_lock; print(llmlb_lock.__version__)"
    assert run_python(code).count(".") == 2


def test_star_import_has_it_all() -> None:
    run_python("from llmlb_lock import *; assert acquire and Stopped and LockInfo")


def test_importing_loads_nothing_that_takes_long() -> None:
    code = """
import sys, json
before = set(sys.modules)
import llmlb_lock
print(json.dumps(sorted(set(sys.modules) - before)))
"""
    loaded = set(json.loads(run_python(code).splitlines()[-1]))
    heavy = {"asyncio", "dataclasses", "logging", "subprocess", "typing", "pathlib", "json"}
    assert loaded & heavy == set()


def test_one_module_for_all_versions() -> None:
    code = "import llmlb_lock._native as n; print(n.__file__)"
    assert run_python(code).strip().endswith(".abi3.so" if sys.platform != "win32" else ".pyd")


def test_a_second_interpreter_in_the_process_is_refused_or_works() -> None:
    """No crash: the module either loads there or says that it can't."""
    if sys.version_info < (3, 13):
        code = "import _xxsubinterpreters as i"
    else:
        code = "import _interpreters as i"
    run_python(
        f"""
{code}
import llmlb_lock
id = i.create()
try:
    i.run_string(id, "try:\\n import llmlb_lock\\nexcept ImportError: pass")
finally:
    i.destroy(id)
"""
    )
