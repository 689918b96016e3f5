"""A lock directory of its own for every test."""

from __future__ import annotations

from pathlib import Path

import pytest
import support


@pytest.fixture(autouse=True)
def lock_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A lock directory for each test, the default one for all it starts."""
    path = tmp_path / "locks"
    monkeypatch.setenv("LLMLB_LOCK_DIR", str(path))
    return path


@pytest.fixture
def port() -> int:
    return support.free_port()
