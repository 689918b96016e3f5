#!/usr/bin/env python3
"""The official OpenAI client, through llmlb, to llama.cpp: `e2e.py LLMLB`.

Two servers of one model and a third, guarded by llmlb itself, stand behind the gateway. They
generate real tokens, from random weights.
"""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.request
from pathlib import Path

import httpx2
import make_model
import openai

HERE = Path(__file__).parent
PATIENCE = 60
KEY = "sk-gateway"
HELLO = [{"role": "user", "content": "Say hello."}]
LLMLB = ""


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_until(what, condition):
    deadline = time.monotonic() + PATIENCE
    while not (value := condition()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited in vain for {what}")
        time.sleep(0.02)
    return value


def get(url):
    request = urllib.request.Request(url, headers={"Authorization": f"Bearer {KEY}"})
    return urllib.request.urlopen(request, timeout=PATIENCE)


class Stack:
    """Model servers, and gateways before them, in a lock directory of their own."""

    def __init__(self):
        self.directory = tempfile.TemporaryDirectory()
        self.path = Path(self.directory.name)
        self.model = self.path / "model.gguf"
        make_model.write(self.model)
        clean = {k: v for k, v in os.environ.items() if not k.startswith("LLMLB_")}
        self.environment = {**clean, "LLMLB_LOCK_DIR": str(self.path / "locks")}
        self.processes = []

    def start(self, *command):
        with (self.path / f"{len(self.processes)}.log").open("w") as log:
            process = subprocess.Popen(
                [str(part) for part in command], env=self.environment, stdout=log, stderr=log
            )
        self.processes.append(process)
        return process

    def model_server(self, alias, port, model=None):
        script = HERE / "llama_server.py"
        model = model or self.model
        return [sys.executable, script, "--model", model, "--alias", alias, "--port", port]

    def gateway(self, backends, *args, key=KEY):
        port = free_port()
        urls = [part for url in backends for part in ("--backend", url)]
        command = ["serve", "--port", port, "--health-interval", "0.1"]
        if key:
            command += ["--api-key", key]
        process = self.start(LLMLB, *command, *urls, *args)
        wait_until("all backends", lambda: self.up(port) == len(backends))
        return process, port

    def health(self, port):
        try:
            with get(f"http://127.0.0.1:{port}/health") as answer:
                return json.load(answer)
        except OSError:
            return {"backends": []}

    def up(self, port):
        return sum(b["state"] == "up" for b in self.health(port)["backends"])

    def run(self, *command):
        return subprocess.run([LLMLB, *command], env=self.environment, capture_output=True, text=True)

    def end(self):
        for process in self.processes:
            process.terminate()
        for process in self.processes:
            process.wait(PATIENCE)
        self.directory.cleanup()


def client(port, kind=openai.OpenAI, key=KEY):
    url = f"http://127.0.0.1:{port}/v1"
    return kind(base_url=url, api_key=key, max_retries=0, timeout=PATIENCE)


def long_stream(api, model="tiny", tokens=1500):
    return api.chat.completions.create(
        model=model,
        messages=HELLO,
        max_tokens=tokens,
        stream=True,
        extra_body={"ignore_eos": True},
    )


class Gateway(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.stack = stack = Stack()
        cls.addClassCleanup(stack.end)
        ports = [free_port() for _ in range(3)]
        cls.tiny = [stack.start(*stack.model_server("tiny", port)) for port in ports[:2]]
        # The third is guarded by llmlb, which fills in the port.
        cls.guarded = ports[2]
        server = stack.model_server("guarded", "{port}")
        stack.start(LLMLB, "serve", "--port", cls.guarded, "--", *server)
        cls.urls = [f"http://127.0.0.1:{port}" for port in ports]
        cls.gateway, cls.port = stack.gateway(cls.urls)
        cls.api = client(cls.port)

    def test_a_chat_is_completed(self):
        answer = self.api.chat.completions.create(model="tiny", messages=HELLO, max_tokens=8)
        self.assertEqual(answer.model, "tiny")
        self.assertGreater(answer.usage.completion_tokens, 0)

    def test_a_chat_is_streamed(self):
        chunks = list(long_stream(self.api, tokens=50))
        # Not every token is a character: fewer than there are tokens, far more than one.
        self.assertGreater(len(chunks), 10)
        self.assertEqual(chunks[-1].choices[0].finish_reason, "length")

    def test_the_models_of_all_servers_are_listed_once(self):
        self.assertEqual(sorted(model.id for model in self.api.models.list()), ["guarded", "tiny"])
        self.assertEqual(self.api.models.retrieve("tiny").id, "tiny")

    def test_a_model_nobody_serves_is_an_error_that_names_those_there_are(self):
        with self.assertRaises(openai.NotFoundError) as caught:
            self.api.chat.completions.create(model="huge", messages=HELLO)
        self.assertEqual(caught.exception.code, "model_not_found")
        self.assertEqual(caught.exception.param, "model")
        self.assertIn("guarded", caught.exception.message)

    def test_a_wrong_key_is_an_error(self):
        with self.assertRaises(openai.AuthenticationError) as caught:
            client(self.port, key="sk-wrong").models.list()
        self.assertEqual(caught.exception.code, "invalid_api_key")

    def test_errors_of_the_server_arrive(self):
        with self.assertRaises(openai.APIStatusError) as caught:
            self.api.chat.completions.create(
                model="tiny", messages=HELLO, extra_body={"messages": 7}
            )
        self.assertIn(caught.exception.status_code, (400, 500))
        self.assertNotEqual(caught.exception.code, "backend_failed")

    def test_streams_side_by_side_are_spread_over_the_servers(self):
        async def one(api):
            stream = await long_stream(api)
            return sum([1 async for _ in stream])

        async def all_of_them():
            async with client(self.port, openai.AsyncOpenAI) as api:
                return await asyncio.gather(*(one(api) for _ in range(8)))

        before = self.counts()
        for chunks in asyncio.run(all_of_them()):
            self.assertGreater(chunks, 100)
        served = [after - before for before, after in zip(before, self.counts(), strict=True)]
        self.assertEqual(sum(served), 8)
        self.assertTrue(all(count >= 2 for count in served), served)

    def counts(self):
        """Requests that each of the equal servers has answered."""

        def idle():
            return not any(b["in_flight"] for b in self.stack.health(self.port)["backends"])

        wait_until("an end", idle)
        url = f"http://127.0.0.1:{self.port}/metrics"
        with get(url) as answer:
            samples = (line.rpartition(" ") for line in answer.read().decode().splitlines())
        values = {name: value for name, _, value in samples}
        names = (f'llmlb_requests_total{{backend="{url}",code="200"}}' for url in self.urls[:2])
        return [float(values.get(name, 0)) for name in names]

    def test_a_stream_given_up_is_given_up_at_the_server(self):
        stream = long_stream(self.api, model="guarded")
        next(iter(stream))
        stream.close()
        wait_until("the slot", lambda: self.stack.health(self.port)["backends"][2]["in_flight"] == 0)
        answer = self.api.chat.completions.create(model="guarded", messages=HELLO, max_tokens=4)
        self.assertEqual(answer.model, "guarded")

    def test_a_server_guarded_by_llmlb_is_a_backend_like_any_other(self):
        status = self.stack.run("status", "--port", str(self.guarded))
        self.assertEqual(status.returncode, 0, status.stderr)
        answer = self.api.chat.completions.create(model="guarded", messages=HELLO, max_tokens=4)
        self.assertEqual(answer.model, "guarded")

    def test_a_stop_lets_a_long_generation_finish(self):
        gateway, port = self.stack.gateway(self.urls, "--drain-timeout", "55")
        stream = iter(long_stream(client(port)))
        next(stream)
        stop = self.stack.run("stop", "--port", str(port), "--timeout", "60")
        self.assertEqual(stop.returncode, 0, stop.stderr)
        self.assertEqual(gateway.wait(PATIENCE), 0)
        chunks = list(stream)
        self.assertEqual(chunks[-1].choices[0].finish_reason, "length")


class Killed(unittest.TestCase):
    def test_a_server_killed_in_mid_stream_breaks_the_stream_and_the_other_takes_over(self):
        stack = Stack()
        self.addCleanup(stack.end)
        ports = [free_port() for _ in range(2)]
        servers = [stack.start(*stack.model_server("tiny", port)) for port in ports]
        _, port = stack.gateway([f"http://127.0.0.1:{port}" for port in ports])
        api = client(port)
        stream = iter(long_stream(api))
        next(stream)
        flights = [b["in_flight"] for b in stack.health(port)["backends"]]
        victim = servers[flights.index(1)]
        victim.send_signal(signal.SIGKILL)
        with self.assertRaises((httpx2.TransportError, openai.APIError)):
            for _ in stream:
                pass
        for _ in range(4):
            answer = api.chat.completions.create(model="tiny", messages=HELLO, max_tokens=4)
            self.assertEqual(answer.model, "tiny")
        wait_until("its fall", lambda: stack.up(port) == 1)


if __name__ == "__main__":
    LLMLB = os.path.abspath(sys.argv.pop(1))
    unittest.main()
