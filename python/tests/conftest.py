"""A lock directory of its own for every test; of the cluster, a prefix in etcd."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import support
from etcd import Etcd, binary


@pytest.fixture(autouse=True)
def lock_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A lock directory for each test, the default one for all it starts."""
    path = tmp_path / "locks"
    monkeypatch.setenv("LLMLB_LOCK_DIR", str(path))
    return path


@pytest.fixture
def port() -> int:
    return support.free_port()


@pytest.fixture(scope="session")
def etcd() -> Iterator[Etcd]:
    if sys.platform != "linux":
        pytest.skip("the cluster is for Linux")
    if binary() is None:
        pytest.skip("there is no etcd: run `make test-python`, or set LLMLB_ETCD")
    with Etcd() as started:
        yield started


_numbers = itertools.count()


@pytest.fixture
def url(etcd: Etcd) -> str:
    """With a prefix that no other test has."""
    return etcd.url(f"test-{next(_numbers)}")
