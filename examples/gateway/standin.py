"""Model servers without a model, that note what they are asked and fail as they are told to.

What one does with a request stands in the first word of the request's last message: `SLOW`,
`STREAM` and `CUT`; a number after it is in seconds. All of them run on one thread of their own.
"""

import asyncio
import dataclasses
import gzip
import json
import re
import threading
import time
import zlib

USAGE = {"prompt_tokens": 1013, "completion_tokens": 507, "total_tokens": 1520}
CHUNKS = 10
PATIENCE = 30


class Left(Exception):
    """The client has closed its connection before the end of its answer."""


@dataclasses.dataclass
class Asked:
    method: str
    path: str
    headers: dict
    body: bytes
    # When it came, when it was answered, and when it was noticed that its client had left.
    at: float = dataclasses.field(default_factory=time.monotonic)
    done: float = 0.0
    left: float = 0.0

    def counts(self):
        """Whether somebody wants an answer: LiteLLM looks at servers with requests as well, and
        vllm-router asks for a prompt's tokens."""
        if b'"max_tokens": 16' in self.body or self.path.endswith(("/render", "/tokenize")):
            return False
        return self.method == "POST" and "/v1/" in self.path

    def field(self, name):
        """Of a body in JSON or of a form, packed or not; None if it is not there."""
        body = self.body
        if self.headers.get("content-encoding") == "gzip":
            body = gzip.decompress(body)
        if self.headers.get("content-type", "").startswith("multipart/"):
            found = re.search(rb'name="%b"\r\n\r\n([^\r]*)' % name.encode(), body)
            return found and found[1].decode()
        return json.loads(body).get(name)

    def todo(self):
        """The first word of the last message, and the seconds after it."""
        try:
            content = self.field("messages")[-1]["content"]
        except (ValueError, TypeError, LookupError):
            return "", 0.0
        if isinstance(content, list):
            content = content[-1]["text"]
        word, seconds = (*content.split(), "", "")[:2]
        return word, float(seconds) if re.fullmatch(r"[0-9.]+", seconds) else 0.0


class Loop(threading.Thread):
    """The thread on which all of them run."""

    def __init__(self):
        super().__init__(daemon=True)
        self.loop = asyncio.new_event_loop()
        self.start()

    def run(self):
        self.loop.run_forever()

    def do(self, coroutine, patience=PATIENCE):
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(patience)


LOOP = Loop()


class ModelServer:
    def __init__(self, *models):
        self.models = models
        # What to do with requests for an answer: "ok", "500", "429", "reset"; or "hung", with all.
        self.mode = "ok"
        self.asked, self.now, self.most = [], 0, 0
        self.connections = set()
        self.server = LOOP.do(asyncio.start_server(self.serve, "127.0.0.1", 0, backlog=512))
        self.port = self.server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def close(self):
        """Refuses connections from now on, and resets those that there are."""
        LOOP.do(self.end())

    async def end(self):
        self.server.close()
        for writer in list(self.connections):
            writer.transport.abort()

    def answered(self, model=None):
        """The requests to compute something; `model`: those that ask for it."""
        asked = [one for one in self.asked if one.counts()]
        return [one for one in asked if model is None or one.field("model") == model]

    async def serve(self, reader, writer):
        self.connections.add(writer)
        try:
            while asked := await self.read(reader):
                self.asked.append(asked)
                await self.answer(asked, reader, writer)
                await writer.drain()
        except (OSError, ValueError, asyncio.IncompleteReadError, asyncio.LimitOverrunError):
            pass
        except Left:
            asked.left = time.monotonic()
        finally:
            self.connections.discard(writer)
            writer.close()

    async def read(self, reader):
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.IncompleteReadError:
            return None
        first, *lines = head.decode("latin-1").split("\r\n")[:-2]
        headers = {
            name.lower(): value.strip() for name, _, value in (x.partition(":") for x in lines)
        }
        method, path, _ = first.split(" ")
        body = b""
        if "transfer-encoding" in headers:
            while size := int((await reader.readline()).split(b";")[0], 16):
                body += (await reader.readexactly(size + 2))[:-2]
            await reader.readline()
        else:
            body = await reader.readexactly(int(headers.get("content-length", 0)))
        return Asked(method, path, headers, body)

    async def answer(self, asked, reader, writer):
        if self.mode == "hung":
            return await self.pause(reader, 3600)
        if asked.method == "GET":
            return self.say(writer, *self.about(asked.path))
        if self.mode == "500":
            return self.say(writer, 500, {"error": {"message": "broken", "type": "internal"}})
        if self.mode == "429":
            return self.say(writer, 429, {"error": {"message": "busy", "type": "rate_limit"}})
        if self.mode == "reset":
            writer.transport.abort()
            raise ConnectionResetError
        if asked.path.endswith("/tokenize"):
            return self.say(writer, 200, self.tokens(asked))
        if asked.path.startswith("/v1/messages") or asked.path.endswith("/render"):
            return self.say(writer, 404, {"error": {"message": "no such path"}})
        if not asked.counts():
            return await self.compute(asked, reader, writer)
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            return await self.compute(asked, reader, writer)
        finally:
            self.now -= 1
            asked.done = time.monotonic()

    def tokens(self, asked):
        """Of all that is said, each word's, as vLLM's servers tell them."""
        messages = asked.field("messages") or [{"content": asked.field("prompt") or ""}]
        words = " ".join(str(message["content"]) for message in messages).split()
        tokens = [zlib.crc32(word.encode()) % 100_000 for word in words]
        return {"count": len(tokens), "max_model_len": 1 << 20, "tokens": tokens}

    async def compute(self, asked, reader, writer):
        word, seconds = asked.todo()
        if word in ("STREAM", "CUT"):
            return await self.stream(asked, reader, writer, word, seconds)
        if word == "SLOW":
            await self.pause(reader, seconds)
        answer = self.piece(asked, "chat.completion", message={"content": "Hello!"})
        return self.say(writer, 200, answer | {"usage": USAGE, "text": "Hello!"})

    async def stream(self, asked, reader, writer, word, seconds):
        head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked"
        writer.write(f"{head}\r\n\r\n".encode())
        for number in range(CHUNKS):
            if word == "CUT" and number == CHUNKS // 2:
                await writer.drain()
                writer.transport.abort()
                raise ConnectionResetError
            piece = self.piece(asked, "chat.completion.chunk", delta={"content": f"{number} "})
            self.chunk(writer, f"data: {json.dumps(piece)}\n\n")
            await self.pause(reader, seconds / CHUNKS)
        self.chunk(writer, "data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")

    def piece(self, asked, kind, **what):
        role = {name: {"role": "assistant", **value} for name, value in what.items()}
        choice = {"index": 0, "finish_reason": "stop" if "message" in what else None, **role}
        known = {"id": "chatcmpl-1", "object": kind, "created": 1, "model": self.models[0]}
        return known | {"choices": [choice]}

    def chunk(self, writer, text):
        writer.write(f"{len(text):x}\r\n{text}\r\n".encode())

    def say(self, writer, status, answer):
        body = json.dumps(answer)
        kind = f"Content-Type: application/json\r\nContent-Length: {len(body)}"
        writer.write(f"HTTP/1.1 {status} Said\r\n{kind}\r\n\r\n{body}".encode())

    def about(self, path):
        """What the servers of SGLang, vLLM and llama.cpp tell of themselves."""
        model = self.models[0]
        path = path.partition("?")[0]
        if path == "/v1/models":
            data = [{"id": each, "object": "model", "owned_by": "nobody"} for each in self.models]
            return 200, {"object": "list", "data": data}
        if path in ("/get_model_info", "/model_info"):
            return 200, {"model_path": model, "tokenizer_path": model, "is_generation": True}
        if path in ("/get_server_info", "/server_info"):
            return 200, {"model_path": model, "served_model_name": model, "dp_size": 1}
        if path in ("/health", "/health_generate", "/version"):
            return 200, {"status": "ok", "version": "0.11.0"}
        return 404, {"error": {"message": "no such path"}}

    async def pause(self, reader, seconds):
        """Waits, and notices if the client leaves meanwhile."""
        until = time.monotonic() + seconds
        while (rest := until - time.monotonic()) > 0:
            if reader.at_eof() or reader.exception():
                raise Left
            await asyncio.sleep(min(rest, 0.02))
        if reader.at_eof() or reader.exception():
            raise Left
