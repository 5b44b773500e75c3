"""An OpenAI-compatible endpoint: one request a sample, many in flight, failed ones tried again within bounds.

A server is expected to limit rates, to fail, to hang and to answer junk. A request ends as an answer or,
after TRIES tries or DEADLINE times `--timeout`, as a reply with finish `error`. An endpoint that answers
nothing more, or a limit that is reached (`--max-requests`, `--max-cost`), stops the stage instead: what was
answered is kept, and the same command goes on later.
"""

import argparse
import itertools
import json
import queue
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from mathse.chat import chat_parts
from mathse.generate.connection import Connection
from mathse.generate.spending import Budget
from mathse.generate.types import Reply, Request
from mathse.images import data_url
from mathse.records import fail

TRIES = 8  # of one request
DEADLINE = 3  # times --timeout: the longest that all tries of one request take together
HOPELESS = 20  # requests that failed in a row, after which an endpoint is given up
MAX_REASON = 300  # characters
RETRY_STATUS = {408, 409, 425, 429, 500, 502, 503, 504, 529}
KEY_STATUS = {401, 402, 403}  # the key or the account, not the request, is refused


@dataclass
class Outcome:
    """What came of a request. Its `kind`:

    answer; row (its own image cannot be read); refused (by the server); key (refused by the server);
    again (one try failed); down (all tries failed); stopped (not asked to the end, because the stage stops).
    """

    kind: str
    reply: Reply
    after: float | None = None  # seconds to wait before the next try, as the server asks


class Endpoint:
    """A server as a Generator: see types.py."""

    def __init__(self, spec: str, args: argparse.Namespace):
        """Reach the server once. Ends the command if it cannot be reached or refuses the key."""
        self.spec = spec
        self.args = args
        self.model = spec.partition("#")[2]
        self.work = Counter()
        self.budget = Budget(args)
        self.stop = threading.Event()  # nothing more is asked
        self.connection = Connection(spec, args)

    def spent(self) -> dict:
        return self.budget.spent()

    # ------------------------------------------------------------ many requests

    def __call__(self, requests: Iterable[Request], temperature: float | None = None) -> Iterator[Reply]:
        if self.stop.is_set():  # by an earlier call
            return
        temperature = self.args.temperature if temperature is None else temperature
        todo = ((request, sample) for request in requests for sample in request.seeds)
        answered, given_up = False, False
        failed = []  # since the last answer; held back, because the endpoint may be at fault
        for outcome in self.outcomes(todo, temperature):
            if outcome.kind == "answer":
                answered = True
                if not given_up:
                    yield from failed
                    failed = []
                yield outcome.reply
            elif outcome.kind == "row" or (outcome.kind == "refused" and answered):
                yield outcome.reply
            else:
                failed.append(outcome.reply)
                hopeless = outcome.kind == "key" or len(failed) >= HOPELESS
                if hopeless and not given_up:  # and take what is in flight
                    self.give_up(failed, answered)
                    given_up = True
        if failed and not answered and not self.stop.is_set() and not self.is_alive():
            self.give_up(failed, answered)
        if not self.stop.is_set():
            yield from failed
        elif not given_up:
            more = " with more" if self.args.spent else ""
            print(f"stopped: {self.budget.reached()}; call again{more} to go on", file=sys.stderr)

    def outcomes(self, todo: Iterator[tuple[Request, int]], temperature: float) -> Iterator[Outcome]:
        """The outcomes of (request, sample) pairs as they come, --concurrency of them in flight."""
        jobs, done = queue.SimpleQueue(), queue.SimpleQueue()
        waiting = 0

        def work() -> None:
            while (job := jobs.get()) is not None:
                try:
                    done.put(self.ask(*job, temperature))
                except BaseException as error:  # shown by the main thread
                    done.put(error)

        # daemons: a request in flight does not keep a command that ends
        for _ in range(self.args.concurrency):
            threading.Thread(target=work, daemon=True).start()
        try:
            while True:
                room = 0 if self.stop.is_set() else 2 * self.args.concurrency - waiting
                for job in itertools.islice(todo, room):
                    jobs.put(job)
                    waiting += 1
                if not waiting:
                    return
                outcome = done.get()
                waiting -= 1
                if isinstance(outcome, BaseException):
                    raise outcome
                if outcome.kind == "stopped":
                    self.stop.set()
                else:
                    yield outcome
        finally:
            for _ in range(self.args.concurrency):
                jobs.put(None)

    def give_up(self, failed: list[Reply], answered: bool) -> None:
        """Stop the stage; end it if the endpoint has answered nothing."""
        self.stop.set()
        last = f"the last one: {failed[-1].reason}"
        why = f"{len(failed)} requests failed in a row, {last}; call again when it works"
        if not answered:
            model = "; is it the right model?" if failed[-1].reason.startswith("HTTP 404") else ""
            fail(f"--model: {self.spec}: none was answered, {why}{model}")
        print(f"stopped: --model: {self.spec}: {why}", file=sys.stderr)

    def is_alive(self) -> bool:
        """Whether the endpoint answers a request of ours: then the rows that failed are themselves at
        fault.
        """
        test = Request({"images": []}, [{"role": "user", "content": "1 + 1 = ?"}], {0: 0})
        kind = self.ask(test, 0, self.args.temperature).kind
        if kind == "stopped":  # a limit is reached: nobody knows
            self.stop.set()
        return kind in ("answer", "stopped")

    # ------------------------------------------------------------ one request

    def ask(self, request: Request, sample: int, temperature: float) -> Outcome:
        """Try one request until it is answered or refused, TRIES times at most."""
        empty = Reply(request.row, sample, finish="error", seed=request.seeds[sample])
        try:
            body = self.body(request, sample, temperature)
        except (OSError, ValueError) as error:
            return self.failed("row", empty, f"{type(error).__name__}: {error}")
        deadline = time.monotonic() + DEADLINE * self.args.timeout
        for attempt in range(TRIES):
            if self.stop.is_set() or not self.budget.take():
                return Outcome("stopped", empty)
            self.work["requests"] += 1
            outcome = self.try_once(empty, body, min(deadline, time.monotonic() + self.args.timeout))
            if outcome.kind != "again":
                return outcome
            pause = min(60.0, 2.0**attempt) * random.uniform(0.5, 1.0)
            if outcome.after is not None:
                pause = outcome.after + random.uniform(0.0, 0.5)
            if time.monotonic() + pause >= deadline:
                break
            if attempt + 1 < TRIES:
                self.stop.wait(pause)
        reason = outcome.reply.reason[: MAX_REASON - 20]
        return Outcome("down", replace(empty, reason=f"{reason} ({attempt + 1} tries)"))

    def body(self, request: Request, sample: int, temperature: float) -> bytes:
        """A request as JSON, its images as data URLs. Raises OSError or ValueError for an image."""
        urls = [{"url": data_url(image, self.args.max_pixels)} for image in request.row["images"]]
        chat = chat_parts(request.messages, urls)
        for part in (part for message in chat for part in message["content"] if part["type"] == "image"):
            part["type"] = "image_url"
            part["image_url"] = part.pop("image")
        fields = {
            "model": self.model,
            "messages": chat,
            "max_tokens": self.args.max_tokens,
            "temperature": temperature,
            "top_p": self.args.top_p,
            "seed": request.seeds[sample],
        }
        return json.dumps(fields | ({"top_k": self.args.top_k} if self.args.top_k else {})).encode()

    def try_once(self, empty: Reply, body: bytes, deadline: float) -> Outcome:
        """Send a request. The tokens that it used are counted, whatever comes back."""
        import httpx

        used = 0, 0
        try:
            status, after, content = self.connection.post(body, deadline)
            if status != 200:
                kind = "key" if status in KEY_STATUS else "refused"
                kind = "again" if status in RETRY_STATUS else kind
                said = content[:1000].decode("utf-8", "replace")
                return self.failed(kind, empty, f"HTTP {status}: {said}", after)
            answer = json.loads(content)
            usage = answer.get("usage") or {}
            used = count(usage.get("prompt_tokens")), count(usage.get("completion_tokens"))
            finish = answer["choices"][0].get("finish_reason") or "stop"
            text = answer["choices"][0]["message"]["content"]
            if finish not in ("stop", "length") or not isinstance(text, str):
                return self.failed("again", empty, f"no text, finish reason {finish!r}")
            text = self.connection.hide(text).strip()
            reply = replace(empty, text=text, finish=finish, prompt_tokens=used[0], tokens=used[1])
            return Outcome("answer", reply)
        except httpx.HTTPError as error:
            return self.failed("again", empty, type(error).__name__)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return self.failed("again", empty, "a reply that is no chat completion")
        finally:
            self.budget.add(*used)

    def failed(self, kind: str, empty: Reply, reason: str, after: float | None = None) -> Outcome:
        return Outcome(kind, replace(empty, reason=self.connection.hide(reason)[:MAX_REASON]), after)


def count(value: object) -> int:
    """A number of tokens as a server tells it, or 0 if it cannot be one."""
    return value if isinstance(value, int) and 0 <= value < 1 << 32 else 0
