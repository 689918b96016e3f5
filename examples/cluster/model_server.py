"""Stands in for a model server, as vLLM is one: model_server.py HOST PORT."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Model(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, what: object) -> None:
        body = json.dumps(what).encode() + b"\n"
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            self.answer({"object": "list", "data": [{"id": "tiny", "object": "model"}]})
        else:
            self.answer({})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        token = os.environ.get("LLMLB_FENCING_TOKEN")
        by = f"{HOST}, token {token}" if token else HOST
        message = {"role": "assistant", "content": by}
        self.answer({"object": "chat.completion", "choices": [{"index": 0, "message": message}]})

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


if __name__ == "__main__":
    HOST = sys.argv[1]
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    with contextlib.suppress(KeyboardInterrupt):
        ThreadingHTTPServer((HOST, int(sys.argv[2])), Model).serve_forever()
