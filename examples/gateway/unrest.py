"""Clients that come and leave, waits that run out, a limit that changes, and a server that dies and
has a successor: no place is lost, and none is given out twice."""

import asyncio
import json
import random
import tempfile
from pathlib import Path

import peers
from crowd import MEAN, OVERLOAD, Client, Llmlb, Request, Server, exponential, health
from features import wait_until
from standin import LOOP, ModelServer


class Unrest:
    """All of it at once, as soon as it is made; what was wrong is among its problems."""

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
