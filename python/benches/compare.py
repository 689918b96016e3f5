"""llmlb_lock beside filelock and portalocker, all in one run: prints the table of the README.

Those two lock a path and nothing else: portalocker leaves its file behind, and neither says who
has it. So there is a row for the lock alone, and one for the same job: a file that names its
holder in JSON while it is held, and is gone afterwards.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path
from typing import TypeAlias

import filelock
import llmlb_lock
import portalocker

PORT = 8000
LIBRARIES = ("llmlb_lock", "filelock", "portalocker")
FLAGS = portalocker.LockFlags.EXCLUSIVE | portalocker.LockFlags.NON_BLOCKING
Calls: TypeAlias = dict[str, Callable[[], object]]


def import_time(library: str) -> float:
    """Median milliseconds that `import` adds to a process that has only started."""
    code = f"import time; t = time.perf_counter(); import {library}; print(time.perf_counter() - t)"

    def once() -> float:
        output = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, check=True, cwd="/"
        ).stdout
        return float(output) * 1e3

    once()
    return statistics.median(once() for _ in range(21))


def per_call(calls: Calls, count: int = 500, rounds: int = 15) -> dict[str, float]:
    """Median microseconds of each call, in turns: a busy moment of the machine hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            started = time.perf_counter()
            for _ in range(count):
                call()
            times[name].append((time.perf_counter() - started) / count * 1e6)
    return {name: statistics.median(of_name) for name, of_name in times.items()}


def cycles(path: Path) -> Calls:
    file = filelock.FileLock(path / "filelock")
    port = portalocker.Lock(path / "portalocker", flags=FLAGS)

    def ours() -> None:
        llmlb_lock.acquire(PORT).release()

    def filelocks() -> None:
        file.acquire(timeout=0)
        file.release()

    def portalockers() -> None:
        port.acquire()
        port.release()

    return {"llmlb_lock": ours, "filelock": filelocks, "portalocker": portalockers}


def same_job(path: Path) -> Calls:
    """Each names the holder while it has the lock, and leaves no file behind."""
    file = filelock.FileLock(path / "named")
    beside = path / "named.json"
    port = portalocker.Lock(path / "named.port", flags=FLAGS)

    def info() -> str:
        now = datetime.now(timezone.utc).isoformat()
        return json.dumps({"pid": os.getpid(), "started_at": now, "port": PORT})

    def ours() -> None:
        llmlb_lock.acquire(PORT).release()

    def filelocks() -> None:
        with file:
            beside.write_text(info())
            beside.unlink()

    def portalockers() -> None:
        with port as held:
            held.write(info())
            held.flush()
            os.unlink(held.name)  # noqa: PTH108

    return {"llmlb_lock": ours, "filelock": filelocks, "portalocker": portalockers}


def refusals(path: Path) -> Calls:
    """Another process holds each lock."""

    def ours() -> None:
        try:
            llmlb_lock.acquire(PORT)
        except llmlb_lock.AlreadyRunning:
            return
        raise AssertionError("not refused")

    file = filelock.FileLock(path / "filelock")

    def filelocks() -> None:
        try:
            file.acquire(timeout=0)
        except filelock.Timeout:
            return
        raise AssertionError("not refused")

    port = portalocker.Lock(path / "portalocker", flags=FLAGS, fail_when_locked=True, timeout=0)

    def portalockers() -> None:
        try:
            port.acquire()
        except portalocker.LockException:
            return
        raise AssertionError("not refused")

    return {"llmlb_lock": ours, "filelock": filelocks, "portalocker": portalockers}


# Each takes its lock, says so, and gives it back when told to.
HOLD = {
    "llmlb_lock": "lock = llmlb_lock.acquire(8000); say(); lock.release()",
    "filelock": "lock = filelock.FileLock('filelock'); lock.acquire(); say(); lock.release()",
    "portalocker": "lock = portalocker.Lock('portalocker'); lock.acquire(); say(); lock.release()",
}
# Each waits for it as its users would, and says when it has it.
WAIT = {
    "llmlb_lock": "lock = llmlb_lock.acquire(8000, timeout=60)",
    "filelock": "lock = filelock.FileLock('filelock', timeout=60); lock.acquire()",
    "portalocker": "lock = portalocker.Lock('portalocker', timeout=60); lock.acquire()",
}
SAY = """
import sys, time, {library}
def say():
    print("held", flush=True)
    sys.stdin.readline()
    print(time.monotonic(), flush=True)
"""
WAITER = """
import sys, time, {library}
print("waits", flush=True)
{wait}
print(time.monotonic(), flush=True)
lock.release()
"""


def process(code: str, path: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=path,
    )


def line(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    return child.stdout.readline().strip()


def tell(child: subprocess.Popen[str]) -> None:
    assert child.stdin is not None
    child.stdin.write("\n")
    child.stdin.flush()


def hand_over(library: str, path: Path) -> float:
    """Median milliseconds from a release to the waiter that has the lock."""
    taken: list[float] = []
    for turn in range(15):
        with process(SAY.format(library=library) + HOLD[library], path) as holder:
            line(holder)
            waiter_code = WAITER.format(library=library, wait=WAIT[library])
            with process(waiter_code, path) as waiter:
                line(waiter)
                # Any phase of a polling waiter is as likely as another.
                time.sleep(0.1 + 0.017 * turn)
                tell(holder)
                released = float(line(holder))
                taken.append((float(line(waiter)) - released) * 1e3)
    return statistics.median(taken)


def main() -> None:
    rows: list[tuple[str, str, dict[str, float]]] = []
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory)
        os.environ["LLMLB_LOCK_DIR"] = str(path / "locks")
        rows.append(("`import`", "ms", {name: import_time(name) for name in LIBRARIES}))
        rows.append(("acquire and release", "µs", per_call(cycles(path))))
        rows.append(("the same job: named, cleaned up", "µs", per_call(same_job(path))))
        holders = [process(SAY.format(library=name) + HOLD[name], path) for name in LIBRARIES]
        for holder in holders:
            line(holder)
        rows.append(("refused acquire", "µs", per_call(refusals(path))))
        for holder in holders:
            holder.communicate("\n")
        measured = {name: hand_over(name, path) for name in LIBRARIES}
        rows.append(("hand-over to a waiter", "ms", measured))

    print(f"| median | {' | '.join(LIBRARIES)} |")
    print(f"| --- |{' ---: |' * len(LIBRARIES)}")
    for name, unit, measured in rows:
        cells = [f"{measured[library]:.1f} {unit}" for library in LIBRARIES]
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
