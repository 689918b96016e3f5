"""Forked children have nothing of what lives in their parent's threads, and may start anew."""

from __future__ import annotations

import sys

import pytest

if sys.platform != "linux":
    pytest.skip("the cluster is for Linux", allow_module_level=True)

from support import run_python

SETUP = """
import os, sys, warnings
# Python 3.12 warns of forks in processes with threads, as those that renew are.
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
from llmlb_lock.cluster import Cluster, ClusterError, Record
cluster = Cluster.connect(sys.argv[1])
active = cluster.acquire("chat", Record("chat", "gpu1", 8000), ttl=3, drain=0.5)
registration = cluster.register(active.record)
assert registration.wait_registered(60)
watch = cluster.watch()
watch.next(60)

def still_ours():
    assert active.wait_lost(0) is None
    assert active.remaining > 0
    assert not active.released
    (server,) = cluster.servers()
    assert (server.record, server.registered) == (active.record, True)
"""


@pytest.mark.parametrize(
    "what",
    [
        "pass",
        "active.release(); registration.withdraw(); watch.close()",
        "active.__exit__(None, None, None)",
        "[globals().pop(name) for name in ('active', 'registration', 'watch')]",
        "sys.exit()",
    ],
)
def test_a_child_leaves_everything_alone(url: str, what: str) -> None:
    code = f"""
def act():
    {what}
for _ in range(5):
    pid = os.fork()
    if pid == 0:
        act()
        sys.exit()
    assert os.waitpid(pid, 0)[1] == 0
    still_ours()
active.release()
registration.withdraw()
assert not cluster.servers().servers
"""
    run_python(SETUP + code, url)


def test_a_child_cannot_use_what_its_parent_has(url: str) -> None:
    code = """
pid = os.fork()
if pid == 0:
    assert active.released and not registration.registered
    for use in (
        lambda: active.remaining,
        lambda: active.wait_lost(0),
        lambda: registration.update(Record("chat", "gpu1", 8000)),
        lambda: watch.next(),
    ):
        try:
            use()
        except RuntimeError as e:
            assert "the parent's" in str(e), e
        else:
            os._exit(1)
    os._exit(0)
assert os.waitpid(pid, 0)[1] == 0
still_ours()
active.release()
"""
    run_python(SETUP + code, url)


def test_a_child_goes_on_with_the_cluster(url: str) -> None:
    code = """
import logging
logging.basicConfig(level=logging.DEBUG, stream=sys.stdout, format="%(message)s")
pid = os.fork()
if pid == 0:
    assert len(cluster.servers()) == 1
    with cluster.acquire("index", Record("index", "gpu1", 8001)) as mine:
        with cluster.register(mine.record) as found:
            assert found.wait_registered(60)
            assert len(cluster.servers()) == 2
    away = Cluster.connect("etcd://127.0.0.1:1/x")
    with away.register(mine.record) as nobody_hears:
        assert not nobody_hears.wait_registered(0.2)
    sys.exit()
assert os.waitpid(pid, 0)[1] == 0
still_ours()
active.release()
"""
    # Its log has a thread of its own, too.
    assert "connection refused; trying on" in run_python(SETUP + code, url)


def test_a_fork_while_threads_wait(url: str) -> None:
    code = """
import contextlib, threading

def wait():
    with contextlib.suppress(ClusterError):  # it is closed at the end
        active.wait_lost()

for _ in range(8):
    threading.Thread(target=wait, daemon=True).start()
    threading.Thread(target=cluster.servers, daemon=True).start()
for _ in range(20):
    pid = os.fork()
    if pid == 0:
        active.release()
        len(cluster.servers())
        sys.exit()
    assert os.waitpid(pid, 0)[1] == 0
still_ours()
active.release()
"""
    run_python(SETUP + code, url)


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_multiprocessing_leaves_everything_alone(url: str, method: str) -> None:
    code = """
import multiprocessing

if __name__ == "__main__":
    context = multiprocessing.get_context(sys.argv[2])
    with context.Pool(2) as pool:
        assert pool.map(abs, [-1, -2]) == [1, 2]
    still_ours()
    active.release()
"""
    run_python(SETUP + code, url, method)
