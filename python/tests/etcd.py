"""Real etcd for the tests: one node on loopback, which ends with the tests however these end."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import signal
import ssl
import subprocess
import tempfile
import time
import urllib.request
from base64 import b64encode
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from support import PATIENCE, free_port


def binary() -> str | None:
    """`make test-python` names the one that `make etcd` has put below target."""
    return os.environ.get("LLMLB_ETCD") or shutil.which("etcd")


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


@dataclass(frozen=True)
class Tls:
    """Files in PEM: whom to trust, and what proves who one is."""

    ca: Path
    certificate: Path
    key: Path


class Etcd:
    """One node, with its data in a temporary directory; with certificates it asks for them."""

    def __init__(self, tls: Tls | None = None) -> None:
        program = binary()
        assert program is not None, "the tests of the cluster need etcd: run `make etcd`"
        said = subprocess.run([program, "--help"], capture_output=True, check=False)
        # Where it can do without the disk: those of busy machines take seconds.
        more = ["--unsafe-no-fsync"] if b"--unsafe-no-fsync" in said.stdout + said.stderr else []
        self._directory = tempfile.TemporaryDirectory()
        self._scheme, self._context = "http", None
        if tls is not None:
            self._scheme = "https"
            self._context = ssl.create_default_context(cafile=tls.ca)
            self._context.load_cert_chain(tls.certificate, tls.key)
            more += ["--cert-file", str(tls.certificate), "--key-file", str(tls.key)]
            more += ["--trusted-ca-file", str(tls.ca), "--client-cert-auth"]
        # Another may take a port that was free: then once more.
        for _ in range(5):
            self.port, peer = free_port(), free_port()
            self._command = [
                program,
                *("--data-dir", f"{self._directory.name}/{self.port}"),
                *("--listen-client-urls", f"{self._scheme}://127.0.0.1:{self.port}"),
                *("--advertise-client-urls", f"{self._scheme}://127.0.0.1:{self.port}"),
                *("--listen-peer-urls", f"http://127.0.0.1:{peer}"),
                *("--initial-advertise-peer-urls", f"http://127.0.0.1:{peer}"),
                *("--initial-cluster", f"default=http://127.0.0.1:{peer}"),
                *("--heartbeat-interval", "50", "--election-timeout", "500"),
                *more,
            ]
            self.process = self._start()
            if self._is_up():
                return
            self.stop()
        raise AssertionError("etcd does not start")

    def _start(self) -> subprocess.Popen[bytes]:
        with Path(self._directory.name, "log").open("ab") as log:
            return subprocess.Popen(
                self._command, stdout=log, stderr=log, preexec_fn=_die_with_parent
            )

    def _is_up(self) -> bool:
        deadline = time.monotonic() + PATIENCE
        while self.process.poll() is None and time.monotonic() < deadline:
            try:
                self.call("kv/range", {"key": _base64("up")})
            except OSError:
                time.sleep(0.02)
            else:
                return True
        return False

    def url(self, prefix: str) -> str:
        scheme = "etcd" if self._context is None else "etcds"
        return f"{scheme}://127.0.0.1:{self.port}/{prefix}"

    def call(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """A request that llmlb would not make."""
        request = urllib.request.Request(
            f"{self._scheme}://127.0.0.1:{self.port}/v3/{path}", json.dumps(body).encode()
        )
        with urllib.request.urlopen(request, timeout=5, context=self._context) as answer:
            told: dict[str, Any] = json.load(answer)
        return told

    def put(self, key: str, value: str) -> None:
        self.call("kv/put", {"key": _base64(key), "value": _base64(value)})

    def delete(self, key: str) -> None:
        self.call("kv/deleterange", {"key": _base64(key)})

    def has(self, key: str) -> bool:
        return "kvs" in self.call("kv/range", {"key": _base64(key)})

    def signal(self, number: signal.Signals) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(PATIENCE)

    def start_again(self) -> None:
        self.process = self._start()
        assert self._is_up()

    def stop(self) -> None:
        if self.process.poll() is None:
            self.kill()

    def __enter__(self) -> Etcd:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
        self._directory.cleanup()


def _base64(text: str) -> str:
    return b64encode(text.encode()).decode()
