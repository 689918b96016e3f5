"""Whatever is passed in, an exception that says what is wrong comes out, never a panic."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import llmlb_lock
import pytest

TAKES_A_PORT: list[Callable[[Any], object]] = [
    llmlb_lock.acquire,
    llmlb_lock.ServerLock,
    llmlb_lock.read_lock_info,
    llmlb_lock.lock_path,
    llmlb_lock.stop_server,
    llmlb_lock.LockDir().acquire,
    llmlb_lock.LockDir().server,
    llmlb_lock.LockDir().stop_server,
]


@pytest.mark.parametrize("call", TAKES_A_PORT)
@pytest.mark.parametrize("number", [0, -1, 65536, 2**16 + 8000, -(2**63), 2**64, 10**30])
def test_a_number_that_is_no_port(call: Callable[[Any], object], number: int) -> None:
    with pytest.raises(ValueError, match=rf"Invalid port {number}: .* 1 to 65535"):
        call(number)


@pytest.mark.parametrize("call", TAKES_A_PORT)
@pytest.mark.parametrize("thing", [None, "8000", b"8000", 8000.0, [8000], object()])
def test_what_is_no_number(call: Callable[[Any], object], thing: object) -> None:
    with pytest.raises(TypeError):
        call(thing)


@pytest.mark.parametrize("call", [*TAKES_A_PORT, llmlb_lock.stop_process])
@pytest.mark.parametrize("truth", [True, False])
def test_a_bool_is_no_number(call: Callable[[Any], object], truth: bool) -> None:
    with pytest.raises(TypeError, match=f"{truth} is not an integer"):
        call(truth)


def test_a_bool_is_no_timeout(port: int) -> None:
    with pytest.raises(TypeError, match="True is not a number of seconds"):
        llmlb_lock.acquire(port, timeout=True)


@pytest.mark.parametrize("number", [1, 65535])
def test_the_first_and_the_last_port(number: int) -> None:
    with llmlb_lock.ServerLock(number) as lock:
        assert lock.info.port == number


def test_what_says_it_is_an_integer_is_one() -> None:
    class Indexed:
        def __index__(self) -> int:
            return 8000

    assert llmlb_lock.lock_path(Indexed()).name == "serve_8000.lock"  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("timeout", [-1, -0.001, math.nan, -math.inf])
def test_a_number_that_is_no_timeout(port: int, timeout: float) -> None:
    with pytest.raises(ValueError, match="Invalid timeout"):
        llmlb_lock.acquire(port, timeout=timeout)
    with pytest.raises(ValueError, match="Invalid timeout"):
        llmlb_lock.stop_server(port, timeout=timeout)


@pytest.mark.parametrize("timeout", [0, 1, 0.5, 1e300, math.inf])
def test_a_timeout_as_long_as_you_like(port: int, timeout: float) -> None:
    llmlb_lock.acquire(port, timeout=timeout).release()
    assert llmlb_lock.stop_server(port, timeout=timeout) == llmlb_lock.NotRunning()


def test_a_timeout_that_is_no_number(port: int) -> None:
    thing: Any = "5"
    with pytest.raises(TypeError):
        llmlb_lock.acquire(port, timeout=thing)
    with pytest.raises(TypeError):
        llmlb_lock.stop_server(port, timeout=thing)


@pytest.mark.parametrize("pid", [0, -1, -(2**31), 2**31, 2**32 + 1, 10**30])
def test_a_number_that_is_no_process(pid: int) -> None:
    assert not llmlb_lock.is_process_running(pid)
    with pytest.raises(ValueError, match="nothing was signalled"):
        llmlb_lock.stop_process(pid)


def test_a_process_that_is_no_number(port: int) -> None:
    thing: Any = "1"
    with pytest.raises(TypeError):
        llmlb_lock.is_process_running(thing)
    with pytest.raises(TypeError):
        llmlb_lock.stop_process(thing)
    with llmlb_lock.ServerLock(port) as lock, pytest.raises(TypeError):
        lock.hand_over(thing)


@pytest.mark.parametrize("pid", [0, -1, 2**22 + 1, 2**31, 10**30])
def test_a_lock_goes_to_no_process_that_is_none(port: int, pid: int) -> None:
    with llmlb_lock.ServerLock(port) as lock:
        before = lock.info
        with pytest.raises(llmlb_lock.NoSuchProcess) as refused:
            lock.hand_over(pid)
        assert refused.value.port == port
        assert lock.info == before == llmlb_lock.read_lock_info(port)


def test_a_thread_is_no_process(port: int) -> None:
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    try:
        assert thread.native_id is not None
        assert not llmlb_lock.is_process_running(thread.native_id)
        with llmlb_lock.ServerLock(port) as lock, pytest.raises(llmlb_lock.NoSuchProcess):
            lock.hand_over(thread.native_id)
    finally:
        done.set()
        thread.join()


def test_directories_of_all_kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    relative = llmlb_lock.LockDir("locks")
    monkeypatch.chdir("/")
    assert relative.path == tmp_path / "locks"
    assert relative == llmlb_lock.LockDir(tmp_path / "locks")
    monkeypatch.chdir(tmp_path)
    lock = llmlb_lock.ServerLock(8000, directory="locks")
    monkeypatch.chdir("/")
    with lock:
        assert lock.path == relative.lock_path(8000)
    thing: Any = 5
    with pytest.raises(TypeError):
        llmlb_lock.LockDir(thing)


def test_a_directory_that_no_system_has(port: int) -> None:
    with pytest.raises(llmlb_lock.DirectoryCreationFailed):
        llmlb_lock.LockDir("/proc/nowhere").acquire(port)
    with pytest.raises(llmlb_lock.LockError):
        llmlb_lock.LockDir("nul\0byte").acquire(port)
    assert llmlb_lock.LockDir("/proc/nowhere").servers() == []
