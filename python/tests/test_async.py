"""In an event loop: waiting lets it run, and cancelling takes nothing."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import llmlb_lock
import pytest
from support import PATIENCE, Child


def test_a_block_takes_and_gives_back(port: int) -> None:
    async def serve() -> None:
        async with llmlb_lock.ServerLock(port) as lock:
            assert lock.info.pid == os.getpid()
            with pytest.raises(llmlb_lock.AlreadyRunning):
                await llmlb_lock.acquire_async(port)
            with pytest.raises(RuntimeError, match="already"):
                async with lock:
                    pytest.fail("entered twice")
        assert not lock.locked

    asyncio.run(serve())


def test_an_acquired_lock_is_given_back_by_a_block(port: int, tmp_path: Path) -> None:
    async def serve() -> None:
        async with await llmlb_lock.acquire_async(port) as lock:
            assert lock.locked
        async with await llmlb_lock.LockDir(tmp_path / "x").acquire_async(port) as lock:
            assert lock.path.parent == tmp_path / "x"

    asyncio.run(serve())


def test_the_loop_runs_while_a_lock_is_waited_for(port: int) -> None:
    async def serve(holder: Child) -> None:
        ticks = 0
        waiting = asyncio.create_task(llmlb_lock.acquire_async(port, timeout=PATIENCE))
        while ticks < 20:
            await asyncio.sleep(0.005)
            ticks += 1
        assert not waiting.done()
        holder.end()
        async with await waiting as lock:
            assert lock.info.pid == os.getpid()

    with Child.holder(port) as holder:
        asyncio.run(serve(holder))


def test_time_runs_out(port: int) -> None:
    async def serve() -> None:
        with pytest.raises(llmlb_lock.LockTimeout):
            await llmlb_lock.acquire_async(port, timeout=0.05)

    with Child.holder(port):
        asyncio.run(serve())


def test_a_cancelled_wait_takes_nothing(port: int) -> None:
    async def serve() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(llmlb_lock.acquire_async(port, timeout=PATIENCE), 0.05)
        lock = llmlb_lock.ServerLock(port, timeout=PATIENCE)
        entering = asyncio.create_task(lock.__aenter__())
        await asyncio.sleep(0.05)
        entering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await entering
        assert not lock.locked
        holder.end()
        async with lock:  # nobody else has it
            assert lock.info.pid == os.getpid()

    with Child.holder(port) as holder:
        asyncio.run(serve())


def test_cancelled_waits_end_their_threads(port: int) -> None:
    """Far more than an executor has threads, and the loop still closes at once."""

    async def serve() -> None:
        waits = [
            asyncio.create_task(llmlb_lock.acquire_async(port, timeout=3600)) for _ in range(64)
        ]
        await asyncio.sleep(0.05)
        for wait in waits:
            wait.cancel()
        for result in await asyncio.gather(*waits, return_exceptions=True):
            assert isinstance(result, asyncio.CancelledError)

    with Child.holder(port):
        asyncio.run(serve())
