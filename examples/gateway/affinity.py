#!/usr/bin/env python3
"""What it is worth that a conversation stays with its server: `affinity.py LLMLB`.

Two llama.cpp servers, with a model of random weights that is big enough for reading to take time.
Each round goes, in turns, through llmlb with each `--affinity`, and straight to the servers by a
client that keeps to one (sticky) or takes turns (turns). Prints the medians of all rounds:

- alone: the time to the first token of turns 2 to 5 of one conversation, nothing else going on;
- full: how many turns a second 12 conversations at once get, three times what the servers can do.
"""

import http.client
import itertools
import json
import os
import random
import statistics
import sys
import threading
import time

import e2e
import make_model

ROUNDS = int(os.environ.get("ROUNDS", 3))
TURNS = 5
CONVERSATIONS = 12
ANSWER = 8
WORDS = 300

# Bigger than what is tested with: a thousand tokens take a good part of a second to read.
make_model.EMBEDDING, make_model.HEADS = 256, 4
make_model.LAYERS, make_model.FEED_FORWARD = 6, 512


def words(rng, count):
    return " ".join(rng.choice(["load", "port", "lock", "fleet", "token"]) for _ in range(count))


def ask(port, messages):
    """The seconds to the first token, and the answer."""
    body = {"model": "m", "messages": messages, "max_tokens": ANSWER, "stream": True}
    body |= {"ignore_eos": True, "temperature": 0}
    began = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)
    headers = {"Content-Type": "application/json"}
    connection.request("POST", "/v1/chat/completions", json.dumps(body), headers)
    answer = connection.getresponse()
    assert answer.status == 200, answer.read()
    first, text = None, ""
    for line in answer:
        if not line.startswith(b"data: {"):
            continue
        for choice in json.loads(line[6:])["choices"]:
            if content := choice["delta"].get("content"):
                first = first or time.perf_counter() - began
                text += content
    connection.close()
    return first or time.perf_counter() - began, text


def converse(rng, port_of_turn):
    """The times to the first token of all turns."""
    messages, times = [], []
    for turn in range(TURNS):
        messages.append({"role": "user", "content": words(rng, WORDS // TURNS)})
        seconds, text = ask(port_of_turn(turn), messages)
        messages.append({"role": "assistant", "content": text})
        times.append(seconds)
    return times


def alone(seed, port_of_turn):
    return statistics.mean(converse(random.Random(seed), port_of_turn)[1:])


def full(seed, port_of):
    rngs = [random.Random(f"{seed} {n}") for n in range(CONVERSATIONS)]
    talks = [
        threading.Thread(target=converse, args=(rng, lambda _, n=n: port_of(n)))
        for n, rng in enumerate(rngs)
    ]
    began = time.perf_counter()
    for talk in talks:
        talk.start()
    for talk in talks:
        talk.join()
    return CONVERSATIONS * TURNS / (time.perf_counter() - began)


def main():
    e2e.LLMLB = sys.argv[1]
    stack = e2e.Stack()
    try:
        servers = [e2e.free_port(), e2e.free_port()]
        for port in servers:
            stack.start(*stack.model_server("m", port))
        urls = [f"http://127.0.0.1:{port}" for port in servers]
        fronts = {}
        for by in ("prefix", "off"):
            _, front = stack.gateway(urls, "--affinity", by, key=None)
            fronts[by] = front
        kinds = {f"llmlb {by}": (lambda _, p=port: p) for by, port in fronts.items()}
        lonely, crowded, seeds = {}, {}, itertools.count()
        for _ in range(ROUNDS):
            tests = dict(kinds, sticky=lambda _: servers[0], turns=lambda turn: servers[turn % 2])
            for name, port in tests.items():
                lonely.setdefault(name, []).append(alone(next(seeds), port))
            for name, port in dict(kinds, sticky=lambda n: servers[n % 2]).items():
                crowded.setdefault(name, []).append(full(next(seeds), port))
        print("| way | alone: first token of turns 2 to 5 | full: turns a second |")
        print("| --- | --- | --- |")
        for name, times in lonely.items():
            rate = statistics.median(crowded[name]) if name in crowded else None
            rate = f"{rate:.2f}" if rate else "-"
            print(f"| {name} | {statistics.median(times) * 1000:.0f} ms | {rate} |")
    finally:
        stack.end()


if __name__ == "__main__":
    main()
