"""What the package is for."""

from __future__ import annotations

import datetime
import os
import signal
import time
from pathlib import Path

import llmlb_lock
import pytest
from llmlb_lock._advice import PROGRAM
from support import PATIENCE, Child, run_python, wait_until


def test_a_server_starts_once_and_the_second_is_told_by_whom(port: int) -> None:
    with Child.holder(port) as holder:
        with pytest.raises(llmlb_lock.AlreadyRunning) as refused:
            llmlb_lock.acquire(port)
        e = refused.value
        assert type(e) is llmlb_lock.AlreadyRunning
        assert (e.port, e.pid) == (port, holder.pid)
        assert e.started_at.tzinfo == datetime.timezone.utc
        started = e.started_at.strftime("%Y-%m-%dT%H:%M:%SZ")
        assert str(e) == (
            f"Server already running on port {port} (PID: {holder.pid}, started: {started})\n\n"
            f"To stop: {PROGRAM} stop --port {port}\n"
            f"Or:      kill -TERM {holder.pid}"
        )


def test_a_refused_block_is_not_entered(port: int) -> None:
    with Child.holder(port):
        lock = llmlb_lock.ServerLock(port)
        with pytest.raises(llmlb_lock.AlreadyRunning), lock:
            pytest.fail("entered without the lock")
        assert not lock.locked
    with lock:  # the same object, once the port is free
        assert lock.locked


def test_a_lock_names_this_process(port: int, lock_directory: Path) -> None:
    before = datetime.datetime.now(datetime.timezone.utc)
    with llmlb_lock.ServerLock(port) as lock:
        after = datetime.datetime.now(datetime.timezone.utc)
        assert lock.info.pid == os.getpid()
        assert lock.info.port == port
        millisecond = datetime.timedelta(milliseconds=1)
        assert before - millisecond <= lock.info.started_at <= after + millisecond
        assert lock.path == lock_directory / f"serve_{port}.lock"
        # The identity that stands behind the three fields is core's alone.
        assert lock.path.read_text().startswith(lock.info.to_json().removesuffix("}"))
        assert llmlb_lock.read_lock_info(port) == lock.info
        assert llmlb_lock.list_all_locks() == [lock.info]
    assert not lock.locked
    assert not llmlb_lock.lock_path(port).exists()
    assert llmlb_lock.read_lock_info(port) is None
    assert llmlb_lock.list_all_locks() == []


def test_waiting_takes_over_from_a_holder_that_leaves(port: int) -> None:
    with (
        Child.holder(port) as holder,
        Child.python(
            "import sys, llmlb_lock\n"
            "print('waiting')\n"
            "with llmlb_lock.acquire(int(sys.argv[1]), timeout=60) as lock:\n"
            "    print(lock.info.pid)\n",
            port,
        ) as waiter,
    ):
        assert waiter.line() == "waiting"
        holder.end()
        assert waiter.line() == str(waiter.pid)
        waiter.end()


def test_waiting_runs_out_of_time(port: int) -> None:
    with Child.holder(port) as holder:
        started = time.monotonic()
        with pytest.raises(llmlb_lock.LockTimeout) as timeout:
            llmlb_lock.acquire(port, timeout=0.2)
        assert time.monotonic() - started >= 0.2
        assert timeout.value.pid == holder.pid
        assert isinstance(timeout.value, llmlb_lock.AlreadyRunning)
        assert isinstance(timeout.value, TimeoutError)


def test_a_killed_server_leaves_the_port_free(port: int) -> None:
    with Child.holder(port) as holder:
        holder.kill()
        assert llmlb_lock.lock_path(port).exists()
        (server,) = llmlb_lock.LockDir().servers()
        assert (server.port, server.state) == (port, "stale")
        assert llmlb_lock.list_all_locks() == []
        with llmlb_lock.ServerLock(port) as lock:
            assert lock.info.pid == os.getpid()


def test_a_process_that_ends_gives_its_locks_back(port: int) -> None:
    run_python(
        "import sys, llmlb_lock\nlock = llmlb_lock.acquire(int(sys.argv[1]))\nsys.exit()", port
    )
    assert not llmlb_lock.lock_path(port).exists()


def test_a_server_is_stopped(port: int) -> None:
    with Child.holder(port) as holder:
        info = llmlb_lock.read_lock_info(port)
        match llmlb_lock.stop_server(port, timeout=PATIENCE):
            case llmlb_lock.Stopped(info=stopped, forced=forced):
                assert (stopped, forced) == (info, False)
            case other:
                pytest.fail(f"{other}")
        assert holder.wait() == -signal.SIGTERM
    assert not llmlb_lock.lock_path(port).exists()
    assert llmlb_lock.stop_server(port) == llmlb_lock.NotRunning()


STUBBORN = """
import signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
import llmlb_lock
with llmlb_lock.ServerLock(int(sys.argv[1])):
    print("ready")
    sys.stdin.read()
"""


def test_a_stubborn_server_is_killed_by_force_alone(port: int) -> None:
    with Child.python(STUBBORN, port) as server:
        server.line()
        info = llmlb_lock.read_lock_info(port)
        assert info is not None
        assert llmlb_lock.stop_server(port, timeout=0.1) == llmlb_lock.TimedOut(info)
        assert server.process.poll() is None
        outcome = llmlb_lock.stop_server(port, timeout=0.1, force=True)
        assert outcome == llmlb_lock.Stopped(info, forced=True)
        assert server.wait() == -signal.SIGKILL


def test_a_left_over_file_is_cleaned(port: int) -> None:
    with Child.holder(port) as holder:
        info = llmlb_lock.read_lock_info(port)
        holder.kill()
    assert llmlb_lock.stop_server(port) == llmlb_lock.StaleCleaned(info)
    assert not llmlb_lock.lock_path(port).exists()


def test_a_process_is_asked_to_end(port: int) -> None:
    with Child.holder(port) as holder:
        assert llmlb_lock.is_process_running(holder.pid)
        llmlb_lock.stop_process(holder.pid)
        assert holder.wait() == -signal.SIGTERM
        assert not llmlb_lock.is_process_running(holder.pid)
        with pytest.raises(ProcessLookupError):
            llmlb_lock.stop_process(holder.pid)


def test_directories_do_not_see_each_other(port: int, tmp_path: Path) -> None:
    other = llmlb_lock.LockDir(tmp_path / "other")
    with llmlb_lock.ServerLock(port) as here, other.acquire(port) as there:
        assert there.path == tmp_path / "other" / f"serve_{port}.lock"
        assert there.path == other.lock_path(port)
        assert other.list_all_locks() == [there.info] == [other.read_lock_info(port)]
        assert llmlb_lock.list_all_locks() == [here.info]
        server = other.server(port)
        assert server is not None
        assert (server.info, server.state, server.path) == (there.info, "running", there.path)
        with pytest.raises(llmlb_lock.AlreadyRunning):
            other.acquire(port)
    assert other.server(port) is None
    assert other.stop_server(port) == llmlb_lock.NotRunning()


def test_a_lock_file_removed_by_hand_is_noticed(port: int) -> None:
    with llmlb_lock.ServerLock(port) as lock:
        lock.verify()
        lock.path.unlink()
        with pytest.raises(llmlb_lock.Lost) as lost:
            lock.verify()
        assert (lost.value.port, lost.value.path) == (port, lock.path)


def test_a_corrupt_file_is_recovered_but_not_read(port: int, lock_directory: Path) -> None:
    lock_directory.mkdir()
    llmlb_lock.lock_path(port).write_text("not JSON")
    llmlb_lock.lock_path(port).chmod(0o600)
    with pytest.raises(llmlb_lock.Corrupted, match=str(port)):
        llmlb_lock.read_lock_info(port)
    with llmlb_lock.ServerLock(port) as lock:
        assert llmlb_lock.read_lock_info(port) == lock.info


def test_a_held_lock_that_names_nobody(port: int) -> None:
    with Child.holder(port):
        llmlb_lock.lock_path(port).write_text("")
        with pytest.raises(llmlb_lock.HeldByUnknown) as unknown:
            llmlb_lock.acquire(port)
        assert (unknown.value.port, unknown.value.path) == (port, llmlb_lock.lock_path(port))


def test_errors_of_the_system_carry_their_number(port: int, lock_directory: Path) -> None:
    lock_directory.write_text("a file, not a directory")
    with pytest.raises(llmlb_lock.DirectoryCreationFailed) as failed:
        llmlb_lock.acquire(port)
    assert failed.value.errno is not None
    assert str(lock_directory) in str(failed.value)


def test_a_free_port_is_noticed_while_others_wait(port: int) -> None:
    """Two wait: both get their turn."""
    code = (
        "import sys, llmlb_lock\n"
        "with llmlb_lock.acquire(int(sys.argv[1]), timeout=60) as lock: print(lock.info.pid)\n"
    )
    with Child.holder(port) as holder, Child.python(code, port) as a, Child.python(code, port) as b:
        holder.end()
        assert {a.line(), b.line()} == {str(a.pid), str(b.pid)}
        a.end()
        b.end()
    wait_until(lambda: not llmlb_lock.lock_path(port).exists())
