"""Sixteen processes start the same server at the same moment."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import llmlb_lock
import pytest
from support import PATIENCE

RACER = """
import sys, llmlb_lock
port = int(sys.argv[1])
for round in sys.stdin:
    try:
        lock = llmlb_lock.acquire(port)
    except llmlb_lock.AlreadyRunning as e:
        print("lost", e.pid, flush=True)
    else:
        print("won", lock.info.pid, flush=True)
    sys.stdin.readline()
    if "lock" in globals():
        lock.release()
        del lock
    print("ready", flush=True)
"""


@pytest.mark.parametrize("before", ["nothing", "stale"])
def test_one_wins_and_every_loser_names_it(port: int, lock_directory: Path, before: str) -> None:
    lock_directory.mkdir()
    stale = llmlb_lock.LockInfo.from_json(
        f'{{"pid":{2**22 + 1},"started_at":"2026-01-30T12:00:00Z","port":{port}}}'
    )
    racers = [
        subprocess.Popen(
            [sys.executable, "-c", RACER, str(port)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # the warnings about the stale file
            text=True,
            bufsize=1,
            cwd="/",
        )
        for _ in range(16)
    ]

    def tell_all() -> None:
        for racer in racers:
            assert racer.stdin is not None
            racer.stdin.write("go\n")

    def hear_all() -> list[list[str]]:
        heard: list[list[str]] = []
        for racer in racers:
            assert racer.stdout is not None
            heard.append(racer.stdout.readline().split())
        return heard

    try:
        for _ in range(20):
            if before == "stale":
                llmlb_lock.lock_path(port).write_text(stale.to_json())
            tell_all()
            results = hear_all()
            winners = [pid for result, pid in results if result == "won"]
            assert len(winners) == 1, results
            assert {pid for _, pid in results} == set(winners)
            assert int(winners[0]) in {racer.pid for racer in racers}
            tell_all()
            assert hear_all() == [["ready"]] * 16
    finally:
        for racer in racers:
            racer.kill()
            racer.communicate(timeout=PATIENCE)
