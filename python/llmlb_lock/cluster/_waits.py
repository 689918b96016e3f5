"""Waiting in an event loop: in a thread of its own, as the loop's executor has few and others need
them, and some of these waits last for days."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, TypeVar

from llmlb_lock import _native

TYPE_CHECKING = False
if TYPE_CHECKING:
    import asyncio

_T = TypeVar("_T")


def _in_background(work: Callable[[], object]) -> None:
    threading.Thread(target=work, name="llmlb-wait", daemon=True).start()


async def in_thread(
    call: Callable[[_native.Interrupt], _T], discard: Callable[[_T], object] | None = None
) -> _T:
    """What `call` returns. Cancelling this interrupts it; what it has got is discarded then."""
    import asyncio  # takes longer than all the rest of an import

    loop = asyncio.get_running_loop()
    future: asyncio.Future[_T] = loop.create_future()
    interrupt = _native.Interrupt()

    def throw_away(value: _T) -> None:
        if discard is not None:
            discard(value)

    def deliver_to_nobody(value: _T) -> None:
        _in_background(lambda: throw_away(value))

    def deliver(value: Any, error: BaseException | None) -> None:
        if not future.cancelled():
            if error is None:
                future.set_result(value)
            else:
                future.set_exception(error)
        elif error is None:
            deliver_to_nobody(value)

    def work() -> None:
        value: Any = None
        error: BaseException | None = None
        try:
            value = call(interrupt)
        except BaseException as raised:
            error = raised
        try:
            loop.call_soon_threadsafe(deliver, value, error)
        except RuntimeError:  # the loop is closed: nobody waits any more
            if error is None:
                throw_away(value)

    _in_background(work)
    try:
        return await future
    except asyncio.CancelledError:
        interrupt.set()
        # It came in the same moment, and nobody gets it.
        if future.done() and not future.cancelled() and future.exception() is None:
            deliver_to_nobody(future.result())
        raise
