"""What listing and stopping return. Loaded on first use: importing dataclasses takes a while."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from llmlb_lock._native import LockInfo


@dataclass(frozen=True, slots=True)
class Server:
    """One lock file in a directory.

    `state` is "running" (the named process lives), "held" (the kernel lock is held, but not by a
    process that the file names), "stale" (left behind; the next acquire recovers it) or
    "unreadable" (`owner` tells whose it is, where that can be told).
    """

    port: int
    path: Path
    info: LockInfo | None
    state: Literal["running", "held", "stale", "unreadable"]
    owner: str | None = None


@dataclass(frozen=True, slots=True)
class Stopped:
    """The server has ended, and its lock file is gone. `forced`: it had to be killed."""

    info: LockInfo
    forced: bool = False


@dataclass(frozen=True, slots=True)
class NotRunning:
    """There was no server, nor a lock file."""


@dataclass(frozen=True, slots=True)
class StaleCleaned:
    """There was no server; the lock file it left behind was removed."""

    info: LockInfo | None


@dataclass(frozen=True, slots=True)
class LeftOversEnded:
    """There was no server any more; processes that it had left behind were ended."""


@dataclass(frozen=True, slots=True)
class TimedOut:
    """The server still runs."""

    info: LockInfo


StopOutcome = Stopped | NotRunning | StaleCleaned | LeftOversEnded | TimedOut


def outcome(kind: str, info: LockInfo | None, forced: bool) -> StopOutcome:
    if kind == "stale_cleaned":
        return StaleCleaned(info)
    if kind == "left_overs_ended":
        return LeftOversEnded()
    if info is None:
        return NotRunning()
    return Stopped(info, forced) if kind == "stopped" else TimedOut(info)
