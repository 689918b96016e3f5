"""Infos, outcomes and exceptions as values: compared, hashed, matched, pickled, shown."""

from __future__ import annotations

import copy
import pickle
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import llmlb_lock
import pytest
from llmlb_lock import LockInfo

WHEN = datetime(2026, 1, 30, 12, 0, 0, 123456, tzinfo=timezone.utc)
JSON = '{"pid":12345,"started_at":"2026-01-30T12:00:00.123456Z","port":8000}'


def test_an_info_is_a_value() -> None:
    info = LockInfo(12345, WHEN, 8000)
    assert info == LockInfo(pid=12345, started_at=WHEN, port=8000)
    assert hash(info) == hash(LockInfo(12345, WHEN, 8000))
    assert info != LockInfo(12345, WHEN, 8001)
    assert info != LockInfo(12345, WHEN + timedelta(microseconds=1), 8000)
    assert info != (12345, WHEN, 8000)
    assert repr(info) == f"LockInfo(pid=12345, started_at={WHEN!r}, port=8000)"
    for attribute in ("pid", "started_at", "port", "other"):
        with pytest.raises(AttributeError):
            setattr(info, attribute, 1)


def test_an_info_matches() -> None:
    match LockInfo(12345, WHEN, 8000):
        case LockInfo(pid, started_at, 8000):
            assert (pid, started_at) == (12345, WHEN)
        case _:
            pytest.fail("no match")


def test_an_info_is_json_as_in_the_file() -> None:
    info = LockInfo(12345, WHEN, 8000)
    assert info.to_json() == JSON
    assert LockInfo.from_json(JSON) == info
    assert LockInfo.from_json(JSON[:-1] + ',"host":"::1"}') == info
    for bad in ("", "{}", "null", "[" * 5000, JSON + "x", JSON.replace("8000", "65536")):
        with pytest.raises(ValueError, match=r".+"):
            LockInfo.from_json(bad)


def test_an_info_is_in_utc_to_the_microsecond() -> None:
    east = WHEN.astimezone(timezone(timedelta(hours=2)))
    assert LockInfo(1, east, 1).started_at.tzinfo == timezone.utc
    assert LockInfo(1, east, 1) == LockInfo(1, WHEN, 1)
    finer = LockInfo.from_json(JSON.replace("123456Z", "123456789Z"))
    assert finer.started_at == WHEN
    assert finer == LockInfo.from_json(finer.to_json())


def test_an_info_is_not_made_of_just_anything() -> None:
    naive: Any = WHEN.replace(tzinfo=None)
    with pytest.raises(TypeError):
        LockInfo(1, naive, 1)
    with pytest.raises(ValueError, match="process id"):
        LockInfo(-1, WHEN, 1)
    with pytest.raises(ValueError, match="Invalid port"):
        LockInfo(1, WHEN, 0)


INFO = LockInfo(12345, WHEN, 8000)


@pytest.mark.parametrize(
    "value",
    [
        INFO,
        llmlb_lock.Stopped(INFO, forced=True),
        llmlb_lock.NotRunning(),
        llmlb_lock.StaleCleaned(None),
        llmlb_lock.TimedOut(INFO),
        llmlb_lock.Server(8000, Path("/x"), INFO, "running"),
        llmlb_lock.LockDir(),
        llmlb_lock.LockDir("/run/llmlb"),
    ],
)
def test_values_survive_pickle_and_copy(value: object) -> None:
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        assert pickle.loads(pickle.dumps(value, protocol)) == value
    assert copy.copy(value) == copy.deepcopy(value) == value
    assert hash(copy.copy(value)) == hash(value)


def test_a_refusal_survives_pickle(port: int) -> None:
    with llmlb_lock.ServerLock(port) as lock:
        with pytest.raises(llmlb_lock.AlreadyRunning) as refused:
            llmlb_lock.acquire(port)
        e = refused.value
        expected = f"port={port}, pid={lock.info.pid}, started_at={lock.info.started_at!r}"
        assert repr(e) == f"AlreadyRunning({expected})"
        again = pickle.loads(pickle.dumps(e))
        assert type(again) is llmlb_lock.AlreadyRunning
        assert (str(again), repr(again)) == (str(e), repr(e))
        assert (again.port, again.pid, again.started_at) == (e.port, e.pid, e.started_at)
        assert again.errno is None


def test_an_error_of_the_system_survives_pickle(port: int, lock_directory: Path) -> None:
    lock_directory.write_text("a file, not a directory")
    with pytest.raises(llmlb_lock.LockError) as failed:
        llmlb_lock.acquire(port)
    e = failed.value
    again = pickle.loads(pickle.dumps(e))
    assert isinstance(e, OSError)
    assert (str(again), repr(again), again.errno) == (str(e), repr(e), e.errno)
    assert again.errno is not None


def test_every_exception_is_a_lock_error() -> None:
    exceptions = [
        value
        for name in llmlb_lock.__all__
        if isinstance(value := getattr(llmlb_lock, name), type) and issubclass(value, Exception)
    ]
    assert len(exceptions) == 15
    for exception in exceptions:
        assert issubclass(exception, llmlb_lock.LockError)
        assert exception.__module__ == "llmlb_lock"
        made = exception("what happened", port=8000)
        assert str(made) == "what happened"
        assert repr(made) == f"{exception.__name__}(port=8000)"
        assert pickle.loads(pickle.dumps(made)).port == 8000


def test_all_names_are_there() -> None:
    assert set(llmlb_lock.__all__) <= set(dir(llmlb_lock))
    for name in llmlb_lock.__all__:
        assert getattr(llmlb_lock, name).__doc__
    with pytest.raises(AttributeError, match="'nothing'"):
        _ = llmlb_lock.nothing  # type: ignore[attr-defined]  # pyright: ignore
