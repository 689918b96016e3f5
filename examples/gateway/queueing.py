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

import asyncio
import bisect
import dataclasses
import heapq
import itertools
import json
import os
import random
import re
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import bench
import peers
from features import CHAT, chat, wait_until
from standin import LOOP, ModelServer

ROUNDS = int(os.environ.get("ROUNDS", 3))
# Of a turn, about.
SECONDS = 4
# Of a request, on the average.
MEAN = 0.05
# How many times as much is asked for as there is.
OVERLOAD = 4
# Seconds by which one may come before another, and be seen behind it: they travel.
JITTER = 0.005
# So many times the places may overtake one, on any machine.
OVERTAKEN = 8
# The bars: of what the servers can do, and of the ideal.
BUSY, P99 = 0.98, 1.10
# Seconds for the longest turn.
PATIENCE = 120
LINUX = sys.platform == "linux"


def fixed(_rng):
    return MEAN


def exponential(rng):
    return min(rng.expovariate(1 / MEAN), 10 * MEAN)


def two_kinds(rng):
    """One in ten takes ten times as long as the others."""
    return MEAN / 1.9 * rng.choices((1, 10), (9, 1))[0]


@dataclasses.dataclass
class Server:
    most: int
    models: tuple = ("m",)
    weight: int = 1


@dataclasses.dataclass
class Load:
    title: str
    servers: list
    draw: Callable
    is_open: bool = False
    # Requests for another model, by what share of its own servers they keep busy.
    aside: float = 0
    # The last server does, half way.
    dies: bool = False

    def places(self, model):
        return sum(server.most for server in self.servers if model in server.models)


EQUAL = [Server(8), Server(8)]
UNEQUAL = [Server(1), Server(8)]
LOADS = [
    Load("all alike, closed", EQUAL, fixed),
    Load("exponential, closed", EQUAL, exponential),
    Load("one of ten 10 x as long, closed", EQUAL, two_kinds),
    Load("all alike, open", EQUAL, fixed, is_open=True),
    Load("exponential, open", EQUAL, exponential, is_open=True),
    Load("one of ten 10 x as long, open", EQUAL, two_kinds, is_open=True),
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


@dataclasses.dataclass
class Request:
    model: str
    # How long it is to take, and when it is to be sent, if that does not depend on others.
    seconds: float
    due: float = 0.0
    sent: float = 0.0
    status: int = 0
    # As its server saw it: how often, where, from when and until when.
    seen: int = 0
    server: int = -1
    began: float = 0.0
    done: float = 0.0

    def wait(self):
        return self.began - self.sent

    def took(self):
        return self.done - self.began


@dataclasses.dataclass
class Group:
    """Requests for one model, in the order in which they come; by so many clients, or when due."""

    requests: list
    clients: int = 0


def groups(load, rng, seconds):
    places = load.places("m")
    rate = places / MEAN
    many = [Request("m", load.draw(rng)) for _ in range(int(rate * seconds))]
    found = [Group(many, 0 if load.is_open else OVERLOAD * places)]
    if load.is_open:
        come(rng, many, OVERLOAD * rate)
    if load.aside:
        rate = load.places("quiet") / MEAN * load.aside
        few = [Request("quiet", load.draw(rng)) for _ in range(int(rate * seconds))]
        come(rng, few, rate)
        found.append(Group(few))
    return found


def come(rng, requests, rate):
    for request, due in zip(
        requests, itertools.accumulate(rng.expovariate(rate) for _ in requests), strict=True
    ):
        request.due = due


class Client:
    """A connection that is kept."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    @classmethod
    async def connect(cls, port):
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def ask(self, number, request):
        body = json.dumps(chat(request.model, f"SLOW {request.seconds:.6f}"))
        head = f"POST {CHAT} HTTP/1.1\r\nHost: bench\r\nX-Request-Id: {number}\r\n"
        kind = f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        text = f"{head}{kind}{body}".encode()
        request.sent = time.monotonic()
        self.writer.write(text)
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode()
        length = re.search(r"content-length: (\d+)", head, re.IGNORECASE)
        answer = await self.reader.readexactly(int(length[1]))
        request.status = int(head.split(" ", 2)[1])
        return answer


async def run(groups, port, own=None):
    """Sends all of them there; or, each client alone at its `own` place, to those."""
    numbers = itertools.count()
    todo = []
    for group in groups:
        requests = [(next(numbers), request) for request in group.requests]
        if not group.clients:
            clients = [await Client.connect(port) for _ in requests]
            todo += [(client, [one], True) for client, one in zip(clients, requests, strict=True)]
            continue
        rest = iter(requests)
        ports = own or [port] * group.clients
        todo += [(await Client.connect(port), rest, False) for port in ports]
    start = time.monotonic()

    async def go(client, requests, is_due):
        for number, request in requests:
            if is_due:
                await asyncio.sleep(start + request.due - time.monotonic())
            await client.ask(number, request)
        client.writer.close()

    await asyncio.gather(*(go(*one) for one in todo))


def collect(groups, servers):
    """Notes what the servers saw of each request, and how often."""
    requests = [request for group in groups for request in group.requests]
    for index, server in enumerate(servers):
        for asked in server.answered():
            one = requests[int(asked.headers["x-request-id"])]
            one.seen += 1
            one.server, one.began, one.done = index, asked.at, asked.done


def ideal(load, groups):
    """What would be, were there one queue, and nothing took time but what the servers do, for as
    long as they did it; those who come when others are answered come at once."""
    flying = [0] * len(load.servers)
    events, order = [], itertools.count()
    waiting, found = [], []

    def arrives(at, request, rest):
        heapq.heappush(events, (at, next(order), request, rest, None))

    def begins(at, request, rest, index):
        flying[index] += 1
        end = at + request.took()
        heapq.heappush(events, (end, next(order), request, rest, index))

    def fits(request, index):
        return request.model in load.servers[index].models

    for group in groups:
        rest = iter(group.requests)
        for request in itertools.islice(rest, group.clients or None):
            arrives(request.sent, request, rest)
    while events:
        at, _, request, rest, index = heapq.heappop(events)
        if index is None:
            one = dataclasses.replace(request, sent=at)
            found.append(one)
            free = [
                (flying[index] / server.weight, index)
                for index, server in enumerate(load.servers)
                if fits(one, index) and flying[index] < server.most
            ]
            if free:
                start(one, at, index := min(free)[1])
                begins(at, one, rest, index)
            else:
                waiting.append((one, rest))
            continue
        flying[index] -= 1
        if (following := next(rest, None)) is not None:
            arrives(at, following, rest)
        # An arrival at this same moment comes behind those who wait.
        for position, (one, others) in enumerate(waiting):
            if fits(one, index):
                del waiting[position]
                start(one, at, index)
                begins(at, one, others, index)
                break
    return found


def start(request, at, index):
    took = request.took()
    request.server, request.began, request.done = index, at, at + took


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


def health(running):
    """What is known of each backend."""
    return json.loads(running.ask("GET", "/health")[1])["backends"]


class Llmlb(peers.Llmlb):
    """Before servers of which each may have its own number."""

    def __init__(self, program, servers, patience=60):
        super().__init__(program)
        self.servers, self.patience = servers, patience

    def settings(self, setup):
        return [f" max={server.most} weight={server.weight}" for server in self.servers]

    def command(self, setup):
        many = ["--max-requests", "8192", "--queue", "8192"]
        return [*super().command(setup), *many, "--queue-timeout", str(self.patience)]

    def started(self, running):
        if not wait_until(lambda: self.states(running) == ["up"] * len(self.servers)):
            raise peers.Failed("not all servers are up")

    def states(self, running):
        return [one["state"] for one in health(running)]


def clocks(pid):
    """Time, and the processor time of this process and that one, where that can be told."""
    return time.monotonic(), time.process_time(), bench.cpu_seconds(pid) if LINUX else 0


class Turn:
    """One load, on servers that are there for it alone."""

    def __init__(self, llmlb, load, seed, seconds):
        self.load, self.seed, self.seconds = load, seed, seconds
        self.groups = self.draw()
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

    def draw(self):
        return groups(self.load, random.Random(self.seed), self.seconds)

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
        again = self.draw()[:1]
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
            full = known.most if "m" in known.models else 0
            if not full <= server.most <= known.most:
                yield f"{server.most} at once at a server of {known.most}"
        many, _ = overtaken(good)
        if many > OVERTAKEN * self.load.places("m"):
            yield f"one was overtaken by {many}"

    def figures(self):
        should = ideal(self.load, self.groups)
        found = {"busy": busy(self.load, self.all)}
        found["direct"] = busy(self.load, should) if self.load.is_open else self.direct()
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
        found["bar busy"] = found["busy"] / found["direct"]
        found["bar p99"] = found["p99"] / found["p99 ideal"]
        return found


class Unrest:
    """Clients that come and leave, waits that run out, a limit that changes, and a server that dies
    and has a successor."""

    def __init__(self, llmlb):
        self.known = [Server(4) for _ in range(3)]
        self.servers = [ModelServer("m") for _ in self.known]
        self.statuses, self.problems = {}, []
        self.goes_on, self.some_leave = True, False
        # Waits run out: on the average, they are three times as long as a request.
        self.peer = Llmlb(llmlb, self.known, 4 * MEAN)
        with tempfile.TemporaryDirectory() as directory:
            self.running = peers.Running(self.peer, peers.Setup(Path(directory), self.backends()))
            try:
                self.upset()
            except TimeoutError as error:
                self.problems.append(str(error) or "some were never answered")
            finally:
                self.running.end()
                for server in self.servers:
                    server.close()

    def backends(self):
        return [(server.url, server.models) for server in self.servers]

    def health(self, index):
        url = self.servers[index].url
        return next((one for one in health(self.running) if one["url"] == url), {})

    def upset(self):
        clients = self.clients()
        self.fill("at first")
        self.limit(0, 1)
        self.until("a lower limit", lambda: self.health(0)["max"] == 1)
        self.until("what was more to end", lambda: self.health(0)["in_flight"] <= 1)
        shrunk = self.servers[0]
        shrunk.most, before = 0, len(shrunk.asked)
        self.until("more requests", lambda: len(shrunk.asked) > before + 10)
        if shrunk.most > 1:
            self.problems.append(f"{shrunk.most} at once at a server that may have 1 by now")
        self.limit(0, 4)
        self.fill("after a limit was low and high again")
        self.some_leave = True
        self.servers[2].close()
        self.until("it to be down", lambda: self.health(2)["state"] == "down")
        self.servers[2] = ModelServer("m")
        self.change()
        self.until("its successor", lambda: self.health(2).get("state") == "up")
        self.until("all to be in use", lambda: all(s.most >= 4 for s in self.servers))
        self.end(clients)
        self.until("an end", self.is_idle)
        self.goes_on = True
        clients = self.clients()
        self.fill("in the end")
        self.end(clients)
        self.judge()

    def judge(self):
        allowed = {"200": float("inf"), "503 queue_timeout": float("inf")}
        # Those that the dead server had in hand, or was given on a connection that it had closed.
        allowed["502 backend_failed"] = 4 * len(self.known)
        for status, count in self.statuses.items():
            if count > allowed.get(status, 0):
                self.problems.append(f"{count} were answered with {status}")

    def until(self, what, condition):
        if not wait_until(condition):
            raise TimeoutError(f"waited in vain for {what}")

    def fill(self, when):
        """All places are in use, and no more."""
        for server in self.servers:
            server.most = 0
        self.until(f"all places, {when}", lambda: all(s.most >= 4 for s in self.servers))
        if any(server.most > 4 for server in self.servers):
            self.problems.append(f"more at once than may be, {when}")

    def end(self, clients):
        self.goes_on = self.some_leave = False
        clients.result(peers.PATIENCE)

    def limit(self, index, most):
        self.known[index].most = most
        self.change()

    def change(self):
        self.peer.change(self.running, self.backends())

    def is_idle(self):
        metrics = self.running.ask("GET", "/metrics")[1].decode()
        flying = [one["in_flight"] for one in health(self.running)]
        return not any(flying) and "llmlb_queue_depth 0\n" in metrics

    def clients(self):
        count = OVERLOAD * sum(server.most for server in self.known)

        async def all_of_them():
            await asyncio.gather(*(self.client(random.Random(seed)) for seed in range(count)))

        return asyncio.run_coroutine_threadsafe(all_of_them(), LOOP.loop)

    async def client(self, rng):
        client = None
        while self.goes_on:
            client = client or await Client.connect(self.running.port)
            request = Request("m", exponential(rng))
            leaves = self.some_leave and rng.random() < 0.3
            try:
                asked = client.ask(0, request)
                answer = await asyncio.wait_for(asked, 4 * MEAN * rng.random() if leaves else None)
            except asyncio.TimeoutError:
                client.writer.close()
                client = None
                continue
            code = "" if request.status == 200 else f" {json.loads(answer)['error']['code']}"
            told = f"{request.status}{code}"
            self.statuses[told] = self.statuses.get(told, 0) + 1
        if client:
            client.writer.close()


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


def seconds(values):
    return f"{statistics.median(values):.3f} s"


HEAD = ["load", "direct", "llmlb", "share", "p99: ideal", "llmlb", "ratio", "longest: ideal", "llmlb"]


def table(results):
    yield HEAD
    yield ["---"] * len(HEAD)
    for title, rounds in results.items():
        of = {key: [figures[key] for figures in rounds] for key in rounds[0]}
        share = [spread(of[key], "{:.1%}") for key in ("direct", "busy", "bar busy")]
        p99 = [seconds(of["p99 ideal"]), seconds(of["p99"]), spread(of["bar p99"], "{:.3f}")]
        yield [title, *share, *p99, seconds(of["longest ideal"]), seconds(of["longest"])]
        if any(of["quiet p99"]):
            waits = [seconds(of[f"quiet {key}"]) for key in ("p99 ideal", "p99")]
            longest = [seconds(of[f"quiet {key}"]) for key in ("longest ideal", "longest")]
            yield ["… the quiet one", "-", "-", "-", *waits, "-", *longest]


def missed(results):
    for title, rounds in results.items():
        busy, p99 = (statistics.median(one[key] for one in rounds) for key in ("bar busy", "bar p99"))
        if busy < BUSY:
            yield f"{title}: {busy:.1%} of what the servers can do"
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
    most = {key: max(one[key] for one in everything) for key in ("overtaken by", "took", "own", "llmlb")}
    print(
        f"\nNobody was overtaken by more than {most['overtaken by'] * 1e3:.0f} ms. Servers took "
        f"{most['took']:.3f} x the time that was drawn, at worst. Of a core, the clients and servers "
        f"took up to {most['own']:.0%}, llmlb {most['llmlb']:.0%}."
    )
    for problem in [*problems, *missed(results)]:
        print(f"Missed: {problem}")
    return None


if __name__ == "__main__":
    main()
