"""In an event loop: waiting lets it run, and cancelling takes nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import llmlb_lock
import pytest
from support import PATIENCE, Child, accepts, wait_until


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


SERVER = [sys.executable, "-m", "http.server", "--bind", "{host}", "{port}"]
WAITS = [sys.executable, "-c", "import sys; sys.stdin.read()"]


def test_a_server_is_guarded_as_long_as_it_lives(port: int) -> None:
    async def serve() -> None:
        async with await llmlb_lock.acquire_async(port) as lock:
            server = await lock.popen_async(SERVER, stderr=asyncio.subprocess.DEVNULL)
            assert not lock.locked
        await asyncio.to_thread(wait_until, lambda: accepts(port), "server")
        assert lock.info.pid == server.pid
        assert lock.info == llmlb_lock.read_lock_info(port)
        outcome = await asyncio.to_thread(llmlb_lock.stop_server, port, PATIENCE)
        assert outcome == llmlb_lock.Stopped(lock.info)
        assert await server.wait() == -signal.SIGTERM

    asyncio.run(serve())


def test_a_shell_command_is_guarded_with_all_it_starts(port: int) -> None:
    async def serve() -> None:
        pipe = asyncio.subprocess.PIPE
        lock = llmlb_lock.acquire(port)
        server = await lock.popen_async(
            "sleep 3600 & echo {port} $PORT $!; wait", shell=True, stdout=pipe
        )
        assert server.stdout is not None
        filled, variable, sleep = (await server.stdout.readline()).decode().split()
        assert (filled, variable) == (str(port), str(port))
        await asyncio.to_thread(llmlb_lock.stop_server, port, PATIENCE)
        await server.wait()
        assert not llmlb_lock.is_process_running(int(sleep))

    asyncio.run(serve())


def test_a_server_that_cannot_be_started_leaves_the_lock(port: int) -> None:
    async def serve() -> None:
        async with await llmlb_lock.acquire_async(port) as lock:
            with pytest.raises(FileNotFoundError):
                await lock.popen_async(["/no/such/program"])
            with pytest.raises(FileNotFoundError):
                await lock.popen_async("/no/such/program")
            assert lock.locked
            assert lock.info.pid == os.getpid()

    asyncio.run(serve())


def test_a_cancelled_start_leaves_the_lock_and_nothing_else(port: int) -> None:
    async def serve() -> None:
        async with await llmlb_lock.acquire_async(port) as lock:
            starting = asyncio.create_task(lock.popen_async(WAITS, stdin=asyncio.subprocess.PIPE))
            await asyncio.sleep(0)  # into its first wait
            starting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await starting
            assert lock.locked
            assert lock.info.pid == os.getpid()
            lock.verify()
        # No child of ours has the lock.
        llmlb_lock.acquire(port).release()

    asyncio.run(serve())


def test_of_two_starts_under_one_lock_one_is_guarded_and_the_other_ended(port: int) -> None:
    async def serve() -> None:
        lock = await llmlb_lock.acquire_async(port)
        pipe = asyncio.subprocess.PIPE
        starts = [asyncio.create_task(lock.popen_async(WAITS, stdin=pipe)) for _ in range(2)]
        results = await asyncio.gather(*starts, return_exceptions=True)
        servers = [r for r in results if isinstance(r, asyncio.subprocess.Process)]
        (server,) = servers
        assert [type(r) for r in results if r is not server] == [RuntimeError]
        assert lock.info.pid == server.pid
        server.kill()
        await server.wait()
        llmlb_lock.acquire(port).release()

    asyncio.run(serve())


def test_a_decorated_coroutine_runs_under_the_lock(port: int) -> None:
    @llmlb_lock.ServerLock(port)
    async def serve(more: int) -> int:
        await asyncio.sleep(0)
        assert llmlb_lock.read_lock_info(port) is not None
        with pytest.raises(llmlb_lock.AlreadyRunning):
            await serve(more)
        return more + 1

    assert asyncio.run(serve(1)) == 2
    assert llmlb_lock.read_lock_info(port) is None
