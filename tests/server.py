"""An OpenAI-compatible server that misbehaves as it is told, for the tests of endpoints."""

import base64
import json
import socket
import struct
import threading
import time
from collections import Counter
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def completion(text: str | None, finish: str = "stop") -> dict:
    choice = {"message": {"content": text}, "finish_reason": finish}
    return {"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}


# What a server may do instead of answering: (status, content, headers); RESET, HANG and CUT are done by the
# connection.
RESET, HANG, CUT = "reset", "hang", "cut"
FAULTS = {
    "429": (429, {}, {}),
    "429 with seconds": (429, {}, {"Retry-After": "0.2"}),
    "429 with a date": (429, {}, lambda: {"Retry-After": formatdate(time.time() + 1, usegmt=True)}),
    "429 as 200": (200, {"error": {"message": "slow down", "code": 429}}, {}),
    "too many a minute": (429, {"error": {"message": "exceeded your quota, see billing details"}}, {}),
    "500": (500, b"oops", {}),
    "reset connection": (RESET, b"", {}),
    "reply after 60 s": (HANG, b"", {}),
    "no choices": (200, {"choices": []}, {}),
    "a text broken off": (200, completion("x", "error"), {}),
    "junk": (200, b"\x00\xff junk", {}),
    "truncated JSON": (200, json.dumps(completion("x")).encode()[:40], {}),
    "truncated body": (CUT, json.dumps(completion("x")).encode(), {}),
    "wrong content type": (200, b"<html>gateway</html>", {"Content-Type": "text/html"}),
    "a number": (200, b"1", {}),
    "deep JSON": (200, b"[" * 100_000, {}),
}


class Server:
    """Answers each chat completion by `behave(number of the request, body)` -> (status, content, headers).

    `seen`: (Authorization, body) of every request; `heads`: (path, headers); `answered`: bodies of those that
    got a whole completion; `peak`: in flight at once. `models`: the status of GET /models, and what it tells.
    """

    def __init__(self, behave, seconds: float = 0.05, models: int = 200, told: tuple = (), port: int = 0):
        self.count, self.running, self.peak = 0, 0, 0
        self.seen, self.heads, self.answered, lock = [], [], [], threading.Lock()
        self.behave, self.seconds, outer = behave, seconds, self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True  # else each reply takes 40 ms

            def send(self, status, content, headers):
                body = content if isinstance(content, bytes) else json.dumps(content).encode()
                if status == RESET:
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.connection.close()
                    self.close_connection = True
                    return
                self.send_response(200 if status == CUT else status)
                more = headers() if callable(headers) else headers
                for name, value in ({"Content-Length": str(len(body) + 99 * (status == CUT))} | more).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)
                self.close_connection = status == CUT

            def do_GET(self):
                self.send(models, {"data": told}, {})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number, outer.count, outer.running = outer.count, outer.count + 1, outer.running + 1
                    outer.peak = max(outer.peak, outer.running)
                    outer.heads.append((self.path, self.headers))
                    outer.seen.append((self.headers.get("Authorization"), body))
                time.sleep(outer.seconds)
                status, content, headers = outer.behave(number, body)
                with lock:
                    outer.running -= 1
                    given = content.get("choices") if isinstance(content, dict) and status == 200 else None
                    if given and given[0]["finish_reason"] != "error":
                        outer.answered.append(body)
                if status == HANG:
                    time.sleep(60)
                self.send(status, content, headers)

            def log_message(self, *arguments):
                pass

        class Listener(ThreadingHTTPServer):
            request_queue_size = 128  # connections that wait to be accepted

        self.server = Listener(("127.0.0.1", port), Handler)
        self.server.daemon_threads, self.server.handle_error = True, lambda *arguments: None
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.spec = f"http://127.0.0.1:{self.server.server_port}/v1#m"


def text_of(body: dict) -> str:
    return "".join(part["text"] for part in body["messages"][-1]["content"] if part["type"] == "text")


def choices(*texts: str) -> dict:
    """A completion of several texts."""
    found = [completion(text)["choices"][0] for text in texts]
    return {"choices": found, "usage": {"prompt_tokens": 7, "completion_tokens": 3 * len(texts)}}


def good(number: int, body: dict):
    return 200, completion(f"reply to {text_of(body)}"), {}


def teaching(teacher):
    """Behaves as the toy teacher does."""

    def behave(number, body):
        parts = body["messages"][-1]["content"]
        urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
        pictures = [base64.b64decode(url.split(",", 1)[1]) for url in urls]
        answer = teacher.answer(text_of(body), pictures, body["seed"])
        return (200, completion(answer), {}) if answer else (404, {"error": "unknown problem"}, {})

    return behave


def faulty(behave, most: int = 4):
    """Three of ten requests meet a fault, each kind in its turn, but one and the same request `most`
    times only.
    """
    met = Counter()

    def behave_badly(number, body):
        key = json.dumps(body)
        if number % 10 in (1, 4, 8) and met[key] < most:
            met[key] += 1
            return list(FAULTS.values())[(number // 10 * 3 + (1, 4, 8).index(number % 10)) % len(FAULTS)]
        return behave(number, body)

    return behave_badly
