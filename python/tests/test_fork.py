"""Forked children have a copy of the lock; whatever they do, it stays the parent's."""

from __future__ import annotations

import pytest
from support import run_python

SETUP = """
import os, sys, llmlb_lock
port = int(sys.argv[1])

def still_ours(lock):
    lock.verify()
    assert llmlb_lock.read_lock_info(port) == lock.info
    assert lock.info.pid == os.getpid()
    refused = os.fork()
    if refused == 0:
        try:
            lock.release()
            llmlb_lock.acquire(port)
        except llmlb_lock.AlreadyRunning as e:
            assert e.pid == os.getppid()
            os._exit(0)
        os._exit(1)
    assert os.waitpid(refused, 0)[1] == 0

def child_does(what):
    pid = os.fork()
    if pid == 0:
        what()
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
"""


@pytest.mark.parametrize(
    "what",
    [
        "pass",
        "lock.release()",
        "lock.release(); lock.release()",
        "lock.__exit__(None, None, None)",
        "globals().pop('lock')",
        "sys.exit()",
        "llmlb_lock.acquire(8001 if port != 8001 else 8002).release()",
    ],
)
def test_a_child_leaves_the_lock_alone(port: int, what: str) -> None:
    code = f"""
with llmlb_lock.ServerLock(port) as lock:
    def act():
        {what}
    pid = os.fork()
    if pid == 0:
        act()
        sys.exit()
    assert os.waitpid(pid, 0)[1] == 0
    still_ours(lock)
assert not llmlb_lock.lock_path(port).exists()
"""
    run_python(SETUP + code, port)


def test_a_child_may_not_hand_the_lock_over(port: int) -> None:
    code = """
with llmlb_lock.ServerLock(port) as lock:
    def give_away():
        try:
            lock.hand_over(os.getpid())
        except llmlb_lock.NotOwner as e:
            assert (e.port, e.owner) == (port, os.getppid())
        else:
            raise SystemExit("handed over")
    child_does(give_away)
    still_ours(lock)
"""
    run_python(SETUP + code, port)


def test_a_copy_keeps_the_port_guarded_while_it_is_open(port: int) -> None:
    code = """
lock = llmlb_lock.acquire(port)
inherited, holds = os.pipe()
pid = os.fork()
if pid == 0:
    os.close(holds)
    os.read(inherited, 1)  # until the parent's end is closed
    os._exit(0)
os.close(inherited)
lock.hand_over(pid)
lock.release()
try:
    llmlb_lock.acquire(port)
except llmlb_lock.AlreadyRunning as e:
    assert e.pid == pid
else:
    raise SystemExit("two holders")
os.close(holds)
assert os.waitpid(pid, 0)[1] == 0
logging.disable()  # the child has left its file behind
llmlb_lock.acquire(port).release()
"""
    run_python(SETUP + "import logging" + code, port)


def test_a_daemon_adopts_the_lock(port: int) -> None:
    code = """
lock = llmlb_lock.acquire(port)
told, tells = os.pipe()
stop, stops = os.pipe()
if os.fork() == 0:
    if os.fork() != 0:
        os._exit(0)
    os.close(stops)
    os.setsid()
    lock.adopt()
    os.write(tells, str(os.getpid()).encode())
    os.read(stop, 1)
    lock.release()
    os.write(tells, b"released")
    os._exit(0)
os.close(stop)
os.wait()
daemon = int(os.read(told, 16))
assert llmlb_lock.read_lock_info(port).pid == daemon
lock.release()
assert [info.pid for info in llmlb_lock.list_all_locks()] == [daemon]
os.close(stops)
assert os.read(told, 16) == b"released"
assert llmlb_lock.read_lock_info(port) is None
"""
    run_python(SETUP + code, port)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing_leaves_the_lock_alone(port: int, method: str) -> None:
    code = """
import multiprocessing, importlib.util

def test(context):
    with llmlb_lock.ServerLock(port) as lock:
        with context.Pool(2) as pool:
            assert pool.map(abs, [-1, -2]) == [1, 2]
        for target in (abs, exit):
            process = context.Process(target=target, args=(0,))
            process.start()
            process.join()
            assert process.exitcode == 0
        lock.verify()
        assert llmlb_lock.read_lock_info(port) == lock.info
    assert not llmlb_lock.lock_path(port).exists()

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[2])
    test(context)
"""
    run_python(SETUP + code, port, method)


def test_a_spawned_child_has_no_copy(port: int) -> None:
    code = """
import subprocess
lock = llmlb_lock.acquire(port)
child = subprocess.Popen(["sleep", "600"], close_fds=False)
lock.release()
llmlb_lock.acquire(port).release()
child.kill()
child.wait()
"""
    run_python(SETUP + code, port)


def test_prefork_workers_come_and_go(port: int) -> None:
    """As gunicorn does: a master that holds the lock, workers that end in every way there is."""
    code = """
import signal

def work(how):
    pid = os.fork()
    if pid:
        return pid
    if how == "killed":
        signal.pause()
    if how == "exits":
        sys.exit(0)
    os._exit(0)

with llmlb_lock.ServerLock(port) as lock:
    for how in ["exits", "killed", "leaves"] * 3:
        worker = work(how)
        if how == "killed":
            os.kill(worker, signal.SIGKILL)
        os.waitpid(worker, 0)
        lock.verify()
        assert llmlb_lock.read_lock_info(port) == lock.info
    still_ours(lock)
assert not llmlb_lock.lock_path(port).exists()
"""
    run_python(SETUP + code, port)
