"""A real HTTP server that speaks both vendors' APIs, and misbehaves on cue."""

import json
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

Behaviour = Callable[["Handler", dict[str, Any]], None]


@dataclass
class Endpoint:
    """`script` is what happens to the next requests; after it, each is answered with `text`."""

    script: deque[Behaviour] = field(default_factory=deque)
    text: Callable[[dict[str, Any]], str] = lambda body: "<answer>[[A]]</answer>"
    requests: list[dict[str, Any]] = field(default_factory=list)  # path, headers, body
    most_at_a_time: int = 0

    def __enter__(self) -> Self:
        self._lock, self._at_a_time = threading.Lock(), 0
        handler = type("BoundHandler", (Handler,), {"endpoint": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1"

    def handle(self, handler: "Handler", body: dict[str, Any]) -> None:
        with self._lock:
            headers = {name.lower(): value for name, value in handler.headers.items()}
            self.requests.append({"path": handler.path, "headers": headers, "body": body})
            behaviour = self.script.popleft() if self.script else answer()
            self._at_a_time += 1
            self.most_at_a_time = max(self.most_at_a_time, self._at_a_time)
        try:
            behaviour(handler, body)
        finally:
            with self._lock:
                self._at_a_time -= 1


class Handler(BaseHTTPRequestHandler):
    endpoint: Endpoint
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.send(404, b"{}")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.endpoint.handle(self, body)

    def send(
        self,
        code: int,
        content: bytes,
        *,
        length: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        self.send_response(code)
        self.send_header("content-length", str(len(content) if length is None else length))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    def hang_up(self) -> None:
        self.wfile.flush()
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: object) -> None:
        pass


def whole_reply(path: str, text: str, finish: str = "stop") -> dict[str, Any]:
    """A well-formed body: 11 prompt tokens, 7 of the reply."""
    if path.endswith("/messages"):
        reason = {"stop": "end_turn", "length": "max_tokens"}.get(finish, finish)
        usage = {"input_tokens": 11, "output_tokens": 7}
        blocks = [{"type": "text", "text": text}]
        return {"type": "message", "content": blocks, "stop_reason": reason, "usage": usage}
    message = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": 11, "completion_tokens": 7, "total_tokens": 18}
    return {"choices": [{"message": message, "finish_reason": finish}], "usage": usage}


def answer(text: str | None = None, finish: str = "stop") -> Behaviour:
    def behave(handler: Handler, body: dict[str, Any]) -> None:
        said = handler.endpoint.text(body) if text is None else text
        handler.send(200, json.dumps(whole_reply(handler.path, said, finish)).encode())

    return behave


def status(code: int, message: str = "no", **header: str) -> Behaviour:
    headers = {name.replace("_", "-"): value for name, value in header.items()}
    content = json.dumps({"error": {"type": "some_error", "message": message}}).encode()
    return lambda handler, body: handler.send(code, content, headers=headers)


def raw(content: bytes) -> Behaviour:
    return lambda handler, body: handler.send(200, content)


def half_a_reply(handler: Handler, body: dict[str, Any]) -> None:
    handler.send(200, b'{"choices": [{"message": {"conte', length=4000)
    handler.hang_up()


def hang_up(handler: Handler, body: dict[str, Any]) -> None:
    handler.hang_up()


def slow(seconds: float) -> Behaviour:
    def behave(handler: Handler, body: dict[str, Any]) -> None:
        time.sleep(seconds)
        answer()(handler, body)

    return behave


def drip(handler: Handler, body: dict[str, Any]) -> None:
    """A byte now and then: no single read takes long, the reply never ends."""
    handler.send(200, b"", length=1000)
    for _ in range(100):
        handler.wfile.write(b" ")
        time.sleep(0.02)
