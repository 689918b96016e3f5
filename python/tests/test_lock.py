"""One lock's life in its own process."""

from __future__ import annotations

import copy
import fcntl
import gc
import os
import pickle
import threading
import warnings
from collections.abc import Callable
from pathlib import Path

import llmlb_lock
import pytest
from support import Child, run_python


def test_release_may_be_repeated(port: int) -> None:
    lock = llmlb_lock.acquire(port)
    lock.release()
    lock.release()
    assert not lock.locked
    llmlb_lock.ServerLock(port).release()


def test_a_lock_from_acquire_is_given_back_by_a_block(port: int) -> None:
    lock = llmlb_lock.acquire(port)
    with lock as same:
        assert same is lock
        assert lock.locked
    assert not lock.locked


def test_an_error_in_the_block_gives_the_lock_back(port: int) -> None:
    with pytest.raises(ZeroDivisionError), llmlb_lock.ServerLock(port):
        _ = 1 / 0
    assert not llmlb_lock.lock_path(port).exists()


def test_a_lock_is_in_one_block_at_a_time(port: int) -> None:
    with llmlb_lock.ServerLock(port) as lock:
        with pytest.raises(RuntimeError, match="already"), lock:
            pytest.fail("entered twice")
        assert lock.locked
    with lock:
        assert lock.locked


USES: list[Callable[[llmlb_lock.ServerLock], object]] = [
    lambda lock: lock.info,
    lambda lock: lock.path,
    lambda lock: lock.fileno(),
    lambda lock: lock.verify(),
    lambda lock: lock.adopt(),
    lambda lock: lock.hand_over(os.getpid()),
    lambda lock: lock.popen(["true"]),
]


@pytest.mark.parametrize("use", USES)
def test_what_needs_the_lock_says_so(
    port: int, use: Callable[[llmlb_lock.ServerLock], object]
) -> None:
    never = llmlb_lock.ServerLock(port)
    no_longer = llmlb_lock.acquire(port)
    no_longer.release()
    for lock in (never, no_longer):
        with pytest.raises(RuntimeError, match=f"the lock for port {port} is not held"):
            use(lock)


def test_the_descriptor_is_the_lock_file_and_not_inherited(port: int) -> None:
    with llmlb_lock.ServerLock(port) as lock:
        assert os.path.sameopenfile(lock.fileno(), lock.fileno())
        assert os.fstat(lock.fileno()).st_ino == lock.path.stat().st_ino
        assert not os.get_inheritable(lock.fileno())
        with lock.path.open() as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)


def test_a_lock_shows_itself(port: int) -> None:
    lock = llmlb_lock.ServerLock(port)
    assert lock.port == port
    assert repr(lock) == f"<ServerLock port={port} not held>"
    with lock:
        assert repr(lock) == f"<ServerLock port={port} held>"


def test_a_lock_stays_with_its_process(port: int) -> None:
    with llmlb_lock.ServerLock(port) as lock:
        for leave in (pickle.dumps, copy.copy, copy.deepcopy):
            with pytest.raises(TypeError, match="stays with its process"):
                leave(lock)


def test_a_forgotten_lock_is_given_back_with_a_warning(port: int) -> None:
    lock = llmlb_lock.acquire(port)
    with pytest.warns(ResourceWarning, match=f"unreleased <ServerLock port={port} held>"):
        del lock
    assert not llmlb_lock.lock_path(port).exists()


def test_a_released_lock_is_forgotten_in_silence(port: int) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        lock = llmlb_lock.acquire(port)
        lock.release()
        del lock
        with pytest.raises(ValueError, match="Invalid port"):
            llmlb_lock.ServerLock(0)
        gc.collect()
    assert caught == []


def test_a_lock_for_the_life_of_the_process_is_no_mistake(port: int) -> None:
    code = "import sys, llmlb_lock\nlock = llmlb_lock.acquire(int(sys.argv[1]))"
    assert run_python(code, port) == ""
    assert not llmlb_lock.lock_path(port).exists()


def test_threads_race_for_a_port(port: int) -> None:
    start = threading.Barrier(8)
    won: list[llmlb_lock.ServerLock] = []
    refused: list[llmlb_lock.AlreadyRunning] = []

    def contend() -> None:
        start.wait()
        try:
            won.append(llmlb_lock.acquire(port))
        except llmlb_lock.AlreadyRunning as e:
            refused.append(e)

    threads = [threading.Thread(target=contend) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert [e.pid for e in refused] == [os.getpid()] * 7
    won[0].release()


def test_threads_share_a_lock(port: int) -> None:
    with llmlb_lock.ServerLock(port) as lock:
        start = threading.Barrier(8)
        errors: list[BaseException] = []

        def use() -> None:
            try:
                start.wait()
                for _ in range(200):
                    lock.verify()
                    assert lock.info.port == port
                    lock.adopt()
            except BaseException as e:
                errors.append(e)

        threads = [threading.Thread(target=use) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []


def test_a_lock_is_handed_over_and_taken_back(port: int) -> None:
    with Child.python("import sys; print(); sys.stdin.read()") as other:
        other.line()
        lock = llmlb_lock.acquire(port)
        lock.hand_over(other.pid)
        assert lock.info.pid == other.pid
        assert llmlb_lock.read_lock_info(port) == lock.info
        assert lock.locked
        lock.adopt()
        assert lock.info.pid == os.getpid()
        lock.hand_over(other.pid)
        lock.release()  # closes, and leaves the file to the other
        assert llmlb_lock.lock_path(port).exists()


def test_a_refused_acquire_leaves_the_file_as_it_is(port: int, lock_directory: Path) -> None:
    with Child.holder(port):
        path = lock_directory / f"serve_{port}.lock"
        before = path.read_bytes(), path.stat().st_ino, path.stat().st_mtime_ns
        with pytest.raises(llmlb_lock.AlreadyRunning):
            llmlb_lock.acquire(port)
        assert (path.read_bytes(), path.stat().st_ino, path.stat().st_mtime_ns) == before


def test_a_decorated_function_runs_under_the_lock(port: int) -> None:
    @llmlb_lock.ServerLock(port)
    def serve(more: int, *, deep: bool = False) -> int:
        """Serves."""
        assert llmlb_lock.read_lock_info(port) is not None
        if deep:
            with pytest.raises(llmlb_lock.AlreadyRunning):
                serve(more)
        return more + 1

    assert serve.__doc__ == "Serves."
    assert [serve(1), serve(2, deep=True)] == [2, 3]
    assert llmlb_lock.read_lock_info(port) is None
    with llmlb_lock.ServerLock(port), pytest.raises(llmlb_lock.AlreadyRunning):
        serve(1)


def test_a_decorated_function_gives_the_lock_back_when_it_fails(port: int) -> None:
    @llmlb_lock.ServerLock(port)
    def fail() -> None:
        raise KeyError(port)

    with pytest.raises(KeyError):
        fail()
    assert llmlb_lock.read_lock_info(port) is None
