#!/usr/bin/env python3
"""llmlb beside other load balancers: what each does, and what it costs.

Usage: compare.py features LLMLB VENVS DOCUMENT
       compare.py costs LLMLB VENVS DOCUMENT MODEL_SERVER
       compare.py --smoke LLMLB

Looks at those of them that are there: programs of the PATH, and of the virtual environments below
VENVS, one for each. Writes a table, and what was seen where one is not as good, between the markers
of DOCUMENT. With --smoke llmlb is looked at alone, and has to do all that it claims.

ROUNDS and WORKERS come from the environment, as for bench.py.
"""

import concurrent.futures
import contextlib
import http.client
import os
import platform
import re
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import textwrap
import time
from pathlib import Path

import bench
import document
import features
import peers
from features import FEATURES, SCENARIOS, Seen, failure, look

ROUNDS = int(os.environ.get("ROUNDS", 3))
# Seconds of each turn under load; streams of each turn.
SECONDS, STREAMS = 3, 10
SETTLED = 1
# What llmlb does not do.
NOT_CLAIMED = {"h2", "messages"}
# Percent of requests that may fail while a backend is broken, until that is found.
UNNOTICED = 10
# So many scenarios at once, where one peer is looked at alone.
AT_ONCE = 6
PEERS_AT_ONCE = 3


class Absent(Exception):
    """A peer that is not installed."""


def candidates(llmlb, venvs):
    kinds = [peers.SglangRouter, peers.Smg, peers.VllmRouter, peers.Litellm]
    return [peers.Llmlb(llmlb), peers.Nginx(), peers.Haproxy(), *(kind(venvs) for kind in kinds)]


def installed(everybody):
    """Those that are there with their versions, and why the others are not."""
    versions, absent = {}, {}
    for peer in everybody:
        try:
            versions[peer] = peer.version()
        except (OSError, ValueError, subprocess.SubprocessError):
            absent[peer.name] = "it could not be installed"
    return versions, absent


def good(seen):
    if isinstance(seen.verdict, str) and (share := re.match(r"([0-9.]+) %", seen.verdict)):
        return float(share[1]) < UNNOTICED
    return seen.verdict is True or str(seen.verdict).startswith(("yes", "none"))


def smoke(llmlb):
    peer = peers.Llmlb(llmlb)
    # On a busy machine.
    features.SLACK = 3
    scenarios = list(SCENARIOS)
    if not shutil.which("openssl"):
        scenarios = [one for one in scenarios if "tls" not in SCENARIOS[one]]
        print("compare: TLS is not looked at, as there is no openssl")
    # The longest first, which wait more than they work.
    scenarios.sort(key=lambda one: SCENARIOS[one][0] not in ("hung", "errors", "resets"))
    with concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool:
        found = {}
        for seen in pool.map(lambda scenario: look(peer, scenario), scenarios):
            found |= seen
    wanted = {name for one in scenarios for name in SCENARIOS[one]} - NOT_CLAIMED
    failed = {name for name in wanted if name not in found or not good(found[name])}
    for name in sorted(failed):
        seen = found.get(name, Seen(False, "it was not looked at"))
        print(f"{FEATURES[name]}: {seen.show()}, {seen.what}")
    if failed:
        sys.exit(f"compare: {len(failed)} of {len(wanted)} features are not there")
    print(f"compare: llmlb does all {len(wanted)} that it claims")


def look_at_all(versions):
    """What there is of each, some of them at once: most of the time is waited."""

    def all_of(peer):
        found = {}
        for scenario, names in SCENARIOS.items():
            found |= look(peer, scenario)
            for name in names:
                seen = found.setdefault(name, Seen(None, "it was not come to"))
                print(f"{peer.name}: {name}: {seen.show()} ({seen.what!r})", flush=True)
        return found

    # The last takes the longest to start.
    order = list(reversed(versions))
    with concurrent.futures.ThreadPoolExecutor(PEERS_AT_ONCE) as pool:
        return dict(zip(order, pool.map(all_of, order), strict=True))


class Bench:
    """All peers in front of the same two servers, in turns."""

    def __init__(self, model_server, versions):
        self.model_server, self.versions = model_server, versions
        self.running, self.failed, self.started = {}, {}, []
        self.figures = {}
        self.stack = contextlib.ExitStack()

    def note(self, figure, name, value):
        self.figures.setdefault(figure, {}).setdefault(name, []).append(value)

    def start(self):
        ports = [bench.free_port() for _ in range(2)]
        for port in ports:
            quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            server = subprocess.Popen([self.model_server, str(port), "1"], **quiet)
            self.stack.callback(lambda server=server: (server.terminate(), server.wait()))
            bench.wait_for(port)
        self.ports = {"direct": ports[0]}
        for peer in self.versions:
            directory = Path(self.stack.enter_context(tempfile.TemporaryDirectory()))
            backends = [(f"http://127.0.0.1:{port}", ("none",)) for port in ports]
            setup = peers.Setup(directory, backends, many=True)
            try:
                running = peers.Running(peer, setup)
            except (peers.Failed, peers.Unsupported, OSError) as error:
                self.failed[peer.name] = failure(error)
                continue
            self.stack.callback(running.end)
            try:
                self.wait(running)
            except TimeoutError as error:
                self.failed[peer.name] = failure(error)
                continue
            self.running[peer.name] = running
            self.ports[peer.name] = running.port
        time.sleep(SETTLED)
        for name, running in self.running.items():
            self.note("idle", name, bench.memory(running.process.pid) / 1e6)

    def wait(self, running):
        deadline = time.monotonic() + peers.PATIENCE
        while time.monotonic() < deadline:
            with contextlib.suppress(OSError, http.client.HTTPException):
                answers = [running.ask("POST", PATH, bench.SMALL, JSON)[0] for _ in range(10)]
                if answers == [200] * 10:
                    return
            time.sleep(0.2)
        raise TimeoutError("it does not answer from these servers")

    def load(self, directory):
        for name, port in self.ports.items():
            pid = self.running[name].process.pid if name in self.running else None
            before = bench.cpu_seconds(pid) if pid else 0
            try:
                result = bench.wrk(f"http://127.0.0.1:{port}", bench.SMALL, 64, SECONDS, directory)
            except SystemExit as error:
                print(f"{name}: {error}", flush=True)
                continue
            self.note("rate", name, result["rate"])
            if pid:
                used = bench.cpu_seconds(pid) - before
                self.note("cpu", name, used / result["requests"] * 1e6)

    def first_tokens(self):
        for name, port in self.ports.items():
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=peers.PATIENCE)
            with contextlib.closing(connection):
                for _ in range(STREAMS):
                    began = time.perf_counter()
                    connection.request("POST", PATH, bench.STREAM, JSON)
                    answer = connection.getresponse()
                    # Comments and events without text are none.
                    line = answer.readline()
                    while line and b'"word "' not in line:
                        line = answer.readline()
                    if not line:
                        print(f"{name}: a stream without a token, {answer.status}", flush=True)
                        break
                    self.note("first", name, (time.perf_counter() - began) * 1e3)
                    answer.read()

    def run(self):
        with self.stack, tempfile.TemporaryDirectory() as name:
            self.start()
            for number in range(ROUNDS):
                self.first_tokens()
                self.load(Path(name))
                print(f"round {number + 1} of {ROUNDS}", flush=True)
            for name, running in self.running.items():
                self.note("loaded", name, bench.memory(running.process.pid) / 1e6)
        found = {
            figure: {name: statistics.median(values) for name, values in by_name.items()}
            for figure, by_name in self.figures.items()
        }
        direct = found["first"].pop("direct")
        found["first"] = {name: value - direct for name, value in found["first"].items()}
        return found


PATH = "/v1/chat/completions"
JSON = {"Content-Type": "application/json"}
FIGURES = {
    "rate": ("Requests per second, 64 connections", "{:,.0f}"),
    "cpu": ("Processor time for each of them", "{:,.0f} µs"),
    "first": ("Time to the first token, more than direct", "{:.2f} ms"),
    "idle": ("Memory after ten requests", "{:,.0f} MB"),
    "loaded": ("Memory after the load", "{:,.0f} MB"),
}


def titles(versions):
    return [f"{peer.name} {version}" for peer, version in versions.items()]


def features_table(versions, found):
    rows = [["feature", *titles(versions)]]
    for name, title in FEATURES.items():
        rows.append([title, *(found[peer][name].show() for peer in versions)])
    return document.table(rows)


def figures_table(versions, figures):
    names = [peer.name for peer in versions]
    rows = [["figure", "direct", *titles(versions)]]
    for key, (title, form) in FIGURES.items():
        values = figures[key]

        def cell(name, values=values, form=form):
            if name not in values:
                return "-"
            shown = form.format(values[name])
            if name in ("direct", "llmlb") or values["llmlb"] <= 0 or values[name] <= 0:
                return shown
            ratio = values[name] / values["llmlb"]
            return f"{shown} ({ratio:,.0f} x)" if ratio >= 10 else f"{shown} ({ratio:.2g} x)"

        rows.append([title, cell("direct"), *(cell(name) for name in names)])
    return document.table(rows)


def seen_list(versions, found):
    """What was seen of those that have not done a thing, with their names."""
    lines = []
    for name, title in FEATURES.items():
        told = [
            f"{peer.name}: {plain(found[peer][name].what)}"
            for peer in versions
            if found[peer][name].verdict is not True
            and found[peer][name].what not in ("", peers.NO_OPTION)
        ]
        if told:
            text = f"{title.lstrip('… ')}. {'; '.join(told)}"
            lines.append(textwrap.fill(text, 99, initial_indent="- ", subsequent_indent="  "))
    return "".join(f"{line}\n" for line in lines)


def plain(text):
    text = " ".join(re.sub(r"[`|<>\[\]*_]", " ", text).split())
    return re.sub(r"\S*(/tmp/|://)\S*", "…", text)[:110].strip()


def missing(absent):
    gone = "; ".join(f"{name}: {why}" for name, why in absent.items())
    return f"\nNot there, or not in all: {gone}.\n" if gone else ""


def compare_features(versions, absent):
    found = look_at_all(versions)
    made = features_table(versions, found) + missing(absent)
    return {"features": made, "seen": seen_list(versions, found)}


def compare_costs(versions, absent, model_server):
    if not shutil.which("wrk"):
        sys.exit("missing: wrk (Debian: apt install wrk)")
    load = os.getloadavg()[0]
    benches = Bench(model_server, versions)
    figures = benches.run()
    where = (
        f"{os.cpu_count()} cores of {platform.machine()} for all, {bench.WORKERS} workers each, "
        f"{ROUNDS} rounds of\n{SECONDS} s and {STREAMS} streams, medians. When it began, "
        f"{load:.0f} processes wanted the cores.\n"
    )
    where += missing({**absent, **benches.failed})
    return {"figures": figures_table(versions, figures), "place": where}


def main():
    # What has been started ends as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("compare: ended by SIGTERM"))
    if sys.argv[1] == "--smoke":
        return smoke(sys.argv[2])
    part, llmlb, venvs, path, *rest = sys.argv[1:]
    versions, absent = installed(candidates(llmlb, venvs))
    parts = {"features": compare_features, "costs": compare_costs}[part](versions, absent, *rest)
    document.write(Path(path), parts)
    return None


if __name__ == "__main__":
    main()
