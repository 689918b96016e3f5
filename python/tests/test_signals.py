"""Waits end when a signal handler raises, and let other threads run."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from functools import partial
from types import FrameType

import llmlb_lock
import pytest
from support import PATIENCE, Child
from test_stories import STUBBORN


class Interrupted(Exception):
    pass


def raised_after(wait: Callable[[], object]) -> float:
    """Seconds from a signal to the end of a wait by the exception its handler raises."""
    sent = 0.0

    def handler(number: int, frame: FrameType | None) -> None:
        raise Interrupted

    def interrupt() -> None:
        nonlocal sent
        sent = time.monotonic()
        signal.raise_signal(signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, handler)
    timer = threading.Timer(0.1, interrupt)
    try:
        timer.start()
        with pytest.raises(Interrupted):
            wait()
        return time.monotonic() - sent
    finally:
        timer.join()
        signal.signal(signal.SIGUSR1, before)


def test_an_acquire_is_interrupted_within_100_ms(port: int) -> None:
    wait = partial(llmlb_lock.acquire, port, timeout=PATIENCE)
    with Child.holder(port):
        # The best of five: a loaded machine may be late, the wait may not.
        assert min(raised_after(wait) for _ in range(5)) < 0.1


def test_a_stop_is_interrupted_within_100_ms(port: int) -> None:
    wait = partial(llmlb_lock.stop_server, port, timeout=PATIENCE)
    with Child.python(STUBBORN, port) as server:
        server.line()
        assert min(raised_after(wait) for _ in range(5)) < 0.1


def test_an_interrupted_acquire_holds_nothing(port: int) -> None:
    lock = llmlb_lock.ServerLock(port, timeout=PATIENCE)
    with Child.holder(port) as holder:
        raised_after(lock.__enter__)
        assert not lock.locked
        holder.end()
    with lock:
        assert lock.locked


def test_a_handler_that_does_not_raise_does_not_end_the_wait(port: int) -> None:
    handled = threading.Event()

    def handler(number: int, frame: FrameType | None) -> None:
        handled.set()
        holder.end()

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with Child.holder(port) as holder:
            timer = threading.Timer(0.1, signal.raise_signal, [signal.SIGUSR1])
            timer.start()
            with llmlb_lock.acquire(port, timeout=PATIENCE):
                assert handled.is_set()
            timer.join()
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.parametrize("wait", ["acquire(port, timeout=60)", "stop_server(port, timeout=60)"])
def test_ctrl_c(port: int, wait: str) -> None:
    code = f"""
import os, signal, sys, threading, llmlb_lock
port = int(sys.argv[1])
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in background jobs
threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    llmlb_lock.{wait}
except KeyboardInterrupt:
    print("KeyboardInterrupt")
"""
    with Child.python(STUBBORN, port) as server:
        server.line()
        with Child.python(code, port) as waiter:
            assert waiter.line() == "KeyboardInterrupt"
            waiter.end()


def test_other_threads_run_while_one_waits(port: int) -> None:
    with Child.holder(port) as holder:
        got: list[llmlb_lock.ServerLock] = []
        waiter = threading.Thread(
            target=lambda: got.append(llmlb_lock.acquire(port, timeout=PATIENCE))
        )
        waiter.start()
        # With the interpreter's lock held by the waiter, this would end after the wait.
        sum(range(1_000_000))
        assert waiter.is_alive()
        holder.end()
        waiter.join()
        got[0].release()
