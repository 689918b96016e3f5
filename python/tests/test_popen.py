"""A server started under the lock has it, alone, for as long as it lives."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import llmlb_lock
import pytest
from support import PATIENCE, Child, accepts, run_python, wait_until

SERVER = [sys.executable, "-m", "http.server", "--bind", "{host}", "{port}"]
WAITS = [sys.executable, "-c", "import sys; sys.stdin.read()"]


@contextmanager
def started(lock: llmlb_lock.ServerLock, *args: Any, **options: Any) -> Generator[Any, None, None]:
    process = lock.popen(*args, stdin=subprocess.PIPE, stdout=subprocess.PIPE, **options)
    with process:
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()


def test_a_server_is_guarded_as_long_as_it_lives(port: int) -> None:
    lock = llmlb_lock.acquire(port)
    with started(lock, SERVER, stderr=subprocess.DEVNULL) as server:
        assert not lock.locked
        wait_until(lambda: accepts(port), "server")
        info = llmlb_lock.read_lock_info(port)
        assert info is not None
        assert info.pid == server.pid
        assert lock.info == info
        with pytest.raises(llmlb_lock.AlreadyRunning) as refused:
            llmlb_lock.acquire(port)
        assert refused.value.pid == server.pid
        assert llmlb_lock.stop_server(port, timeout=PATIENCE) == llmlb_lock.Stopped(info)
        assert server.wait(PATIENCE) == -signal.SIGTERM
    assert not llmlb_lock.lock_path(port).exists()


def test_a_server_that_is_killed_frees_the_port(port: int) -> None:
    with started(llmlb_lock.acquire(port), WAITS) as server:
        server.kill()
        server.wait(PATIENCE)
        with llmlb_lock.ServerLock(port) as lock:
            assert lock.info.pid == os.getpid()


def test_the_block_that_started_it_may_end(port: int) -> None:
    with llmlb_lock.ServerLock(port) as lock, started(lock, WAITS) as server:
        lock.release()
        assert [info.pid for info in llmlb_lock.list_all_locks()] == [server.pid]


def test_the_guard_outlives_a_killed_launcher(port: int) -> None:
    code = f"""
import sys, llmlb_lock
with llmlb_lock.ServerLock(int(sys.argv[1])) as lock:
    server = lock.popen({WAITS!r}, stdin=-1)
    print(server.pid)
    sys.stdin.read()
"""
    with Child.python(code, port) as launcher:
        pid = int(launcher.line())
        # The other end of the server's pipe closes with its launcher: keep it open.
        pipe = os.open(f"/proc/{pid}/fd/0", os.O_WRONLY)
        try:
            launcher.kill()
            with pytest.raises(llmlb_lock.AlreadyRunning) as refused:
                llmlb_lock.acquire(port)
            assert refused.value.pid == pid
            outcome = llmlb_lock.stop_server(port, timeout=PATIENCE)
            assert isinstance(outcome, llmlb_lock.Stopped)
        finally:
            os.close(pipe)


def test_arguments_and_environment_name_the_port(port: int) -> None:
    code = """
import json, os, sys
names = ["PORT", "HOST", "LLMLB_PORT", "LLMLB_HOST", "LLMLB_GUARDED_PORT", "MINE"]
print(json.dumps([sys.argv[1:], [os.environ.get(name) for name in names]]))
print(os.getpgrp() == os.getpid())
"""
    arguments = [sys.executable, "-c", code, "{port}", b"--at={host}:{port}", Path("{port}"), "{x}"]
    lock = llmlb_lock.acquire(port)
    with started(lock, arguments, host="::1", env={**os.environ, "MINE": "1"}) as server:
        out = server.stdout.read().decode().splitlines()
    p = str(port)
    assert out == [
        f'[["{p}", "--at=::1:{p}", "{p}", "{{x}}"], ["{p}", "::1", "{p}", "::1", "{p}", "1"]]',
        "True",
    ]


def test_the_environment_of_this_process_stays_as_it_is(port: int) -> None:
    before = dict(os.environ)
    with started(llmlb_lock.acquire(port), WAITS):
        assert dict(os.environ) == before


@pytest.mark.parametrize(
    ("options", "guarded"),
    [({"start_new_session": True}, True), ({"shell": True}, True), ({"text": True}, True)],
)
def test_options_are_passed_on(port: int, options: dict[str, Any], guarded: bool) -> None:
    code = "echo $LLMLB_GUARDED_PORT"
    args: Any = code if "shell" in options else ["sh", "-c", code]
    with started(llmlb_lock.acquire(port), args, **options) as server:
        line = server.stdout.readline()
    text = line if isinstance(line, str) else line.decode()
    assert text.strip() == (str(port) if guarded else "")


@pytest.mark.skipif(sys.version_info < (3, 11), reason="process_group is new in 3.11")
def test_a_server_in_a_group_of_others_does_not_claim_it(port: int) -> None:
    lock = llmlb_lock.acquire(port)
    args = ["sh", "-c", "echo $LLMLB_GUARDED_PORT"]
    with started(lock, args, process_group=os.getpgrp()) as server:
        assert server.stdout.read() == b"\n"


def test_only_the_server_inherits_the_lock(port: int) -> None:
    with (
        started(llmlb_lock.acquire(port), WAITS) as server,
        # Started while the server has it, by a process that had it.
        subprocess.Popen(["sleep", "600"], close_fds=False) as other,
    ):
        try:
            server.kill()
            server.wait(PATIENCE)
            llmlb_lock.acquire(port).release()
        finally:
            other.kill()


def test_the_lock_is_there_to_be_found(port: int) -> None:
    """The kernel lock, and a shared one on the directory, which keeps it from being aged away."""
    code = """
import os, sys
print(*sorted(os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd")))
sys.stdin.read()
"""
    with started(llmlb_lock.acquire(port), [sys.executable, "-c", code]) as server:
        files = server.stdout.readline().decode().split()
        directory = llmlb_lock.lock_dir()
        assert {str(directory), str(llmlb_lock.lock_path(port))} <= set(files)
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            with pytest.raises(BlockingIOError):
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        finally:
            os.close(descriptor)


def test_more_descriptors_may_be_passed(port: int) -> None:
    reads, writes = os.pipe()
    lock = llmlb_lock.acquire(port)
    code = f"import os; os.write({writes}, b'hello')"
    with started(lock, [sys.executable, "-c", code], pass_fds=[writes]):
        os.close(writes)
        assert os.read(reads, 16) == b"hello"
    os.close(reads)


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (["/nonexistent/command"], FileNotFoundError),
        (["/"], PermissionError),
        ([], (IndexError, ValueError)),
        ([8000], TypeError),
    ],
)
def test_a_command_that_fails_leaves_the_lock_here(
    port: int, args: list[Any], error: type[Exception]
) -> None:
    with llmlb_lock.ServerLock(port) as lock:
        before = lock.info
        with pytest.raises(error):
            lock.popen(args)
        assert lock.info == before == llmlb_lock.read_lock_info(port)
        lock.verify()
        assert not os.get_inheritable(lock.fileno())
    assert not llmlb_lock.lock_path(port).exists()


def test_a_server_that_ends_at_once_ends_the_guard(port: int) -> None:
    for _ in range(20):
        lock = llmlb_lock.acquire(port)
        with started(lock, ["sh", "-c", "exit 3"]) as server:
            assert server.wait(PATIENCE) == 3
        assert not lock.locked
        stopped = llmlb_lock.stop_server(port)
        assert isinstance(stopped, (llmlb_lock.NotRunning, llmlb_lock.StaleCleaned))


def test_a_lost_lock_starts_no_server(port: int) -> None:
    with llmlb_lock.ServerLock(port) as lock:
        lock.path.unlink()
        reads, writes = os.pipe()
        with pytest.raises(llmlb_lock.Lost):
            lock.popen(["sleep", "600"], pass_fds=[writes])
        os.close(writes)
        assert os.read(reads, 1) == b""  # nobody lives who has the other end
        os.close(reads)
        assert lock.locked


def test_what_a_server_leaves_behind_is_ended_with_it(port: int) -> None:
    code = "import subprocess, sys; subprocess.Popen(['sleep', '600']); print(); sys.stdin.read()"
    lock = llmlb_lock.acquire(port)
    with started(lock, [sys.executable, "-c", code]) as server:
        server.stdout.readline()
        outcome = llmlb_lock.stop_server(port, timeout=PATIENCE)
        assert isinstance(outcome, llmlb_lock.Stopped)
        assert server.stdout.read() == b""  # the sleeper had the other end too


def test_another_threads_children_do_not_inherit(port: int) -> None:
    run_python(
        f"""
import os, subprocess, sys, threading, llmlb_lock
port = int(sys.argv[1])
done = threading.Event()
children = []
def others():
    while not done.is_set():
        children.append(subprocess.Popen(["sleep", "600"], close_fds=False))
        if len(children) == 50: break
thread = threading.Thread(target=others)
thread.start()
lock = llmlb_lock.acquire(port)
with lock.popen({WAITS!r}, stdin=subprocess.PIPE) as server:
    done.set()
    thread.join()
    server.kill()
import logging
logging.disable()
llmlb_lock.acquire(port).release()
for child in children:
    child.kill()
    child.wait()
""",
        port,
    )


def test_the_lock_tells_of_a_server_that_has_ended_already(port: int) -> None:
    lock = llmlb_lock.acquire(port)
    with started(lock, [sys.executable, "-c", "pass"]) as server:
        server.wait(PATIENCE)
        assert (lock.info.pid, lock.info.port) == (server.pid, port)
    # Taken anew, it tells of this process again.
    with lock:
        assert lock.info.pid == os.getpid()
    with pytest.raises(RuntimeError, match="not held"):
        _ = lock.info
