"""The exceptions. All are OSErrors: `errno` is set where the system gave a number."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from datetime import datetime
    from pathlib import Path
    from typing import Any


class Failure(OSError):
    """An error with details: what its message is made of, as attributes."""

    def __init__(self, message: str = "", /, **details: Any) -> None:
        super().__init__(message)
        for name, value in details.items():
            setattr(self, name, value)
        self._details = details

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""

    def __repr__(self) -> str:
        # The message is made of the details; without any, it is all there is.
        shown = {k: v for k, v in self._details.items() if k != "errno"}
        fields = [f"{name}={value!r}" for name, value in shown.items()] or [repr(str(self))]
        if "errno" in self._details:
            fields.append(f"errno={self.errno}")
        return f"{type(self).__name__}({', '.join(fields)})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (type(self), str(self), self._details)


def _restore(cls: type[Failure], message: str, details: dict[str, Any]) -> Failure:
    return cls(message, **details)


class LockError(Failure):
    """Everything that can go wrong with a server lock.

    `str()` names the port or the path and says what to do next. `errno` is the operating system's
    error number where one caused this, else None.
    """


class AlreadyRunning(LockError):
    """Another server holds the port, and this is who."""

    port: int
    pid: int
    started_at: datetime


class LockTimeout(AlreadyRunning, TimeoutError):
    """The port was waited for, and its holder did not leave in time."""


class HeldByUnknown(LockError):
    """The lock is held, but its file names no live process."""

    port: int
    path: Path


class Corrupted(LockError):
    """A lock file holds something else. Comes from reading alone: acquiring recovers it."""


class Lost(LockError):
    """The lock file was removed or replaced while its lock was held."""

    port: int
    path: Path


class NoSuchProcess(LockError):
    """A lock can only be handed over to a live process."""

    port: int
    pid: int


class NotOwner(LockError):
    """Only the process that acquired or adopted a lock may hand it over."""

    port: int
    owner: int


class NotHolder(LockError):
    """The process that the file names cannot be shown to hold the lock: it is not signalled."""

    port: int
    pid: int
    path: Path
    reason: str


class AcquireFailed(LockError):
    """The lock file can't be used, whoever holds it."""


class ReleaseFailed(LockError):
    """The lock file could not be removed, or another process has the lock still.

    As a forked child may: it keeps the port guarded. This process holds it no more.
    """


class DirectoryCreationFailed(LockError):
    """The lock directory could not be created or opened."""


class HandOverFailed(LockError):
    """The lock file could not be rewritten for its new holder."""


class ReadFailed(LockError):
    """A lock file or the lock directory could not be read."""


class StopFailed(LockError):
    """The server could not be signalled or waited for."""
