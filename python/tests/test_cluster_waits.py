"""Waits beyond one machine: Ctrl-C ends them, other threads run, and event loops do."""

from __future__ import annotations

import asyncio
import contextlib
import math
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Generator

import pytest

if sys.platform != "linux":
    pytest.skip("the cluster is for Linux", allow_module_level=True)

from etcd import Etcd
from llmlb_lock.cluster import (
    AlreadyActive,
    Change,
    Cluster,
    ClusterError,
    Down,
    Exclusive,
    Record,
    Snapshot,
    Up,
)
from support import PATIENCE, Child, run_python
from test_signals import raised_after

RECORD = Record("chat", "gpu1", 8000)


@pytest.fixture
def cluster(url: str) -> Cluster:
    return Cluster.connect(url)


def interrupted(wait: Callable[[], object]) -> None:
    # The best of five: a loaded machine may be late, the wait may not.
    assert min(raised_after(wait) for _ in range(5)) < 0.1


def test_waits_are_interrupted_within_100_ms(cluster: Cluster) -> None:
    with cluster.acquire("chat", RECORD) as active:
        interrupted(active.wait_lost)
        interrupted(lambda: cluster.acquire("chat", RECORD, timeout=math.inf))
        with cluster.register(RECORD) as registration, cluster.watch() as watch:
            assert registration.wait_registered(PATIENCE)
            while watch.next(0.2) is not None:
                pass
            interrupted(watch.next)
            interrupted(lambda: next(watch))
            with cluster.stop_requests(RECORD) as requests:
                interrupted(requests.next)
            with cluster.request_stop(RECORD) as ticket:
                interrupted(lambda: ticket.wait(PATIENCE))


@contextlib.contextmanager
def full() -> Generator[int]:
    """A port that takes no connection, and does not refuse any."""
    with contextlib.ExitStack() as sockets:
        listener = sockets.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        for _ in range(3):
            client = sockets.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(listener.getsockname())
        yield listener.getsockname()[1]


def test_an_etcd_that_is_hung_holds_nobody_up() -> None:
    with Etcd() as etcd:
        cluster = Cluster.connect(etcd.url("hung"))
        active = cluster.acquire("index", RECORD)
        etcd.signal(signal.SIGSTOP)
        interrupted(cluster.servers)
        interrupted(lambda: cluster.acquire("chat", RECORD))
        interrupted(lambda: cluster.request_stop(RECORD))
        with cluster.register(RECORD) as registration:
            interrupted(lambda: registration.wait_registered(PATIENCE))
        assert raised_after(active.release) < PATIENCE
        etcd.signal(signal.SIGCONT)
        # The release goes on by itself.
        with cluster.acquire("index", RECORD, timeout=PATIENCE):
            pass


def test_a_host_that_does_not_answer_holds_nobody_up() -> None:
    with full() as port:
        cluster = Cluster.connect(f"etcd://127.0.0.1:{port}/x")
        interrupted(cluster.servers)
        interrupted(lambda: cluster.acquire("chat", RECORD, timeout=math.inf))


def test_an_interrupted_wait_loses_nothing(cluster: Cluster) -> None:
    with cluster.watch() as watch:
        raised_after(lambda: [watch.next() for _ in range(1000)])
        with cluster.register(RECORD):
            seen = watch.next(PATIENCE)
            while isinstance(seen, Snapshot):
                seen = watch.next(PATIENCE)
            assert seen == Up(RECORD)


@pytest.mark.parametrize(
    "wait", ["acquire('chat', record, timeout=60)", "watch('none').next()", "servers()"]
)
def test_ctrl_c(url: str, wait: str) -> None:
    code = f"""
import os, signal, sys, threading
from llmlb_lock.cluster import Cluster, Record
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in background jobs
record = Record("chat", "gpu1", 8000)
cluster = Cluster.connect(sys.argv[1])
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
try:
    while True:
        cluster.{wait}
except KeyboardInterrupt:
    print("KeyboardInterrupt")
"""
    with (
        Cluster.connect(url).acquire("chat", RECORD),
        Child.python(code, url) as waiter,
    ):
        assert waiter.line() == "KeyboardInterrupt"
        waiter.end()


def test_other_threads_run_while_one_waits(cluster: Cluster) -> None:
    with cluster.acquire("chat", RECORD) as active, cluster.watch() as watch:
        assert watch.next(PATIENCE) is not None
        waiters = [
            threading.Thread(target=wait)
            for wait in (
                lambda: active.wait_lost(0.5),
                lambda: watch.next(0.5),
            )
        ]
        for waiter in waiters:
            waiter.start()
        # With the interpreter's lock held by a waiter, this would end after the wait.
        sum(range(1_000_000))
        assert all(waiter.is_alive() for waiter in waiters)
        for waiter in waiters:
            waiter.join()


def test_a_lease_is_renewed_while_the_interpreter_is_held_up() -> None:
    """Also when there is something to log, for which the interpreter is needed."""
    code = """
import ctypes, logging, sys
from llmlb_lock.cluster import Cluster, Record
logging.basicConfig(level=logging.DEBUG, stream=sys.stdout, format="%(message)s")
cluster = Cluster.connect(sys.argv[1])
active = cluster.acquire("chat", Record("chat", "gpu1", 8000), ttl=6, drain=0.5)
print("active", flush=True)
sys.stdin.readline()
held = ctypes.PyDLL(None)  # calls that keep the interpreter's lock
held.sleep(7)
print("lost:", active.wait_lost(0), flush=True)
active.release()
"""
    with Etcd() as etcd, Child.python(code, etcd.url("held")) as child:
        assert child.line() == "active"
        assert child.process.stdin is not None
        child.process.stdin.write(b"\n")
        child.process.stdin.flush()
        # From before the first renewal until that has failed.
        time.sleep(1)
        etcd.signal(signal.SIGSTOP)
        time.sleep(2.7)
        etcd.signal(signal.SIGCONT)
        said = [child.line()]
        while not said[-1].startswith("lost:"):
            said.append(child.line())
        assert said[-1] == "lost: None", said
        out, err = child.end()
        told = "\n".join(said) + out
        assert "Lease of chat: " in told
        assert "trying on" in told
        assert err == ""


def test_blocks_and_waits_in_an_event_loop(cluster: Cluster) -> None:
    async def serve() -> None:
        async with await cluster.acquire_async("chat", RECORD) as active:
            with pytest.raises(AlreadyActive):
                await cluster.acquire_async("chat", RECORD)
            async with cluster.register(active.record) as registration:
                assert await registration.wait_registered_async(PATIENCE)
                (server,) = await cluster.servers_async("chat")
                assert server.record == active.record
                assert await active.wait_lost_async(0.05) is None
                ticket = await cluster.request_stop_async(server.record)
                async with ticket, cluster.stop_requests(server.record) as requests:
                    async for request in requests:
                        assert request.from_host
                        break
                    assert await ticket.wait_async(0.05) == "accepted"
        assert active.released
        await active.release_async()

    asyncio.run(serve())
    assert len(cluster.servers()) == 0


def test_changes_come_in_an_event_loop(cluster: Cluster) -> None:
    async def follow() -> None:
        async with cluster.watch("chat") as watch:
            assert await anext(watch) == Snapshot(())
            async with cluster.register(RECORD):
                assert await anext(watch) == Up(RECORD)
            async for change in watch:
                assert change == Down("chat", "gpu1:8000")
                watch.close()

    asyncio.run(follow())


def test_a_cancelled_wait_loses_no_change(cluster: Cluster) -> None:
    async def follow() -> None:
        async with cluster.watch("chat") as watch:
            assert await watch.next_async() == Snapshot(())
            registration = cluster.register(RECORD)
            seen = None
            while seen is None:
                with contextlib.suppress(asyncio.TimeoutError):
                    seen = await asyncio.wait_for(watch.next_async(), 0.0005)
            assert seen == Up(RECORD)
            registration.withdraw()

    asyncio.run(follow())


def test_the_loop_runs_while_a_standby_waits(cluster: Cluster) -> None:
    async def stand_by(active: Exclusive) -> None:
        told = asyncio.Event()
        reasons: list[ClusterError] = []

        def on_wait(reason: ClusterError) -> None:  # in the loop: it may touch what is the loop's
            reasons.append(reason)
            told.set()

        waiting = asyncio.create_task(
            cluster.acquire_async("chat", RECORD, timeout=math.inf, on_wait=on_wait)
        )
        await asyncio.wait_for(told.wait(), PATIENCE)
        assert not waiting.done()
        assert isinstance(reasons[0], AlreadyActive)
        await active.release_async()
        async with await waiting as second:
            assert second.token > active.token

    asyncio.run(stand_by(cluster.acquire("chat", RECORD)))


def test_a_cancelled_acquire_takes_nothing(cluster: Cluster) -> None:
    async def cancel(name: str, after: float) -> bool:
        # With this TTL nobody has the patience to wait until its time is over.
        acquire = cluster.acquire_async(name, RECORD, ttl=300, timeout=math.inf)
        try:
            async with await asyncio.wait_for(acquire, after):
                return False
        except asyncio.TimeoutError:
            return True

    async def stand_by() -> None:
        with cluster.acquire("chat", RECORD):
            assert await cancel("chat", 0.1)
        # One that is cancelled as it wins gives it back.
        for number in range(40):
            await cancel(f"free-{number}", number / 5000)
        for number in range(40):
            async with await cluster.acquire_async(f"free-{number}", RECORD, timeout=PATIENCE):
                pass

    asyncio.run(stand_by())


def test_long_waits_take_no_thread_of_the_loop(cluster: Cluster) -> None:
    async def follow() -> None:
        with contextlib.ExitStack() as watches:
            waits: list[asyncio.Task[Change | None]] = []
            for _ in range(64):
                watch = watches.enter_context(cluster.watch())
                await watch.next_async(PATIENCE)
                waits.append(asyncio.create_task(watch.next_async()))
            # The executor has a thread for this.
            await asyncio.wait_for(asyncio.to_thread(lambda: None), PATIENCE)
            for wait in waits:
                wait.cancel()
            for result in await asyncio.gather(*waits, return_exceptions=True):
                assert isinstance(result, asyncio.CancelledError)

    asyncio.run(follow())


ENDS = """
import asyncio, logging, sys, threading, time
from llmlb_lock.cluster import Cluster, Record
logging.getLogger("llmlb_lock").addHandler(logging.StreamHandler(sys.stdout))
logging.getLogger("llmlb_lock").setLevel(logging.DEBUG)
cluster = Cluster.connect(sys.argv[1])
record = Record("chat", "gpu1", 8000)
active = cluster.acquire("chat", record)
registration = cluster.register(active.record)
registration.wait_registered()
watch = cluster.watch()
watch.next()

class Slow:
    # Ends when the interpreter does, and lets others run meanwhile.
    def __del__(self, sleep=time.sleep):
        sleep(0.3)

sys.slow = Slow()
def wait(call):
    threading.Thread(target=call, daemon=True).start()
for _ in range(4):
    wait(active.wait_lost)
    wait(watch.next)
    wait(lambda: cluster.acquire("chat", record, timeout=60))
"""


@pytest.mark.parametrize("how", ["", "sys.exit(0)", "asyncio.run(asyncio.sleep(0))"])
def test_an_interpreter_ends_though_threads_wait(url: str, how: str) -> None:
    for _ in range(3):
        prefix = f"{url}-{time.monotonic_ns()}"
        out = run_python(ENDS + how, prefix)
        assert out == ""
        # What was found is withdrawn, what was active ends by itself.
        (server,) = Cluster.connect(prefix).servers()
        assert not server.registered
