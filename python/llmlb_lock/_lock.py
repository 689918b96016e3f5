"""Locks and their directories."""

from __future__ import annotations

import os
import sys

from llmlb_lock import _native
from llmlb_lock._errors import NoSuchProcess

TYPE_CHECKING = False
if TYPE_CHECKING:
    from asyncio import Future
    from asyncio.subprocess import Process
    from collections.abc import Callable, Mapping, Sequence
    from os import PathLike
    from pathlib import Path
    from subprocess import Popen
    from types import TracebackType
    from typing import Any, NoReturn, ParamSpec, TypeAlias, TypeVar

    from llmlb_lock._native import LockInfo
    from llmlb_lock._records import Server, StopOutcome

    _Argument: TypeAlias = str | bytes | PathLike[str] | PathLike[bytes]
    _Parameters = ParamSpec("_Parameters")
    _Result = TypeVar("_Result")


class ServerLock:
    """A guarded port, for the time of a `with` or `async with` block, or of a function's calls.

    Entering takes the lock, as `acquire` does, and raises if that fails; leaving gives it back.
    A lock that came from `acquire` is held already; entering it again only means that leaving the
    block gives it back. As a decorator it guards every call of a function, async or not, with a
    lock of its own.

    >>> import llmlb_lock
    >>> with llmlb_lock.ServerLock(8000, timeout=30) as lock:
    ...     lock.locked, lock.info.port
    (True, 8000)
    >>> lock.locked
    False
    """

    __slots__ = (
        "__weakref__",
        "_directory",
        "_entered",
        "_lock",
        "_owner",
        "_port",
        "_server",
        "_timeout",
    )

    def __init__(
        self,
        port: int,
        *,
        timeout: float | None = None,
        directory: str | PathLike[str] | None = None,
    ) -> None:
        # Set first: __del__ meets the lock too when an argument is refused.
        self._lock: _native.Lock | None = None
        self._entered = False
        self._owner = 0
        # Whom the lock was given to, once it is not held any more.
        self._server: LockInfo | None = None
        self._port = _native.check_port(port)
        self._timeout = timeout
        # Absolute from now on: it means the same after a change of directory.
        self._directory = None if directory is None else _native.lock_dir(directory)

    def _keep(self, lock: _native.Lock) -> None:
        self._lock = lock
        self._owner = os.getpid()
        self._server = None

    def _take(self) -> ServerLock:
        self._keep(_native.acquire(self._directory, self._port, self._timeout, None))
        return self

    async def _take_async(self) -> ServerLock:
        import asyncio

        cancel = _native.Cancel()
        waiting = asyncio.get_running_loop().run_in_executor(
            None, _native.acquire, self._directory, self._port, self._timeout, cancel
        )
        try:
            self._keep(await asyncio.shield(waiting))
        except asyncio.CancelledError:
            cancel.set()
            waiting.add_done_callback(_discard)
            raise
        return self

    def _held(self) -> _native.Lock:
        if self._lock is None:
            raise RuntimeError(f"the lock for port {self._port} is not held")
        return self._lock

    def _enter(self) -> None:
        if self._entered:
            raise RuntimeError(f"the lock for port {self._port} is in a with block already")
        self._entered = True

    def __enter__(self) -> ServerLock:
        self._enter()
        try:
            return self if self.locked else self._take()
        except BaseException:
            self._entered = False
            raise

    async def __aenter__(self) -> ServerLock:
        self._enter()
        try:
            return self if self.locked else await self._take_async()
        except BaseException:
            self._entered = False
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._entered = False
        self.release()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._entered = False
        self.release()

    def __call__(self, function: Callable[_Parameters, _Result]) -> Callable[_Parameters, _Result]:
        """Guards every call of `function`.

        >>> import llmlb_lock
        >>> @llmlb_lock.ServerLock(8000)
        ... def serve():
        ...     return llmlb_lock.read_lock_info(8000) is not None
        >>> serve(), llmlb_lock.read_lock_info(8000)
        (True, None)
        """
        import functools
        import inspect

        def lock() -> ServerLock:
            return ServerLock(self._port, timeout=self._timeout, directory=self._directory)

        guarded: Any
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def guarded_async(*args: Any, **kwargs: Any) -> Any:
                async with lock():
                    return await function(*args, **kwargs)

            guarded = guarded_async
        else:

            @functools.wraps(function)
            def guarded_sync(*args: Any, **kwargs: Any) -> Any:
                with lock():
                    return function(*args, **kwargs)

            guarded = guarded_sync
        return guarded  # type: ignore[no-any-return]

    def __del__(self) -> None:
        # A lock for the life of the process is no mistake, and a forked child only has a copy.
        if (
            self._lock is not None
            and self._lock.held
            and self._owner == os.getpid()
            and not sys.is_finalizing()
        ):
            import warnings

            warnings.warn(f"unreleased {self!r}", ResourceWarning, stacklevel=2, source=self)
            self.release()

    def __repr__(self) -> str:
        state = "held" if self.locked else "not held"
        return f"<ServerLock port={self._port} {state}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a ServerLock stays with its process: pass on the port instead")

    @property
    def port(self) -> int:
        """The port, guarded or not."""
        return self._port

    @property
    def locked(self) -> bool:
        """Whether this process has the lock's descriptor, as a forked child has too."""
        return self._lock is not None and self._lock.held

    @property
    def info(self) -> LockInfo:
        """Whom the lock file names; after `popen` the server that was started.

        RuntimeError when the lock is not held, as for all below.
        """
        if self._server is not None and not self.locked:
            return self._server
        return self._held().info

    @property
    def path(self) -> Path:
        """Where the lock file is."""
        return self._held().path

    def fileno(self) -> int:
        """The descriptor that carries the kernel lock. Whoever inherits it keeps the port."""
        return self._held().filenos()[0]

    def verify(self) -> None:
        """Raises Lost if the lock file was removed or replaced, so that others could start.

        >>> from llmlb_lock import ServerLock
        >>> with ServerLock(8000) as lock:
        ...     lock.verify()
        ...     lock.path.unlink()
        ...     lock.verify()
        Traceback (most recent call last):
            ...
        llmlb_lock.Lost: Lock for port 8000 was lost: ...
        """
        self._held().verify()

    def hand_over(self, pid: int) -> None:
        """Makes the file name another process, which has inherited the descriptor.

        From then on it is the one that is shown and stopped. `popen` does all of it.
        """
        self._held().hand_over(pid)

    def adopt(self) -> None:
        """Makes the file name this process: after a daemonizing fork, or to take the lock back.

        The process that forked must then leave by `os._exit`.
        """
        self._held().adopt()
        self._owner = os.getpid()

    def release(self) -> None:
        """Gives the lock back and removes its file; does nothing when it is not held.

        In a forked child, and after `hand_over`, it only closes the descriptor.
        """
        if self._lock is not None:
            self._lock.release()

    def popen(
        self,
        args: _Argument | Sequence[_Argument],
        *,
        host: str = "127.0.0.1",
        env: Mapping[str, str] | None = None,
        **options: Any,
    ) -> Popen[Any]:
        """Starts a server and hands it the lock: the port is guarded exactly as long as it lives.

        `{port}` and `{host}` in the arguments are replaced; PORT, HOST, LLMLB_PORT and LLMLB_HOST
        are set, as `llmlb serve` does. The rest goes to `subprocess.Popen`. The server leads a
        process group of its own (a session on Python 3.10) and has LLMLB_SERVER_ID in its
        environment: `stop_server` ends all that it started, as `end_left_overs` does. Nobody
        else inherits the lock, and this object no longer has it, so that the guard outlives a
        launcher that is killed.

        If the server can't be started, the exception of `subprocess.Popen` is raised and the lock
        stays here.

        >>> import llmlb_lock, sys
        >>> with llmlb_lock.ServerLock(8000) as lock:
        ...     server = lock.popen([sys.executable, "-m", "http.server", "{port}"], stderr=-3)
        >>> assert llmlb_lock.read_lock_info(8000).pid == server.pid
        >>> llmlb_lock.stop_server(8000)
        Stopped(info=LockInfo(pid=..., started_at=..., port=8000), forced=False)
        >>> server.wait()
        -15
        """
        import subprocess

        from llmlb_lock._launch import Launch

        lock = self._held()
        launch = Launch(lock, self._port, args, host, env, options)
        process = subprocess.Popen(launch.args, **launch.options)
        try:
            self._pass_on(lock, process.pid)
        except BaseException:
            launch.kill(process)
            process.wait()
            raise
        return process

    async def popen_async(
        self,
        args: _Argument | Sequence[_Argument],
        *,
        host: str = "127.0.0.1",
        env: Mapping[str, str] | None = None,
        **options: Any,
    ) -> Process:
        """`popen` that lets the event loop run, and gives a process of `asyncio.subprocess`.

        The options are those of `asyncio.create_subprocess_exec`, or with `shell=True` of
        `asyncio.create_subprocess_shell`. Cancelling it ends what was started, and the lock stays
        here.

        >>> import asyncio, llmlb_lock, sys
        >>> async def main():
        ...     async with await llmlb_lock.acquire_async(8000) as lock:
        ...         server = await lock.popen_async([sys.executable, "-m", "http.server", "{port}"])
        ...     assert lock.info.pid == server.pid
        ...     server.terminate()
        ...     return await server.wait()
        >>> asyncio.run(main())
        -15
        """
        import asyncio

        from llmlb_lock._launch import Launch

        lock = self._held()
        launch = Launch(lock, self._port, args, host, env, options)
        if launch.options.pop("shell", False):
            process = await asyncio.create_subprocess_shell(launch.args, **launch.options)
        else:
            whole = isinstance(launch.args, (str, bytes))
            argv = [launch.args] if whole else launch.args
            process = await asyncio.create_subprocess_exec(*argv, **launch.options)
        try:
            self._pass_on(lock, process.pid)
        except BaseException:
            launch.kill(process)
            await process.wait()
            raise
        return process

    def _pass_on(self, lock: _native.Lock, pid: int) -> None:
        try:
            lock.hand_over(pid)
            self._server = lock.info
        except NoSuchProcess:
            # It has ended already, and the guard with it.
            from datetime import datetime, timezone

            self._server = _native.LockInfo(pid, datetime.now(timezone.utc), self._port)
        lock.release()


def _discard(waiting: Future[_native.Lock]) -> None:
    # A lock that was taken too late releases itself; an error is looked at so that nobody reports
    # it as overlooked.
    if not waiting.cancelled() and waiting.exception() is None:
        waiting.result().release()


class LockDir:
    """A directory of server locks. All who are to see each other must use the same one.

    Where it does not exist, the first acquire creates it. Without a path it is the default
    directory, as for the functions of the module.

    >>> import os
    >>> from llmlb_lock import LockDir
    >>> locks = LockDir(os.environ["LLMLB_LOCK_DIR"] + "/mine")
    >>> with locks.acquire(8000) as lock:
    ...     [server.state for server in locks.servers()]
    ['running']
    """

    __slots__ = ("_path",)

    def __init__(self, path: str | PathLike[str] | None = None) -> None:
        # Absolute, as above.
        self._path = None if path is None else _native.lock_dir(path)

    def __repr__(self) -> str:
        return "LockDir()" if self._path is None else f"LockDir({str(self._path)!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, LockDir) and self._path == other._path

    def __hash__(self) -> int:
        return hash(self._path)

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def path(self) -> Path:
        """Where the directory is."""
        return self._path or _native.lock_dir(None)

    def lock_path(self, port: int) -> Path:
        """Where the lock file for `port` is, or would be."""
        return _native.lock_path(self._path, port)

    def acquire(self, port: int, timeout: float | None = None) -> ServerLock:
        """As `llmlb_lock.acquire`, here."""
        return ServerLock(port, timeout=timeout, directory=self._path)._take()

    async def acquire_async(self, port: int, timeout: float | None = None) -> ServerLock:
        """As `llmlb_lock.acquire_async`, here."""
        return await ServerLock(port, timeout=timeout, directory=self._path)._take_async()

    def read_lock_info(self, port: int) -> LockInfo | None:
        """As `llmlb_lock.read_lock_info`, here."""
        return _native.read_lock_info(self._path, port)

    def list_all_locks(self) -> list[LockInfo]:
        """As `llmlb_lock.list_all_locks`, here."""
        return _native.list_all_locks(self._path)

    def servers(self) -> list[Server]:
        """Every lock file here with its state, by port, those left behind included."""
        from llmlb_lock._records import Server

        return [Server(*fields) for fields in _native.servers(self._path)]

    def server(self, port: int) -> Server | None:
        """The state of one port's lock file; None where there is none."""
        from llmlb_lock._records import Server

        fields = _native.server(self._path, port)
        return None if fields is None else Server(*fields)

    def end_left_overs(self, port: int, grace: float = 5.0) -> list[int]:
        """As `llmlb_lock.end_left_overs`, here."""
        return _native.end_left_overs(self._path, port, grace)

    def stop_server(self, port: int, timeout: float = 5.0, force: bool = False) -> StopOutcome:
        """As `llmlb_lock.stop_server`, here."""
        from llmlb_lock._records import outcome

        return outcome(*_native.stop_server(self._path, port, timeout, force))
