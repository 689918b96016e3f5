"""What etcd knows of servers, and what is told of them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timezone
from typing import Any, Literal

from llmlb_lock import _native


@dataclass(frozen=True, slots=True)
class Record:
    """What etcd knows of a server: by default this process, started now.

    >>> from llmlb_lock.cluster import Record
    >>> record = Record("chat", "gpu1", 8000, models=["qwen3"], slots=4)
    >>> record.url, record.instance
    ('http://gpu1:8000', 'gpu1:8000')
    >>> record.replace(slots=8).slots
    8
    """

    service: str
    """Letters, digits, `-`, `_` and `.`, up to 100."""
    host: str
    """As the host calls itself: a claim, not a proof."""
    port: int
    url: str = field(default="", kw_only=True)
    """Where it is reached; by HTTP on host and port unless given."""
    pid: int = field(default_factory=os.getpid, kw_only=True)
    started_at: datetime = field(default_factory=lambda: datetime.now(timezone.utc), kw_only=True)
    """Aware, to the microsecond."""
    nonce: str = field(default_factory=lambda: os.urandom(16).hex(), kw_only=True)
    """Unique to this start."""
    token: int | None = field(default=None, kw_only=True)
    """The fencing token, of an exclusive service."""
    exclusive: bool = field(default=False, kw_only=True)
    """Whether at most one is active."""
    models: Sequence[str] = field(default=(), kw_only=True)
    """What it serves, where that is known; kept as a tuple."""
    slots: int | None = field(default=None, kw_only=True)
    """How many requests it takes at a time, where that is known: its weight."""
    software: str | None = field(default=f"llmlb {_native.VERSION}", kw_only=True)
    version: int = field(default=1, kw_only=True)
    """Of the format."""

    def __post_init__(self) -> None:
        if isinstance(self.models, str):
            raise TypeError("models is a list of names, not one")
        object.__setattr__(self, "models", tuple(self.models))
        if not self.url:
            host = f"[{self.host}]" if ":" in self.host else self.host
            object.__setattr__(self, "url", f"http://{host}:{self.port}")

    @property
    def instance(self) -> str:
        """What it is called among the servers of its service: `HOST:PORT`."""
        return f"{self.host}:{self.port}"

    def replace(self, **changes: Any) -> Record:
        """The same with other fields, such as `models` or `slots`."""
        return replace(self, **changes)


@dataclass(frozen=True, slots=True)
class Server:
    """A server that has a record in etcd.

    One that is not `registered` is `leaving`, or active, and not to be found yet. One that leaves
    was taken off the list, and has not ended.
    """

    record: Record
    registered: bool = True
    leaving: bool = False


@dataclass(frozen=True, slots=True)
class Skipped:
    """A key that is not a record."""

    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class Listing:
    """All servers, by service, host and port, and what stands beside them in etcd."""

    servers: tuple[Server, ...]
    skipped: tuple[Skipped, ...] = ()

    def __iter__(self) -> Iterator[Server]:
        return iter(self.servers)

    def __len__(self) -> int:
        return len(self.servers)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All servers there are: at the start, and whenever what happened meanwhile is unknown."""

    records: tuple[Record, ...]


@dataclass(frozen=True, slots=True)
class Up:
    """A server is there, or its record is another."""

    record: Record


@dataclass(frozen=True, slots=True)
class Down:
    """A server is gone; `instance` is its `HOST:PORT`."""

    service: str
    instance: str


@dataclass(frozen=True, slots=True)
class Outage:
    """etcd is away. The last set stays good until further notice."""

    reason: str


@dataclass(frozen=True, slots=True)
class Back:
    """etcd is back."""


Change = Snapshot | Up | Down | Outage | Back


@dataclass(frozen=True, slots=True)
class Lost:
    """The server has to be ended, and to be dead at `deadline`.

    That is in seconds on the boot clock, as `time.clock_gettime(time.CLOCK_BOOTTIME)` has them.
    """

    reason: str
    deadline: float

    def __str__(self) -> str:
        return self.reason


@dataclass(frozen=True, slots=True)
class StopRequest:
    """A request to stop this server: the host that asks, as it calls itself, and when it did."""

    from_host: str
    at: datetime


StopAnswer = Literal["stopped", "accepted", "unanswered"]


def change(kind: str, told: tuple[Any, ...]) -> Change:
    kinds: dict[str, type[Change]] = {
        "Snapshot": Snapshot,
        "Up": Up,
        "Down": Down,
        "Outage": Outage,
        "Back": Back,
    }
    return kinds[kind](*told)
