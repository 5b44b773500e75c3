"""An OpenAI-compatible server as a Generator: many requests in flight, failed ones tried again within bounds.

A server is expected to limit rates, to be gone for minutes, to fail, to hang and to answer junk. A request
ends as an answer or as a reply with finish `error`: after TRIES tries or, while there is no server, after
DEADLINE times `--timeout`. A server that answers nothing more, not even a question of ours, stops the stage
instead. So does a limit that is reached (`--max-requests`, `--max-cost`). What was answered is kept, and the
same command goes on later.

Samples of a problem that are drawn at a temperature are asked for in one request, so that its images are paid
for once; those that the server does not give are asked for one by one.
"""

import argparse
import itertools
import json
import math
import os
import queue
import random
import re
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from mathse.chat import chat_parts
from mathse.cli import PIXELS_A_TOKEN, price
from mathse.generate.types import Generator, Reply, Request, probe
from mathse.images import MAX_PIXELS, data_url
from mathse.records import fail, row_key
from mathse.replies import MARK, ended

CONCURRENCY = 32  # requests in flight, if --concurrency does not say
TRIES = 8  # of one request, but for those that met no server
DEADLINE = 3  # times --timeout: the longest that all tries of one request take together
MAX_PAUSE = 120.0  # seconds between two tries, also where the server asks for more
HOPELESS = 20  # requests that failed in a row: then the server is asked a question of ours
MAX_REASON = 300  # characters
MAX_REPLY = 32 << 20  # bytes
KEY_VARIABLE = "OPENAI_API_KEY"
CHARACTERS_A_TOKEN = 4  # where a server does not count
AWAY_STATUS = {429, 503, 529}  # later, says the server: no fault of the request
RETRY_STATUS = {408, 409, 425, 500, 502, 504}
KEY_STATUS = {401, 402}  # the key or the account, not the request, is refused
DOUBTED_STATUS = 403  # the key is, or the request
PARAMETER_STATUS = {400, 422}
# An account without money, by an error's code or type, and in words. (Words such as "check your plan and
# billing details" also stand in refusals of too many requests a minute.)
NO_MONEY_CODE = re.compile(r"insufficient_quota|billing|exceeded_current_quota")
NO_MONEY_WORDS = re.compile(r"(?i)credit balance|insufficient (balance|credit|fund)")
UNSUPPORTED = re.compile(
    r"(?i)unsupported|not support|unrecogni[sz]ed|unknown|unexpected|extra|not (permitted|allowed)|deprecated"
    r"|cannot both"
)
# How an error names `n`, which no row needs: also where its value alone is refused, one by one will do.
SEVERAL = r"(?<!\\)\bn\b|one completion choice|candidate"
# Parameters that a server may refuse, the one that is missed least first, and what is done then.
OPTIONAL = {
    **dict.fromkeys(("top_k", "top_p", "min_p", "repetition_penalty"), "the server's own holds from now on"),
    "response_format": "replies keep to no schema from now on",
    "seed": "left out from now on, and the rows' seed is null",
    "n": "samples are asked for one by one from now on",
    "max_tokens": "sent as max_completion_tokens from now on",
    "temperature": "left out from now on: replies are drawn at the server's own, not at --temperature",
}


@dataclass
class Job:
    """Samples that are asked for in one request, with one seed: that of the first."""

    request: Request
    samples: list[int]

    @property
    def seed(self) -> int:
        return self.request.seeds[self.samples[0]]

    def singly(self) -> list["Job"]:
        return [Job(self.request, [sample]) for sample in self.samples]


@dataclass
class Outcome:
    """What came of a job. Its `kind`: answer; row (its own image cannot be read); refused (or no text came);
    key (the key is refused); doubted (the key is, or the row); away (no server was met); again (a try
    failed); adapted (asked without a parameter from now on); down (all tries failed); gone (the time is
    over); split (too much for one request); stopped (by a limit).
    """

    kind: str
    replies: list[Reply] = field(default_factory=list)
    after: float | None = None  # seconds to wait before the next try, as the server asks
    left: list[Job] = field(default_factory=list)  # still to be asked


class Endpoint(Generator):
    """A server as a Generator."""

    def __init__(self, spec: str, args: argparse.Namespace, schema: dict | None = None):
        """Reach the server once. `schema`: the JSON schema of replies."""
        self.spec = spec
        self.args = args
        self.concurrency = args.concurrency or CONCURRENCY
        self.stop = threading.Event()  # nothing more is asked
        self.budget = Budget(args)
        self.connection = Connection(spec, args.timeout, self.concurrency)
        self.parameters = Parameters(spec.partition("#")[2], args, schema, self.connection.is_vllm)

    def close(self) -> None:
        self.connection.client.close()

    def starts(self) -> int:
        """How often the server was started, as far as we know (Served)."""
        return 1

    def __call__(self, requests: Iterable[Request]) -> Iterator[Reply]:
        if self.stop.is_set():  # by an earlier call
            return
        answered, problem = False, ""
        failed: list[Reply] = []  # since the last answer; held back, because the server may be at fault
        in_a_row = set()  # the requests that failed since then
        for outcome in self.outcomes(Job(request, [*request.seeds]) for request in requests):
            if outcome.kind in ("answer", "row"):
                if outcome.kind == "answer":
                    yield from [] if problem else failed
                    answered, failed, in_a_row = True, [], set()
                yield from outcome.replies
                continue
            is_paid = any(reply.tokens or reply.prompt_tokens for reply in outcome.replies)
            yield from outcome.replies if is_paid else ()
            failed += [] if is_paid else outcome.replies
            in_a_row |= {row_key(reply.row) for reply in outcome.replies}
            if not problem and (outcome.kind in ("key", "doubted") or len(in_a_row) >= HOPELESS):
                if outcome.kind in ("key", "gone") or not self.is_alive(outcome.replies[0].row):
                    problem = self.given_up(outcome, len(in_a_row))  # and what is in flight is taken
                elif not self.stop.is_set():  # the requests were at fault
                    yield from failed
                    failed, in_a_row = [], set()
        if failed and not (answered or self.stop.is_set() or self.is_alive(failed[-1].row)):
            problem = self.given_up(Outcome("refused", failed), len(in_a_row))
        if problem and not answered:
            fail(f"--model: {self.spec}: none was answered, {problem}")
        if not problem and (answered or not self.stop.is_set()):
            yield from failed
        if self.stop.is_set():
            more = " with more" if self.args.spent else ""
            limit = f"{self.budget.reached()}; call again{more} to go on"
            print(f"stopped: {f'--model: {self.spec}: {problem}' if problem else limit}", file=sys.stderr)

    def outcomes(self, todo: Iterator[Job]) -> Iterator[Outcome]:
        """The outcomes of jobs as they come, --concurrency of them in flight."""
        jobs, done, waiting = queue.SimpleQueue(), queue.SimpleQueue(), 0

        def work() -> None:
            while (job := jobs.get()) is not None:
                try:
                    done.put(self.ask(job))
                except BaseException as error:  # shown by the main thread
                    done.put(error)

        for _ in range(self.concurrency):  # daemons: a request in flight does not keep a command that ends
            threading.Thread(target=work, daemon=True).start()
        try:
            left = []
            while True:
                room = 0 if self.stop.is_set() else 2 * self.concurrency - waiting
                for job in (*left, *itertools.islice(todo, max(0, room))):
                    jobs.put(job)
                    waiting += 1
                if not waiting:
                    return
                outcome = done.get()
                waiting -= 1
                if isinstance(outcome, BaseException):
                    raise outcome
                left = outcome.left
                if outcome.kind == "stopped":
                    self.stop.set()
                elif outcome.kind != "split":
                    yield outcome
        finally:
            for _ in range(self.concurrency):
                jobs.put(None)

    def given_up(self, last: Outcome, in_a_row: int) -> str:
        """Ask nothing more; why, in words."""
        self.stop.set()
        reason = last.replies[-1].reason
        many = "" if last.kind == "key" else f"{in_a_row} requests failed in a row, the last one: "
        model = "; is it the right model?" if reason.startswith("HTTP 404") else ""
        return f"{many}{reason}; call again when it works{model}"

    def is_alive(self, row: dict) -> bool:
        """Whether the server answers a question of ours, with an image if the row that failed has one: then
        such rows are at fault. Where a limit is reached, nobody knows.
        """
        kind = self.ask(Job(probe("1 + 1 = ?", bool(row["images"])), [0])).kind
        if kind == "stopped":
            self.stop.set()
        return kind in ("answer", "stopped")

    def ask(self, job: Job) -> Outcome:
        """Try one request until it is answered or refused."""
        try:
            messages = self.messages(job.request)
        except Exception as error:  # Pillow raises anything on a hostile file
            return self.failed("row", job, f"{type(error).__name__}: {error}")
        starts, tries, failures = self.starts(), 0, 0  # which may take the time that a server needs to load
        deadline = time.monotonic() + DEADLINE * self.args.timeout
        while True:
            fields = self.parameters.of(job)
            if self.stop.is_set() or not self.budget.take():
                return Outcome("stopped")
            outcome = self.try_once(job, fields | {"messages": messages}, deadline)
            if outcome.kind == "adapted":
                continue
            if outcome.kind not in ("again", "away"):
                return outcome
            if self.starts() > starts:  # the server died and is back: no fault of the request
                return self.ask(job)
            tries += 1
            failures += outcome.kind == "again"
            pause = min(60.0, 2.0 ** min(tries - 1, 6)) * random.uniform(0.5, 1.0)
            if outcome.after is not None:
                pause = outcome.after + random.uniform(0.0, 0.5)
            if failures == TRIES or time.monotonic() + pause >= deadline:
                reason = outcome.replies[0].reason[: MAX_REASON - 20]
                kind = "down" if failures == TRIES else "gone"
                return self.failed(kind, job, f"{reason} ({tries} tries)")
            self.stop.wait(pause)

    def messages(self, request: Request) -> list[dict]:
        """A request's messages, images as data URLs. A server would take marks in a text for tokens."""
        urls = [{"url": data_url(image, self.args.max_pixels)} for image in request.row["images"]]
        chat = chat_parts(request.messages, urls)
        for part in (part for message in chat for part in message["content"]):
            if part["type"] == "image":
                part |= {"type": "image_url", "image_url": part.pop("image")}
            else:
                part["text"] = MARK.sub(lambda mark: f"{mark[0][0]} {mark[0][1:]}", part["text"])
        return chat

    def try_once(self, job: Job, fields: dict, deadline: float) -> Outcome:
        """Send a request. The tokens that it used are counted, whatever comes back."""
        import httpx

        used = 0, 0
        try:
            until = min(deadline, time.monotonic() + self.args.timeout)
            status, after, content = self.connection.post(fields, until)
            if error := read_error(status, content):
                return self.refused(job, fields, error, after)
            body = json.loads(content)
            choices = [choice for choice in map(read_choice, body.get("choices") or []) if choice]
            used = read_usage(body.get("usage"), self.estimate(job.request, choices))
            if not choices:
                return self.failed("again", job, "a reply without a text")
            return self.answered(job, choices, used, fields.get("seed"))
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            return self.failed("away", job, type(error).__name__)
        except httpx.HTTPError as error:
            return self.failed("again", job, type(error).__name__)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return self.failed("again", job, "a reply that is no chat completion")
        finally:
            self.budget.add(*used)

    def estimate(self, request: Request, choices: list["Choice"]) -> tuple[int, int]:
        """(tokens read, tokens written) by the characters of all texts, the limit of those that were cut off,
        and images as large as --max-pixels lets them; nothing where there is no text.
        """
        image = (self.args.max_pixels or MAX_PIXELS) // PIXELS_A_TOKEN
        read = sum(len(message["content"]) for message in request.messages) // CHARACTERS_A_TOKEN
        whole = [choice.characters for choice in choices if choice.finish != "length"]
        written = sum(math.ceil(count / CHARACTERS_A_TOKEN) for count in whole)
        written += (len(choices) - len(whole)) * self.args.max_tokens
        return (read + image * len(request.row["images"]), written) if choices else (0, 0)

    def answered(self, job: Job, choices: list["Choice"], used: tuple[int, int], seed: int | None) -> Outcome:
        """The texts, each with its share of the tokens. Samples that were not given are left."""
        choices, replies = choices[: len(job.samples)], []
        written = shares(used[1], [choice.characters + 1 for choice in choices])
        read = shares(used[0], [1] * len(choices))
        for sample, choice, new, prompt in zip(job.samples, choices, written, read):
            text, reason = self.hide(choice.text), choice.reason and self.hide(choice.reason)[:MAX_REASON]
            replies.append(Reply(job.request.row, sample, text, choice.finish, new, prompt, reason, seed))
        kind = "refused" if all(reply.finish == "error" for reply in replies) else "answer"
        return Outcome(kind, replies, left=job.singly()[len(choices) :])

    def refused(self, job: Job, fields: dict, error: "ServerError", after: float | None) -> Outcome:
        """What an error means: less is asked of the server, or the request has failed."""
        if name := error.refused_parameter([name for name in OPTIONAL if name in fields]):
            self.parameters.refuse(name)
            return Outcome("adapted")
        if len(job.samples) > 1 and error.status in PARAMETER_STATUS:  # not every server says that it is `n`
            return Outcome("split", left=job.singly())
        return self.failed(error.kind(), job, f"HTTP {error.status}: {error.words}", after)

    def failed(self, kind: str, job: Job, reason: str, after: float | None = None) -> Outcome:
        said = {"finish": "error", "reason": self.hide(reason)[:MAX_REASON], "seed": job.seed}
        return Outcome(kind, [Reply(job.request.row, sample, **said) for sample in job.samples], after)

    def hide(self, text: str) -> str:
        """Cut out the key, which a server may repeat. (A short one is a dummy, and a common word.)"""
        return text.replace(self.connection.key, "***") if len(self.connection.key) >= 8 else text


# ---------------------------------------------------------------- the way to a server


class Connection:
    """A server at the address of a spec, `URL#model`. The key is read from the environment and is in no
    message, log or file.
    """

    def __init__(self, spec: str, timeout: float, connections: int):
        import httpx

        self.key = os.environ.get(KEY_VARIABLE, "").strip()
        if not (self.key.isascii() and self.key.isprintable()):
            fail(f"{KEY_VARIABLE}: holds a character that no key has; set it anew")
        address = spec.partition("#")[0]
        headers = {"Content-Type": "application/json"}
        if self.key:  # Azure, whose addresses have an api-version, reads it from a header of its own
            headers["Authorization"] = f"Bearer {self.key}"
            is_azure = "api-version" in parse_qs(urlsplit(address).query)
            headers |= {"api-key": self.key} if is_azure else {}
        try:
            self.client = httpx.Client(
                timeout=httpx.Timeout(timeout, connect=10),
                limits=httpx.Limits(max_connections=connections),
                headers=headers,
                verify=httpx.create_ssl_context(),  # by SSL_CERT_FILE, also without trust_env
                trust_env=not is_loopback(address),  # HTTP_PROXY and its like
            )
        except (ImportError, ValueError, httpx.InvalidURL) as error:  # SOCKS needs a package of its own
            fail(f"--model: {spec}: the proxy that the environment names cannot be used: {error}")
        self.url = place(address, "/chat/completions")
        try:  # many servers do not tell their models: only a refused key is a reason to stop
            with self.client.stream("GET", place(address, "/models"), timeout=30) as answer:
                status, content = answer.status_code, next(answer.iter_bytes(1 << 16), b"")
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            problem = f"the endpoint cannot be reached ({type(error).__name__}); is the server running?"
            fail(f"--model: {spec}: {problem}")
        if status == 401:
            fail(f"--model: {spec}: the endpoint refuses the key (HTTP 401); set {KEY_VARIABLE}")
        self.is_vllm = b'"owned_by":"vllm"' in content.replace(b'": "', b'":"')

    def post(self, fields: dict, deadline: float) -> tuple[int, float | None, bytes]:
        """Ask for a chat completion: (status, seconds to wait by Retry-After, content).

        Raises httpx.HTTPError, also past the deadline: a server may send for ever.
        """
        import httpx

        with self.client.stream("POST", self.url, content=json.dumps(fields).encode()) as answer:
            content = bytearray()
            for chunk in answer.iter_bytes():
                content += chunk
                if len(content) > MAX_REPLY or time.monotonic() > deadline:
                    raise httpx.ReadTimeout("too long a reply")
            return answer.status_code, retry_after(answer.headers.get("retry-after")), bytes(content)


def place(address: str, path: str) -> str:
    """The URL of `path` at a server. A query, such as Azure's api-version, stays behind it; an address that
    names /chat/completions already means the server.
    """
    parts = urlsplit(address)
    base = parts.path.rstrip("/").removesuffix("/chat/completions").rstrip("/")
    return parts._replace(path=base + path).geturl()


def is_loopback(address: str) -> bool:
    """Whether a server is on this machine, where no proxy leads to."""
    host = urlsplit(address).hostname or ""
    return bool(re.fullmatch(r"(.+\.)?localhost|127(\.\d+){3}|::1", host))


def retry_after(value: str | None) -> float | None:
    """Seconds to wait by a Retry-After header, which holds seconds or a date; None if it says nothing."""
    try:
        if re.fullmatch(r"[-+.\d]+", value or ""):
            seconds = float(value)
        else:
            seconds = (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds()
    except (TypeError, ValueError):
        return None
    return min(MAX_PAUSE, max(0.0, seconds))


# ---------------------------------------------------------------- what is asked, and what may be spent


class Parameters:
    """What a server is asked with. What it refuses once is not sent again; a line says so, once."""

    def __init__(self, model: str, args: argparse.Namespace, schema: dict | None, is_vllm: bool):
        self.always = {"model": model, "max_tokens": args.max_tokens, "temperature": args.temperature}
        self.always |= {"top_p": args.top_p} | ({"top_k": args.top_k} if args.top_k else {})
        if schema:
            named = {"name": "reply", "strict": True, "schema": schema}
            self.always["response_format"] = {"type": "json_schema", "json_schema": named}
        if is_vllm:  # what is not said it takes from the model's folder: Qwen2-VL's says top_k 1
            self.always |= {"top_k": args.top_k or -1, "min_p": 0.0, "repetition_penalty": 1.0}
        self.refused = frozenset() if args.temperature else frozenset("n")  # else they are one text
        self.lock = threading.Lock()

    def of(self, job: Job) -> dict:
        """The fields of a request, but for its messages."""
        refused = self.refused  # as they are now: another thread may add one
        fields = self.always | {"seed": job.seed} | ({"n": len(job.samples)} if len(job.samples) > 1 else {})
        if "max_tokens" in refused:
            fields["max_completion_tokens"] = fields["max_tokens"]
        return {name: value for name, value in fields.items() if name not in refused}

    def refuse(self, name: str) -> None:
        with self.lock:
            if name not in self.refused:
                self.refused |= {name}
                print(f"endpoint: {name} is refused: {OPTIONAL[name]}", flush=True)


class Budget:
    """Requests sent and tokens used, within --max-requests and --max-cost. `--spent FILE` adds them up over
    several calls: a line a request, prompt and new tokens.
    """

    def __init__(self, args: argparse.Namespace):
        self.max_requests = args.max_requests
        self.max_cost = args.max_cost
        self.lock = threading.Lock()
        self.prices = price("PRICE_IN"), price("PRICE_OUT")
        if self.max_cost and not any(self.prices):
            prices = "the price of a million tokens read and written"
            fail(f"--max-cost: needs PRICE_IN and PRICE_OUT in the environment: {prices}")
        self.requests, self.tokens, self.file = 0, [0, 0], None  # tokens read and written
        if args.spent:
            Path(args.spent).parent.mkdir(parents=True, exist_ok=True)
            self.file = open(args.spent, "a+b", buffering=0)
            self.requests, self.tokens = read_spent(args.spent)

    def cost(self) -> float:
        return sum(count * each for count, each in zip(self.tokens, self.prices)) / 1e6

    def reached(self) -> str | None:
        """The limit that is reached, in words."""
        if self.max_requests and self.requests >= self.max_requests:
            return f"--max-requests {self.max_requests} is reached"
        if self.max_cost and self.cost() >= self.max_cost:
            return f"--max-cost {self.max_cost:g} is reached (spent: {self.cost():.4f})"
        return None

    def take(self) -> bool:
        """Count one more request, if the limits allow it."""
        with self.lock:
            allowed = self.reached() is None
            self.requests += allowed
        return allowed

    def add(self, prompt: int, new: int) -> None:
        """Count the tokens of a request."""
        with self.lock:
            self.tokens = [self.tokens[0] + prompt, self.tokens[1] + new]
            if self.file:
                self.file.write(f"{prompt}\t{new}\n".encode())


def read_spent(path: str | Path) -> tuple[int, list[int]]:
    """(requests, [tokens read, tokens written]) that a file of --spent has counted."""
    lines = [line.split() for line in Path(path).read_bytes().splitlines()]
    counts = [(int(line[0]), int(line[1])) for line in lines if len(line) == 2]  # others are torn by a kill
    return len(counts), [sum(column) for column in zip((0, 0), *counts)]


# ---------------------------------------------------------------- what comes back


@dataclass
class Choice:
    """One text of a reply. `finish`: as in Reply; `characters`: of all that was written, thoughts too."""

    text: str
    finish: str
    reason: str | None
    characters: int


def read_choice(choice: object) -> Choice | None:
    """A text, or the reason why there is none: it was paid and is final. None if the server broke it off.

    Servers have many names for an end (`stop`, `eos`, `end_turn`, none at all), so text with any finish
    reason is an answer. All tokens spent on thinking are a text of length 0 that was cut off.
    """
    message = choice.get("message") if isinstance(choice, dict) else None
    said = str(choice.get("finish_reason") or "").lower() if isinstance(message, dict) else "error"
    if said in ("error", "abort"):
        return None
    written = joined(message.get("content")).strip()
    was_cut = said in ("length", "max_tokens", "max_output_tokens")
    text, finish = ended(written, "length" if was_cut else "stop")
    thoughts = joined(message.get("reasoning_content") or message.get("reasoning"))
    characters = len(written) + len(thoughts)
    if finish == "length" or (text and said != "content_filter"):
        return Choice(text, finish, None, characters)
    refusal, only = joined(message.get("refusal")), ", only reasoning" if thoughts else ""
    none = f"no text{only}, finish reason {said or None!r}"
    return Choice("", "error", f"the model refuses: {refusal}" if refusal else none, characters)


def joined(content: object) -> str:
    """A content as one text: a string, or a list of strings and typed parts (thoughts are no text)."""
    texts = []
    for part in content if isinstance(content, list) else [content]:
        is_text = isinstance(part, dict) and part.get("type") in ("text", "output_text", None)
        texts.append(part.get("text") if is_text else part)
    return "".join(text for text in texts if isinstance(text, str))


def read_usage(usage: object, estimate: tuple[int, int]) -> tuple[int, int]:
    """(tokens read, tokens written) as a server counts them, or the estimate where it tells no number of
    tokens: so --max-cost holds there as well.
    """
    told = usage if isinstance(usage, dict) else {}
    found = told.get("prompt_tokens"), told.get("completion_tokens")
    is_count = [type(count) is int and 0 < count < 1 << 32 for count in found]
    return tuple(count if sound else guess for count, sound, guess in zip(found, is_count, estimate))


def shares(total: int, weights: list[int]) -> list[int]:
    """A number in whole parts by weight. They add up to it."""
    parts = [total * weight // sum(weights) for weight in weights]
    return [parts[0] + total - sum(parts), *parts[1:]]


@dataclass
class ServerError:
    """An error as a server tells it. `code`: its code and type; `parameter`: the one that it is about."""

    status: int
    words: str
    code: str
    parameter: object

    def kind(self) -> str:
        """What it means for the request: key, doubted, away, again or refused, as in Outcome."""
        if self.status in KEY_STATUS or NO_MONEY_CODE.search(self.code) or NO_MONEY_WORDS.search(self.words):
            return "key"
        if self.status == DOUBTED_STATUS:
            return "doubted"
        again = "again" if self.status in RETRY_STATUS else "refused"
        return "away" if self.status in AWAY_STATUS else again

    def refused_parameter(self, names: list[str]) -> str | None:
        """The first of the names that is refused as a parameter, whatever its value."""
        if self.status not in PARAMETER_STATUS:
            return None
        if not UNSUPPORTED.search(f"{self.code} {self.words}"):
            names = [name for name in names if name == "n"]
        if self.parameter in names:
            return self.parameter
        patterns = {name: SEVERAL if name == "n" else rf"\b{name}\b" for name in names}
        return next((name for name in names if re.search(patterns[name], self.words)), None)


def read_error(status: int, content: bytes) -> ServerError | None:
    """The error in a reply, which may come as HTTP 200 too. None if there is none."""
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        body = None
    body = body[0] if isinstance(body, list) and body else body
    body = body if isinstance(body, dict) else {}
    told = body.get("error") or (body if body.get("object") == "error" else None)
    if status == 200 and (not told or body.get("choices")):
        return None
    fields = told if isinstance(told, dict) else body
    if status == 200:
        codes = str(fields.get("code")), str(fields.get("status"))
        status = next((int(code) for code in codes if re.fullmatch(r"[45]\d\d", code)), 400)
    words = error_words(fields, told) or content[:1000].decode("utf-8", "replace")
    return ServerError(status, words, f"{fields.get('code')} {fields.get('type')}", fields.get("param"))


def error_words(fields: dict, told: object) -> str:
    """What an error says, without the request that some servers repeat in it; "" if that is not found."""
    said = fields.get("message") or fields.get("detail") or told
    said = said.get("detail") if isinstance(said, dict) else said
    if isinstance(said, list):  # FastAPI: where in the request, and what
        items = [item for item in said if isinstance(item, dict)]
        said = "; ".join(f"{item.get('loc')}: {item.get('msg')}" for item in items)
    if not isinstance(said, str):
        return ""
    more = fields.get("metadata")  # OpenRouter: what the server behind it said
    return f"{said}: {more['raw']}" if isinstance(more, dict) and isinstance(more.get("raw"), str) else said
