"""Python, Rust, C and the `llmlb` command refuse, name and stop each other's servers."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys

import llmlb_lock
import pytest
from llmlb_lock._advice import PROGRAM
from support import PATIENCE, Child, accepts, run_python, wait_until

BIN = os.environ.get("LLMLB_BIN", "")
HOLD = os.environ.get("LLMLB_HOLD", "")
LIBRARY = os.environ.get("LLMLB_LOCK_LIB", "")

needs_command = pytest.mark.skipif(not BIN, reason="LLMLB_BIN names no llmlb command")
needs_rust = pytest.mark.skipif(not HOLD, reason="LLMLB_HOLD names no Rust program")
needs_c = pytest.mark.skipif(not LIBRARY, reason="LLMLB_LOCK_LIB names no C library")


def llmlb(*args: object) -> subprocess.CompletedProcess[str]:
    command = [BIN, *map(str, args)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE, check=False, cwd="/"
    )


def refused_naming(port: int, pid: int) -> str:
    """With what core says: Python names the command that somebody has who has it alone."""
    with pytest.raises(llmlb_lock.AlreadyRunning) as refused:
        llmlb_lock.acquire(port)
    assert (refused.value.port, refused.value.pid) == (port, pid)
    return str(refused.value).replace(f"{PROGRAM} stop", "llmlb stop")


@needs_command
def test_the_command_is_refused_in_our_words(port: int) -> None:
    with llmlb_lock.ServerLock(port):
        result = llmlb("serve", "--port", port)
        assert result.returncode == 1
        assert result.stderr.strip() == f"Error: {refused_naming(port, os.getpid())}"


@needs_command
def test_the_command_shows_our_server(port: int) -> None:
    with llmlb_lock.ServerLock(port) as lock:
        result = llmlb("status", "--format", "json", "--port", port)
        (shown,) = json.loads(result.stdout)
        assert (shown["port"], shown["pid"]) == (port, os.getpid())
        expected = json.loads(lock.info.to_json())["started_at"]
        assert llmlb_lock.LockInfo.from_json(
            json.dumps({k: shown[k] for k in ("pid", "started_at", "port")})
        ) == llmlb_lock.LockInfo.from_json(
            json.dumps({"pid": os.getpid(), "started_at": expected, "port": port})
        )


@needs_command
def test_the_command_stops_our_server(port: int) -> None:
    lock = llmlb_lock.acquire(port)
    server = lock.popen([sys.executable, "-m", "http.server", "{port}"], stderr=subprocess.DEVNULL)
    with server:
        wait_until(lambda: accepts(port), "server")
        result = llmlb("stop", "--port", port)
        assert result.returncode == 0, result.stderr
        assert f"Stopping server on port {port} (PID: {server.pid})..." in result.stdout
        assert server.wait(PATIENCE) == -signal.SIGTERM
    assert not llmlb_lock.lock_path(port).exists()


@needs_command
def test_we_are_refused_by_the_command_and_stop_it(port: int) -> None:
    with Child(BIN, "serve", "--port", str(port)) as server:
        wait_until(lambda: accepts(port), "server")
        refused_naming(port, server.pid)
        assert [info.pid for info in llmlb_lock.list_all_locks()] == [server.pid]
        outcome = llmlb_lock.stop_server(port, timeout=PATIENCE)
        assert isinstance(outcome, llmlb_lock.Stopped)
        assert server.wait() == 0


@needs_command
def test_we_wait_for_the_command(port: int) -> None:
    with Child(BIN, "serve", "--port", str(port)) as server:
        wait_until(lambda: accepts(port), "server")
        server.process.terminate()
        with llmlb_lock.acquire(port, timeout=PATIENCE) as lock:
            assert lock.info.pid == os.getpid()


@needs_command
def test_a_python_server_guards_itself_under_the_command(port: int) -> None:
    """A server that takes the lock which its launcher handed it is told so, by name."""
    code = (
        "import os, sys, llmlb_lock\n"
        "try: llmlb_lock.acquire(int(os.environ['LLMLB_PORT']))\n"
        "except llmlb_lock.AlreadyRunning as e: sys.exit(0 if e.pid == os.getpid() else 4)\n"
        "sys.exit(3)\n"
    )
    for _ in range(3):
        result = llmlb("serve", "--port", port, "--", sys.executable, "-c", code)
        assert result.returncode == 0, result.stderr


@needs_rust
def test_rust_and_python_refuse_each_other(port: int) -> None:
    with llmlb_lock.ServerLock(port):
        result = subprocess.run(
            [HOLD, str(port)], capture_output=True, text=True, timeout=PATIENCE, check=False
        )
        assert result.returncode == 1
        assert result.stderr.strip() == refused_naming(port, os.getpid())
    with Child(HOLD, str(port)) as holder:
        assert holder.line() == str(holder.pid)
        refused_naming(port, holder.pid)
        holder.end()
    llmlb_lock.acquire(port).release()


class Info(ctypes.Structure):
    """llmlb_lock_info_t"""

    _fields_ = (
        ("started_at_sec", ctypes.c_int64),
        ("started_at_nsec", ctypes.c_uint32),
        ("pid", ctypes.c_uint32),
        ("port", ctypes.c_uint16),
    )


C_HOLDER = """
import ctypes, sys
library = ctypes.CDLL(sys.argv[1])
lock = ctypes.c_void_p()
holder = ctypes.create_string_buffer(64)
result = library.llmlb_lock_acquire(
    ctypes.c_uint16(int(sys.argv[2])), ctypes.byref(lock), holder)
print(result)
sys.stdin.read()
print(library.llmlb_lock_release(lock))
library.llmlb_lock_free.argtypes = [ctypes.c_void_p]
library.llmlb_lock_free.restype = None
library.llmlb_lock_free(lock)
"""


@needs_c
def test_c_and_python_refuse_each_other(port: int) -> None:
    library = ctypes.CDLL(LIBRARY)
    with llmlb_lock.ServerLock(port) as lock:
        handle = ctypes.c_void_p()
        holder = Info()
        result = library.llmlb_lock_acquire(
            ctypes.c_uint16(port), ctypes.byref(handle), ctypes.byref(holder)
        )
        assert result == 16  # LLMLB_ALREADY_RUNNING
        assert not handle
        assert (holder.port, holder.pid) == (port, os.getpid())
        assert holder.started_at_sec == int(lock.info.started_at.timestamp())
        assert holder.started_at_nsec == lock.info.started_at.microsecond * 1000
    with Child.python(C_HOLDER, LIBRARY, port) as child:
        assert child.line() == "0"
        refused_naming(port, child.pid)
        assert child.end()[0] == "0\n"
    llmlb_lock.acquire(port).release()


def test_what_others_write_is_read(port: int) -> None:
    """The public llmlb 5.x writes the same three fields, to the nanosecond."""
    text = f'{{"pid":1,"started_at":"2026-01-30T12:00:00.123456789Z","port":{port},"host":"::1"}}'
    run_python(
        "import sys, llmlb_lock\n"
        "path = llmlb_lock.lock_path(int(sys.argv[1]))\n"
        "path.parent.mkdir()\n"
        "path.write_text(sys.argv[2])\n",
        port,
        text,
    )
    info = llmlb_lock.read_lock_info(port)
    assert info is not None
    assert info.to_json() == text.replace("456789Z", "456Z").replace(',"host":"::1"', "")
