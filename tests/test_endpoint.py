"""The client of OpenAI-compatible endpoints, against small servers that misbehave."""

import argparse
from datetime import datetime, timedelta, timezone
from email.utils import format_datetime

import pytest
from server import FAULTS, Server, good

import endpoint
import engine


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


@pytest.mark.parametrize("fault", list(FAULTS))
def test_passing_faults_are_tried_again(fault):
    server = Server(lambda number, body: FAULTS[fault] if number < 10 else good(number, body), seconds=0.0)
    replies = ask_all(server, timeout=1.0)
    assert all(reply.finish == "stop" for reply in replies.values()) and len(replies) == 20


def test_a_request_that_always_fails_is_a_record():
    server = Server(lambda number, body: (400, {"error": "too long"}, {}) if body["seed"] == 3 else good(number, body))
    replies = ask_all(server)
    assert [name for name, reply in replies.items() if reply.finish == "error"] == ["3"] and "too long" in replies["3"].reason


def test_an_endpoint_that_answers_nothing_ends_the_stage(capsys):
    with pytest.raises(SystemExit) as ended:
        ask_all(Server(lambda number, body: (400, {"error": "no such model"}, {})), 200)
    assert ended.value.code == 2 and "none was answered" in capsys.readouterr().err


@pytest.mark.parametrize(
    "value, seconds",
    [("3", 3), ("0.5", 0.5), ("-4", 0), ("99999", 120), ("nan", None), ("soon", None), ("", None), (None, None)]
    + [(format_datetime(datetime.now(timezone.utc) + timedelta(seconds=distance), usegmt=True), expected) for distance, expected in ((600, 120), (-600, 0))],
)  # fmt: skip
def test_retry_after(value, seconds):
    assert endpoint.retry_after(value) == seconds


def test_retry_after_a_date_that_is_near():
    assert 50 <= endpoint.retry_after(format_datetime(datetime.now(timezone.utc) + timedelta(seconds=60), usegmt=True)) <= 60


def test_a_picture_that_breaks_is_not_the_endpoints_fault(tmp_path):
    server = Server(good)
    args = argparse.Namespace(temperature=0.0, top_p=1.0, top_k=0, max_tokens=12, max_pixels=1000, concurrency=4, **LIMITS)
    requests = [engine.Request({"id": str(k), "images": [str(tmp_path / "gone.png")]}, [{"role": "user", "content": "<image>q"}], {0: k}) for k in range(40)]
    replies = list(engine.open_model(server.spec, args)(requests))
    assert len(replies) == 40 and all(reply.finish == "error" for reply in replies) and server.count == 0
