"""`python -m llmlb_lock`, beside the `llmlb` program."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
from pathlib import Path

import llmlb_lock
import pytest
from llmlb_lock._advice import PROGRAM, of_package
from support import PATIENCE, Child, accepts, wait_until

BIN = os.environ.get("LLMLB_BIN", "")
BOTH = pytest.mark.parametrize(
    "program",
    [
        pytest.param((sys.executable, "-X", "dev", "-m", "llmlb_lock"), id="python"),
        pytest.param(
            (BIN,),
            id="llmlb",
            marks=pytest.mark.skipif(not BIN, reason="LLMLB_BIN names no llmlb command"),
        ),
    ],
)
HTTP = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "{port}"]
HEADER = ["PORT", "PID", "STARTED", "STATUS"]
STUBBORN = """
import signal, sys
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
sys.stdin.read()
"""


def run(program: tuple[str, ...], *args: object, zone: str | None = None) -> tuple[int, str, str]:
    command = [*program, *map(str, args)]
    env = os.environ if zone is None else {**os.environ, "TZ": zone}
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE, check=False, cwd="/", env=env
    )
    return result.returncode, result.stdout, result.stderr


def stale(port: int) -> None:
    with Child.holder(port) as holder:
        holder.kill()


@BOTH
def test_nobody_is_there(program: tuple[str, ...], port: int) -> None:
    nobody = f"No server running on port {port}\n"
    assert run(program, "stop", "--port", port) == (0, nobody, "")
    assert run(program, "stop", "--all") == (0, "No servers running\n", "")
    missing = f"There is no directory {llmlb_lock.lock_dir()}, and so no lock in it\n"
    assert run(program, "status", "--port", port) == (3, nobody, missing)
    assert run(program, "status", "-p", port, "--format", "json") == (3, "[]\n", missing)


@BOTH
def test_a_server_is_shown_and_stopped(program: tuple[str, ...], port: int) -> None:
    server = llmlb_lock.acquire(port).popen(HTTP, stderr=subprocess.DEVNULL)
    with server:
        wait_until(lambda: accepts(port), "server")
        as_table = run(program, "status", "--port", port, zone="America/New_York")
        as_json = run(program, "status", "--format", "json")
        stopped = run(program, "stop", "-p", port)
    (told,) = json.loads(as_json[1])
    assert (as_json[0], as_json[2]) == (0, "")
    assert (told["port"], told["pid"], told["status"]) == (port, server.pid, "Running")
    second, _ = told["started_at"].split(".")
    shown = [str(port), str(server.pid), f"{second}Z", "Running"]
    assert [line.split() for line in as_table[1].splitlines()] == [HEADER, shown]
    assert (as_table[0], as_table[2]) == (0, "")
    said = f"Stopping server on port {port} (PID: {server.pid})...\nServer stopped successfully\n"
    assert stopped == (0, said, "")


@BOTH
def test_a_left_over_is_shown_and_removed(program: tuple[str, ...], port: int) -> None:
    stale(port)
    code, out, _ = run(program, "status", "--port", port)
    assert (code, "Stale" in out) == (3, True)
    assert "Stale" not in run(program, "status")[1]
    code, out, _ = run(program, "status", "--all", "--format", "json")
    assert [row["status"] for row in json.loads(out)] == ["Stale"]
    removed = f"No server running on port {port}; removed the lock file it left behind\n"
    # What is logged of it goes to stderr.
    assert run(program, "stop", "--port", port)[:2] == (0, removed)


@BOTH
def test_how_many_cannot_be_read_is_said(program: tuple[str, ...], port: int) -> None:
    path = llmlb_lock.lock_path(port)
    path.parent.mkdir()
    path.symlink_to("/etc/passwd")  # unreadable even to root: it leads elsewhere
    owner = path.lstat().st_uid
    rest = (
        "1 lock file that can't be read is not shown "
        f"(owned by {pwd.getpwuid(owner).pw_name}): see --all\n"
    )
    assert run(program, "status") == (0, "No servers running\n", rest)
    assert run(program, "status", "--format", "json") == (0, "[]\n", rest)
    code, out, err = run(program, "status", "--all")
    assert (code, "Unreadable (owner: " in out, err) == (0, True, "")


@BOTH
def test_what_does_not_end_is_said_and_killed_by_force(program: tuple[str, ...], port: int) -> None:
    lock = llmlb_lock.acquire(port)
    command = [sys.executable, "-c", STUBBORN]
    server = lock.popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with server:
        assert server.stdout is not None
        server.stdout.readline()
        stopping = f"Stopping server on port {port} (PID: {server.pid})...\n"
        code, out, err = run(program, "stop", "-p", port, "-t", "0.1")
        named = PROGRAM if len(program) > 1 else "llmlb"
        assert (code, out) == (1, stopping)
        assert err == (
            f"Error: Server on port {port} (PID: {server.pid}) still runs after 100ms\n\n"
            f"To wait longer: {named} stop --port {port} --timeout SECS\n"
            f"To kill it:     {named} stop --port {port} --force\n"
        )
        killed = f"Server killed: it did not stop within 100ms (PID: {server.pid})\n"
        result = run(program, "stop", "-p", port, "-t", "0.1", "--force")
        assert result[:2] == (0, stopping + killed)


@BOTH
def test_all_are_stopped_side_by_side(program: tuple[str, ...], port: int) -> None:
    locks = [llmlb_lock.acquire(port), llmlb_lock.acquire(1 if port != 1 else 2)]
    ports = [lock.port for lock in locks]
    waits = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    servers = [lock.popen(waits, stdin=subprocess.PIPE) for lock in locks]
    code, out, err = run(program, "stop", "--all", "-t", PATIENCE)
    assert (code, err) == (0, "")
    assert out.count("Server stopped successfully") == 2
    for server in servers:
        server.communicate()
    assert [p for p in ports if llmlb_lock.lock_path(p).exists()] == []


@BOTH
def test_wrong_arguments(program: tuple[str, ...]) -> None:
    for wrong in (
        ["stop"],
        ["stop", "--port", "0"],
        ["stop", "--port", "65536"],
        ["stop", "--port", "1", "--all"],
        ["stop", "--port", "1", "--timeout", "-1"],
        ["status", "--port", "x"],
        ["status", "--format", "xml"],
    ):
        code, out, _ = run(program, *wrong)
        assert (code, out) == (2, ""), wrong


@BOTH
def test_a_directory_that_cannot_be_read(
    program: tuple[str, ...], port: int, lock_directory: Path
) -> None:
    lock_directory.touch()
    code, out, err = run(program, "status", "--port", port)
    assert (code, out, err.startswith("Error: ")) == (4, "", True)
    code, out, err = run(program, "stop", "--port", port)
    assert (code, out, err.startswith("Error: ")) == (1, "", True)


def test_a_reader_that_has_left_is_no_failure(port: int) -> None:
    with llmlb_lock.ServerLock(port):
        script = f'"{sys.executable}" -m llmlb_lock status | true; exit "${{PIPESTATUS[0]}}"'
        result = subprocess.run(
            ["bash", "-c", script], capture_output=True, timeout=PATIENCE, check=False, cwd="/"
        )
        assert (result.returncode, result.stderr) == (0, b"")


def test_what_is_advised_works(port: int) -> None:
    """As it stands in the error, word for word."""
    with Child.holder(port) as holder:
        with pytest.raises(llmlb_lock.AlreadyRunning) as refused:
            llmlb_lock.acquire(port)
        (advised,) = (line for line in str(refused.value).splitlines() if "To stop:" in line)
        command = advised.removeprefix("To stop: ")
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        env = {**os.environ, "PATH": path}
        subprocess.run(command.split(), env=env, cwd="/", timeout=PATIENCE, check=True)
        assert holder.process.wait(PATIENCE) != 0


def test_what_errors_advise_is_what_this_package_has() -> None:
    core = "To stop: llmlb stop --port 1\n(as root, `llmlb stop` removes it)\nllmlb status --all"
    assert of_package(core) == core.replace("llmlb st", f"{PROGRAM} st")
    # Directories are not commands.
    assert of_package("/tmp/llmlb stopped") == "/tmp/llmlb stopped"
