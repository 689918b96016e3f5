"""Requests that take a time drawn beforehand, the clients that send them, and llmlb before model
servers that serve so many at once.

Apart from what is seen by it, and from what should be.
"""

import asyncio
import dataclasses
import itertools
import json
import re
import time
from collections.abc import Callable

import peers
from features import CHAT, chat, wait_until

# Seconds that a request takes, on the average.
MEAN = 0.05
# How many times as much is asked for as there is.
OVERLOAD = 4


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


def draw(load, rng, seconds):
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
