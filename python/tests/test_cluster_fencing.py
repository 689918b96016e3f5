"""Self-fencing: a server that is this process is dead in time, whatever keeps it from ending."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

if sys.platform != "linux":
    pytest.skip("the cluster is for Linux", allow_module_level=True)

from etcd import Etcd
from llmlb_lock.cluster import Cluster, Record
from support import PATIENCE, Child, run_python

SETUP = """
import ctypes, os, signal, sys, time, warnings
from llmlb_lock.cluster import Cluster, Record, WatchdogError
cluster = Cluster.connect(sys.argv[1])
record = Record("chat", "gpu1", 8000)
warnings.filterwarnings("ignore", "This process .* is multi-threaded", DeprecationWarning)
def acquire(ttl):
    return cluster.acquire("chat", record, ttl=ttl, drain=0.2, self_fencing=True)
"""


@pytest.mark.parametrize(
    "how",
    [
        "os.kill(os.getpid(), signal.SIGSTOP)",
        "warnings.simplefilter('ignore'); del active; time.sleep(600)",
    ],
    ids=["stopped", "lost sight of"],
)
def test_it_is_dead_before_another_starts(url: str, how: str) -> None:
    code = f"active = acquire(3); print('active', flush=True); {how}"
    with Child.python(SETUP + code, url) as server:
        assert server.line() == "active"
        record = Record("chat", "gpu2", 8000)
        with Cluster.connect(url).acquire("chat", record, timeout=PATIENCE):
            assert server.process.poll() == -signal.SIGKILL


def test_it_is_dead_though_it_ignores_the_loss_and_holds_the_interpreter(
    etcd: Etcd, url: str
) -> None:
    code = """
active = acquire(3)
print("active", flush=True)
sys.stdin.readline()
ctypes.PyDLL(None).sleep(600)
"""
    with Child.python(SETUP + code, url) as server:
        assert server.line() == "active"
        assert server.process.stdin is not None
        server.process.stdin.write(b"\n")
        server.process.stdin.flush()
        etcd.delete(f"/{url.rpartition('/')[2]}/v1/exclusive/chat/holder")
        assert server.wait() == -signal.SIGKILL


def test_it_lives_on_as_long_as_it_renews_and_when_it_has_released(url: str) -> None:
    code = """
with acquire(3) as active:
    time.sleep(3.5)
    assert active.wait_lost(0) is None
for _ in range(20):
    with acquire(3):
        pass
time.sleep(3.5)
"""
    run_python(SETUP + code, url)


def test_a_forked_child_is_not_killed(url: str) -> None:
    code = """
active = acquire(3)
pid = os.fork()
if pid == 0:
    time.sleep(3.5)
    sys.exit(7)
assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7
active.release()
"""
    run_python(SETUP + code, url)


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root: a PID namespace")
def test_the_first_process_of_a_container_is_refused(url: str) -> None:
    code = """
assert os.getpid() == 1
try:
    acquire(3)
except WatchdogError as e:
    assert "docker run --init" in str(e), e
else:
    sys.exit("taken")
cluster.acquire("chat", record).release()
"""
    command = ["unshare", "--pid", "--fork", sys.executable, "-c", SETUP + code, url]
    ran = subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE, check=False, cwd="/"
    )
    if "unshare" in ran.stderr:
        pytest.skip(f"no PID namespace: {ran.stderr}")
    assert (ran.returncode, ran.stderr) == (0, "")
