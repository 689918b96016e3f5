"""What a cluster gives: a registration, a lease, a watch, requests to stop."""

from __future__ import annotations

import math
import sys
import warnings
import weakref
from types import TracebackType
from typing import Generic, NoReturn, TypeVar

from llmlb_lock import _native
from llmlb_lock.cluster import _records
from llmlb_lock.cluster._errors import Interrupted
from llmlb_lock.cluster._records import Change, Lost, Record, StopAnswer, StopRequest
from llmlb_lock.cluster._waits import in_thread

_T = TypeVar("_T")


class _Block:
    """Closed at the end of a `with` or `async with` block."""

    __slots__ = ("__weakref__",)

    def _close(self) -> object:
        raise NotImplementedError

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        # Goes on if this is cancelled.
        await in_thread(lambda interrupt: self._close())

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} stays with its process")


class Registration(_Block):
    """A server that is found until it is withdrawn: at the end of its block, of the interpreter, or
    when it is garbage-collected.

    It is renewed by a thread that Python code can't hold up. While etcd is away the server serves
    on, and it is registered anew when etcd returns.
    """

    __slots__ = ("_end", "_native")

    def __init__(self, native: _native.Registration) -> None:
        self._native = native
        self._end = weakref.finalize(self, native.withdraw)

    def __repr__(self) -> str:
        state = "open" if self._native.open else "withdrawn"
        return f"<Registration {state}>"

    def __enter__(self) -> Registration:
        return self

    async def __aenter__(self) -> Registration:
        return self

    @property
    def registered(self) -> bool:
        """Whether etcd has the record, as far as is known."""
        return self._native.is_registered()

    def wait_registered(self, timeout: float = math.inf) -> bool:
        """Waits until etcd has the record, at most `timeout` seconds, and says whether it has."""
        return self._native.wait_registered(timeout, None)

    async def wait_registered_async(self, timeout: float = math.inf) -> bool:
        """`wait_registered` that lets the event loop run."""
        return await in_thread(lambda stop: self._native.wait_registered(timeout, stop))

    def update(self, record: Record) -> None:
        """Writes another record in place of the present one: other models, or slots.

        Does not wait for etcd. InvalidRecord also for another service.
        """
        self._native.update(record)

    def leave(self) -> None:
        """Takes the server off the list, as it is about to drain. Does not wait for etcd.

        Until it has ended, and is withdrawn, who asked it to stop sees that it has not.
        """
        self._native.leave()

    def withdraw(self) -> None:
        """Takes the server off the list, as it has ended; does nothing when it is off already.

        Bounded to about two seconds: after that the lease ends it. Nothing in a forked child.
        """
        self._end.detach()
        self._native.withdraw()

    def _close(self) -> None:
        self.withdraw()


class Exclusive(_Block):
    """This server is the active one, until it is released: at the end of its block.

    A thread renews that Python code can't hold up. When `wait_lost` says so the server has to be
    ended, and at the `deadline` it is dead: another may be active from then on. Leave the block
    only when the server has ended.

    One that is garbage-collected gives a ResourceWarning and is not renewed any more; its lease
    ends by itself, as it does when the process ends: nobody knows whether its server has ended.
    """

    __slots__ = ("_native",)

    def __init__(self, native: _native.Exclusive) -> None:
        self._native = native

    def __repr__(self) -> str:
        state = "active" if self._native.open else "released"
        return f"<Exclusive token={self.token} {state}>"

    def __enter__(self) -> Exclusive:
        return self

    async def __aenter__(self) -> Exclusive:
        return self

    def __del__(self) -> None:
        if not sys.is_finalizing() and self._native.open:
            warnings.warn(f"unreleased {self!r}", ResourceWarning, stacklevel=2, source=self)
            self._native.abandon()

    @property
    def token(self) -> int:
        """The fencing token: higher than that of any server before.

        A resource that remembers the highest it has seen, and refuses lower ones, is safe from a
        server that was cut off.
        """
        return self._native.token

    @property
    def record(self) -> Record:
        """The server's record, with its token: what to register."""
        return self._native.record

    @property
    def deadline(self) -> float:
        """When the server has to be dead, unless a renewal succeeds before.

        In seconds on the boot clock, as `time.clock_gettime(time.CLOCK_BOOTTIME)` has them.
        """
        return self._native.deadline

    @property
    def kill_at(self) -> float:
        """When the server has to be killed, to be dead at the deadline; on the same clock."""
        return self._native.kill_at

    @property
    def remaining(self) -> float:
        """Seconds until the deadline."""
        return self._native.remaining

    @property
    def released(self) -> bool:
        """Whether it was given back, or is a forked parent's."""
        return not self._native.open

    def wait_lost(self, timeout: float | None = None) -> Lost | None:
        """Waits until the server has to be ended, at most `timeout` seconds; else None.

        That leaves the whole drain before the kill, unless the key was taken away.
        """
        return _lost(self._native.wait_lost(timeout, None))

    async def wait_lost_async(self, timeout: float | None = None) -> Lost | None:
        """`wait_lost` that lets the event loop run."""
        return _lost(await in_thread(lambda stop: self._native.wait_lost(timeout, stop)))

    def release(self) -> None:
        """Gives the lease back: a standby starts at once. Only when the server has ended.

        Tries as long as the lease lasts, at most its TTL; Ctrl-C leaves it to go on by itself.
        Raises LeaseNotReleased, or LeaseLost where it was not ours any more. Does nothing when it
        was released before, nor in a forked child.
        """
        self._native.release()

    async def release_async(self) -> None:
        """`release` that lets the event loop run."""
        await in_thread(lambda interrupt: self._native.release())

    def _close(self) -> None:
        self.release()


def _lost(told: tuple[str, float] | None) -> Lost | None:
    return None if told is None else Lost(*told)


class _Following(_Block, Generic[_T]):
    """Something that comes by and by: `for`, `async for`, or `next` with a timeout."""

    __slots__ = ("_native",)

    _native: _native.Watch | _native.StopRequests

    def _take(self) -> _T | None:
        raise NotImplementedError

    def _ended(self) -> bool:
        return not self._native.open

    def next(self, timeout: float | None = None) -> _T | None:
        """Waits for the next one, at most `timeout` seconds; None if there is none until then."""
        while self._native.wait(timeout, None):
            came = self._take()
            # Another thread may have been faster.
            if came is not None:
                return came
        return None

    async def next_async(self, timeout: float | None = None) -> _T | None:
        """`next` that lets the event loop run. Cancelling it loses nothing."""
        while await in_thread(lambda stop: self._native.wait(timeout, stop)):
            came = self._take()
            if came is not None:
                return came
        return None

    def close(self) -> None:
        """Follows no longer; whoever iterates comes to the end."""
        self._native.close()

    def _close(self) -> None:
        self.close()

    def __next__(self) -> _T:
        try:
            came = None if self._ended() else self.next()
        except Interrupted:
            came = None
        if came is None:
            raise StopIteration
        return came

    async def __anext__(self) -> _T:
        try:
            came = None if self._ended() else await self.next_async()
        except Interrupted:
            came = None
        if came is None:
            raise StopAsyncIteration
        return came


class Watch(_Following[Change]):
    """Servers as they come and go: a snapshot, then each change, through outages and compactions.

    Follows until it is closed, at the end of its block, or garbage-collected.
    """

    __slots__ = ()

    def __init__(self, native: _native.Watch) -> None:
        self._native = native

    def _take(self) -> Change | None:
        assert isinstance(self._native, _native.Watch)
        told = self._native.take()
        return None if told is None else _records.change(*told)

    def __enter__(self) -> Watch:
        return self

    async def __aenter__(self) -> Watch:
        return self

    def __iter__(self) -> Watch:
        return self

    def __aiter__(self) -> Watch:
        return self


class StopRequests(_Following[StopRequest]):
    """Requests to stop this server, as they come; who asks is told that it was heard.

    Follows until it is closed, at the end of its block, or garbage-collected.
    """

    __slots__ = ()

    def __init__(self, native: _native.StopRequests) -> None:
        self._native = native

    def _take(self) -> StopRequest | None:
        assert isinstance(self._native, _native.StopRequests)
        told = self._native.take()
        return None if told is None else StopRequest(*told)

    def __enter__(self) -> StopRequests:
        return self

    async def __aenter__(self) -> StopRequests:
        return self

    def __iter__(self) -> StopRequests:
        return self

    def __aiter__(self) -> StopRequests:
        return self


class StopTicket(_Block):
    """A request to stop a server. Closing it takes it back, if it was not heard."""

    __slots__ = ("_native",)

    def __init__(self, native: _native.StopTicket) -> None:
        self._native = native

    def __enter__(self) -> StopTicket:
        return self

    async def __aenter__(self) -> StopTicket:
        return self

    @property
    def server(self) -> Record:
        """Whom it asks to stop."""
        return self._native.server

    def wait(self, timeout: float) -> StopAnswer:
        """Waits until the server's records are gone, at most `timeout` seconds.

        "stopped": they are. "accepted": whoever guards it has heard it, and it still ends.
        "unanswered": nothing is heard; whoever guards it is hung, or cut off from etcd.
        """
        return self._native.wait(timeout, None)

    async def wait_async(self, timeout: float) -> StopAnswer:
        """`wait` that lets the event loop run."""
        return await in_thread(lambda stop: self._native.wait(timeout, stop))

    def close(self) -> None:
        """Takes the request back."""
        self._native.close()

    def _close(self) -> None:
        self.close()
