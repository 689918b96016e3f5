#!/usr/bin/env python3
"""Runs the commands of docs/operating.md, read from there:

operating.py LLMLB VENV

gunicorn and uvicorn are VENV's; vLLM, SGLang, Ollama and llama.cpp are stand-ins of these names,
which check their arguments (this file, too, by the name it is called by).
"""

import argparse
import http.server
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path

PAGE = Path(__file__).parent.parent / "docs" / "operating.md"
UNIT = PAGE.parent.parent / "packaging" / "llmlb@.service"
APP = """
async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"own"})
"""
STAND_INS = ("vllm", "sglang", "ollama", "llama-server")
PATIENCE = 60


def stand_in(name, words):
    """A model server that knows the arguments of the program whose name it has."""
    options = argparse.ArgumentParser(name, allow_abbrev=False)
    if name != "llama-server":
        options.add_argument("serve", choices=["serve"])
    if name == "vllm":
        options.add_argument("model", choices=["MODEL"])
    if name == "sglang":
        options.add_argument("--model-path", choices=["MODEL"], required=True)
    if name == "llama-server":
        options.add_argument("-m", choices=["MODEL.gguf"], required=True)
    if name != "ollama":
        options.add_argument("--host", required=True)
        options.add_argument("--port", type=int, required=True)
    said = options.parse_args(words)
    if name == "ollama":
        host, port = os.environ["OLLAMA_HOST"].rsplit(":", 1)
    else:
        host, port = said.host, said.port
    ready = "/api/version" if name == "ollama" else "/health"
    # The first looks find it loading.
    looks = iter([503, 503])

    class Answer(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            what = {"program": name, "gpu": os.environ.get("CUDA_VISIBLE_DEVICES")}
            status = 200
            if self.path == ready:
                status = next(looks, 200)
            elif self.path == "/v1/models":
                what = {"object": "list", "data": [{"id": "MODEL", "object": "model"}]}
            elif self.path != "/v1/who":
                status = 404
            body = json.dumps(what).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_):
            pass

    class Server(http.server.ThreadingHTTPServer):
        request_queue_size = 128

    print(f"{name} serves", flush=True)
    Server((host, int(port)), Answer).serve_forever()


class Ambience:
    """A directory, a lock directory, and free ports in place of those of the page."""

    def __init__(self, llmlb, venv, directory):
        self.directory = Path(directory)
        programs = self.directory / "bin"
        programs.mkdir()
        for name in STAND_INS:
            script = f'#!/bin/sh\nexec {sys.executable} {Path(__file__).resolve()} --as {name} "$@"\n'
            (programs / name).write_text(script)
            (programs / name).chmod(0o755)
        (programs / "llmlb").symlink_to(Path(llmlb).resolve())
        self.work = self.directory / "work"
        self.work.mkdir()
        (self.work / "app.py").write_text(APP)
        left_out = ("LLMLB_PORT", "LLMLB_HOST", "LLMLB_LOG", "NOTIFY_SOCKET", "CUDA_VISIBLE_DEVICES")
        self.env = {k: v for k, v in os.environ.items() if k not in left_out}
        self.env["PATH"] = f"{programs}:{Path(venv).resolve()}/bin:{os.environ['PATH']}"
        self.env["LLMLB_LOCK_DIR"] = str(self.directory / "locks")
        (self.directory / "locks").mkdir()
        held = [socket.create_server(("127.0.0.1", 0)) for _ in range(4)]
        self.ports = {8000 + i: s.getsockname()[1] for i, s in enumerate(held)}
        for s in held:
            s.close()

    def local(self, text):
        # Tests listen on loopback alone.
        text = text.replace("0.0.0.0", "127.0.0.1")
        return re.sub(r"\b800[0-3]\b", lambda m: str(self.ports[int(m[0])]), text)

    def shell(self, script, code=0):
        said = subprocess.run(
            ["sh", "-eu", "-c", self.local(script)],
            cwd=self.work, env=self.env, stdin=subprocess.DEVNULL, timeout=PATIENCE * 3,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
        )  # fmt: skip
        assert said.returncode == code, f"{script}\n{said.returncode}: {said.stdout}"
        return said.stdout

    def get(self, port, path):
        url = f"http://127.0.0.1:{self.ports[port]}{path}"
        with urllib.request.urlopen(url, timeout=PATIENCE) as answer:
            return answer.read().decode()

    def stop_all(self):
        self.shell("llmlb stop --all --force")


def section(page, title):
    return page.split(f"\n## {title}\n")[1].split("\n## ")[0]


def blocks(text, language):
    return [b.split("\n```")[0] for b in text.split(f"```{language}\n")[1:]]


def foreground(at, line, expected):
    """It serves until it is stopped, in the foreground as it is typed."""
    print(f"+ {line}", flush=True)
    log = at.work / "output"
    with log.open("w") as output:
        server = subprocess.Popen(
            shlex.split(at.local(line)),
            cwd=at.work, env=at.env, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
        )  # fmt: skip
    at.shell(f"llmlb status 8000 --wait {PATIENCE} || {{ cat {log}; exit 1; }}")
    path = "/v1/who"
    assert expected in at.get(8000, path), line
    assert server.poll() is None, log.read_text()
    at.shell("llmlb stop 8000 --timeout 30")
    assert server.wait(PATIENCE) in (0, -signal.SIGTERM), log.read_text()
    log.unlink()


def servers(at, page):
    """Each server, and what is to be left out."""
    text = section(page, "A server under the guard")
    seen = set()
    for line in "\n".join(blocks(text, "sh")).splitlines():
        program = re.search(r"-- (?:env \S+ )?(\S+)", line)[1]
        seen.add(program)
        foreground(at, line, f'"{program}"' if program in STAND_INS else "own")
    assert seen == {*STAND_INS, "uvicorn", "gunicorn"}, seen
    daemon = "llmlb serve --port 8000 -- gunicorn app:app --bind {host}:{port} --daemon"
    assert "has to stay in the foreground" in at.shell(daemon, 1)
    at.shell("llmlb status 8000", 3)


def systemd(at, page):
    """The unit's command with the page's file, as systemd reads both."""
    text = section(page, "systemd")
    settings = dict(line.split("=", 1) for line in blocks(text, "ini")[0].splitlines())
    unit = UNIT.read_text()
    assert "EnvironmentFile=/etc/llmlb/%i.conf" in unit
    command = re.search(r"^ExecStart=(.*)$", unit, re.M)[1]
    assert command == "/usr/bin/llmlb serve $SERVE_ARGS", command
    arguments = shlex.split(settings.pop("SERVE_ARGS").strip('"'))
    notified = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    notified.bind(str(at.directory / "notify"))
    notified.settimeout(PATIENCE)
    env = {**at.env, **settings, "NOTIFY_SOCKET": notified.getsockname()}
    env["LLMLB_PORT"] = at.local(settings["LLMLB_PORT"])
    print("+ " + command, flush=True)
    server = subprocess.Popen(["llmlb", "serve", *arguments], env=env, cwd=at.work)
    while b"READY=1" not in notified.recv(4096):
        pass
    assert json.loads(at.get(8000, "/v1/who")) == {"program": "vllm", "gpu": "0"}
    at.shell("llmlb status 8000")
    at.shell("llmlb stop 8000")
    assert server.wait(PATIENCE) in (0, -signal.SIGTERM)


def script(at, text, number=0):
    block = blocks(text, "sh")[number]
    print(block, flush=True)
    return at.shell(block)


def background(at, page):
    said = script(at, section(page, "Background and logs"))
    assert "in the background" in said and "accepting connections after" in said, said
    at.shell("llmlb status 8000", 3)


class Client(threading.Thread):
    """Asks all the time, each time on a new connection, and keeps what failed."""

    def __init__(self, at):
        super().__init__(daemon=True)
        self.at, self.answers, self.failures, self.end = at, 0, [], threading.Event()

    def run(self):
        while not self.end.is_set():
            try:
                self.at.get(8000, "/v1/who")
                self.answers += 1
            except OSError as e:
                self.failures.append(e)
            time.sleep(0.01)

    def finish(self):
        self.end.set()
        self.join()
        assert not self.failures, self.failures
        assert self.answers > 10, self.answers


def one_host_and_its_upgrade(at, page):
    status = script(at, section(page, "Several servers on one GPU host"))
    assert all(str(at.ports[p]) in status for p in (8000, 8001, 8002)), status
    for port, gpu in ((8001, "0"), (8002, "1")):
        assert json.loads(at.get(port, "/v1/who"))["gpu"] == gpu
    deadline = time.monotonic() + PATIENCE
    while at.shell("curl -sS http://127.0.0.1:8000/metrics").count('"} 1\n') < 2:
        assert time.monotonic() < deadline
    text = section(page, "Upgrade without an outage")
    client = Client(at)
    client.start()
    script(at, text, 0)
    before = json.loads(at.get(8000, "/health"))["pid"]
    script(at, text, 1)
    assert json.loads(at.get(8000, "/health"))["pid"] != before
    client.finish()
    at.shell("llmlb status 8001", 3)
    assert json.loads(at.get(8003, "/v1/who"))["gpu"] == "0"
    at.shell("llmlb status 8002")
    script(at, text, 2)
    at.shell("llmlb status 8002")


def there_and_here(at, page):
    """Each command of the tables runs; options are those of a server."""
    rows = 0
    for row in section(page, "What you typed there").splitlines():
        cells = [cell.strip() for cell in row.strip("|").split(" | ")]
        for command in re.findall(r"`([^`]+)`", cells[-1]) if len(cells) == 2 else []:
            options = command.startswith("--")
            if not options and not command.startswith("llmlb "):
                continue
            rows += 1
            if options:
                (at.work / "backends").write_text("")
                command = f"llmlb serve --port 8000 {command}"
                if "--backends-file" not in command:
                    command += " -- vllm serve MODEL --host {host} --port {port}"
            print(f"+ {command}", flush=True)
            if "serve" in command and "--detach" not in command:
                command = command.replace("serve", "serve --detach", 1)
            at.shell("llmlb status 8000 || llmlb serve --detach --port 8000")
            if "serve" in command and "--replace" not in command:
                at.stop_all()
            at.shell(command)
            if "serve" in command or "status" in command:
                at.shell("llmlb status " + (re.search(r"--port (\d+)", command) or [0, "8000"])[1])
            elif "stop 8001" not in command:
                at.shell("llmlb status 8000", 3)
    assert rows >= 20, rows


def main():
    if sys.argv[1] == "--as":
        return stand_in(sys.argv[2], sys.argv[3:])
    page = PAGE.read_text()
    with tempfile.TemporaryDirectory() as directory:
        at = Ambience(sys.argv[1], sys.argv[2], directory)
        try:
            for part in (servers, systemd, background, one_host_and_its_upgrade, there_and_here):
                part(at, page)
                at.stop_all()
        finally:
            at.stop_all()
    print("the commands of docs/operating.md do what it says")


if __name__ == "__main__":
    main()
