"""One server per port: a crash-proof lock file that names its holder and stops it.

>>> import llmlb_lock
>>> with llmlb_lock.ServerLock(8000) as lock:
...     try:
...         llmlb_lock.acquire(8000)
...     except llmlb_lock.AlreadyRunning as e:
...         assert e.pid == lock.info.pid

The guard is a kernel lock, which ends with its last holder, however that ends; the JSON in the
file only says whom to show and whom to signal. A lock belongs to the process that took it: forked
children, such as those of `os.fork` and `multiprocessing`, leave it alone when they end, though it
stays held while they live and have its descriptor.

All functions work on the default directory: `LLMLB_LOCK_DIR` if it is set, else `llmlb` in the
system's temporary one. `LockDir` has the same for any other. Ports are from 1 to 65535 (ValueError
otherwise), times in seconds. Waiting lets other threads run, and Ctrl-C ends it. What happens is
logged as `llmlb_lock` in `logging`.
"""

from __future__ import annotations

import sys

from llmlb_lock import _native
from llmlb_lock._errors import (
    AcquireFailed,
    AlreadyRunning,
    Corrupted,
    DirectoryCreationFailed,
    HandOverFailed,
    HeldByUnknown,
    LockError,
    LockTimeout,
    Lost,
    NoSuchProcess,
    NotHolder,
    NotOwner,
    ReadFailed,
    ReleaseFailed,
    StopFailed,
)
from llmlb_lock._lock import LockDir, ServerLock
from llmlb_lock._native import GUARDED_PORT_ENV, LOCK_DIR_ENV, SERVER_ID_ENV, LockInfo

if sys.platform == "win32":
    from llmlb_lock._native import StopEvent as StopEvent

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

    from llmlb_lock._records import (
        LeftOversEnded,
        NotRunning,
        Server,
        StaleCleaned,
        StopOutcome,
        Stopped,
        TimedOut,
    )

__all__ = [
    "GUARDED_PORT_ENV",
    "LOCK_DIR_ENV",
    "SERVER_ID_ENV",
    "AcquireFailed",
    "AlreadyRunning",
    "Corrupted",
    "DirectoryCreationFailed",
    "HandOverFailed",
    "HeldByUnknown",
    "LeftOversEnded",
    "LockDir",
    "LockError",
    "LockInfo",
    "LockTimeout",
    "Lost",
    "NoSuchProcess",
    "NotHolder",
    "NotOwner",
    "NotRunning",
    "ReadFailed",
    "ReleaseFailed",
    "Server",
    "ServerLock",
    "StaleCleaned",
    "StopFailed",
    "StopOutcome",
    "Stopped",
    "TimedOut",
    "acquire",
    "acquire_async",
    "end_left_overs",
    "is_process_running",
    "list_all_locks",
    "lock_dir",
    "lock_path",
    "read_lock_info",
    "stop_process",
    "stop_server",
]

if sys.platform == "win32":
    __all__ += ["StopEvent"]

__version__ = _native.VERSION

# What tracebacks and pickles name is where it is imported from.
for _name in __all__:
    _object = globals().get(_name)
    if isinstance(_object, type) and _object.__module__ != __name__:
        _object.__module__ = __name__

if not TYPE_CHECKING:  # a type checker that saw this would take any name for an existing one
    _RECORDS = {
        "LeftOversEnded",
        "NotRunning",
        "Server",
        "StaleCleaned",
        "StopOutcome",
        "Stopped",
        "TimedOut",
    }

    def __getattr__(name):
        if name in _RECORDS:
            from llmlb_lock import _records

            return getattr(_records, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

    def __dir__():
        return [*globals(), *_RECORDS]


_default = LockDir()


def acquire(port: int, timeout: float | None = None) -> ServerLock:
    """Guards `port`, waiting up to `timeout` seconds for its holder to leave.

    Without a timeout a held port is refused at once: AlreadyRunning says by whom. With one,
    running out of time is a LockTimeout. `math.inf` waits without end. A lock that is held without
    naming a live process, as it is for an instant when servers start or stop, is looked at again
    for about one second, then it is HeldByUnknown.

    >>> lock = acquire(8000)
    >>> acquire(8000, timeout=0.1)
    Traceback (most recent call last):
        ...
    llmlb_lock.LockTimeout: Server already running on port 8000 (PID: ..., started: ...)
    <BLANKLINE>
    To stop: ... -m llmlb_lock stop --port 8000
    Or:      kill -TERM ...
    >>> lock.release()
    """
    return _default.acquire(port, timeout)


async def acquire_async(port: int, timeout: float | None = None) -> ServerLock:
    """`acquire` that lets the event loop run. Cancelling it ends the wait and takes nothing.

    >>> import asyncio
    >>> async def serve():
    ...     async with await acquire_async(8000, timeout=5) as lock:
    ...         return lock.locked
    >>> asyncio.run(serve())
    True
    """
    return await _default.acquire_async(port, timeout)


def read_lock_info(port: int) -> LockInfo | None:
    """What the lock file for `port` says, alive or not; None where there is none.

    >>> read_lock_info(8000) is None
    True
    >>> with ServerLock(8000) as lock:
    ...     assert read_lock_info(8000) == lock.info
    """
    return _default.read_lock_info(port)


def list_all_locks() -> list[LockInfo]:
    """Live servers, by port. `LockDir.servers` has the others too.

    >>> with ServerLock(8001), ServerLock(8000):
    ...     [info.port for info in list_all_locks()]
    [8000, 8001]
    """
    return _default.list_all_locks()


def is_process_running(pid: int) -> bool:
    """Whether a process with this id runs. A zombie does not, and the id of a thread is none.

    >>> import os
    >>> is_process_running(os.getpid()), is_process_running(0)
    (True, False)
    """
    return _native.is_process_running(pid)


def stop_process(pid: int) -> None:
    """Sends SIGTERM to a process the caller vouches for. `stop_server` checks it, and waits.

    Raises ValueError for 0 and for whatever else is no process id, before anything is signalled;
    ProcessLookupError or PermissionError as `os.kill` does.

    >>> stop_process(0)
    Traceback (most recent call last):
        ...
    ValueError: 0 is not the id of a process; nothing was signalled
    """
    _native.stop_process(pid)


def stop_server(port: int, timeout: float = 5.0, force: bool = False) -> StopOutcome:
    """Stops the server that guards `port`; waits until it has ended and its file is gone.

    It gets SIGTERM, only if it can be shown to hold the lock; after `timeout` seconds, with
    `force`, SIGKILL. On Windows its `StopEvent` is set; one that has none is terminated at once.
    Returns Stopped, NotRunning, StaleCleaned, LeftOversEnded or TimedOut, to `match` on.

    >>> stop_server(8000)
    NotRunning()
    """
    return _default.stop_server(port, timeout, force)


def end_left_overs(port: int, grace: float = 5.0) -> list[int]:
    """Ends what killed servers of `port` have left behind; returns the ids of these processes.

    For launchers, before they take the lock: SIGTERM, and SIGKILL after `grace` seconds. Nothing is
    touched that belongs to a server which lives, or whose launcher does. They are known by
    `SERVER_ID_ENV` in their environment, which `popen` sets, and on Linux alone.

    >>> end_left_overs(8000)
    []
    """
    return _default.end_left_overs(port, grace)


def lock_dir() -> Path:
    """The default directory.

    >>> import os
    >>> str(lock_dir()) == os.environ["LLMLB_LOCK_DIR"]
    True
    """
    return _default.path


def lock_path(port: int) -> Path:
    """Where the lock file for `port` is, or would be, in the default directory.

    >>> lock_path(8000).name
    'serve_8000.lock'
    """
    return _default.lock_path(port)
