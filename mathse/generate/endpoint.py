"""An OpenAI-compatible endpoint: many requests in flight, failed ones tried again within bounds.

A server is expected to limit rates, to fail, to hang and to answer junk. A request ends as an answer or,
after TRIES tries or DEADLINE times `--timeout`, as a reply with finish `error`. An endpoint that answers
nothing more, or a limit that is reached (`--max-requests`, `--max-cost`), stops the stage instead: what was
answered is kept, and the same command goes on later.

Samples of a problem that are drawn at a temperature are asked for in one request, so that its images are paid
for once; those that the server does not give are asked for one by one.
"""

import argparse
import itertools
import queue
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace

from mathse.chat import chat_parts
from mathse.cli import PIXELS_A_TOKEN
from mathse.generate.connection import OPTIONAL, Connection, Parameters
from mathse.generate.reply import (
    CHARACTERS_A_TOKEN,
    PARAMETER_STATUS,
    Choice,
    ServerError,
    estimated_tokens,
    read_completion,
    read_error,
    read_usage,
    shares,
)
from mathse.generate.spending import Budget
from mathse.generate.types import Reply, Request
from mathse.images import MAX_PIXELS, data_url
from mathse.records import fail

CONCURRENCY = 32  # requests in flight, if --concurrency does not say
TRIES = 8  # of one request
DEADLINE = 3  # times --timeout: the longest that all tries of one request take together
HOPELESS = 20  # requests that failed in a row, after which an endpoint is given up
MAX_REASON = 300  # characters


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

    def replies(self, **fields: object) -> list[Reply]:
        return [Reply(self.request.row, sample, seed=self.seed, **fields) for sample in self.samples]


@dataclass
class Outcome:
    """What came of a job. Its `kind`:

    answer; row (its own image cannot be read); refused (by the server, or answered without a text); key
    (refused by the server); again (one try failed); adapted (asked without a parameter from now on); down
    (all tries failed); split (too much for one request); stopped (not asked to the end, because the stage
    stops).
    """

    kind: str
    replies: list[Reply] = field(default_factory=list)
    after: float | None = None  # seconds to wait before the next try, as the server asks
    left: list[Job] = field(default_factory=list)  # still to be asked


class Endpoint:
    """A server as a Generator: see types.py."""

    def __init__(
        self,
        spec: str,
        args: argparse.Namespace,
        logprobs: bool = False,
        schema: dict | None = None,
        starts: Callable[[], int] = lambda: 1,
    ):
        """Reach the server once. Ends the command if it cannot be reached or refuses the key.

        `logprobs`: ask for token_logprobs. `schema`: the JSON schema of replies. `starts`: see Served.
        """
        self.spec = spec
        self.args = args
        self.starts = starts
        self.work = Counter()
        self.budget = Budget(args)
        self.stop = threading.Event()  # nothing more is asked
        self.connection = Connection(spec, args)
        self.parameters = Parameters(spec.partition("#")[2], args, logprobs, schema, self.connection.is_vllm)

    def spent(self) -> dict:
        return self.budget.spent()

    def close(self) -> None:
        self.connection.client.close()

    # ------------------------------------------------------------ many requests

    def __call__(self, requests: Iterable[Request], temperature: float | None = None) -> Iterator[Reply]:
        if self.stop.is_set():  # by an earlier call
            return
        temperature = self.args.temperature if temperature is None else temperature
        answered, given_up = False, False
        failed = []  # since the last answer; held back, because the endpoint may be at fault
        for outcome in self.outcomes(self.jobs(requests, temperature), temperature):
            if outcome.kind == "answer":
                answered = True
                if not given_up:
                    yield from replies_of(failed)
                    failed = []
                yield from outcome.replies
            elif outcome.kind == "row" or (outcome.kind == "refused" and answered):
                yield from outcome.replies
            else:
                failed.append(outcome)
                hopeless = outcome.kind == "key" or len(failed) >= HOPELESS
                if hopeless and not given_up:  # and take what is in flight
                    self.give_up(failed, answered)
                    given_up = True
        if failed and not answered and not self.stop.is_set() and not self.is_alive():
            self.give_up(failed, answered)
        if not self.stop.is_set():
            yield from replies_of(failed)
        elif not given_up:
            more = " with more" if self.args.spent else ""
            print(f"stopped: {self.budget.reached()}; call again{more} to go on", file=sys.stderr)

    def jobs(self, requests: Iterable[Request], temperature: float) -> Iterator[Job]:
        """Without a temperature the samples of one request would be the same text."""
        for request in requests:
            job = Job(request, list(request.seeds))
            together = temperature > 0 and "n" not in self.parameters.refused
            yield from [job] if together else job.singly()

    def outcomes(self, todo: Iterator[Job], temperature: float) -> Iterator[Outcome]:
        """The outcomes of jobs as they come, --concurrency of them in flight."""
        jobs, done = queue.SimpleQueue(), queue.SimpleQueue()
        waiting = 0

        def work() -> None:
            while (job := jobs.get()) is not None:
                try:
                    done.put(self.ask(job, temperature))
                except BaseException as error:  # shown by the main thread
                    done.put(error)

        # daemons: a request in flight does not keep a command that ends
        for _ in range(self.args.concurrency):
            threading.Thread(target=work, daemon=True).start()
        try:
            while True:
                room = 0 if self.stop.is_set() else 2 * self.args.concurrency - waiting
                for job in itertools.islice(todo, max(0, room)):
                    jobs.put(job)
                    waiting += 1
                if not waiting:
                    return
                outcome = done.get()
                waiting -= 1
                if isinstance(outcome, BaseException):
                    raise outcome
                for job in outcome.left:
                    jobs.put(job)
                    waiting += 1
                if outcome.kind == "stopped":
                    self.stop.set()
                elif outcome.kind != "split":
                    yield outcome
        finally:
            for _ in range(self.args.concurrency):
                jobs.put(None)

    def give_up(self, failed: list[Outcome], answered: bool) -> None:
        """Stop the stage; end it if the endpoint has answered nothing."""
        self.stop.set()
        reason = failed[-1].replies[-1].reason
        in_a_row = f"{len(failed)} requests failed in a row, the last one: {reason}"
        why = f"{reason if failed[-1].kind == 'key' else in_a_row}; call again when it works"
        if not answered:
            model = "; is it the right model?" if reason.startswith("HTTP 404") else ""
            fail(f"--model: {self.spec}: none was answered, {why}{model}")
        print(f"stopped: --model: {self.spec}: {why}", file=sys.stderr)

    def is_alive(self) -> bool:
        """Whether the endpoint answers a request of ours: then the rows that failed are themselves at
        fault.
        """
        test = Request({"images": []}, [{"role": "user", "content": "1 + 1 = ?"}], {0: 0})
        kind = self.ask(Job(test, [0]), self.args.temperature).kind
        if kind == "stopped":  # a limit is reached: nobody knows
            self.stop.set()
        return kind in ("answer", "stopped")

    # ------------------------------------------------------------ one request

    def ask(self, job: Job, temperature: float) -> Outcome:
        """Try one request until it is answered or refused, TRIES times at most."""
        try:
            messages = self.messages(job.request)
        except (OSError, ValueError) as error:
            return self.failed("row", job, f"{type(error).__name__}: {error}")
        deadline = time.monotonic() + DEADLINE * self.args.timeout
        tries, starts = 0, self.starts()
        while True:
            fields = self.parameters.of(job.seed, len(job.samples), temperature)
            if len(job.samples) > 1 and "n" not in fields:
                return Outcome("split", left=job.singly())
            if self.stop.is_set() or not self.budget.take():
                return Outcome("stopped")
            self.work["requests"] += 1
            until = min(deadline, time.monotonic() + self.args.timeout)
            outcome = self.try_once(job, fields | {"messages": messages}, until)
            if outcome.kind == "adapted":
                continue
            if outcome.kind != "again":
                return outcome
            if (now := self.starts()) > starts:  # the server died and is back: no fault of the request
                tries, starts, deadline = 0, now, time.monotonic() + DEADLINE * self.args.timeout
                continue
            tries += 1
            pause = min(60.0, 2.0 ** (tries - 1)) * random.uniform(0.5, 1.0)
            if outcome.after is not None:
                pause = outcome.after + random.uniform(0.0, 0.5)
            if tries == TRIES or time.monotonic() + pause >= deadline:
                reason = outcome.replies[0].reason[: MAX_REASON - 20]
                return self.failed("down", job, f"{reason} ({tries} tries)")
            self.stop.wait(pause)

    def messages(self, request: Request) -> list[dict]:
        """A request's messages, images as data URLs. Raises OSError or ValueError for an image."""
        urls = [{"url": data_url(image, self.args.max_pixels)} for image in request.row["images"]]
        chat = chat_parts(request.messages, urls)
        for part in (part for message in chat for part in message["content"] if part["type"] == "image"):
            part["type"] = "image_url"
            part["image_url"] = part.pop("image")
        return chat

    def try_once(self, job: Job, fields: dict, deadline: float) -> Outcome:
        """Send a request. The tokens that it used are counted, whatever comes back."""
        import httpx

        used = 0, 0
        try:
            status, after, content = self.connection.post(fields, deadline)
            if error := read_error(status, content):
                return self.refused(job, fields, error, after)
            choices, usage = read_completion(content)
            used = self.tokens(job.request, choices, usage)
            if not choices:
                return self.failed("again", job, "a reply without a text")
            return self.answered(job, fields, choices, used)
        except httpx.HTTPError as error:
            return self.failed("again", job, type(error).__name__)
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return self.failed("again", job, "a reply that is no chat completion")
        finally:
            self.budget.add(*used)

    def tokens(self, request: Request, choices: list[Choice], usage: object) -> tuple[int, int]:
        """(tokens read, tokens written), estimated where the server does not count: by the characters of all
        texts, the limit of tokens of a text that was cut off, and images as large as --max-pixels lets them.
        """
        image = (self.args.max_pixels or MAX_PIXELS) // PIXELS_A_TOKEN
        prompt = sum(len(message["content"]) for message in request.messages) // CHARACTERS_A_TOKEN
        read = prompt + image * len(request.row["images"])
        written = estimated_tokens(choices, self.args.max_tokens)
        return read_usage(usage, (read, written) if choices else (0, 0))

    def answered(self, job: Job, fields: dict, choices: list[Choice], used: tuple[int, int]) -> Outcome:
        """The texts, each with its share of the tokens. Samples that were not given are left."""
        choices = choices[: len(job.samples)]
        read = shares(used[0], [1] * len(choices))
        written = shares(used[1], [choice.characters + 1 for choice in choices])
        replies = [
            replace(
                reply,
                text=self.connection.hide(choice.text),
                finish=choice.finish,
                reason=choice.reason and self.reason(choice.reason),
                prompt_tokens=prompt,
                tokens=new,
                seed=fields.get("seed"),
                token_logprobs=choice.token_logprobs,
            )
            for reply, choice, prompt, new in zip(job.replies(), choices, read, written)
        ]
        kind = "refused" if all(reply.finish == "error" for reply in replies) else "answer"
        return Outcome(kind, replies, left=job.singly()[len(choices) :])

    def refused(self, job: Job, fields: dict, error: ServerError, after: float | None) -> Outcome:
        """What an error means: less is asked of the server, or the request has failed."""
        if name := error.refused_parameter([name for name in OPTIONAL if name in fields]):
            self.parameters.refuse(name)
            return Outcome("adapted")
        if len(job.samples) > 1 and error.status in PARAMETER_STATUS:  # not every server says that it is `n`
            return Outcome("split", left=job.singly())
        return self.failed(error.kind(), job, f"HTTP {error.status}: {error.words}", after)

    def failed(self, kind: str, job: Job, reason: str, after: float | None = None) -> Outcome:
        return Outcome(kind, job.replies(finish="error", reason=self.reason(reason)), after)

    def reason(self, said: str) -> str:
        return self.connection.hide(said)[:MAX_REASON]


def replies_of(outcomes: Iterable[Outcome]) -> Iterator[Reply]:
    return itertools.chain.from_iterable(outcome.replies for outcome in outcomes)
