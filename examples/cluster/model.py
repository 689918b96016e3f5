"""Stands in for vLLM: model.py HOST PORT answers with the name of its host, and lists a model."""

from __future__ import annotations

import json
import os
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Model(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, content: object) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.answer({"object": "list", "data": [{"id": "qwen3", "object": "model"}]})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        token = os.environ.get("LLMLB_FENCING_TOKEN")
        said = f"I am {sys.argv[1]}" + (f", token {token}" if token else "")
        message = {"role": "assistant", "content": said}
        self.answer({"object": "chat.completion", "choices": [{"index": 0, "message": message}]})

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        pass


ThreadingHTTPServer((sys.argv[1], int(sys.argv[2])), Model).serve_forever()
