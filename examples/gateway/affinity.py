#!/usr/bin/env python3
"""What it is worth that a conversation stays with its server.

Usage: affinity.py LLMLB VENVS [DOCUMENT]

Two llama.cpp servers, with a model of random weights that is big enough for reading to take time.
Before them llmlb with each `--affinity`, and those of the other load balancers below VENVS that
look for what a server has read, with their policy for it; beside them clients that go straight to
the servers, and keep to one (sticky) or take turns (turns). Each round goes through all of them, in
an order of its own, and what is said is said once, so that nobody reads what another one has had
read. Prints a table, which is put into DOCUMENT as well:

- alone: one conversation at a time, nothing else going on;
- full: 12 conversations at once, three times what the servers do at a time.

ROUNDS and WORKERS come from the environment, as for bench.py.
"""

import concurrent.futures
import contextlib
import dataclasses
import http.client
import itertools
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import document
import e2e
import make_model
import peers

ROUNDS = int(os.environ.get("ROUNDS", 6))
TURNS = 5
# One after the other, and at once.
ALONE, FULL = 2, 12
ANSWER = 8
WORDS = 300
# What each of the two servers says, so that its answers tell whose they are.
LETTERS = (b"ab", b"yz")
MODEL = "m"

# Bigger than what is tested with: a thousand tokens take a good part of a second to read.
make_model.EMBEDDING, make_model.HEADS = 256, 4
make_model.LAYERS, make_model.FEED_FORWARD = 6, 512


@dataclasses.dataclass
class Turn:
    # Seconds to the first token.
    first: float
    text: str

    def server(self):
        """Which of the two has said it."""
        [server] = [n for n, letters in enumerate(LETTERS) if self.text[0].encode() in letters]
        return server


@dataclasses.dataclass
class Way:
    """How requests get to the servers."""

    name: str
    # By the conversation and its turn.
    port: object

    def __post_init__(self):
        self.rounds, self.failed = {"alone": [], "full": []}, ""


@dataclasses.dataclass
class Round:
    """What conversations have seen, each in a list of its turns."""

    talks: list
    seconds: float

    def first(self):
        """To the first token, where there was something to go on with."""
        return statistics.mean(turn.first for talk in self.talks for turn in talk[1:])

    def rate(self):
        return sum(map(len, self.talks)) / self.seconds

    def stayed(self):
        """How many turns of how many went where the one before it had been."""
        pairs = [pair for talk in self.talks for pair in itertools.pairwise(talk)]
        return sum(a.server() == b.server() for a, b in pairs), len(pairs)


def words(rng, count):
    return " ".join(rng.choice(["load", "port", "lock", "fleet", "token"]) for _ in range(count))


def ask(port, messages):
    body = {"model": MODEL, "messages": messages, "max_tokens": ANSWER, "stream": True}
    body |= {"ignore_eos": True, "temperature": 0}
    began = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=peers.PATIENCE)
    with contextlib.closing(connection):
        headers = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
        answer = connection.getresponse()
        if answer.status != 200:
            raise OSError(f"{answer.status} {answer.read()[:80]!r}")
        first, text = None, ""
        for line in answer:
            if not line.startswith(b"data: {"):
                continue
            for choice in json.loads(line[6:])["choices"]:
                if content := choice["delta"].get("content"):
                    first = first or time.perf_counter() - began
                    text += content
    if not text:
        raise OSError("an answer without a text")
    return Turn(first, text)


def answers(port):
    with contextlib.suppress(OSError, http.client.HTTPException):
        return ask(port, [{"role": "user", "content": "Hello"}])


def converse(rng, port_of_turn):
    messages, turns = [], []
    for number in range(TURNS):
        messages.append({"role": "user", "content": words(rng, WORDS // TURNS)})
        turns.append(ask(port_of_turn(number), messages))
        messages.append({"role": "assistant", "content": turns[-1].text})
    return turns


def alone(seeds, way):
    began = time.perf_counter()
    talks = [
        converse(random.Random(next(seeds)), lambda turn, n=n: way.port(n, turn))
        for n in range(ALONE)
    ]
    return Round(talks, time.perf_counter() - began)


def full(seeds, way):
    def talk(number, seed):
        return converse(random.Random(seed), lambda turn: way.port(number, turn))

    began = time.perf_counter()
    talks = at_once(talk, range(FULL), itertools.islice(seeds, FULL))
    return Round(talks, time.perf_counter() - began)


def at_once(function, *arguments):
    with concurrent.futures.ThreadPoolExecutor(FULL) as pool:
        return list(pool.map(function, *arguments))


def uses_both(port):
    """Whether both servers answer to what several say at once."""

    def greet(greeting):
        with contextlib.suppress(OSError, http.client.HTTPException):
            return ask(port, [{"role": "user", "content": greeting}]).server()

    greetings = [os.urandom(100).hex() for _ in range(FULL)]
    return {0, 1} <= set(at_once(greet, greetings))


def started(peer, affinity, urls, stack):
    """It, before both servers."""
    directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    setup = peers.Setup(directory, [(url, (MODEL,)) for url in urls], affinity=affinity)
    running = peers.Running(peer, setup)
    stack.callback(running.end)
    deadline = time.monotonic() + peers.PATIENCE
    while not uses_both(running.port):
        if time.monotonic() > deadline:
            raise peers.Failed("it does not use both servers")
    return running.port


def fronts(llmlb, venvs, urls, stack):
    """A way through each of them, and why there is none through others."""
    ways, absent = [], {}
    mine = peers.Llmlb(llmlb)
    kinds = [(mine, "prefix"), (mine, "off")]
    kinds += [(kind(venvs), "prefix") for kind in (peers.SglangRouter, peers.VllmRouter, peers.Smg)]
    for peer, affinity in kinds:
        try:
            name = f"{peer.name} {peer.version()}, `{peer.policy(affinity)}`"
            port = started(peer, affinity, urls, stack)
        except (peers.Failed, peers.Unsupported) as error:
            absent[peer.name] = str(error)
        except (OSError, ValueError, subprocess.SubprocessError):
            absent[peer.name] = "it could not be installed"
        else:
            ways.append(Way(name, lambda _number, _turn, port=port: port))
    return ways, absent


def measure(ways, seeds):
    """One round: all of them, each time beginning with another one."""
    for kind, todo in (("alone", alone), ("full", full)):
        for way in ways:
            if not way.failed and kind in way.rounds:
                try:
                    way.rounds[kind].append(todo(seeds, way))
                except (OSError, http.client.HTTPException) as error:
                    way.failed = f"{type(error).__name__}: {error}"[:160]
    ways.append(ways.pop(0))


def ratio(way, base, kind, figure):
    """The median of all rounds, of which each is compared with its own, and the range."""
    rounds = zip(way.rounds[kind], base.rounds[kind], strict=False)
    ratios = [figure(mine) / figure(other) for mine, other in rounds]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def share(rounds):
    stayed, turns = (sum(column) for column in zip(*(one.stayed() for one in rounds), strict=True))
    return f"{100 * stayed / turns:.0f} %"


def cells(way, kind, base, figures):
    rounds = way.rounds.get(kind)
    if not rounds:
        return ["-"] * (len(figures) + 2)
    row = [form.format(statistics.median(map(figure, rounds))) for figure, form in figures]
    return [*row, ratio(way, base, kind, figures[0][0]), share(rounds)]


FIRST, RATE = (lambda one: one.first() * 1000, "{:.0f} ms"), (Round.rate, "{:.1f}")
HEAD = [
    *("", "alone: first token", "x sticky", "stayed"),
    *("full: turns a second", "first token", "x `off`", "stayed"),
]


def table(order, sticky, off):
    rows = [HEAD]
    for way in order:
        lonely = cells(way, "alone", sticky, [FIRST])
        crowded = cells(way, "full", off, [RATE, FIRST])
        rows.append([way.name, *lonely, *crowded])
    return document.table(rows)


def main():
    llmlb, venvs, *path = sys.argv[1:4]
    load = os.getloadavg()[0]
    with contextlib.ExitStack() as ends:
        stack = e2e.Stack()
        ends.callback(stack.end)
        servers = [e2e.free_port() for _ in LETTERS]
        for port, letters in zip(servers, LETTERS, strict=True):
            model = stack.path / f"model-{port}.gguf"
            make_model.write(model, letters)
            stack.start(*stack.model_server(MODEL, port, model))
        for port in servers:
            e2e.wait_until("a server", lambda port=port: answers(port))
        sticky = Way("a client that keeps to one", lambda number, _: servers[number % 2])
        turns = Way("a client that takes turns", lambda _, turn: servers[turn % 2])
        turns.rounds.pop("full")
        urls = [f"http://127.0.0.1:{port}" for port in servers]
        others, absent = fronts(llmlb, venvs, urls, ends)
        order = [sticky, turns, *others]
        ways, seeds = list(order), itertools.count()
        for number in range(ROUNDS):
            measure(ways, seeds)
            print(f"round {number + 1} of {ROUNDS}", file=sys.stderr, flush=True)
    absent |= {way.name: way.failed for way in order if way.failed}
    made = table(order, sticky, others[1])
    place = (
        f"{os.cpu_count()} cores of {platform.machine()} for all, {ROUNDS} rounds of {ALONE} "
        f"conversations alone and {FULL} at once,\n{TURNS} turns each. "
        f"When it began, {load:.0f} processes wanted the cores.\n"
    )
    place += "".join(f"\n{name}: {why}.\n" for name, why in absent.items())
    print(f"{place}\n{made}")
    if path:
        document.write(Path(path[0]), {"conversations": f"{place}\n{made}"})


if __name__ == "__main__":
    main()
