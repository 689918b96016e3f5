"""Speaks the protocol for the Python package."""

from __future__ import annotations

import subprocess
import sys

import llmlb_lock

held: dict[int, llmlb_lock.ServerLock] = {}
handed: set[int] = set()


def answer(request: str, port: int, command: list[str]) -> str:
    if request == "list":
        live = llmlb_lock.list_all_locks()
        return "list" + "".join(f" {info.port}={info.pid}" for info in live)
    if request == "acquire":
        held[port] = llmlb_lock.LockDir().acquire(port)
        return "acquired"
    if request == "read":
        info = llmlb_lock.read_lock_info(port)
        return "none" if info is None else f"info {info.pid} {info.started_at.isoformat()}"
    if request == "release" and port in handed:
        # The server alone has had it since.
        handed.remove(port)
        return "released"
    if port not in held:
        return "error nothing is held there"
    if request == "hold":
        held[port].verify()
        return "holding"
    if request == "release":
        held.pop(port).release()
        return "released"
    if request == "hand_over":
        server = held.pop(port).popen(command, stdout=subprocess.DEVNULL)
        handed.add(port)
        return f"handed {server.pid}"
    return "error no such request"


for line in sys.stdin:
    words = line.split()
    try:
        said = answer(words[0], int(words[1]) if len(words) > 1 else 0, words[2:])
    except llmlb_lock.AlreadyRunning as e:
        said = f"refused {e.pid}"
    except llmlb_lock.HeldByUnknown:
        said = "held"
    except llmlb_lock.Corrupted:
        said = "corrupted"
    except llmlb_lock.Lost:
        said = "lost"
    except (OSError, ValueError) as e:
        said = "error " + str(e).replace("\n", " ")
    print(said, flush=True)
