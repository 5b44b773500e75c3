"""The client of OpenAI-compatible endpoints, against small servers that misbehave."""

import argparse
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

import endpoint
import engine


class Server:
    """Answers each chat completion by `behave(number of the request, body)` -> (status, content, headers)."""

    def __init__(self, behave):
        self.count, self.running, self.peak, self.seen, lock = 0, 0, 0, [], threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def send(self, status, content, headers):
                body = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                for name, value in (headers | {"Content-Length": str(len(body))}).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self):
                self.send(200, {"data": []}, {})

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    number, outer.count, outer.running = outer.count, outer.count + 1, outer.running + 1
                    outer.peak = max(outer.peak, outer.running)
                    outer.seen.append((self.headers.get("Authorization"), body))
                time.sleep(0.05)
                with lock:
                    outer.running -= 1
                self.send(*behave(number, body))

            def log_message(self, *arguments):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.spec = f"http://127.0.0.1:{self.server.server_port}/v1#m"


def good(number, body):
    choice = {"message": {"content": f"reply to {body['messages'][0]['content'][0]['text']}"}, "finish_reason": "stop"}
    return 200, {"choices": [choice], "usage": {"prompt_tokens": 7, "completion_tokens": 3}}, {}


LIMITS = {"timeout": 5.0, "max_requests": 0, "max_cost": 0.0, "spent": None}


def ask_all(server, count=20, concurrency=16, **limits):
    args = argparse.Namespace(temperature=0.0, top_p=1.0, top_k=0, max_tokens=12, max_pixels=1000, concurrency=concurrency, **LIMITS | limits)
    requests = (engine.Request({"id": str(k), "images": []}, [{"role": "user", "content": f"q{k}"}], {0: k}) for k in range(count))
    return {reply.row["id"]: reply for reply in engine.open_model(server.spec, args)(requests)}


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(endpoint.random, "uniform", lambda low, high: 0.01)


def test_many_requests_are_in_flight(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    server = Server(good)
    replies = ask_all(server, 64)
    assert len(replies) == 64 and all(reply.text == f"reply to q{name}" and reply.finish == "stop" for name, reply in replies.items())
    assert server.peak >= 8 and server.peak <= 16 and server.seen[0][0] == "Bearer sk-secret"


@pytest.mark.parametrize(
    "fault",
    [
        (429, {}, {"Retry-After": "0.1"}),
        (500, b"oops", {}),
        (200, b"{not json", {}),
        (200, {"choices": []}, {}),
        (200, {"choices": [{"message": {"content": None}, "finish_reason": "content_filter"}]}, {}),
    ],
)
def test_passing_faults_are_tried_again(fault):
    server = Server(lambda number, body: fault if number % 3 == 0 else good(number, body))
    replies = ask_all(server)
    assert all(reply.finish == "stop" for reply in replies.values()) and len(replies) == 20


def test_a_request_that_always_fails_is_a_record():
    server = Server(lambda number, body: (400, {"error": "too long"}, {}) if body["seed"] == 3 else good(number, body))
    replies = ask_all(server)
    assert [name for name, reply in replies.items() if reply.finish == "error"] == ["3"] and "too long" in replies["3"].reason


def test_an_endpoint_that_answers_nothing_ends_the_stage(capsys):
    with pytest.raises(SystemExit) as ended:
        ask_all(Server(lambda number, body: (400, {"error": "no such model"}, {})), 200)
    assert ended.value.code == 2 and "none was answered" in capsys.readouterr().err
