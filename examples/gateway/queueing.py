#!/usr/bin/env python3
"""How well requests wait, at four times what the servers can do: `queueing.py [--smoke] LLMLB`.

Stand-ins for model servers serve as many requests at once as they may, each for a time that is
drawn beforehand. Clients come on and on, each asking again as soon as it is answered (closed), or
at random moments for a while (open). What is measured stands beside one queue in which nothing but
the requests takes time, worked out from the same arrivals and times (ideal), and beside clients
that each have a place of their own at a server (direct).

Prints a table of the medians of ROUNDS rounds, from the environment, with the least and the most,
and what of it missed the bars. With --smoke there is one short round, nothing is measured, and what
holds on any machine has to hold: all are answered, none is passed on twice, no server has more than
it may have, all places are used, and nobody is overtaken by many; nor is a place lost where clients
leave, waits run out, a limit changes and a server dies.
"""

import bisect
import os
import random
import signal
import statistics
import sys
import tempfile
import threading
import time
from pathlib import Path

import bench
import peers
from crowd import Llmlb, Load, Server, collect, draw, exponential, fixed, run, two_kinds
from ideal import Ideal
from standin import LOOP, ModelServer
from unrest import Unrest

ROUNDS = int(os.environ.get("ROUNDS", 3))
# Of a turn, about.
SECONDS = 4
# Seconds by which one may come before another, and be seen behind it: they travel.
JITTER = 0.005
# So many times the places may overtake one, on any machine.
OVERTAKEN = 8
# The bars: of what the servers can do, and of the ideal.
BUSY, P99 = 0.98, 1.10
# Seconds for the longest turn.
PATIENCE = 120
LINUX = sys.platform == "linux"

EQUAL = [Server(8), Server(8)]
UNEQUAL = [Server(1), Server(8)]
LOADS = [
    Load("all alike, closed", EQUAL, fixed),
    Load("exponential, closed", EQUAL, exponential),
    Load("one in ten takes ten times as long, closed", EQUAL, two_kinds),
    Load("all alike, open", EQUAL, fixed, is_open=True),
    Load("exponential, open", EQUAL, exponential, is_open=True),
    Load("one in ten takes ten times as long, open", EQUAL, two_kinds, is_open=True),
    Load("servers of 1 and 8, closed", UNEQUAL, exponential),
    Load("servers of 1 and 8, open", UNEQUAL, exponential, is_open=True),
    Load("weights 1 and 3, closed", [Server(8), Server(8, weight=3)], exponential),
    Load(
        "two models, one of them quiet",
        [Server(8), Server(8, ("m", "quiet")), Server(8, ("quiet",))],
        exponential,
        aside=0.1,
    ),
]
DIES = Load("one of three dies, open", [Server(8)] * 3, exponential, is_open=True, dies=True)
SMOKE = [LOADS[1], LOADS[5], LOADS[6], LOADS[9], DIES]


def busy(load, requests):
    """The share of their time that the servers of the model that all want had every place in use,
    from the first request on until none waits."""
    wanted = [request for request in requests if request.model == "m"]
    first, last = (pick(request.began for request in wanted) for pick in (min, max))
    worked = sum(
        max(0, min(request.done, last) - max(request.began, first))
        for request in requests
        if "m" in load.servers[request.server].models
    )
    return worked / (load.places("m") * (last - first))


def p99(values):
    return statistics.quantiles(values, n=100, method="inclusive")[98]


def overtaken(requests):
    """By how many the unluckiest has been overtaken, more than in travelling; and by how many
    seconds the worst of them came behind it, and was served before it."""
    most, worst = 0, 0.0
    for model in {request.model for request in requests}:
        line = sorted((r for r in requests if r.model == model), key=lambda r: r.sent)
        sent = [request.sent for request in line]
        for request in line:
            later = line[bisect.bisect(sent, request.sent + JITTER) :]
            passed = [one for one in later if one.began < request.began - JITTER]
            most = max(most, len(passed))
            margins = (min(x.sent - request.sent, request.began - x.began) for x in passed)
            worst = max([worst, *margins])
    return most, worst


def clocks(pid):
    """Time, and the processor time of this process and that one, where that can be told."""
    return time.monotonic(), time.process_time(), bench.cpu_seconds(pid) if LINUX else 0


class Turn:
    """One load, on servers that are there for it alone."""

    def __init__(self, llmlb, load, seed, seconds):
        self.load, self.seed, self.seconds = load, seed, seconds
        self.groups = draw(load, random.Random(seed), seconds)
        self.all = [request for group in self.groups for request in group.requests]
        self.servers = [ModelServer(*server.models) for server in load.servers]
        with tempfile.TemporaryDirectory() as directory:
            backends = [(server.url, server.models) for server in self.servers]
            setup = peers.Setup(Path(directory), backends)
            running = peers.Running(Llmlb(llmlb, load.servers), setup)
            before = clocks(running.process.pid)
            try:
                self.send(self.groups, running.port)
                after = clocks(running.process.pid)
            finally:
                running.end()
        elapsed, *used = (b - a for a, b in zip(before, after, strict=True))
        self.cpu = [seconds / elapsed for seconds in used]
        collect(self.groups, self.servers)

    def send(self, groups, *where):
        if self.load.dies:
            threading.Timer(self.seconds / 2, self.servers[-1].close).start()
        try:
            LOOP.do(run(groups, *where), PATIENCE)
        finally:
            for server in self.servers:
                server.close()

    def direct(self):
        """The share of places in use where each has a client of its own."""
        again = draw(self.load, random.Random(self.seed), self.seconds)[:1]
        self.servers = [ModelServer(*server.models) for server in self.load.servers]
        both = zip(self.servers, self.load.servers, strict=True)
        own = [one.port for one, known in both for _ in range(known.most) if "m" in known.models]
        self.send(again, None, own)
        collect(again, self.servers)
        return busy(self.load, again[0].requests)

    def problems(self):
        """What is wrong with it on any machine."""
        good = [request for request in self.all if request.status == 200]
        bad = sorted({request.status for request in self.all} - {200})
        # What the one that dies has in hand dies with it, or was given to it as it did.
        lost = 2 * self.servers[-1].most if self.load.dies else 0
        if set(bad) - {502} or len(self.all) - len(good) > lost:
            yield f"{len(self.all) - len(good)} were answered with {bad}"
        if strays := sum(request.seen != 1 for request in good):
            yield f"{strays} requests were not passed on once"
        for server, known in zip(self.servers, self.load.servers, strict=True):
            # The one that dies may do so before it is full.
            dies = self.load.dies and server is self.servers[-1]
            full = known.most if "m" in known.models and not dies else 0
            if not full <= server.most <= known.most:
                yield f"{server.most} at once at a server of {known.most}"
        many, _ = overtaken(good)
        if many > OVERTAKEN * self.load.places("m"):
            yield f"one was overtaken by {many}"

    def figures(self):
        should = Ideal(self.load.servers).serve(self.groups)
        found = {"busy": busy(self.load, self.all)}
        # Who comes at random can't have a place of its own: beside all that there is.
        found["direct"] = 0 if self.load.is_open else self.direct()
        for name, model in (("", "m"), ("quiet ", "quiet")):
            waits, shoulds = (
                [request.wait() for request in requests if request.model == model] or [0, 0]
                for requests in (self.all, should)
            )
            found |= {f"{name}p99": p99(waits), f"{name}p99 ideal": p99(shoulds)}
            found |= {f"{name}longest": max(waits), f"{name}longest ideal": max(shoulds)}
        found["overtaken"], found["overtaken by"] = overtaken(self.all)
        drawn = sum(request.seconds for request in self.all)
        found["took"] = sum(request.took() for request in self.all) / drawn
        found["own"], found["llmlb"] = self.cpu
        found["bar busy"] = found["busy"] / (found["direct"] or busy(self.load, should))
        found["bar p99"] = found["p99"] / found["p99 ideal"]
        return found


def smoke(llmlb):
    failed = False

    def tell(title, problems):
        nonlocal failed
        for problem in problems:
            print(f"queueing: {title}: {problem}")
            failed = True

    for seed, load in enumerate(SMOKE):
        tell(load.title, Turn(llmlb, load, seed, 1).problems())
    unrest = Unrest(llmlb)
    tell("unrest", unrest.problems)
    if failed:
        sys.exit(1)
    print(f"queueing: {len(SMOKE)} loads were served in order; amid unrest: {unrest.statuses}")


def spread(values, form):
    middle, *ends = (form.format(f(values)) for f in (statistics.median, min, max))
    return middle if ends == [middle] * 2 else f"{middle} ({ends[0]} to {ends[1]})"


def percent(values):
    return spread([100 * value for value in values], "{:.1f} %") if all(values) else "-"


def seconds(values):
    return f"{statistics.median(values):.3f} s"


HEAD = ["load", "places in use: direct", "llmlb", "ratio", "p99 wait: ideal", "llmlb", "ratio"]
HEAD += ["longest wait: ideal", "llmlb"]


def table(results):
    yield HEAD
    yield ["---"] * len(HEAD)
    for title, rounds in results.items():
        of = {key: [figures[key] for figures in rounds] for key in rounds[0]}
        share = [percent(of[key]) for key in ("direct", "busy", "bar busy")]
        p99 = [seconds(of["p99 ideal"]), seconds(of["p99"]), spread(of["bar p99"], "{:.3f}")]
        yield [title, *share, *p99, seconds(of["longest ideal"]), seconds(of["longest"])]
        if any(of["quiet p99"]):
            waits = [seconds(of[f"quiet {key}"]) for key in ("p99 ideal", "p99")]
            longest = [seconds(of[f"quiet {key}"]) for key in ("longest ideal", "longest")]
            yield ["… the quiet one", "-", "-", "-", *waits, "-", *longest]


def missed(results):
    for title, rounds in results.items():
        busy, p99 = (
            statistics.median(one[key] for one in rounds) for key in ("bar busy", "bar p99")
        )
        if busy < BUSY:
            yield f"{title}: {100 * busy:.1f} % of what the servers can do"
        if p99 > P99:
            yield f"{title}: p99 of the wait {p99:.3f} x the ideal"


def main():
    # What has been started ends as well.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("queueing: ended by SIGTERM"))
    if sys.argv[1] == "--smoke":
        return smoke(sys.argv[2])
    results, problems = {}, []
    for seed in range(ROUNDS):
        for load in LOADS:
            turn = Turn(sys.argv[1], load, seed, SECONDS)
            problems += [f"{load.title}: {problem}" for problem in turn.problems()]
            figures = turn.figures()
            results.setdefault(load.title, []).append(figures)
            shown = ", ".join(f"{key} {value:.4g}" for key, value in figures.items())
            print(f"{load.title}: {shown}", file=sys.stderr, flush=True)
    for row in table(results):
        print("| " + " | ".join(row) + " |")
    everything = [one for rounds in results.values() for one in rounds]
    most = {key: max(one[key] for one in everything) for key in everything[0]}
    print(
        f"\nNobody was overtaken by more than {most['overtaken by'] * 1e3:.0f} ms. Servers took "
        f"{most['took']:.3f} x the time that was drawn, at worst. Of a core, clients and servers "
        f"took up to {100 * most['own']:.0f} %, llmlb {100 * most['llmlb']:.0f} %."
    )
    for problem in [*problems, *missed(results)]:
        print(f"Missed: {problem}")
    return None


if __name__ == "__main__":
    main()
