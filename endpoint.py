"""Text from an OpenAI-compatible endpoint: one request a sample, many in flight, what fails tried again within bounds.

A server is expected to limit rates, to fail, to hang and to answer junk. A request ends as an answer or, after TRIES tries or
DEADLINE times `--timeout`, as a reply with finish `error`. An endpoint that answers nothing more, or a limit that is reached
(`--max-requests`, `--max-cost`), stops the stage instead: what was answered is kept, and the same command goes on later.
"""

import argparse
import base64
import io
import itertools
import json
import math
import os
import queue
import random
import sys
import threading
import time
from dataclasses import dataclass, field
from datetime import datetime, timezone
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Callable, Iterable, Iterator

from common import IMAGE_FORMATS, chat_parts, fail, open_image
from engine import Reply, Request

KEY_VARIABLE = "OPENAI_API_KEY"
TRIES = 8  # of one request
DEADLINE = 3  # times --timeout: the longest that all tries of one request take together
HOPELESS = 20  # requests that failed in a row, after which an endpoint is given up
MAX_PAUSE = 120.0  # seconds between two tries, also where the server asks for more
MAX_REPLY = 32 << 20  # bytes
RETRY_STATUS = {408, 409, 425, 429, 500, 502, 503, 504, 529}
KEY_STATUS = {401, 402, 403}  # the key or the account, not the request, is refused


@dataclass
class Endpoint:
    """A server; the key is read from the environment and is in no message, log or file."""

    url: str
    model: str
    key: str = field(repr=False)

    def hide(self, text: str) -> str:
        """A server may repeat the key: it is cut out. (A short one is a dummy for a local server, and a common word.)"""
        return text.replace(self.key, "***") if len(self.key) >= 8 else text


class Budget:
    """Requests sent and tokens used, added up over several calls if `--spent` names a file: one line a request, prompt and new tokens."""

    def __init__(self, args: argparse.Namespace):
        self.max_requests, self.max_cost, self.lock = args.max_requests, args.max_cost, threading.Lock()
        self.prices = [price(name) for name in ("PRICE_IN", "PRICE_OUT")]
        if self.max_cost and not any(self.prices):
            fail("--max-cost: needs PRICE_IN and PRICE_OUT in the environment: the price of a million tokens read and written")
        self.requests, self.tokens, self.file = 0, [0, 0], None
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
        with self.lock:
            self.tokens = [self.tokens[0] + prompt, self.tokens[1] + new]
            if self.file:
                self.file.write(f"{prompt}\t{new}\n".encode())


def read_spent(path: str | Path) -> tuple[int, list[int]]:
    """(requests, [tokens read, tokens written]) that a file of --spent has counted."""
    lines = [line.split() for line in Path(path).read_bytes().splitlines()]
    counts = [(int(prompt), int(new)) for prompt, new in (line for line in lines if len(line) == 2)]  # else torn by a kill
    return len(counts), [sum(column) for column in zip((0, 0), *counts)]


def price(name: str) -> float:
    """A price of a million tokens from the environment, 0 if it is not set."""
    try:
        value = float(os.environ.get(name) or 0)
    except ValueError:
        value = -1.0
    if not 0 <= value < math.inf:
        fail(f"{name}: {os.environ[name]!r}: must be a number, the price of a million tokens")
    return value


def open_endpoint(spec: str, args: argparse.Namespace) -> Callable[..., Iterator[Reply]]:
    """Reach the endpoint once and return the function that asks it: (requests, temperature) -> replies as they come."""
    import httpx

    url, _, name = spec.partition("#")
    endpoint = Endpoint(url.rstrip("/"), name, os.environ.get(KEY_VARIABLE, "").strip())
    if not (endpoint.key.isascii() and endpoint.key.isprintable()):
        fail(f"{KEY_VARIABLE}: holds a character that no key has; set it anew")
    budget = Budget(args)
    headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {endpoint.key}"} if endpoint.key else {})
    client = httpx.Client(timeout=httpx.Timeout(args.timeout, connect=10), limits=httpx.Limits(max_connections=args.concurrency), headers=headers)
    try:
        with client.stream("GET", f"{endpoint.url}/models", timeout=30) as answer:
            status = answer.status_code
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        fail(f"--model: {spec}: the endpoint cannot be reached ({type(error).__name__}); is the server running?")
    if status in KEY_STATUS:
        fail(f"--model: {spec}: the endpoint refuses the key (HTTP {status}); set {KEY_VARIABLE}")
    stop = threading.Event()  # nothing more is asked

    def work(jobs: queue.SimpleQueue, outcomes: queue.SimpleQueue, temperature: float) -> None:
        while (job := jobs.get()) is not None:
            try:
                outcomes.put(ask(client, endpoint, *job, temperature, args, budget, stop))
            except BaseException as error:  # shown by the main thread
                outcomes.put(error)

    def generate(requests: Iterable[Request], temperature: float = args.temperature) -> Iterator[Reply]:
        if stop.is_set():  # by an earlier call
            return
        waiting, answered, failed, why = 0, False, [], None  # failed: since the last answer; held back, they may be the endpoint's fault
        todo = ((request, sample, seed) for request in requests for sample, seed in request.seeds.items())
        jobs, outcomes = queue.SimpleQueue(), queue.SimpleQueue()
        for _ in range(args.concurrency):  # daemons: a request in flight does not keep a command that ends
            threading.Thread(target=work, args=(jobs, outcomes, temperature), daemon=True).start()
        while True:
            for job in itertools.islice(todo, 0 if stop.is_set() else 2 * args.concurrency - waiting):
                jobs.put(job)
                waiting += 1
            if not waiting:
                break
            outcome = outcomes.get()
            waiting -= 1
            if isinstance(outcome, BaseException):
                raise outcome
            if outcome is None:
                stop.set()
                continue
            kind, reply = outcome
            if kind == "answer":
                answered = True
                yield from failed
                failed = []
                yield reply
            elif kind == "row" or (kind == "refused" and answered):
                yield reply
            else:
                failed.append(reply)
                if kind == "key" or len(failed) >= HOPELESS:
                    why = f"{len(failed)} requests failed in a row, the last one: {reply.reason}; call again when it works"
                    if not answered:
                        fail(f"--model: {spec}: none was answered, {why}")
                    stop.set()
        if not why and failed and not answered and all((reply.reason or "").startswith("HTTP 404") for reply in failed):
            fail(f"--model: {spec}: none was answered: {failed[-1].reason}; is it the right model?")
        if not why:
            yield from failed
        if stop.is_set():
            print(f"stopped: --model: {spec}: {why}" if why else f"stopped: {budget.reached()}; call again{' with more' if args.spent else ''} to go on", file=sys.stderr)
        for _ in range(args.concurrency):
            jobs.put(None)

    return generate


def ask(client, endpoint: Endpoint, request: Request, sample: int, seed: int, temperature: float, args: argparse.Namespace, budget: Budget, stop: threading.Event):
    """(kind, reply) of one request after all its tries, or None if it was not asked to the end because the stage stops.

    Kinds: `answer`; `row` (its own picture cannot be read); `refused`, `key` (what the server says to this request, to this key); `down`.
    """
    import httpx

    def failed(kind: str, reason: str) -> tuple[str, Reply]:
        return kind, Reply(request.row, sample, finish="error", reason=endpoint.hide(reason)[:300], seed=seed)

    try:
        urls = [{"url": data_url(image, args.max_pixels)} for image in request.row["images"]]
    except (OSError, ValueError) as error:
        return failed("row", f"{type(error).__name__}: {error}")
    chat = chat_parts(request.messages, urls)
    for part in (part for message in chat for part in message["content"] if part["type"] == "image"):
        part["type"], part["image_url"] = "image_url", part.pop("image")
    fields = {"model": endpoint.model, "messages": chat, "max_tokens": args.max_tokens, "temperature": temperature, "top_p": args.top_p, "seed": seed}
    body = json.dumps(fields | ({"top_k": args.top_k} if args.top_k else {})).encode()
    deadline, reason = time.monotonic() + DEADLINE * args.timeout, ""
    for attempt in range(TRIES):
        if stop.is_set() or not budget.take():
            return None
        pause, used = min(60.0, 2.0**attempt) * random.uniform(0.5, 1.0), (0, 0)
        try:
            status, after, content = post(client, f"{endpoint.url}/chat/completions", body, min(deadline, time.monotonic() + args.timeout))
            if status in RETRY_STATUS:
                reason = f"HTTP {status}"
                pause = pause if after is None else after + random.uniform(0.0, 0.5)
            elif status != 200:
                return failed("key" if status in KEY_STATUS else "refused", f"HTTP {status}: {content[:1000].decode('utf-8', 'replace')}")
            else:
                answer = json.loads(content)
                usage = answer.get("usage") or {}
                used = count(usage.get("prompt_tokens")), count(usage.get("completion_tokens"))
                choice = answer["choices"][0]
                finish = {"stop": "stop", "length": "length"}.get(choice.get("finish_reason") or "stop")
                if finish and isinstance(text := choice["message"]["content"], str):
                    return "answer", Reply(request.row, sample, endpoint.hide(text).strip(), finish, used[1], used[0], None, seed)
                reason = f"no text, finish reason {choice.get('finish_reason')!r}"
        except httpx.HTTPError as error:
            reason = type(error).__name__
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            reason = "a reply that is no chat completion"
        finally:
            budget.add(*used)
        if time.monotonic() + pause >= deadline:
            break
        if attempt + 1 < TRIES:
            stop.wait(pause)
    return failed("down", f"{reason} ({attempt + 1} tries)")


def post(client, url: str, body: bytes, deadline: float) -> tuple[int, float | None, bytes]:
    """(status, seconds to wait by Retry-After, content). Raises httpx.HTTPError, also past the deadline: a server may send for ever."""
    import httpx

    with client.stream("POST", url, content=body) as answer:
        content = bytearray()
        for chunk in answer.iter_bytes():
            content += chunk
            if len(content) > MAX_REPLY or time.monotonic() > deadline:
                raise httpx.ReadTimeout("too long a reply")
        return answer.status_code, retry_after(answer.headers.get("retry-after")), bytes(content)


def retry_after(value: str | None) -> float | None:
    """Seconds to wait by a Retry-After header, which holds seconds or a date; MAX_PAUSE at most; None if it says nothing."""
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        try:
            seconds = (parsedate_to_datetime(value) - datetime.now(timezone.utc)).total_seconds()
        except (TypeError, ValueError):
            return None
    return min(MAX_PAUSE, max(0.0, seconds)) if seconds == seconds else None


def count(value: object) -> int:
    """A number of tokens as a server tells it, or 0 if it cannot be one."""
    return value if isinstance(value, int) and 0 <= value < 1 << 32 else 0


def data_url(path: str, max_pixels: int) -> str:
    """A picture as a data URL: small PNG and JPEG files as they are, others re-encoded, so that a server sees what a local model would (open_image)."""
    from PIL import Image

    with Image.open(path, formats=IMAGE_FORMATS) as image:
        plain = image.mode in ("RGB", "L") and "transparency" not in image.info and not image.getexif()
        as_is = plain and image.format in ("PNG", "JPEG") and image.width * image.height <= (max_pixels or 1 << 62)
        kind = (image.format or "PNG").lower()
    data = Path(path).read_bytes()
    if not as_is:
        buffer, kind = io.BytesIO(), "png"
        open_image(path, max_pixels).save(buffer, "PNG")
        data = buffer.getvalue()
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
