"""Stands in for vLLM: model.py HOST PORT answers with the name of its host, and lists a model."""

import http.server
import json
import sys

host, port = sys.argv[1], int(sys.argv[2])


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, content):
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.answer({"object": "list", "data": [{"id": "qwen3", "object": "model"}]})

    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        message = {"role": "assistant", "content": f"I am {host}"}
        self.answer({"object": "chat.completion", "choices": [{"index": 0, "message": message}]})

    def log_message(self, *words):
        pass


http.server.ThreadingHTTPServer((host, port), Handler).serve_forever()
