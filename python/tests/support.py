"""What the tests share: other processes, and waiting for what they do."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

PATIENCE = 60.0
"""Seconds that anything may take on a loaded machine before a test gives up."""

HOLDER = """
import sys
import llmlb_lock
lock = llmlb_lock.acquire(int(sys.argv[1]), timeout=60)
print(lock.info.to_json())
sys.stdin.read()
lock.release()
"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def wait_until(condition: Callable[[], object], what: str = "condition") -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {PATIENCE} s"
        time.sleep(0.002)


def accepts(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


class Child:
    """Another process, spoken to through pipes; gone at the end of the block, come what may."""

    def __init__(self, *command: str | Path, env: dict[str, str] | None = None) -> None:
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=None if env is None else {**os.environ, **env},
            cwd="/",  # beside the sources, these would be imported, not the wheel
        )
        self._seen = b""

    @classmethod
    def python(cls, code: str, *args: object) -> Child:
        """Every warning is an error there too."""
        strict = ["-X", "dev", "-W", "error", "-u", "-c"]
        return cls(sys.executable, *strict, code, *map(str, args))

    @classmethod
    def holder(cls, port: int) -> Child:
        child = cls.python(HOLDER, port)
        child.line()
        return child

    @property
    def pid(self) -> int:
        return self.process.pid

    def line(self) -> str:
        """The next line of its output."""
        assert self.process.stdout is not None
        deadline = time.monotonic() + PATIENCE
        while b"\n" not in self._seen:
            left = max(0.0, deadline - time.monotonic())
            assert select.select([self.process.stdout], [], [], left)[0], "no output in time"
            more = os.read(self.process.stdout.fileno(), 4096)
            if not more:
                raise AssertionError(f"ended: {self._seen!r} {self._stderr()}")
            self._seen += more
        line, _, self._seen = self._seen.partition(b"\n")
        return line.decode()

    def _stderr(self) -> str:
        assert self.process.stderr is not None
        return self.process.stderr.read().decode()

    def end(self) -> tuple[str, str]:
        """Closes its input and returns the rest of its output; it must succeed."""
        out, err = self.process.communicate(timeout=PATIENCE)
        assert self.process.returncode == 0, err.decode()
        return (self._seen + out).decode(), err.decode()

    def wait(self) -> int:
        return self.process.wait(PATIENCE)

    def kill(self) -> None:
        self.process.kill()
        self.wait()

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self.process.poll() is None:
            self.kill()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            if pipe is not None and not pipe.closed:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def run_python(code: str, *args: object) -> str:
    """What a Python process prints that must succeed, quietly."""
    with Child.python(code, *args) as child:
        out, err = child.end()
    assert err == ""
    return out
