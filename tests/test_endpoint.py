"""The client of OpenAI-compatible endpoints, against small servers that misbehave."""

import argparse
import sys
import time
from collections import Counter
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from functools import partial

import httpx
import pytest
from PIL import Image
from server import FAULTS, Server, choices, completion, good, text_of
from test_bad_input import refused

from mathse.cli import check_address
from mathse.generate import Request, endpoint, open_model
from mathse.generate.endpoint import read_spent
from mathse.recipe import fingerprint

LIMITS = {"timeout": 5.0, "max_requests": 0, "max_cost": 0.0, "spent": None}
SAMPLING = {"temperature": 0.0, "top_p": 1.0, "top_k": 0, "max_tokens": 12, "max_pixels": 1000}


def flags(**changes) -> argparse.Namespace:
    return argparse.Namespace(**SAMPLING | LIMITS | {"concurrency": 16} | changes)


def load(*arguments):
    raise AssertionError("an endpoint loads no model")


def questions(count: int, images: list | None = None) -> list[Request]:
    row, content = {"images": images or []}, "<image>" * len(images or [])
    asked = ([{"role": "user", "content": f"{content}q{k}"}] for k in range(count))
    return [Request(row | {"id": str(k)}, messages, {0: k}) for k, messages in enumerate(asked)]


def ask(behave, requests: list[Request] | int = 20, seconds: float = 0.0, **changes):
    """The server that was asked, and its replies in order."""
    server = Server(behave, seconds)
    requests = questions(requests) if isinstance(requests, int) else requests
    replies = open_model(server.spec, flags(**changes), load)(requests)
    return server, sorted(replies, key=lambda reply: (int(reply.row["id"]), reply.sample))


def failing(when, status: int, said: object, headers: object = ()):
    """Behaves well but for some requests, by their number and body."""
    return lambda number, body: (status, said, headers or {}) if when(number, body) else good(number, body)


def finishes(replies: list) -> Counter:
    return Counter(reply.finish for reply in replies)


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch):
    monkeypatch.setattr(endpoint.random, "uniform", lambda low, high: 0.001)


def test_many_requests_are_in_flight(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    server, replies = ask(good, 64, seconds=0.05)
    assert finishes(replies) == {"stop": 64} and 8 <= server.peak <= 16
    for k, reply in enumerate(replies):
        assert (reply.text, reply.seed) == (f"reply to q{k}", k)
        assert (reply.tokens, reply.prompt_tokens) == (3, 7)
    assert server.seen[0][0] == "Bearer sk-secret"


@pytest.mark.parametrize("fault", FAULTS)
def test_passing_faults_are_tried_again(fault):
    _, replies = ask(failing(lambda number, body: number < 10, *FAULTS[fault]), timeout=1.0)
    assert [(reply.finish, reply.text) for reply in replies] == [
        ("stop", f"reply to q{k}") for k in range(20)
    ]


FAILED = "requests failed in a row, the last one: HTTP"


@pytest.mark.parametrize(
    "status, count, said",
    [
        (400, 200, f"20 {FAILED} 400: no such model; call again when it works\n"),
        (402, 200, "HTTP 402: no such model"),
        (404, 3, f"3 {FAILED} 404: no such model; call again when it works; is it the right model?\n"),
        (500, 1, f"1 {FAILED} 500: no such model (8 tries)"),
        (500, 60, f"20 {FAILED} 500: no such model (8 tries)"),
    ],
)
def test_an_endpoint_that_answers_nothing_ends_the_stage(status, count, said, capsys):
    """However few requests there are: a file of errors alone is no output."""
    server = Server(lambda number, body: (status, {"error": "no such model"}, {}), seconds=0.0)
    replies = open_model(server.spec, flags(), load)(questions(count))
    refused(capsys, lambda: next(replies), f"none was answered, {said}")


@pytest.mark.parametrize("status, reason", [(400, "HTTP 400: bad row"), (500, "HTTP 500: bad row (8 tries)")])
def test_rows_that_a_working_endpoint_refuses_are_records(status, reason):
    """In its words. A rerun may ask for nothing else: the endpoint is asked a question of its own then."""
    server, replies = ask(failing(lambda _, body: "q" in text_of(body), status, {"error": "bad row"}), 3)
    assert [(reply.finish, reply.reason) for reply in replies] == [("error", reason)] * 3
    assert "1 + 1" in str(server.seen[-1][1]["messages"])


def test_twenty_refusals_in_a_row_stop_the_stage_whenever_they_come(capsys):
    """A server that answered some requests, and then knows the model no more: no output full of errors."""
    forget = failing(lambda number, _: number >= 3, 404, {"error": "no such model"})
    server, replies = ask(forget, 200, concurrency=1)
    assert finishes(replies) == {"stop": 3} and server.count <= 3 + 20 + 2
    said = "20 requests failed in a row, the last one: HTTP 404: no such model"
    assert said in capsys.readouterr().err


def test_refusals_between_answers_are_records(capsys):
    """However many they are together."""
    refuse = failing(lambda _, body: body["seed"] % 15, 400, {"error": "too long"})
    assert finishes(ask(refuse, 46, concurrency=1)[1]) == {"error": 42, "stop": 4}
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("outage", [httpx.ConnectError, httpx.ConnectTimeout, 503, 429, 529])
def test_an_outage_is_waited_out(outage, monkeypatch):
    """With more tries than any other failure gets: until the deadline."""
    post, tries = endpoint.Connection.post, Counter()

    def away(self, fields, deadline):
        tries[fields["seed"]] += 1
        if tries[fields["seed"]] > endpoint.TRIES + 2:
            return post(self, fields, deadline)
        if isinstance(outage, int):
            return outage, None, b"{}"
        raise outage("gone")

    monkeypatch.setattr(endpoint.Connection, "post", away)
    assert finishes(ask(good, timeout=60.0)[1]) == {"stop": 20}


def test_an_outage_without_an_end_stops_the_stage_at_the_deadline(capsys):
    """What was answered before is kept, and nothing is an error."""
    leave = failing(lambda number, _: number >= 3, 503, {"error": "loading"})
    assert finishes(ask(leave, 60, concurrency=20, timeout=0.5)[1]) == {"stop": 3}
    assert "stopped: --model" in capsys.readouterr().err


def date(seconds: int) -> str:
    """An HTTP date so many seconds from now."""
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


def test_retry_after():
    """Seconds or a date, at most two minutes."""
    told = {"3": 3, "0.5": 0.5, "-4": 0, "99999": 120, date(86_400): 120, date(-600): 0}
    told |= dict.fromkeys(("nan", "soon", "", None))
    assert {value: endpoint.retry_after(value) for value in told} == told
    assert 50 <= endpoint.retry_after(date(60)) <= 60


def test_an_image_that_breaks_is_not_the_endpoints_fault(monkeypatch):
    """Whatever Pillow raises, of a broken eXIf chunk a SyntaxError; nothing is asked, others are answered."""

    def data_url(path, max_pixels):
        if path == "bad.png":
            raise SyntaxError("not a TIFF file")
        return "data:image/png;base64,"

    monkeypatch.setattr(endpoint, "data_url", data_url)
    asked = [questions(45, ["good.png" if k % 9 == 8 else "bad.png"])[k] for k in range(45)]
    server, replies = ask(good, asked, concurrency=4)
    found = Counter((reply.finish, reply.reason) for reply in replies)
    assert found == {("stop", None): 5, ("error", "SyntaxError: not a TIFF file"): 40} and server.count == 5


def test_what_is_spent_is_told(monkeypatch, tmp_path):
    """Requests, tries included, and cost of this call; a file adds up those of several."""
    monkeypatch.setenv("PRICE_IN", "1000")
    monkeypatch.setenv("PRICE_OUT", "10000")
    spent = str(tmp_path / "spent.tsv")
    for call in (1, 2):
        server = Server(failing(lambda number, _: number < 5, *FAULTS["500"]), seconds=0.0)
        generate = open_model(server.spec, flags(spent=spent), load)
        assert len(list(generate(questions(10)))) == 10
        assert generate.budget.cost() == pytest.approx(call * 10 * (7 * 1000 + 3 * 10000) / 1e6)
        assert read_spent(spent) == (15 * call, [70 * call, 30 * call])


# ---------------------------------------------------------------- what servers send


def message(content, finish="stop", **fields) -> dict:
    """A completion whose message has further fields."""
    reply = completion(content, finish)
    reply["choices"][0]["message"] |= fields
    return reply


def error(text: str, **fields) -> dict:
    return {"error": {"message": text} | fields}


PARTS = [{"type": "text", "text": "x = "}, {"type": "output_text", "text": "3"}, " cm"]
# (what a server sends, how the reply finishes, its text or a part of its reason)
FORMS = [
    *((message("3", finish), "stop", "3") for finish in ("stop", "end_turn", None, 7, {"type": "stop"})),
    *((message("3", finish), "length", "3") for finish in ("length", "MAX_TOKENS", "max_output_tokens")),
    (message(PARTS), "stop", "x = 3 cm"),
    (message("3", refusal=None, reasoning_content="hm"), "stop", "3"),
    (message("", "length"), "length", ""),
    (message(None, reasoning_content="hm"), "error", "no text, only reasoning"),
    (message("", reasoning="hm"), "error", "no text, only reasoning"),
    (message(None, refusal="I cannot help"), "error", "the model refuses: I cannot help"),
    (message(" \n"), "error", "no text, finish reason 'stop'"),
    (message(None, None), "error", "no text, finish reason None"),
    (message("3", "content_filter"), "error", "finish reason 'content_filter'"),
    (error("image too large"), "error", "image too large"),
    (error("image too large", code="bad_image", status=422), "error", "HTTP 422: image too large"),
    ({"error": "image too large"}, "error", "image too large"),
    ({"object": "error", "message": "image too large", "code": 400}, "error", "HTTP 400: image too large"),
    ([error("image too large", code=400)], "error", "HTTP 400: image too large"),
]


def test_every_form_of_a_reply_is_read_once():
    """What was paid is never asked again, whether it is an answer or not; what it cost is counted."""
    server, replies = ask(lambda number, body: (200, FORMS[body["seed"]][0], {}), len(FORMS), concurrency=1)
    assert server.count == len(FORMS) == len(replies)
    for reply, (sent, finish, said) in zip(replies, FORMS):
        assert reply.finish == finish, sent
        assert said in reply.reason if finish == "error" else (reply.text, reply.reason) == (said, None)
        assert (reply.prompt_tokens, reply.tokens) == ((7, 3) if "choices" in sent else (0, 0))


COUNTED = {"prompt_tokens": 7, "completion_tokens": 3}
ESTIMATED = (50 + len("<image>q0") // 4, 8 // 4)  # of an image of 50 tokens, and of texts
SAID = completion("12345678")
USAGES = [  # (a reply, its usage, tokens)
    (SAID, COUNTED, (7, 3)),
    (SAID, COUNTED | {"completion_tokens": 0}, (7, ESTIMATED[1])),
    *((SAID, odd, ESTIMATED) for odd in (None, [], "7", {}, dict.fromkeys(COUNTED, -7))),
    *((SAID, dict.fromkeys(COUNTED, odd), ESTIMATED) for odd in ("7", 7.0, True, 1 << 40)),
    (completion(None, "length"), None, (ESTIMATED[0], SAMPLING["max_tokens"])),
]


def test_tokens_that_are_not_counted_are_estimated(tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "x.png")
    asked = questions(len(USAGES), [str(tmp_path / "x.png")])
    sent = [said | {"usage": usage} for said, usage, _ in USAGES]
    _, replies = ask(lambda _, body: (200, sent[body["seed"]], {}), asked, max_pixels=50 * 28 * 28)
    for reply, (*told, tokens) in zip(replies, USAGES):
        assert (reply.prompt_tokens, reply.tokens) == tokens, told


def test_a_cost_that_no_server_counts_is_limited(monkeypatch, capsys):
    monkeypatch.setenv("PRICE_OUT", "1000000")
    uncounted = SAID | {"usage": None}
    _, replies = ask(lambda number, body: (200, uncounted, {}), 100, concurrency=2, max_cost=10.0)
    assert 5 <= len(replies) <= 7 and "--max-cost 10 is reached" in capsys.readouterr().err


# ---------------------------------------------------------------- what servers refuse

EXTRA = {"detail": [{"type": "extra_forbidden", "loc": ["body", "top_k"], "msg": "Extra inputs", "input": 5}]}
BOTH = "`temperature` and `top_p` cannot both be specified for this model. Please use only one."
# (the parameter, the status and the body of a refusal)
REFUSALS = [
    ("max_tokens", 400, error("Unsupported parameter: use 'max_completion_tokens'", param="max_tokens")),
    ("temperature", 400, error("does not support 0.7", param="temperature", code="unsupported_value")),
    ("top_p", 400, error(BOTH)),
    ("top_p", 400, error("Provider error", metadata={"raw": "top_p is not supported by this model"})),
    ("seed", 400, [error('Unknown name "seed": Cannot find field.', code=400)]),
    ("top_k", 400, error("Unrecognized request argument supplied: top_k", param=None)),
    ("top_k", 422, EXTRA),
]


@pytest.mark.parametrize("name, status, body", REFUSALS)
def test_a_refused_parameter_is_left_out_from_then_on(name, status, body, capsys):
    """Once, however many requests are in flight, and none of them has failed."""
    refuse = failing(lambda _, sent: name in sent, status, body)
    server, replies = ask(refuse, 60, 0.05, concurrency=30, temperature=0.7, top_k=5)
    assert finishes(replies) == {"stop": 60}
    assert server.count <= 60 + 30 and len(server.answered) == 60
    sent = {"model", "messages", "max_tokens", "temperature", "top_p", "seed", "top_k"} - {name}
    sent |= {"max_completion_tokens"} if name == "max_tokens" else set()
    assert all(body.keys() == sent for body in server.answered)
    assert {reply.seed is None for reply in replies} == {name == "seed"}
    found = capsys.readouterr()
    assert found.out.count("\n") == 1 and f"endpoint: {name} is refused" in found.out and not found.err
    assert ("replies are drawn at the server's own" in found.out) == (name == "temperature")


def test_parameters_are_refused_one_after_the_other(capsys):
    def refuse(number, body):
        names = [name for name in ("max_tokens", "temperature", "top_p", "seed") if name in body]
        return (400, error("Unsupported", param=names[0]), {}) if names else good(number, body)

    assert finishes(ask(refuse, 5)[1]) == {"stop": 5}
    assert capsys.readouterr().out.count(" is refused: ") == 4


@pytest.mark.parametrize(
    "status, body",
    [
        (400, error("max_tokens is too large: 12 > 8", param="max_tokens", code="invalid_value")),
        (422, {"detail": [{"loc": ["body"], "msg": "unexpected", "input": {"seed": 3, "top_p": 1}}]}),
        (404, error("temperature is not supported")),
    ],
)
def test_other_refusals_are_those_of_a_row(status, body, capsys):
    """Also if the server repeats the request, and with it every parameter."""
    server, replies = ask(failing(lambda _, sent: sent["seed"] == 3, status, body))
    assert replies[3].finish == "error" and server.count == 20
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "status, body",
    [
        (200, error("You exceeded your quota: buy", code="insufficient_quota")),
        (429, error("not active: buy", code="billing_not_active")),
        (400, error("Your credit balance is too low: buy", type="invalid_request_error")),
        (401, error("no credit: buy")),
    ],
)
def test_an_account_without_money_stops_the_stage(status, body, capsys):
    """At once, in the server's words; answers that are still coming are paid for, and are yielded."""

    refuse = failing(lambda number, _: number == 8, status, body)

    def slow(number, sent):
        time.sleep(0.5 if number > 8 else 0.1)
        return refuse(number, sent)

    server, replies = ask(slow, 100, concurrency=4)
    assert finishes(replies) == {"stop": len(server.answered)}
    assert 9 <= len(replies) and server.count <= 8 + 2 * 4
    found = capsys.readouterr().err
    assert found.startswith("stopped: --model") and found.endswith(": buy; call again when it works\n")
    assert found.count("\n") == 1


@pytest.mark.parametrize("status", [403, 500])
def test_models_that_are_not_told_are_no_reason_to_stop(status):
    open_model(Server(good, models=status).spec, flags(), load)


def test_a_refused_key_is_told_before_anything_is_asked(capsys):
    server = Server(good, models=401)
    refused(capsys, lambda: open_model(server.spec, flags(), load), "refuses the key (HTTP 401)")
    assert server.count == 0


@pytest.mark.parametrize("key", ["sk-é", "sk-a\nb"])
def test_a_key_that_is_none(key, monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    refused(capsys, partial(open_model, "http://h/v1#m", flags(), load), "holds a character", secret=key)


# ---------------------------------------------------------------- the way to a server

AZURE = "/openai/deployments/d/chat/completions?api-version=2024-10-21"


ADDRESSES = {  # of a server: where it is asked
    "/v1": "/v1/chat/completions",
    "": "/chat/completions",
    "/v1/chat/completions": "/v1/chat/completions",
    "/openai/deployments/d/?api-version=2024-10-21": AZURE,
    AZURE: AZURE,
}


@pytest.mark.parametrize("address", ADDRESSES)
def test_addresses(address, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    server = Server(good)
    spec = server.spec.replace("/v1#m", f"{address}#gpt-4o")
    check_address(spec)
    replies = list(open_model(spec, flags(), load)(questions(1)))
    assert replies[0].finish == "stop" and fingerprint(spec) == "#gpt-4o"
    (asked, sent), body = server.heads[0], server.seen[0][1]
    assert (
        asked == ADDRESSES[address]
        and body["model"] == "gpt-4o"
        and sent["Authorization"] == "Bearer sk-secret"
    )
    assert sent["api-key"] == ("sk-secret" if "api-version" in address else None)


def test_what_is_on_this_machine():
    here = "http://localhost:1/v1", "http://127.8.0.1/v1", "http://[::1]:1/v1", "http://a.localhost/v1"
    there = "http://10.0.0.1/v1", "https://localhost.org/v1"
    assert all(map(endpoint.is_loopback, here)) and not any(map(endpoint.is_loopback, there))


@pytest.fixture
def proxy(monkeypatch):
    """Sets the environment's proxy; the package that httpx needs for SOCKS is not there."""
    monkeypatch.setitem(sys.modules, "socksio", None)
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)

    def use(address: str) -> None:
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, address)
            monkeypatch.setenv(name.upper(), address)

    return use


@pytest.mark.parametrize("address", ["http://127.0.0.1:9", "socks5://127.0.0.1:9"])
def test_no_proxy_leads_to_this_machine(address, proxy):
    proxy(address)
    assert finishes(ask(good, 3)[1]) == {"stop": 3}


@pytest.mark.parametrize("address", ["socks5://127.0.0.1:9", "gopher://user:sk-secret@127.0.0.1:9"])
def test_a_proxy_that_cannot_be_used_is_told(address, proxy, capsys):
    proxy(address)
    opened = partial(open_model, "http://example.invalid/v1#m", flags(), load)
    refused(capsys, opened, "the proxy", secret="sk-secret")


# ---------------------------------------------------------------- samples in one request


def draws(problems: int, samples: int = 4) -> list[Request]:
    """Requests for several samples; the seed of sample k of problem p is 10 p + k."""
    made = questions(problems)
    for number, request in enumerate(made):
        request.seeds = {k: 10 * number + k for k in range(samples)}
    return made


def several(most: int = 99):
    """Behaves like a server that takes `n`, up to `most`; a text tells its seed and its place."""

    def behave(number, body):
        count = min(body.get("n", 1), most)
        return 200, choices(*(f"{text_of(body)} {body['seed']} {place}" for place in range(count))), {}

    return behave


def draw(behave, problems: int = 3, **changes):
    """As ask(), the replies by problem and sample."""
    server, replies = ask(behave, draws(problems), **{"temperature": 0.7} | changes)
    return server, {(reply.row["id"], reply.sample): reply for reply in replies}


def test_samples_of_a_problem_are_one_request():
    server, replies = draw(several())
    assert len(replies) == 12 and server.count == 3 and {body["n"] for _, body in server.seen} == {4}
    for (name, sample), reply in replies.items():
        first = 10 * int(name)
        assert reply.text == f"q{name} {first} {sample}" and reply.seed == first
    first = [replies["0", sample] for sample in range(4)]
    assert sum(reply.prompt_tokens for reply in first) == 7 and sum(reply.tokens for reply in first) == 12


def test_samples_without_temperature_are_single_requests():
    server, replies = draw(several(), temperature=0.0)
    assert len(replies) == 12 == server.count and not any("n" in body for _, body in server.seen)


def test_samples_that_a_server_does_not_give_are_asked_singly():
    server, replies = draw(several(most=2))
    assert len(replies) == 12 and server.count == 3 * 3
    told = [(replies["1", k].text, replies["1", k].seed) for k in range(4)]
    assert told == [("q1 10 0", 10), ("q1 10 1", 10), ("q1 12 0", 12), ("q1 13 0", 13)]


@pytest.mark.parametrize(
    "body, known",
    [
        (error("'n' : number must be at most 1"), True),
        (error("Only one completion choice is allowed"), True),
        (error("too much"), False),
    ],
)
def test_a_server_that_refuses_several_samples(body, known, capsys):
    server, replies = draw(failing(lambda _, sent: "n" in sent, 400, body), 6, concurrency=2)
    told = {key: (reply.finish, reply.seed) for key, reply in replies.items()}
    assert told == {(str(p), k): ("stop", 10 * p + k) for p in range(6) for k in range(4)}
    assert capsys.readouterr().out.count("one by one from now on") == known
    assert server.count - 24 <= 2 if known else server.count - 24 == 6


def test_one_of_several_samples_without_a_text():
    mixed = choices("a", "b", "c", "d")
    mixed["choices"][2] = completion(None, "content_filter")["choices"][0]
    server, replies = draw(lambda number, body: (200, mixed, {}), 1)
    assert [reply.finish for reply in replies.values()] == ["stop", "stop", "error", "stop"]
    assert server.count == 1


def test_the_limit_of_requests_is_exact_for_several_samples():
    """And holds for a later call."""
    server = Server(several(most=1), seconds=0.0)
    generate = open_model(server.spec, flags(temperature=0.7, max_requests=30), load)
    assert len(list(generate(draws(20)))) == 30 == server.count
    assert list(generate(questions(3))) == [] and server.count == 30
