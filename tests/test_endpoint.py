"""The client of OpenAI-compatible endpoints, against small servers that misbehave."""

import argparse
import sys
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from server import FAULTS, Server, good

from mathse.cli import check_address
from mathse.generate import Request, connection, endpoint, open_model
from mathse.generate.spending import read_spent
from mathse.recipe import fingerprint

LIMITS = {"timeout": 5.0, "max_requests": 0, "max_cost": 0.0, "spent": None}
SAMPLING = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "max_tokens": 12, "max_pixels": 1000}


def flags(**changes) -> argparse.Namespace:
    return argparse.Namespace(**SAMPLING | LIMITS | {"concurrency": 16} | changes)


def load(*arguments):
    raise AssertionError("an endpoint loads no model")


def questions(count: int, images: list | None = None) -> list[Request]:
    made = []
    for k in range(count):
        text = "<image>" * len(images or []) + f"q{k}"
        made.append(
            Request({"id": str(k), "images": images or []}, [{"role": "user", "content": text}], {0: k})
        )
    return made


def ask_all(server, count=20, **changes):
    generate = open_model(server.spec, flags(**changes), load)
    return {reply.row["id"]: reply for reply in generate(questions(count))}


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(endpoint.random, "uniform", lambda low, high: 0.01)


def test_many_requests_are_in_flight(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    server = Server(good)
    replies = ask_all(server, 64)
    assert len(replies) == 64
    for name, reply in replies.items():
        assert reply.text == f"reply to q{name}" and reply.finish == "stop"
        assert (reply.tokens, reply.prompt_tokens, reply.seed) == (3, 7, int(name))
    assert server.peak >= 8 and server.peak <= 16 and server.seen[0][0] == "Bearer sk-secret"


@pytest.mark.parametrize("fault", list(FAULTS))
def test_passing_faults_are_tried_again(fault):
    server = Server(lambda number, body: FAULTS[fault] if number < 10 else good(number, body), seconds=0.0)
    replies = ask_all(server, timeout=1.0)
    assert all(reply.finish == "stop" for reply in replies.values()) and len(replies) == 20


def test_a_request_that_always_fails_is_a_record():
    def refuse(number, body):
        return (400, {"error": "too long"}, {}) if body["seed"] == 3 else good(number, body)

    replies = ask_all(Server(refuse))
    assert [name for name, reply in replies.items() if reply.finish == "error"] == ["3"]
    assert "too long" in replies["3"].reason


def test_the_reason_holds_what_the_server_said():
    """Also that of a status that is tried again."""

    def fail(number, body):
        return (500, {"error": "no kernel for head size 7"}, {}) if body["seed"] == 3 else good(number, body)

    replies = ask_all(Server(fail, seconds=0.0))
    assert [name for name, reply in replies.items() if reply.finish == "error"] == ["3"]
    assert "HTTP 500" in replies["3"].reason and "head size 7" in replies["3"].reason
    assert replies["3"].reason.endswith("(8 tries)")


@pytest.mark.parametrize("status, count", [(400, 200), (400, 3), (404, 3), (500, 3), (500, 1), (500, 60)])
def test_an_endpoint_that_answers_nothing_ends_the_stage(status, count, capsys):
    """However few requests there are: a file of errors alone is no output."""
    server = Server(lambda number, body: (status, {"error": "no such model"}, {}), seconds=0.0)
    replies = []
    with pytest.raises(SystemExit) as ended:
        for reply in open_model(server.spec, flags(), load)(questions(count)):
            replies.append(reply)
    found = capsys.readouterr().err
    assert ended.value.code == 2 and "none was answered" in found and "no such model" in found
    assert ("is it the right model?" in found) == (status == 404)
    assert replies == []


@pytest.mark.parametrize("status", [400, 500])
def test_rows_that_a_working_endpoint_refuses_are_records(status):
    """A rerun may ask for nothing else: the endpoint is asked a question of its own then."""

    def refuse(number, body):
        return (status, {"error": "bad row"}, {}) if "q" in str(body["messages"]) else good(number, body)

    server = Server(refuse, seconds=0.0)
    replies = ask_all(server, 3)
    assert len(replies) == 3 and all("bad row" in reply.reason for reply in replies.values())
    assert "1 + 1" in str(server.seen[-1][1]["messages"])


def test_what_is_in_flight_is_kept_when_the_endpoint_is_given_up(capsys):
    """The key is refused in the middle: answers that are still coming are paid for and are yielded."""

    def slow(number, body):
        if number == 8:
            return 401, {"error": "no credit"}, {}
        if number > 8:
            time.sleep(0.5)
        return good(number, body)

    server = Server(slow, seconds=0.0)
    replies = list(open_model(server.spec, flags(concurrency=4), load)(questions(100)))
    assert len(replies) == len(server.answered) and all(reply.finish == "stop" for reply in replies)
    assert 9 <= len(replies) < 100
    assert "stopped: --model" in (found := capsys.readouterr().err) and "no credit" in found
    assert found.count("\n") == 1


NEAR = [
    (format_datetime(datetime.now(UTC) + timedelta(seconds=distance), usegmt=True), expected)
    for distance, expected in ((86_400, 120), (-600, 0))
]


@pytest.mark.parametrize(
    "value, seconds",
    [
        ("3", 3),
        ("0.5", 0.5),
        ("-4", 0),
        ("99999", 120),
        ("nan", None),
        ("soon", None),
        ("", None),
        (None, None),
    ]
    + NEAR,
)
def test_retry_after(value, seconds):
    assert connection.retry_after(value) == seconds


def test_retry_after_a_date_that_is_near():
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=60), usegmt=True)
    assert 50 <= connection.retry_after(date) <= 60


def test_an_image_that_breaks_is_not_the_endpoints_fault(tmp_path):
    server = Server(good)
    generate = open_model(server.spec, flags(concurrency=4), load)
    replies = list(generate(questions(40, [str(tmp_path / "gone.png")])))
    assert len(replies) == 40 and all(reply.finish == "error" for reply in replies) and server.count == 0


def test_what_is_spent_is_told(monkeypatch, tmp_path):
    """Requests, tries included, and cost of this call; a file adds up those of several."""
    monkeypatch.setenv("PRICE_IN", "1000")
    monkeypatch.setenv("PRICE_OUT", "10000")
    spent = str(tmp_path / "spent.tsv")
    for call in (1, 2):
        server = Server(lambda number, body: FAULTS["500"] if number < 5 else good(number, body), seconds=0.0)
        generate = open_model(server.spec, flags(spent=spent), load)
        assert generate.spent() == {"requests": 0, "cost": 0.0}
        assert len(list(generate(questions(10)))) == 10
        assert generate.spent()["requests"] == generate.work["requests"] == 15
        assert generate.spent()["cost"] == pytest.approx(10 * (7 * 1000 + 3 * 10000) / 1e6)
        assert read_spent(spent) == (15 * call, [70 * call, 30 * call])


@pytest.mark.parametrize("limit", [{"max_requests": 12}, {"max_cost": 0.0000001}])
def test_a_limit_stops_the_stage(limit, monkeypatch, capsys):
    """What was answered is yielded, nothing is an error, and a later call asks nothing more."""
    monkeypatch.setenv("PRICE_OUT", "1")
    server = Server(good)
    generate = open_model(server.spec, flags(concurrency=4, **limit), load)
    replies = list(generate(questions(100)))
    assert 0 < len(replies) <= 12 and all(reply.finish == "stop" for reply in replies)
    assert "stopped: --max" in capsys.readouterr().err
    assert list(generate(questions(3))) == [] and server.count == len(replies)


@pytest.mark.parametrize("status", [403, 404, 405, 500])
def test_models_that_are_not_told_are_no_reason_to_stop(status):
    assert len(ask_all(Server(good, models=status), 3)) == 3


def test_a_refused_key_is_told_before_anything_is_asked(capsys):
    server = Server(good, models=401)
    with pytest.raises(SystemExit):
        open_model(server.spec, flags(), load)
    assert "refuses the key (HTTP 401)" in capsys.readouterr().err and server.count == 0


# ---------------------------------------------------------------- the way to a server

AZURE = "/openai/deployments/d/chat/completions?api-version=2024-10-21"


@pytest.mark.parametrize(
    "address, path",
    [
        ("/v1", "/v1/chat/completions"),
        ("/v1/", "/v1/chat/completions"),
        ("", "/chat/completions"),
        ("/v1/chat/completions", "/v1/chat/completions"),
        ("/openai/deployments/d?api-version=2024-10-21", AZURE),
        ("/openai/deployments/d/?api-version=2024-10-21", AZURE),
        (AZURE, AZURE),
    ],
)
def test_addresses(address, path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    server = Server(good)
    spec = server.spec.replace("/v1#m", f"{address}#gpt-4o")
    check_address(spec, "--model")
    replies = list(open_model(spec, flags(), load)(questions(1)))
    assert replies[0].finish == "stop" and fingerprint(spec) == "#gpt-4o"
    (asked, sent), body = server.heads[0], server.seen[0][1]
    assert asked == path and body["model"] == "gpt-4o" and sent["Authorization"] == "Bearer sk-secret"
    assert sent["api-key"] == ("sk-secret" if "api-version" in path else None)


@pytest.mark.parametrize(
    "address, expected",
    [("http://localhost:1/v1", True), ("http://127.8.0.1/v1", True), ("http://[::1]:1/v1", True)]
    + [("http://a.localhost/v1", True), ("http://10.0.0.1/v1", False), ("https://localhost.org/v1", False)],
)
def test_what_is_on_this_machine(address, expected):
    assert connection.is_loopback(address) == expected


@pytest.fixture
def proxy(monkeypatch):
    """Sets the environment's proxy, and nothing that excepts an address from it."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)

    def use(address: str) -> None:
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, address)
            monkeypatch.setenv(name.upper(), address)

    return use


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "socks5://127.0.0.1:9"])
def test_no_proxy_leads_to_this_machine(address, proxy, monkeypatch):
    monkeypatch.setitem(sys.modules, "socksio", None)
    proxy(address)
    assert len(ask_all(Server(good), 3)) == 3


@pytest.mark.parametrize("address", ["socks5://127.0.0.1:9", "gopher://user:sk-secret@127.0.0.1:9"])
def test_a_proxy_that_cannot_be_used_is_told(address, proxy, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "socksio", None)  # the package that httpx needs for it
    proxy(address)
    with pytest.raises(SystemExit) as ended:
        open_model("http://example.invalid/v1#m", flags(), load)
    found = capsys.readouterr().err
    assert ended.value.code == 2 and found.count("\n") == 1 and "the proxy" in found
    assert "sk-secret" not in found
