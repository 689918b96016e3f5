"""Core's log is Python's."""

from __future__ import annotations

import logging
import os

import llmlb_lock
import pytest
from support import Child, run_python


def test_what_happens_is_logged(port: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "llmlb_lock")
    with llmlb_lock.ServerLock(port):
        pass
    assert caplog.record_tuples == [
        (
            "llmlb_lock",
            logging.DEBUG,
            f"Lock acquired for port {port} (PID: {os.getpid()})",
        ),
        ("llmlb_lock", logging.DEBUG, f"Lock released for port {port}"),
    ]


def test_a_stale_file_is_a_warning(port: int, caplog: pytest.LogCaptureFixture) -> None:
    with Child.holder(port) as holder:
        holder.kill()
    with llmlb_lock.ServerLock(port):
        pass
    assert caplog.record_tuples == [
        (
            "llmlb_lock",
            logging.WARNING,
            f"Stale lock file detected (PID {holder.pid} not running), cleaning up port {port}",
        )
    ]


def test_a_level_may_change_at_any_time(port: int, caplog: pytest.LogCaptureFixture) -> None:
    for level, expected in [(logging.WARNING, 0), (logging.DEBUG, 2), (logging.WARNING, 0)]:
        caplog.clear()
        caplog.set_level(level, "llmlb_lock")
        llmlb_lock.acquire(port).release()
        assert len(caplog.records) == expected


@pytest.mark.parametrize("release", ["", "lock.release()"])
def test_nothing_is_logged_at_shutdown(port: int, release: str) -> None:
    code = f"""
import atexit, logging, sys
logging.basicConfig(level=logging.DEBUG, stream=sys.stdout, format="%(message)s")
import llmlb_lock
lock = llmlb_lock.acquire(int(sys.argv[1]))
{release}
"""
    lines = run_python(code, port).splitlines()
    assert [line.split(" for ")[0] for line in lines] == ["Lock acquired"] + (
        ["Lock released"] if release else []
    )
    assert not llmlb_lock.lock_path(port).exists()


def test_what_a_handler_raises_is_raised_and_takes_no_lock(port: int) -> None:
    class Broken(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            raise KeyboardInterrupt

    logger = logging.getLogger("llmlb_lock")
    handler = Broken(logging.DEBUG)
    logger.addHandler(handler)
    logger.setLevel(logging.DEBUG)
    try:
        with pytest.raises(KeyboardInterrupt):
            llmlb_lock.acquire(port)
    finally:
        logger.removeHandler(handler)
        logger.setLevel(logging.NOTSET)
    with llmlb_lock.ServerLock(port) as lock:
        assert lock.locked
