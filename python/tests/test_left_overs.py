"""What a killed server leaves behind is known by what `popen` put into its environment."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager

import llmlb_lock
import pytest
from support import PATIENCE, Child, wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="seen on Linux alone")

# A server whose worker leaves session and group, and inherits no descriptor of the lock.
SERVER = """
import subprocess, sys
worker = subprocess.Popen(
    [sys.executable, "-c", "import sys; print('works', flush=True); sys.stdin.read()"],
    start_new_session=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE, close_fds=True,
)
worker.stdout.readline()
print(worker.pid, flush=True)
sys.stdin.read()
"""
# It is the launcher that is killed: as long as it lives, what it started is its own business.
LAUNCHER = f"""
import subprocess, sys
import llmlb_lock
lock = llmlb_lock.acquire(int(sys.argv[1]))
pipe = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE)
server = lock.popen([sys.executable, "-c", {SERVER!r}], **pipe)
print(server.pid, server.stdout.readline().decode().strip(), flush=True)
sys.stdin.read()
"""


@contextmanager
def left_over(port: int) -> Generator[int, None, None]:
    """The worker of a server that was killed together with its launcher."""
    with Child.python(LAUNCHER, port) as launcher:
        server, worker = map(int, launcher.line().split())
        # Kept, so that the worker does not end by itself when its pipe breaks.
        kept = os.open(f"/proc/{server}/fd/0", os.O_WRONLY)
        worker_pipes = [
            os.open(f"/proc/{worker}/fd/0", os.O_WRONLY),
            os.open(f"/proc/{worker}/fd/1", os.O_RDONLY),
        ]
        try:
            os.kill(server, 9)
            launcher.kill()
            wait_until(lambda: not runs(server), "the server's end")
            assert runs(worker)
            yield worker
        finally:
            for descriptor in (kept, *worker_pipes):
                os.close(descriptor)


def runs(pid: int) -> bool:
    return llmlb_lock.is_process_running(pid)


def test_a_launcher_ends_it_before_it_takes_the_port(port: int) -> None:
    with left_over(port) as worker:
        assert llmlb_lock.end_left_overs(port, grace=PATIENCE) == [worker]
        assert not runs(worker)
        assert llmlb_lock.end_left_overs(port) == []


def test_a_stop_ends_it(port: int) -> None:
    with left_over(port) as worker:
        assert llmlb_lock.stop_server(port, timeout=PATIENCE) == llmlb_lock.LeftOversEnded()
        assert not runs(worker)
        assert llmlb_lock.stop_server(port) == llmlb_lock.NotRunning()


def test_a_live_server_is_left_alone(port: int) -> None:
    waits = [sys.executable, "-c", "import sys; sys.stdin.read()"]
    with llmlb_lock.acquire(port).popen(waits, stdin=subprocess.PIPE) as server:
        assert llmlb_lock.end_left_overs(port) == []
        assert server.poll() is None


def test_a_server_that_outlives_its_launcher_is_left_alone(port: int) -> None:
    with Child.python(LAUNCHER, port) as launcher:
        server, worker = map(int, launcher.line().split())
        kept = [os.open(f"/proc/{pid}/fd/0", os.O_WRONLY) for pid in (server, worker)]
        try:
            launcher.kill()
            assert llmlb_lock.end_left_overs(port) == []
            assert runs(server)
            assert runs(worker)
            outcome = llmlb_lock.stop_server(port, timeout=PATIENCE)
            assert isinstance(outcome, llmlb_lock.Stopped)
            assert not runs(worker)
        finally:
            for descriptor in kept:
                os.close(descriptor)


def test_each_start_has_a_name_of_its_own(port: int) -> None:
    shows = [sys.executable, "-c", "import os; print(os.environ['LLMLB_SERVER_ID'])"]
    names: set[str] = set()
    for _ in range(2):
        with llmlb_lock.acquire(port).popen(shows, stdout=subprocess.PIPE, text=True) as server:
            names.add(server.communicate(timeout=PATIENCE)[0])
    assert len(names) == 2
