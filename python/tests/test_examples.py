"""The programs in examples/python, run as a user would."""

from __future__ import annotations

import os
import signal
import sys
import urllib.request
from pathlib import Path

import llmlb_lock
import pytest
from support import Child, accepts, free_port, wait_until

EXAMPLES = Path(__file__).parents[2] / "examples" / "python"


def example(name: str, *args: object) -> Child:
    return Child(sys.executable, "-X", "dev", "-W", "error", EXAMPLES / name, *map(str, args))


def test_a_server_guards_itself(port: int) -> None:
    with example("guarded_server.py", port) as server:
        wait_until(lambda: accepts(port), "server")
        with example("guarded_server.py", port) as second:
            _, err = second.process.communicate()
            assert second.process.returncode == 1
            assert err.decode().startswith(
                f"Error: Server already running on port {port} (PID: {server.pid}, started: "
            )
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/") as response:
            assert response.status == 200
        outcome = llmlb_lock.stop_server(port)
        assert isinstance(outcome, llmlb_lock.Stopped)
        assert not outcome.forced
        assert server.wait() == 0


@pytest.fixture
def ports() -> list[int]:
    return sorted(free_port() for _ in range(3))


SERVER = ("--", sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "{port}")


def pids() -> dict[int, int]:
    return {info.port: info.pid for info in llmlb_lock.list_all_locks()}


def stop_all(ports: list[int]) -> None:
    for port in ports:
        llmlb_lock.stop_server(port, force=True)


def test_an_orchestrator(ports: list[int]) -> None:
    def say(command: str) -> None:
        assert orchestrator.process.stdin is not None
        orchestrator.process.stdin.write(f"{command}\n".encode())
        orchestrator.process.stdin.flush()

    with example("orchestrator.py", *ports, *SERVER) as orchestrator:
        try:
            lines = [orchestrator.line() for _ in range(4)]
            first = pids()
            assert sorted(first) == ports
            assert lines == [f"{p}: started PID {first[p]}" for p in ports] + ["ready"]
            for port in ports:
                wait_until(lambda port=port: accepts(port), f"server on {port}")  # type: ignore[misc]

            say("show")
            for port in ports:
                assert orchestrator.line().startswith(f"{port}: PID {first[port]} since 20")
            assert orchestrator.line() == "shown"

            replaced, killed, left = ports
            say(f"replace {replaced}")
            assert orchestrator.line() == f"{replaced}: stopped PID {first[replaced]}"
            new = orchestrator.line()
            second = pids()
            assert new == f"{replaced}: started PID {second[replaced]}"
            assert second[replaced] != first[replaced]

            os.kill(first[killed], signal.SIGKILL)
            died = f"{killed}: PID {first[killed]} died (-9), next start in "
            assert orchestrator.line().startswith(died)
            new = orchestrator.line()
            third = pids()
            assert new == f"{killed}: started PID {third[killed]}"
            assert third == {**second, killed: third[killed]}
            assert third[left] == first[left]

            say("quit")
            stopped = [orchestrator.line() for _ in range(4)]
            assert stopped == [f"{p}: stopped PID {third[p]}" for p in ports] + ["bye"]
            assert orchestrator.wait() == 0
            assert pids() == {}
            assert [p for p in ports if llmlb_lock.lock_path(p).exists()] == []
        finally:
            stop_all(ports)


def test_servers_outlive_a_killed_orchestrator(ports: list[int]) -> None:
    try:
        # Its pipes stay open: the servers write to them.
        with example("orchestrator.py", *ports, *SERVER) as killed:
            while killed.line() != "ready":
                pass
            before = pids()
            assert sorted(before) == ports
            killed.kill()
            assert pids() == before
            with example("orchestrator.py", *ports, *SERVER) as orchestrator:
                for port in ports:
                    assert orchestrator.line() == f"{port}: PID {before[port]} runs already"
                assert orchestrator.line() == "ready"
                out, _ = orchestrator.end()  # its input ends: it leaves, and the servers stay
                assert out == ""
            assert pids() == before
    finally:
        stop_all(ports)


def test_an_orchestrator_pauses_longer_and_longer_for_a_server_that_does_not_come_up(
    port: int,
) -> None:
    with example("orchestrator.py", port, "--", sys.executable, "-c", "exit(3)") as orchestrator:
        lines = [orchestrator.line() for _ in range(8)]
        died = [line for line in lines if "died" in line]
        pauses = [line.partition("(3), next start in ")[2] for line in died]
        assert pauses == ["0.1 s", "0.2 s", "0.4 s", "0.8 s"][: len(pauses)]
        assert len(pauses) >= 3
        # It answers while a pause lasts.
        assert orchestrator.process.stdin is not None
        orchestrator.process.stdin.write(b"show\nquit\n")
        orchestrator.process.stdin.flush()
        while orchestrator.line() != "bye":
            pass
        assert orchestrator.wait() == 0
