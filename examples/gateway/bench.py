#!/usr/bin/env python3
"""llmlb beside nginx and haproxy, in front of the same two servers, measured by wrk.

Usage: bench.py LLMLB MODEL_SERVER [SECONDS]

Prints a table: every figure is a median of this one run, in which the proxies take turns, round by
round, on the same cores. ROUNDS and WORKERS (threads or processes of each proxy) come from the
environment.
"""

import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROUNDS = int(os.environ.get("ROUNDS", 5))
WORKERS = int(os.environ.get("WORKERS", os.cpu_count()))
IDLE = 1000
# Seconds after which what has come or gone is seen to have.
SETTLED = 0.5
SMALL = '{"model":"none","messages":[{"role":"user","content":"Say hello."}]}'
STREAM = '{"model":"none","stream":true,"messages":[{"role":"user","content":"Say hello."}]}'
CHUNKS = 200
# The columns of the tables.
ALL = ("direct", "nginx", "haproxy", "llmlb")
SECURE = ("nginx", "llmlb")
# Workers among whom the load is to be spread evenly.
SEVERAL = 4

NGINX = """
daemon off; worker_processes {workers}; pid {dir}/{port}.pid; error_log {dir}/error.log;
worker_rlimit_nofile 8192;
events {{ worker_connections 4096; }}
http {{
    access_log off; keepalive_timeout 600s; keepalive_requests 100000000;
    client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy; fastcgi_temp_path {dir}/f;
    uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s;
    upstream models {{
        least_conn; {servers} keepalive 256; keepalive_requests 100000000;
    }}
    server {{
        listen 127.0.0.1:{port}{secure};
        location / {{
            proxy_pass http://models;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
            proxy_buffering off;
        }}
    }}
}}
"""

HAPROXY = """
global
    nbthread {workers}
    maxconn 8192
defaults
    mode http
    timeout connect 2s
    timeout client 600s
    timeout server 600s
    timeout http-keep-alive 600s
    http-reuse always
    option forwardfor
frontend clients
    bind 127.0.0.1:{port}
    default_backend models
backend models
    balance leastconn
    {servers}
"""


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(port):
    deadline = time.monotonic() + 30
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)


def processes(pid):
    """A process and its children, with the fields of their stat."""
    for number in filter(str.isdecimal, os.listdir("/proc")):
        path = Path("/proc", number)
        try:
            fields = (path / "stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            # It has ended meanwhile.
            continue
        if int(number) == pid or int(fields[1]) == pid:
            yield path, fields


def cpu_seconds(pid):
    """Of all threads of a process and its children."""
    ticks = sum(int(fields[11]) + int(fields[12]) for _, fields in processes(pid))
    return ticks / os.sysconf("SC_CLK_TCK")


def memory(pid):
    """Bytes, those that are shared divided among those that share them."""
    found = 0
    for directory, _ in processes(pid):
        rollup = (directory / "smaps_rollup").read_text()
        found += int(re.search(r"^Pss: +(\d+) kB", rollup, re.MULTILINE)[1]) * 1024
    return found


def ask(client, body):
    """Sends one request, and reads the answer to its end. Returns how many bytes that is."""
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
    client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
    answer = b""
    while True:
        piece = client.recv(1 << 16)
        if not piece:
            sys.exit(f"an answer broke off: {answer!r}")
        answer += piece
        head, end, rest = answer.partition(b"\r\n\r\n")
        length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
        if end and (len(rest) == int(length[1]) if length else rest.endswith(b"\r\n0\r\n\r\n")):
            return len(answer)


def idle_memory(port, pid, asks, before):
    """What connections cost that idle: having been served once, if it `asks`, or since they came.
    What is kept of those that have gone counts, as it was not there `before`."""

    def connect():
        client = socket.create_connection(("127.0.0.1", port), 10)
        if asks:
            ask(client, SMALL)
        return client

    clients = [connect() for _ in range(IDLE)]
    time.sleep(SETTLED)
    after = memory(pid)
    for client in clients:
        client.close()
    return after - before


def wrk(url, body, connections, seconds, directory):
    script = directory / "wrk.lua"
    script.write_text(
        'wrk.method = "POST"\n'
        f"wrk.body = [[{body}]]\n"
        'wrk.headers["Content-Type"] = "application/json"\n'
        "done = function(summary, latency)\n"
        "  local e = summary.errors\n"
        '  print(string.format("RESULT %d %d %d %d %d %d", summary.requests, summary.duration,\n'
        "    summary.bytes, latency:percentile(50), latency:percentile(99),\n"
        "    e.connect + e.read + e.write + e.status + e.timeout))\n"
        "end\n"
    )
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s"]
    out = subprocess.run([*command, "-s", script, f"{url}/v1/chat/completions"], capture_output=True, text=True, check=True)
    found = re.search(r"RESULT (\d+) (\d+) (\d+) (\d+) (\d+) (\d+)", out.stdout)
    requests, micros, size, p50, p99, errors = map(int, found.groups())
    if errors:
        sys.exit(f"{errors} of {requests} requests failed:\n{out.stdout}")
    rate = requests / (micros / 1e6)
    return {"rate": rate, "p50": p50, "p99": p99, "requests": requests, "bytes": size}


def main():
    missing = [name for name in ("nginx", "haproxy", "wrk", "openssl") if not shutil.which(name)]
    if missing:
        sys.exit(f"missing: {', '.join(missing)} (Debian: apt install {' '.join(missing)})")
    llmlb, model_server = sys.argv[1:3]
    seconds = int(sys.argv[3]) if len(sys.argv) > 3 else 3
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        started = []

        def start(*command, **kwargs):
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            started.append(subprocess.Popen(command, **quiet, **kwargs))
            return started[-1].pid

        def configured(file, template, port, servers, secure=""):
            path = directory / file
            values = {"dir": name, "port": port, "servers": servers, "secure": secure}
            text = template.format(workers=WORKERS, **values)
            path.write_text(text)
            return str(path)

        try:
            upstreams = [free_port() for _ in range(2)]
            for port in upstreams:
                start(model_server, str(port))
            ports = {"direct": upstreams[0]}
            ports |= {proxy: free_port() for proxy in ("nginx", "haproxy", "llmlb")}
            servers = " ".join(f"server 127.0.0.1:{port};" for port in upstreams)
            config = configured("nginx.conf", NGINX, ports["nginx"], servers)
            pids = {"nginx": start("nginx", "-p", name, "-c", config)}
            servers = "\n    ".join(f"server s{port} 127.0.0.1:{port}" for port in upstreams)
            config = configured("haproxy.cfg", HAPROXY, ports["haproxy"], servers)
            pids["haproxy"] = start("haproxy", "-db", "-f", config)
            backends = ",".join(f"http://127.0.0.1:{port}" for port in upstreams)
            environment = {**os.environ, "LLMLB_LOCK_DIR": name, "LLMLB_BACKENDS": backends}

            def start_llmlb(port, workers, *options):
                command = [llmlb, "serve", "--port", str(port), "--workers", str(workers)]
                return start(*command, *options, env=environment)

            pids["llmlb"] = start_llmlb(ports["llmlb"], WORKERS)
            for port in [*upstreams, *ports.values()]:
                wait_for(port)
            run(ports, pids, seconds, directory)
            port = free_port()
            spread(port, start_llmlb(port, SEVERAL), seconds, directory)

            certificate, key = certify(directory)
            ports = {"nginx": free_port(), "llmlb": free_port()}
            secure = f" ssl; ssl_certificate {certificate}; ssl_certificate_key {key}"
            servers = " ".join(f"server 127.0.0.1:{port};" for port in upstreams)
            config = configured("tls.conf", NGINX, ports["nginx"], servers, secure)
            own = ["--tls-cert", certificate, "--tls-key", key]
            pids = {
                "nginx": start("nginx", "-p", name, "-c", config),
                "llmlb": start_llmlb(ports["llmlb"], WORKERS, *own),
            }
            with_tls(ports, pids, seconds, directory)
        finally:
            for process in started:
                process.send_signal(signal.SIGTERM)
            for process in started:
                process.wait()


def run(ports, pids, seconds, directory):
    print(f"{WORKERS} workers each, {ROUNDS} rounds of {seconds} s, {os.cpu_count()} cores for all.\n")
    print("| load | figure | direct | " + " | ".join(pids) + " | llmlb / nginx |")
    print("| --- | --- | --- | " + "--- | " * len(pids) + "--- |")
    # First, while nothing is there yet to be used again, but for what a few requests leave.
    for port in ports.values():
        for _ in range(10):
            with socket.create_connection(("127.0.0.1", port), 10) as client:
                ask(client, SMALL)
    time.sleep(SETTLED)
    before = {name: memory(pid) for name, pid in pids.items()}
    for load, asks in [("that have asked nothing", False), ("kept alive", True)]:
        idle = {}
        for name, pid in pids.items():
            idle[name] = idle_memory(ports[name], pid, asks, before[name]) / 1e6
        row(f"{IDLE:,} idle connections, {load}", "memory", "MB", idle, 1, ALL)
    with socket.create_connection(("127.0.0.1", ports["direct"]), 10) as client:
        chunk = ask(client, STREAM) / CHUNKS
    for port in ports.values():
        wrk(f"http://127.0.0.1:{port}", SMALL, 64, 1, directory)
    small = {"rate": ("requests per second", ""), "p99": ("p99 latency", "µs")}
    each = {"cpu": ("CPU of the proxy per request", "µs")}
    measure = Measure("http", ports, pids, seconds, directory)
    measure.load("small, 1 connection", SMALL, 1, small | each)
    measure.load("small, 64 connections", SMALL, 64, small | each)
    chunks = {"p99": small["p99"], "chunk": ("CPU of the proxy per chunk", "µs")}
    measure.load(f"{CHUNKS}-chunk stream, 32 at once", STREAM, 32, chunks, chunk)


def spread(port, pid, seconds, directory):
    """How much of the processor time each of several workers takes."""

    def ticks():
        for stat in Path(f"/proc/{pid}/task").glob("[0-9]*/stat"):
            fields = stat.read_text().rsplit(")", 1)[1].split()
            yield stat.parent.name, int(fields[11]) + int(fields[12])

    wait_for(port)
    url = f"http://127.0.0.1:{port}"
    wrk(url, SMALL, 64, 1, directory)
    before = dict(ticks())
    wrk(url, SMALL, 64, seconds, directory)
    used = sorted((after - before.get(thread, 0) for thread, after in ticks()), reverse=True)
    shares = ", ".join(f"{100 * one / sum(used):.1f} %" for one in used[:SEVERAL])
    print(f"\n{SEVERAL} workers of llmlb, 64 connections: {shares} of its processor time.")


def certify(directory):
    """A certificate of the kind that most sites show, and its key."""
    certificate, key = str(directory / "certificate.pem"), str(directory / "key.pem")
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"]
    request = ["openssl", "req", "-x509", *curve, "-nodes", "-subj", "/CN=localhost"]
    command = [*request, "-out", certificate, "-keyout", key]
    subprocess.run(command, check=True, capture_output=True)
    return certificate, key


def with_tls(ports, pids, seconds, directory):
    for port in ports.values():
        wait_for(port)
        wrk(f"https://127.0.0.1:{port}", SMALL, 64, 1, directory)
    print("\n| with TLS | figure | nginx | llmlb | llmlb / nginx |")
    print("| --- | --- | --- | --- | --- |")
    measure = Measure("https", ports, pids, seconds, directory)
    each = {"rate": ("requests per second", ""), "cpu": ("CPU of the proxy per request", "µs")}
    measure.load("small, 64 connections that are kept", SMALL, 64, each)
    results = {name: [] for name in ports}
    for _ in range(ROUNDS):
        for name, port in ports.items():
            before = cpu_seconds(pids[name])
            rate, count = handshakes(port, seconds)
            used = cpu_seconds(pids[name]) - before
            results[name].append({"rate": rate, "cpu": used / count * 1e6})
    each = {"rate": ("per second", ""), "cpu": ("CPU of the proxy for each", "µs")}
    for key, (title, unit) in each.items():
        values = {name: statistics.median(r[key] for r in results[name]) for name in ports}
        row("full handshakes, one after the other", title, unit, values)


def handshakes(port, seconds):
    """New connections, on which nothing is asked: how many per second, and in all."""
    client = ["openssl", "s_time", "-connect", f"127.0.0.1:{port}", "-new", "-time", str(seconds)]
    out = subprocess.run(client, capture_output=True, text=True, check=True).stdout
    count, real = re.findall(r"(\d+) connections in (\d+) real seconds", out)[0]
    return int(count) / int(real), int(count)


class Measure:
    def __init__(self, scheme, ports, pids, seconds, directory):
        self.scheme, self.ports, self.pids = scheme, ports, pids
        self.seconds, self.directory = seconds, directory
        self.columns = ALL if scheme == "http" else SECURE

    def once(self, name, body, connections, chunk):
        pid = self.pids.get(name)
        before = cpu_seconds(pid) if pid else 0
        url = f"{self.scheme}://127.0.0.1:{self.ports[name]}"
        result = wrk(url, body, connections, self.seconds, self.directory)
        used = cpu_seconds(pid) - before if pid else 0
        result["cpu"] = used / max(result["requests"], 1) * 1e6
        # Of streams that were still running at the end, too.
        result["chunk"] = used / (result["bytes"] / chunk) * 1e6
        return result

    def load(self, load, body, connections, figures, chunk=1):
        results = {name: [] for name in self.ports}
        for _ in range(ROUNDS):
            for name in self.ports:
                results[name].append(self.once(name, body, connections, chunk))
        for key, (title, unit) in figures.items():
            values = {n: statistics.median(r[key] for r in results[n]) for n in self.ports}
            digits = 0 if unit != "µs" or values["nginx"] > 100 else 1
            row(load, title, unit, values, digits, self.columns)


def row(load, title, unit, values, digits=0, columns=SECURE):
    def show(name):
        value = values.get(name)
        return f"{value:,.{digits}f} {unit}".strip() if value else "-"

    ratio = f"{values['llmlb'] / values['nginx']:.2f}" if values["nginx"] > 0 else "-"
    shown = [show(name) for name in columns]
    print("| " + " | ".join([load, title, *shown, ratio]) + " |", flush=True)


if __name__ == "__main__":
    main()
