#!/usr/bin/env python3
"""llmlb beside nginx, in front of the same two servers, measured by wrk.

Usage: bench.py LLMLB MODEL_SERVER [SECONDS]

Prints a table of ratios: every figure comes from this one run, the proxies taking turns.
"""

import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROUNDS = int(os.environ.get("ROUNDS", 5))
SMALL = '{"model":"none","messages":[{"role":"user","content":"Say hello."}]}'
STREAM = '{"model":"none","stream":true,"messages":[{"role":"user","content":"Say hello."}]}'

NGINX = """
daemon off; worker_processes auto; pid {dir}/pid; error_log {dir}/error.log;
events {{ worker_connections 4096; }}
http {{
    access_log off;
    client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy; fastcgi_temp_path {dir}/f;
    uwsgi_temp_path {dir}/u; scgi_temp_path {dir}/s;
    upstream models {{ least_conn; {servers} keepalive 256; }}
    server {{
        listen 127.0.0.1:{port};
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


def cpu_seconds(pid):
    """Of a process and its children."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        if int(path.parent.name) == pid or int(fields[1]) == pid:
            ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def wrk(port, body, connections, seconds, directory):
    script = directory / "wrk.lua"
    script.write_text(
        'wrk.method = "POST"\n'
        f"wrk.body = [[{body}]]\n"
        'wrk.headers["Content-Type"] = "application/json"\n'
        "done = function(summary, latency)\n"
        "  local e = summary.errors\n"
        '  print(string.format("RESULT %d %d %d %d %d", summary.requests, summary.duration,\n'
        "    latency:percentile(50), latency:percentile(99),\n"
        "    e.connect + e.read + e.write + e.status + e.timeout))\n"
        "end\n"
    )
    url = f"http://127.0.0.1:{port}/v1/chat/completions"
    command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "30s"]
    out = subprocess.run([*command, "-s", script, url], capture_output=True, text=True, check=True)
    found = re.search(r"RESULT (\d+) (\d+) (\d+) (\d+) (\d+)", out.stdout)
    requests, micros, p50, p99, errors = map(int, found.groups())
    if errors:
        sys.exit(f"{errors} of {requests} requests failed:\n{out.stdout}")
    return {"rate": requests / (micros / 1e6), "p50": p50, "p99": p99, "requests": requests}


def main():
    llmlb, model_server = sys.argv[1:3]
    seconds = int(sys.argv[3]) if len(sys.argv) > 3 else 4
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        started = []

        def start(*command, **kwargs):
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            started.append(subprocess.Popen(command, **quiet, **kwargs))
            return started[-1].pid

        try:
            upstreams = [free_port() for _ in range(2)]
            for port in upstreams:
                start(model_server, str(port))
            nginx_port, llmlb_port = free_port(), free_port()
            servers = " ".join(f"server 127.0.0.1:{port};" for port in upstreams)
            config = directory / "nginx.conf"
            config.write_text(NGINX.format(dir=name, port=nginx_port, servers=servers))
            pids = {"nginx": start("nginx", "-p", name, "-c", str(config))}
            backends = ",".join(f"http://127.0.0.1:{port}" for port in upstreams)
            environment = {**os.environ, "LLMLB_LOCK_DIR": name, "LLMLB_BACKENDS": backends}
            pids["llmlb"] = start(llmlb, "serve", "--port", str(llmlb_port), env=environment)
            ports = {"direct": upstreams[0], "nginx": nginx_port, "llmlb": llmlb_port}
            for port in [*upstreams, *ports.values()]:
                wait_for(port)
            run(ports, pids, seconds, directory)
        finally:
            for process in started:
                process.send_signal(signal.SIGTERM)
            for process in started:
                process.wait()


def run(ports, pids, seconds, directory):
    loads = {
        "small, 64 connections": (SMALL, 64),
        "small, 4 connections": (SMALL, 4),
        "200-chunk stream, 32 at once": (STREAM, 32),
    }
    for port in ports.values():
        wrk(port, SMALL, 64, 1, directory)
    print("| load | figure | direct | nginx | llmlb | llmlb / nginx |")
    print("| --- | --- | --- | --- | --- | --- |")
    for load, (body, connections) in loads.items():
        results = {name: [] for name in ports}
        for _ in range(ROUNDS):
            for name, port in ports.items():
                before = cpu_seconds(pids[name]) if name in pids else 0
                result = wrk(port, body, connections, seconds, directory)
                used = cpu_seconds(pids[name]) - before if name in pids else 0
                result["cpu"] = used / result["requests"] * 1e6
                results[name].append(result)

        def figure(title, unit, key):
            values = {n: statistics.median(key(r) for r in results[n]) for n in ports}
            row(load, title, unit, values)

        def added(title, percentile):
            base = statistics.median(r[percentile] for r in results["direct"])
            values = {
                n: statistics.median(r[percentile] for r in results[n]) - base
                for n in ("nginx", "llmlb")
            }
            row(load, title, "µs", values)

        if body is SMALL:
            # Streams last as long as they last: their rate says when the clock was stopped.
            figure("requests per second", "", lambda r: r["rate"])
        figure("median latency", "µs", lambda r: r["p50"])
        figure("p99 latency", "µs", lambda r: r["p99"])
        added("p99 latency added", "p99")
        figure("CPU of the proxy per request", "µs", lambda r: r["cpu"])


def row(load, title, unit, values):
    def show(name):
        value = values.get(name)
        return f"{value:,.0f} {unit}".strip() if value else "-"

    # A difference of two noisy figures may come out below nothing, and then says nothing.
    sound = values["nginx"] > 0 and values["llmlb"] > 0
    ratio = f"{values['llmlb'] / values['nginx']:.2f}" if sound else "-"
    cells = [load, title, *(show(name) for name in ("direct", "nginx", "llmlb")), ratio]
    print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
