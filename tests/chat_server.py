"""A server of chat completions that says what a test wants."""

from __future__ import annotations

import http.server
import json
import threading


class Server(http.server.ThreadingHTTPServer):
    """Answers chat completions with what `script` says of each request: a body, or (status, body, headers)."""

    daemon_threads = True

    def __init__(self, script):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.requests, self.headers = script, [], []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(body)
        self.server.headers.append(dict(self.headers))
        said = self.server.script(len(self.server.requests) - 1, body)
        status, content, headers = said if isinstance(said, tuple) else (200, said, {})
        if content is None:  # the connection breaks
            self.connection.close()
            return
        content = content.encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


def chat(text, finish="stop"):
    choice = {"message": {"content": text}, "finish_reason": finish}
    return json.dumps({"model": "tiny-1", "choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 3}})
