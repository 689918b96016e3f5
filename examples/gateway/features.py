"""What a load balancer does, seen by running it between a client and stand-ins for model servers.

A scenario starts one peer in one way, and says of some features whether they are there, and what
was seen. Nothing is taken from documentation.
"""

import concurrent.futures
import contextlib
import dataclasses
import gzip
import http.client
import itertools
import json
import os
import random
import re
import signal
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from pathlib import Path

import peers
from peers import ALIAS, Failed, Running, Setup, Unsupported
from standin import CHUNKS, USAGE, ModelServer

ALPHA, BETA = "alpha-7b", "beta-7b"
CHAT = "/v1/chat/completions"
# Seconds: for what has to happen at some time; for an answer while all is well.
PATIENCE, PROMPT = 20, 10
# Of the test with a broken backend.
CLIENTS, SECONDS = 8, 6
# In which a server that hangs has to be answered for by others.
ANSWERED = 2
# How much longer all may take, where it is not compared.
SLACK = 1

FEATURES = {
    "top": "A model goes to the one backend that serves it: `model` at the top of the body",
    "last": "… `model` at the end of a body of 5 MiB",
    "form": "… `model` in a form, after the file",
    "gzip": "… `model` in a gzip body",
    "unknown": "A model that nobody serves is refused, without asking a backend",
    "list": "`/v1/models` lists those of all backends",
    "alias": "A model has another name (alias)",
    "alias_answer": "… and the answer says that name",
    "bytes": "A body arrives byte for byte",
    "pieces": "A stream is passed on piece by piece",
    "cut": "A stream that the backend cuts looks cut to the client, too",
    "leave_stream": "A client that leaves a stream ends the backend's work within 1 s",
    "leave": "… one that waits for an answer, too",
    "errors": "Failed requests in 6 s, one of three backends answers 500, but is healthy",
    "resets": "… one of three resets the connection, but is healthy",
    "refused": "None of 30 requests fails when one of three is killed",
    "busy": "None of 30 requests fails while one of three answers 429",
    "once": "A batch that a backend has taken, and broken off, is not made again on another one",
    "hung": "A backend that hangs, health checks too, is found (after)",
    "spread": "Long requests don't pile up on one backend while others have short ones",
    "queue": "No more than a limit for each backend; beyond it requests wait",
    "queue_leave": "… who leaves while waiting is not passed on",
    "session": "A session stays with its backend, by a header",
    "prefix": "A conversation stays with its backend, without a header, and others spread",
    "change": "Backends come without a restart",
    "remove": "… and go; what still runs on them ends whole",
    "drain": "SIGTERM, or what is meant for it, lets a stream end whole",
    "second": "A second start on the port is refused",
    "holder": "… and names the process that holds it",
    "metrics": "Metrics count requests by model",
    "tokens": "Metrics count tokens by model",
    "key": "Clients need a key",
    "tls": "TLS for clients",
    "h2": "HTTP/2 for clients",
    "messages": "Anthropic's API in front of backends that only speak OpenAI's",
    "lengths": "A request with two lengths is refused",
    "smuggle": "One with a length and chunks, or with a coding that there is not, smuggles nothing",
}


@dataclasses.dataclass
class Seen:
    # True, False, a text to show in their place; None: could not be tried.
    verdict: object
    what: str = ""

    def show(self):
        words = {True: "yes", False: "no", None: "n.a."}
        return words[self.verdict] if self.verdict in (True, False, None) else str(self.verdict)


def chat(model, content, **more):
    message = {"role": "user", "content": content}
    return {"model": model, "messages": [message], **more}


def failure(error):
    return f"{type(error).__name__}: {error}"[:160]


def wait_until(condition, seconds=PATIENCE):
    """Whether it came true in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


class Test:
    """A running peer, and the servers behind it."""

    numbers = itertools.count()

    def __init__(self, peer, *models, **how):
        self.directory = tempfile.TemporaryDirectory()
        self.servers = [ModelServer(model) for model in models]
        self.setup = Setup(Path(self.directory.name), self.backends(), **how)
        try:
            self.peer = Running(peer, self.setup)
        except BaseException:
            self.directory.cleanup()
            raise

    def backends(self):
        return [(server.url, server.models) for server in self.servers]

    def __enter__(self):
        # All of them serve, and are known to.
        try:
            if not self.setup.tls and not wait_until(self.all_asked):
                raise Failed("it does not use all of its backends")
            for server in self.servers:
                server.asked.clear()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.peer.end()
        for server in self.servers:
            server.close()
        with contextlib.suppress(OSError):
            self.directory.cleanup()

    def all_asked(self):
        """Asks several at once, as some go to the same one for as long as it is idle."""

        def first(server):
            session = {self.peer.peer.session: f"first-{next(self.numbers)}"}
            # Nothing that one of them could have read before.
            content = f"SLOW 0.1 {os.urandom(64).hex(' ')}"
            with contextlib.suppress(OSError, http.client.HTTPException):
                self.say(server.models[0], content, headers=session)

        at_once(6, first, *self.servers)
        return all(server.answered() for server in self.servers)

    def say(self, model, content, headers=None, timeout=PROMPT, **more):
        # Not as anybody else has said it.
        text = f"{content} {'' if content[-1].isdigit() else 'number '}n{next(self.numbers)}"
        return self.peer.ask("POST", CHAT, chat(model, text, **more), headers, timeout)

    def good(self, *args, **kwargs):
        try:
            return self.say(*args, **kwargs)[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    def asked(self):
        return [one for server in self.servers for one in server.answered()]

    @contextlib.contextmanager
    def open(self, content, model=ALPHA):
        """A stream, or what is to become one, that the block reads."""
        connection = http.client.HTTPConnection("127.0.0.1", self.peer.port, timeout=PATIENCE)
        try:
            body = json.dumps(chat(model, f"{content} n{next(self.numbers)}", stream=True))
            connection.request("POST", CHAT, body, {"Content-Type": "application/json"})
            yield connection
        finally:
            connection.close()


def whole(answer):
    """Reads a stream to its end: whether that is one, with all of it there."""
    try:
        text = answer.read()
    except (OSError, http.client.HTTPException) as error:
        return False, failure(error)
    if b'"error"' in text:
        return False, "an error in the stream"
    return text.count(b'"delta"') >= CHUNKS and b"[DONE]" in text, text[-40:].decode()


# --- models


def routed(test, send, times):
    """Whether each of both models gets to its server each time, two in a row: not by turns."""
    alpha, beta = test.servers
    before = len(alpha.answered()), len(beta.answered())
    statuses = []
    for model in (ALPHA, ALPHA, BETA, BETA) * times:
        try:
            statuses.append(send(model)[0])
        except (OSError, http.client.HTTPException) as error:
            statuses.append(type(error).__name__)
    asked = [server.answered()[n:] for server, n in zip(test.servers, before, strict=True)]
    right = [len([x for x in asked[n] if x.field("model") == (ALPHA, BETA)[n]]) for n in range(2)]
    strays = sum(map(len, asked)) - sum(right)
    # One may have been tried twice.
    what = f"{min(sum(right), 4 * times)} of {4 * times} got there"
    if bad := sorted({str(status) for status in statuses if status != 200}):
        what += f"; {', '.join(bad)}"
    whole = statuses == [200] * 4 * times
    return Seen(whole and min(right) >= 2 * times and not strays, what)


def models(peer):
    with Test(peer, ALPHA, BETA) as test:
        yield "top", routed(test, lambda model: test.say(model, "Hello"), 3)
        padding = "word " * (1 << 20)

        def last(model):
            body = chat(model, padding)
            body["model"] = body.pop("model")
            return test.peer.ask("POST", CHAT, body, timeout=60)

        yield "last", routed(test, last, 1)

        def form(model):
            file = 'name="file"; filename="a.wav"\r\nContent-Type: audio/wav\r\n\r\n' + "a" * 9999
            parts = [file, f'name="model"\r\n\r\n{model}']
            body = "".join(f"--xyz\r\nContent-Disposition: form-data; {x}\r\n" for x in parts)
            kind = {"Content-Type": "multipart/form-data; boundary=xyz"}
            return test.peer.ask("POST", "/v1/audio/transcriptions", f"{body}--xyz--\r\n", kind)

        yield "form", routed(test, form, 2)

        def packed(model):
            body = gzip.compress(json.dumps(chat(model, f"Hello {next(test.numbers)}")).encode())
            return test.peer.ask("POST", CHAT, body, {"Content-Encoding": "gzip"})

        yield "gzip", routed(test, packed, 2)
        before = len(test.asked())
        status, _ = test.say("gamma-7b", "Hello")
        asked = len(test.asked()) - before
        yield "unknown", Seen(status >= 400 and not asked, f"{status}, {asked} asked")
        status, answer = test.peer.ask("GET", "/v1/models")
        try:
            listed = sorted(str(one["id"]) for one in json.loads(answer)["data"])
        except (ValueError, LookupError):
            listed = [answer[:60].decode("latin-1")]
        yield "list", Seen({ALPHA, BETA} <= set(listed), f"{status}: {', '.join(listed)}")


def aliases(peer):
    with Test(peer, ALPHA, BETA, alias=True) as test:
        alpha, _ = test.servers
        try:
            answers = [test.say(ALIAS[0], "Hello") for _ in range(4)]
        except (OSError, http.client.HTTPException) as error:
            answers = [(failure(error), b"{}")]
        found = len(alpha.answered(ALPHA))
        good = found == 4 and all(status == 200 for status, _ in answers)
        yield "alias", Seen(good, f"{found} of 4 got there, {answers[-1][0]}")
        said = json.loads(answers[-1][1]).get("model") if good else None
        yield "alias_answer", Seen(good and said == ALIAS[0], f"it says {said}")


# --- answers


def answers(peer):
    with Test(peer, ALPHA, ALPHA) as test:
        yield "bytes", untouched(test)
        length = 2 * SLACK
        with test.open(f"STREAM {length}") as connection:
            began = time.monotonic()
            answer = connection.getresponse()
            answer.read1(1)
            after = time.monotonic() - began
        yield "pieces", Seen(after < length / 2, f"the first after {after:.2f} s of {length}")
        with test.open("CUT 0.5") as connection:
            good, what = whole(connection.getresponse())
        yield "cut", Seen(not good and not what.endswith("[DONE]\n\n"), what)
        yield "leave_stream", leaves(test, "STREAM", reads=True)
        yield "leave", leaves(test, "SLOW", reads=False)
        yield from counted(test)
        body = {**chat(ALPHA, "Hello"), "max_tokens": 50}
        try:
            status, answer = test.peer.ask(
                "POST", "/v1/messages", body, {"anthropic-version": "2023-06-01"}
            )
            kind = json.loads(answer).get("type")
        except (OSError, ValueError, http.client.HTTPException) as error:
            status, kind = failure(error), None
        yield "messages", Seen(kind == "message", f"{status}, {kind}")
        yield "lengths", two_lengths(test)
        yield "smuggle", smuggled(test)
        yield from second_start(test)
        good, what = drained(test, signal.SIGTERM)
    if good or peer.stop == signal.SIGTERM:
        yield "drain", Seen(good, what)
        return
    with Test(peer, ALPHA) as test:
        good, what = drained(test, peer.stop)
    yield (
        "drain",
        Seen(f"by {peer.stop.name}" if good else False, "SIGTERM cuts it" if good else what),
    )


def drained(test, signum):
    with test.open("STREAM 1") as connection:
        answer = connection.getresponse()
        answer.read1(1)
        test.peer.process.send_signal(signum)
        return whole(answer)


def untouched(test):
    messages = '[ {"role":"user","content":"H\\u00e9"}]'
    body = f'{{ "x_new":1.50, "messages" :{messages},"model":"{ALPHA}"}}'
    status, _ = test.peer.ask("POST", CHAT, body)
    [got] = [one.body.decode() for one in test.asked()][-1:] or [""]
    if got == body:
        return Seen(True)
    kept = "kept" if "x_new" in got else "lost"
    return Seen(False, f"{status}, rewritten, a field that it does not know is {kept}")


def leaves(test, word, reads):
    with test.open(f"{word} 8") as connection:
        if reads:
            connection.getresponse().read1(1)
        if not wait_until(lambda: find_last(test, word)):
            return Seen(False, "it never got there")
        asked = find_last(test, word)
    left = time.monotonic()
    if wait_until(lambda: asked.left, 5):
        after = max(asked.left - left, 0)
        return Seen(after <= SLACK, f"after {after:.2f} s")
    return Seen(False, "not within 5 s")


def find_last(test, word):
    return next((one for one in reversed(test.asked()) if one.todo() == (word, 8.0)), None)


def exposed(test):
    port = test.peer.peer.metrics_port(test.setup)
    try:
        status, text = test.peer.ask("GET", test.peer.peer.metrics, port=port)
    except (OSError, http.client.HTTPException) as error:
        return [], failure(error)
    lines = text.decode("latin-1").splitlines() if status == 200 else []
    return [line for line in lines if ALPHA in line and line[0] != "#"], f"{status}"


def totals(test):
    """The counters that name the model, each in sum of its lines, of requests and of tokens."""
    found = {"request": {}, "token": {}}
    for line in exposed(test)[0]:
        name = line.replace("{", " ").partition(" ")[0]
        for kind, counters in found.items():
            if kind in name and not re.search(r"_(bucket|seconds_\w+)$", name):
                counters[name] = counters.get(name, 0) + float(line.rsplit(" ", 1)[1])
    return found


def counted(test):
    """Whether counters that name the model rise with three answers, and with their tokens."""
    before = totals(test)
    for _ in range(3):
        test.good(ALPHA, "Hello")
    made = {"request": 3, "token": 3 * USAGE["completion_tokens"]}

    def risen(kind):
        return {
            name: value - before[kind].get(name, 0)
            for name, value in totals(test)[kind].items()
            if value - before[kind].get(name, 0) >= made[kind]
        }

    for feature, kind in (("metrics", "request"), ("tokens", "token")):
        wait_until(lambda kind=kind: risen(kind), 3)
        what = ", ".join(f"{name} {value:.0f} more" for name, value in risen(kind).items())
        yield feature, Seen(bool(what), what or f"{exposed(test)[1]}, no counter names the model")


def raw(test, text):
    """What comes within a second or two for these bytes, and all that backends were asked."""
    answer = b""
    client = socket.create_connection(("127.0.0.1", test.peer.port), 2)
    with client, contextlib.suppress(OSError):
        client.sendall(text.replace("\n", "\r\n").encode())
        while piece := client.recv(1 << 16):
            answer += piece
    everything = [one for server in test.servers for one in server.asked]
    status = int(answer.split(b" ", 2)[1]) if answer.startswith(b"HTTP/") else 0
    return status, [one for one in everything if "smuggled" in one.path], answer


SMUGGLED = "GET /smuggled HTTP/1.1\nHost: x\n\n"


def two_lengths(test):
    body = json.dumps(chat(ALPHA, "Hello"))
    lengths = f"Content-Length: {len(body)}\nContent-Length: {len(body) + 7}\n"
    kind = "Content-Type: application/json\n"
    status, _, answer = raw(test, f"POST {CHAT} HTTP/1.1\nHost: x\n{kind}{lengths}\n{body}")
    # One that closes without a word has refused it as well.
    refused = status >= 400 or not answer
    return Seen(refused, f"{status or 'closed'}")


def smuggled(test):
    seen = []
    body = json.dumps(chat(ALPHA, "Hello"))
    chunked = f"{len(body):x}\n{body}\n0\n\n"
    head = f"POST {CHAT} HTTP/1.1\nHost: x\nContent-Type: application/json\n"
    length = len(chunked.replace("\n", "\r\n") + SMUGGLED.replace("\n", "\r\n"))
    for coding in ("chunked", "xchunked", "chunked, identity"):
        lengths = f"Content-Length: {length}\nTransfer-Encoding: {coding}\n"
        status, got, _ = raw(test, f"{head}{lengths}\n{chunked}{SMUGGLED}")
        # Behind the last chunk, another request may stand; where a length tells otherwise, not.
        seen.append((coding, status, bool(got)))
        for server in test.servers:
            server.asked[:] = [one for one in server.asked if "smuggled" not in one.path]
    what = "; ".join(f"{c}: {s or 'closed'}{', passed on' if p else ''}" for c, s, p in seen)
    return Seen(not any(passed for _, _, passed in seen), what)


def second_start(test):
    log = test.setup.directory / "second.log"
    process = test.peer.launch(log)
    try:
        code = process.wait(peers.PATIENCE)
    except subprocess.TimeoutExpired:
        process.terminate()
        process.wait(peers.GRACE)
        code = None
    said = log.read_text(errors="replace")
    yield (
        "second",
        Seen(code not in (None, 0), f"exit code {code}" if code is not None else "it ran"),
    )
    named = re.search(rf"\b{test.peer.process.pid}\b", said) is not None
    yield "holder", Seen(code not in (None, 0) and named)


# --- failures


def failing(test):
    """The share of failed requests of some clients, each with a connection of its own."""
    end = time.monotonic() + SECONDS

    def client():
        good = bad = 0
        while time.monotonic() < end:
            if test.good(ALPHA, "SLOW 0.02"):
                good += 1
            else:
                bad += 1
        return good, bad

    counts = at_once(CLIENTS, client)
    good, bad = (sum(column) for column in zip(*counts, strict=True))
    return good, bad


def at_once(count, function, *arguments):
    """What each of so many threads gets from it, with one of the arguments in turns."""
    turns = itertools.cycle([(each,) for each in arguments] or [()])
    with concurrent.futures.ThreadPoolExecutor(count) as pool:
        started = [pool.submit(function, *next(turns)) for _ in range(count)]
        return [one.result() for one in started]


def broken(mode):
    def scenario(peer):
        with Test(peer, ALPHA, ALPHA, ALPHA) as test:
            test.servers[2].mode = mode
            good, bad = failing(test)
        share = 100 * bad / (good + bad)
        shown = f"{share:.1f} %" if bad else "none"
        feature = {"500": "errors", "reset": "resets"}[mode]
        yield feature, Seen(shown, f"{bad} of {good + bad}")

    return scenario


def refusals(peer):
    with Test(peer, ALPHA, ALPHA, ALPHA) as test:
        third = test.servers[2]
        third.mode = "429"
        bad = sum(not test.good(ALPHA, "Hello") for _ in range(30))
        asked = len(third.answered())
        yield "busy", Seen(bad == 0, f"{bad} of 30 failed, it was asked {asked} times")
        third.mode = "ok"
        test.servers[0].close()
        bad = sum(not test.good(ALPHA, "Hello") for _ in range(30))
        yield "refused", Seen(bad == 0, f"{bad} of 30 failed")


def batches(peer):
    with Test(peer, ALPHA, ALPHA, ALPHA) as test:
        for server in test.servers:
            server.mode = "reset"
        body = {"input_file_id": "file-1", "endpoint": CHAT, "completion_window": "24h"}
        with contextlib.suppress(OSError, http.client.HTTPException):
            test.peer.ask("POST", "/v1/batches", body)
        times = sum("/v1/batches" in one.path for one in test.asked())
        if times == 0:
            yield "once", Seen(None, "it does not pass on /v1/batches")
        else:
            yield "once", Seen(times == 1, f"made {times} times")


def hung(peer):
    with Test(peer, ALPHA, ALPHA, ALPHA) as test:
        # In service: looks are answered while requests are.
        until = time.monotonic() + 3
        at_once(9, lambda: warm(test, until))
        test.servers[2].mode = "hung"
        began, in_a_row = time.monotonic(), 0
        while in_a_row < 3 and time.monotonic() - began < PATIENCE * SLACK:
            results = at_once(9, lambda: test.good(ALPHA, "SLOW 0.1", timeout=ANSWERED * SLACK))
            if in_a_row == 0:
                after = time.monotonic() - began
            in_a_row = in_a_row + 1 if all(results) else 0
        found = in_a_row == 3
        what = f"{after:.0f} s" if found else f"not within {PATIENCE} s"
        yield "hung", Seen(f"yes ({what})" if found else False, what)


def warm(test, until):
    while time.monotonic() < until:
        test.good(ALPHA, "SLOW 0.3")


# --- load


def spread(peer):
    """Every third request is a long one, as those who take turns like least."""
    with Test(peer, ALPHA, ALPHA, ALPHA) as test, contextlib.ExitStack() as streams:
        for _ in range(9):
            connection = streams.enter_context(test.open("STREAM 8"))
            connection.getresponse().read1(1)
            for _ in range(2):
                test.good(ALPHA, "Hello")
        long = [sum(x.todo()[0] == "STREAM" for x in s.answered()) for s in test.servers]
        long.sort()
        yield "spread", Seen(long[-1] <= 5, f"9 long ones: {'/'.join(map(str, long))}")


def queue(peer):
    with Test(peer, ALPHA, ALPHA, ALPHA, limit=1) as test:
        results = at_once(18, lambda: test.good(ALPHA, "SLOW 0.3"))
        most = max(server.most for server in test.servers)
        what = f"{sum(results)} of 18 answered, {most} at once"
        good = all(results) and most == 1
        yield "queue", Seen(good, what)
        if not good:
            yield "queue_leave", Seen(False)
            return
        running = [threading.Thread(target=test.good, args=(ALPHA, "SLOW 2")) for _ in range(3)]
        for thread in running:
            thread.start()
        wait_until(lambda: sum(server.now for server in test.servers) == 3)
        with test.open("SLOW 8"):
            time.sleep(0.3)
        for thread in running:
            thread.join()
        # Whoever comes now would come after it.
        test.good(ALPHA, "Hello")
        came = find_last(test, "SLOW") is not None
        yield "queue_leave", Seen(not came, "it was passed on" if came else "")


def sessions(peer):
    with Test(peer, ALPHA, ALPHA, affinity="session") as test:
        homes = {}
        for turn in range(4):
            for number in shuffled(turn):
                before = [len(server.answered()) for server in test.servers]
                header = {peer.session: f"session-{number}"}
                test.good(ALPHA, "Hello", headers=header)
                after = [len(server.answered()) for server in test.servers]
                homes.setdefault(number, set()).add(after[1] > before[1])
        yield "session", settled(homes)


def shuffled(turn):
    """Those who talk, in an order by which no turns would keep them where they are."""
    return random.Random(turn).sample(range(9), 9)


def settled(homes):
    moved = sum(len(places) > 1 for places in homes.values())
    used = len(set().union(*homes.values()))
    return Seen(moved == 0 and used == 2, f"{moved} of {len(homes)} moved, {used} backends used")


def conversations(peer):
    """They begin at once, so that there is a reason to spread them; then one speaks at a time."""
    with Test(peer, ALPHA, ALPHA, affinity="prefix") as test:
        talks = {number: [] for number in range(9)}

        def speak(number, turn, before=""):
            rng = random.Random(f"{number} {turn}")
            words = " ".join(f"{rng.getrandbits(32):x}" for _ in range(150))
            talks[number].append({"role": "user", "content": f"{before}{words}"})
            test.peer.ask("POST", CHAT, {"model": ALPHA, "messages": talks[number]})
            talks[number].append({"role": "assistant", "content": "Hello!"})

        at_once(9, lambda number: speak(number, 0, "SLOW 0.5 "), *talks)
        for turn in range(1, 4):
            for number in shuffled(turn):
                speak(number, turn)
        homes = {number: set() for number in talks}
        for place, server in enumerate(test.servers):
            for one in server.answered():
                first = one.field("messages")[0]
                for number, messages in talks.items():
                    if messages[0] == first:
                        homes[number].add(place)
        yield "prefix", settled(homes)


# --- operation


def changes(peer):
    with Test(peer, ALPHA, ALPHA) as test:
        extra = ModelServer(ALPHA)
        gone = test.servers[1]
        try:
            with contextlib.ExitStack() as streams:
                # Until one of them is on the server that goes.
                answers = []
                while not gone.answered() and len(answers) < 20:
                    connection = streams.enter_context(test.open("STREAM 4"))
                    answers.append(connection.getresponse())
                    answers[-1].read1(1)
                backends = [*test.backends(), (extra.url, extra.models)]
                peer.change(test.peer, backends)
                came = wait_until(lambda: test.good(ALPHA, "Hello") and extra.answered())
                yield "change", Seen(came, "" if came else f"not within {PATIENCE} s")
                peer.change(test.peer, [backends[0], backends[2]])

                def away():
                    before = len(gone.answered())
                    bad = sum(not test.good(ALPHA, "Hello") for _ in range(9))
                    return not bad and len(gone.answered()) == before

                left = wait_until(away)
                ends = [whole(answer) for answer in answers]
                cut = sum(not good for good, _ in ends)
                what = f"{cut} of {len(ends)} streams cut"
                yield "remove", Seen(left and not cut, what if left else "it is still asked")
        finally:
            extra.close()


def keys(peer):
    with Test(peer, ALPHA, ALPHA, key=peers.KEY) as test:
        right, _ = test.say(ALPHA, "Hello")
        wrong, _ = test.say(ALPHA, "Hello", headers={"Authorization": "Bearer sk-wrong"})
        yield "key", Seen(right == 200 and 400 <= wrong < 500, f"{right} with, {wrong} without")


def encrypted(peer):
    with tempfile.TemporaryDirectory() as name:
        files = f"{name}/cert.pem", f"{name}/key.pem"
        Path(name).chmod(0o755)
        make = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1"]
        make += ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
        subprocess.run(
            [*make, "-out", files[0], "-keyout", files[1]], capture_output=True, check=True
        )
        with Test(peer, ALPHA, ALPHA, tls=files) as test:
            context = ssl.create_default_context(cafile=files[0])

            def asks():
                with contextlib.suppress(OSError, http.client.HTTPException):
                    connection = http.client.HTTPSConnection(
                        "localhost", test.peer.port, timeout=PROMPT, context=context
                    )
                    with contextlib.closing(connection):
                        body = json.dumps(chat(ALPHA, "Hello"))
                        connection.request("POST", CHAT, body, {"Content-Type": "application/json"})
                        return connection.getresponse().status == 200
                return False

            yield "tls", Seen(wait_until(asks))
            context.set_alpn_protocols(["h2", "http/1.1"])
            chosen = None
            with (
                contextlib.suppress(OSError),
                socket.create_connection(("127.0.0.1", test.peer.port), PROMPT) as client,
                context.wrap_socket(client, server_hostname="localhost") as wrapped,
            ):
                chosen = wrapped.selected_alpn_protocol()
            yield "h2", Seen(chosen == "h2", f"{chosen} is agreed on")


SCENARIOS = {
    models: ["top", "last", "form", "gzip", "unknown", "list"],
    aliases: ["alias", "alias_answer"],
    answers: [
        *("bytes", "pieces", "cut", "leave_stream", "leave", "metrics", "tokens", "messages"),
        *("lengths", "smuggle", "second", "holder", "drain"),
    ],
    broken("500"): ["errors"],
    broken("reset"): ["resets"],
    refusals: ["busy", "refused"],
    batches: ["once"],
    hung: ["hung"],
    spread: ["spread"],
    queue: ["queue", "queue_leave"],
    sessions: ["session"],
    conversations: ["prefix"],
    changes: ["change", "remove"],
    keys: ["key"],
    encrypted: ["tls", "h2"],
}


def look(peer, scenario):
    """What a scenario says of a peer, by feature."""
    features, seen = SCENARIOS[scenario], {}
    try:
        seen.update(scenario(peer))
    except Unsupported as error:
        seen |= {name: Seen(False, str(error)) for name in features if name not in seen}
    except Failed as error:
        seen |= {name: Seen(None, str(error)) for name in features if name not in seen}
    except (OSError, http.client.HTTPException, ValueError, LookupError) as error:
        seen |= {name: Seen(False, failure(error)) for name in features if name not in seen}
    return seen
