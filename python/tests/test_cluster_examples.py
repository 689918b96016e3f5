"""The programs in examples/cluster, and what docs/cluster.md shows of Python, as users run them."""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

if sys.platform != "linux":
    pytest.skip("the cluster is for Linux", allow_module_level=True)

from etcd import Etcd
from llmlb_lock.cluster import AlreadyActive, Cluster, Record, StopAnswer
from support import PATIENCE, Child, free_port, run_python, wait_until
from test_interop import BIN, llmlb, needs_command

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples" / "cluster"
RUST = os.environ.get("LLMLB_ACTIVE_STANDBY", "")

PYTHON_EXAMPLE: list[str | Path] = [
    sys.executable,
    "-X",
    "dev",
    "-W",
    "error",
    EXAMPLES / "active_standby.py",
]
needs_rust = pytest.mark.skipif(not RUST, reason="LLMLB_ACTIVE_STANDBY names no Rust program")
both = pytest.mark.parametrize(
    "program",
    [
        pytest.param(PYTHON_EXAMPLE, id="python"),
        pytest.param([RUST], id="rust", marks=needs_rust),
    ],
)


def start(program: list[str | Path], url: str, host: str, port: int) -> Child:
    return Child(*program, url, "index", host, str(port))


def token_of(line: str) -> int:
    assert line.startswith("active: token "), line
    return int(line.rpartition(" ")[2])


def ask(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=PATIENCE) as answer:
        said: bytes = answer.read()
    return said.decode()


@needs_command
@both
def test_one_is_active_and_the_other_takes_over(program: list[str | Path], url: str) -> None:
    ports = free_port(), free_port()
    with start(program, url, "gpu1", ports[0]) as first:
        token = token_of(first.line())
        assert ask(ports[0]) == f"token {token}\n"
        with start(PYTHON_EXAMPLE, url, "gpu2", ports[1]) as second:
            assert second.line().startswith(f"standby: Service index is active on gpu1:{ports[0]} ")
            stop = llmlb(
                "stop", "--cluster", url, "--service", "index", "--timeout", str(int(PATIENCE))
            )
            assert (stop.returncode, stop.stderr) == (0, "")
            assert first.line() == "ended"
            assert first.wait() == 0
            later = token_of(second.line())
            assert later > token
            assert ask(ports[1]) == f"token {later}\n"
            (server,) = Cluster.connect(url).servers()
            assert (server.record.host, server.record.token) == ("gpu2", later)


@both
def test_what_is_killed_is_followed_by_the_standby(program: list[str | Path], url: str) -> None:
    ports = free_port(), free_port()
    with start(PYTHON_EXAMPLE, url, "gpu1", ports[0]) as first:
        token = token_of(first.line())
        with start(program, url, "gpu2", ports[1]) as second:
            assert second.line().startswith("standby: ")
            first.kill()
            line = second.line()
            while line.startswith("standby: "):
                line = second.line()
            assert token_of(line) > token


@both
def test_what_is_stopped_is_dead_before_the_standby_starts(
    program: list[str | Path], url: str
) -> None:
    ports = free_port(), free_port()
    with start(program, url, "gpu1", ports[0]) as first:
        token = token_of(first.line())
        with start(PYTHON_EXAMPLE, url, "gpu2", ports[1]) as second:
            assert second.line().startswith("standby: ")
            first.process.send_signal(signal.SIGSTOP)
            line = second.line()
            while line.startswith("standby: "):
                line = second.line()
            assert first.process.poll() == -signal.SIGKILL
            assert token_of(line) > token


@both
def test_it_ends_when_the_lease_is_lost(program: list[str | Path]) -> None:
    with (
        Etcd() as etcd,
        start(program, etcd.url("lost"), "gpu1", free_port()) as server,
    ):
        token_of(server.line())
        etcd.kill()
        assert server.line() == "lost: etcd has not answered a renewal in time"
        assert server.wait() == 6


def test_sigterm_ends_it_in_good_order(url: str) -> None:
    with start(PYTHON_EXAMPLE, url, "gpu1", free_port()) as server:
        token_of(server.line())
        server.process.send_signal(signal.SIGTERM)
        assert server.line() == "ended"
        assert server.end() == ("", "")
    with Cluster.connect(url).acquire("index", Record("index", "gpu1", 8000)):
        pass


@needs_command
def test_the_session_with_a_standby(url: str) -> None:
    # Addresses that nobody else has at this moment: its ports are what a user would take.
    net = f"127.{random.randint(16, 250)}.{random.randint(1, 250)}"
    gpu1, gpu2, _ = hosts = [f"{net}.{number}" for number in (1, 2, 3)]
    path = f"{Path(BIN).parent}:{os.environ['PATH']}"
    ran = subprocess.run(
        [EXAMPLES / "standby.sh", *hosts],
        env={**os.environ, "PATH": path, "LLMLB_CLUSTER": url, "PYTHON": sys.executable},
        capture_output=True,
        text=True,
        timeout=4 * PATIENCE,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    parts = ran.stdout.split("\n== ")[1:]
    first, second = (
        re.findall(rf"^I am {host}, token (\d+)$", part, re.MULTILINE)
        for host, part in ((gpu1, parts[0]), (gpu2, parts[2]))
    )
    assert int(second[0]) > int(first[0])
    refused = f"Error: Service index is active on {gpu1}:8000 "
    assert refused in parts[1]
    assert f"To stop: llmlb stop --cluster {url} --service index" in parts[1]
    assert parts[3].endswith("Server stopped successfully\nNo servers running\n")


@needs_command
def test_the_command_sees_refuses_and_stops_our_server(url: str) -> None:
    cluster = Cluster.connect(url)
    record = Record("chat", "gpu1", 8000, pid=4321, models=["qwen3"])
    with cluster.acquire("chat", record) as active, cluster.register(active.record) as found:
        assert found.wait_registered(PATIENCE)
        status = llmlb("status", "--cluster", url)
        row = status.stdout.splitlines()[1].split()
        assert row[:4] == ["gpu1", "chat", "http://gpu1:8000", "4321"]
        assert row[5:] == [str(active.token), "Running", "qwen3"]
        with pytest.raises(AlreadyActive) as refused:
            cluster.acquire("chat", record)
        serve = llmlb(
            *("serve", "--port", free_port(), "--cluster", url, "--service", "chat"),
            *("--exclusive", "--drain-timeout", "4", "--", "true"),
        )
        assert serve.returncode == 1
        assert f"Error: {refused.value}\n" in serve.stderr


@needs_command
def test_we_stop_the_server_of_the_command(url: str) -> None:
    port = free_port()
    cluster = Cluster.connect(url)
    with Child(
        *(BIN, "serve", "--port", str(port), "--cluster", url, "--service", "chat", "--"),
        *(sys.executable, "-m", "http.server", "--bind", "{host}", "{port}"),
    ) as serving:
        with cluster.watch("chat") as watch:
            wait_until(lambda: watch.next(PATIENCE) and len(cluster.servers()) == 1, "it is found")
        (server,) = cluster.servers("chat")
        with cluster.request_stop(server.record, "laptop") as ticket:
            assert ticket.wait(PATIENCE) is StopAnswer.STOPPED
        serving.wait()


def test_what_the_page_shows_of_python(url: str) -> None:
    page = (ROOT / "docs" / "cluster.md").read_text()
    section = page.partition("\n## From Python\n")[2].partition("\n## ")[0]
    blocks = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    assert len(blocks) > 1
    code = "\n".join(blocks).replace("etcd://h1:2379,h2:2379,h3:2379/llm", url)
    assert url in code
    run_python(f"def serve(): pass\ndef end(deadline): pass\n{code}")
