"""Requests as tensors, ahead of the device: sorted, put together by question, pictures opened and resized, prompts tokenized.

`open_pool` says who does it: a thread, or on CUDA, where the device would wait for one, a few processes. These are started
afresh (a process that has used CUDA cannot be forked), import transformers while the model is loaded, and end with their parent.
"""

import collections
import concurrent.futures
import functools
import itertools
import multiprocessing
import os
import signal
import threading
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import TYPE_CHECKING, Callable, Iterable, Iterator

from common import IMAGE, chat_parts, encode_prompts, fail, load_processor, open_image, other_prompts, processes

if TYPE_CHECKING:  # engine.py imports this file
    from engine import Local, Request

LOOK_AHEAD = 16  # batches of requests that are sorted by length together
REFILL = 8  # prompts are read for an eighth of the rows at a time, when as many are free
BATCHES_AHEAD = 4  # of pictures and prompts that are prepared while the model decodes
WORKERS = 4  # processes that prepare them for a GPU, at most
WORKER_ENDED = "a process that prepares pictures and prompts was ended from outside, perhaps for want of memory; the same command goes on where it stopped"
ERRORS = (OSError, ValueError, RuntimeError, IndexError, TypeError, KeyError, AttributeError)  # what a picture, a prompt or a foreign model can raise


@dataclass
class Question:
    """Requests with the same pictures and the same text up to them: their prompts begin alike, and that is computed once."""

    requests: list["Request"]
    shared: int = 0  # tokens that all prompts begin with
    pictures: tuple = ()  # which they are, file by file
    slot: int = -1  # where its keys and values are
    unfinished: int = 0  # samples


@dataclass
class Sample:
    """One reply in the making. It can start again: its tokens follow from its seed."""

    request: "Request"
    number: int
    question: Question | None = None
    prompt: list[int] = field(default_factory=list)
    limit: int = 0  # new tokens, at most
    tokens: list[int] = field(default_factory=list)
    chances: list[float] = field(default_factory=list)  # log-probabilities
    error: str | None = None  # in one line

    @property
    def tail(self) -> list[int]:
        return self.prompt[self.question.shared :]


@dataclass
class Batch:
    """Questions to read together: the model's inputs for their shared beginnings (left-padded), and the samples that follow."""

    questions: list[Question]
    inputs: dict
    samples: list[Sample]  # also such as have failed already


def gather(requests: Iterable["Request"], rows: int, share: int) -> Iterator[list[Question]]:
    """Requests as questions: those of one window sorted by length, and dealt out in groups of `share` samples or a little more."""
    requests = iter(requests)
    first = next(requests, None)
    if first is None:
        return
    requests, window = itertools.chain([first], requests), max(1, rows // len(first.seeds)) * LOOK_AHEAD
    while taken := list(itertools.islice(requests, window)):
        questions: dict[tuple, Question] = {}
        for request in taken:
            text = request.messages[-1]["content"]
            key = request.row.get("id"), *request.row["images"], text[: text.rfind(IMAGE) + 1]
            questions.setdefault(key, Question([])).requests.append(request)
        group, samples = [], 0
        for question in sorted(questions.values(), key=lambda question: (len(question.requests[0].row["images"]), len(question.requests[0].messages[-1]["content"]))):
            group.append(question)
            samples += sum(len(request.seeds) for request in question.requests)
            if samples >= share:
                yield group
                group, samples = [], 0
        if group:
            yield group


def ahead(submit: Callable, groups: Iterator[list[Question]]) -> Iterator[Batch]:
    """Encoded batches, some of them in the making while the caller works on one."""
    jobs = collections.deque(submit(group) for group in itertools.islice(groups, BATCHES_AHEAD))
    try:
        while jobs:
            done = batches_of(jobs.popleft())
            jobs.extend(submit(group) for group in itertools.islice(groups, 1))
            yield from done
    finally:
        for job in jobs:
            job.cancel()


def batches_of(job: concurrent.futures.Future) -> list[Batch]:
    import torch

    try:
        batches = job.result()
    except concurrent.futures.BrokenExecutor:
        fail(WORKER_ENDED, 1)
    for batch in batches:
        batch.inputs = {name: value if isinstance(value, (torch.Tensor, list)) else torch.from_numpy(value) for name, value in batch.inputs.items()}
    return batches


def encode(local: "Local", questions: list[Question]) -> list[Batch]:
    """Pictures and prompts as tensors. What fails is halved until the faulty question stands alone."""
    try:
        chats = [chat_parts(question.requests[0].messages, pictures(local, question.requests[0])) for question in questions]
        inputs = encode_prompts(local.processor, chats)
        for question in questions:
            question.pictures = tuple((image, file.st_mtime_ns, file.st_size) for image in question.requests[0].row["images"] for file in [os.stat(image)])
        prompts = [prompts_of(local, question, ids[seen].tolist()) for question, ids, seen in zip(questions, inputs["input_ids"], inputs["attention_mask"].bool())]
    except ERRORS as error:
        if len(questions) > 1:
            return [batch for half in halves(questions) for batch in encode(local, half)]
        return [Batch([], {}, [Sample(request, number, error=one_line(error)) for request in questions[0].requests for number in request.seeds])]
    samples, too_long = [], []
    for question, group in zip(questions, prompts):
        question.shared = min(len(os.path.commonprefix(group)), min(map(len, group)) - 1)
        for request, prompt in zip(question.requests, group):
            limit = min(local.args.max_tokens, local.context - len(prompt))
            error = None if limit > 0 else f"ValueError: prompt of {len(prompt)} tokens in a context of {local.context}"
            new = [Sample(request, number, question, prompt, limit, error=error) for number in request.seeds]
            samples, too_long = (samples, too_long + new) if error else (samples + new, too_long)
        question.requests = [request for request, prompt in zip(question.requests, group) if len(prompt) < local.context]
    if too_long:  # the others once more, without them
        left = [question for question in questions if question.requests]
        return [Batch([], {}, too_long), *(encode(local, left) if left else [])]
    return [Batch(questions, cut(inputs, [question.shared for question in questions], local.processor.tokenizer.pad_token_id), samples)]


def pictures(local: "Local", request: "Request") -> list:
    return [open_image(image, local.args.max_pixels) for image in request.row["images"]]


def halves(items: list) -> tuple[list, list]:
    return items[: len(items) // 2], items[len(items) // 2 :]


def prompts_of(local: "Local", question: Question, first: list[int]) -> list[list[int]]:
    """Token ids of the prompts of a question, of which the first is known."""
    if len(question.requests) == 1:
        return [first]
    if prompts := other_prompts(local.processor, [request.messages for request in question.requests], first):
        return prompts
    chats = [chat_parts(request.messages, pictures(local, request)) for request in question.requests]
    return [encode_prompts(local.processor, [chat])["input_ids"][0].tolist() for chat in chats]


def cut(inputs: dict, lengths: list[int], pad_token: int) -> dict:
    """Left-padded prompts (B, T) -> the first lengths[b] tokens of each, left-padded again."""
    import torch

    shared, whole, width = torch.tensor(lengths)[:, None], inputs["attention_mask"].sum(1, keepdim=True), inputs["input_ids"].shape[1]
    places = torch.arange(max(lengths)) - (max(lengths) - shared)  # (B, P), below 0 is padding
    index = (places + width - whole).clamp_min(0)
    pads = {"input_ids": pad_token, "attention_mask": 0, "mm_token_type_ids": 0, "token_type_ids": 0}
    return {**inputs} | {name: inputs[name].gather(1, index).masked_fill(places < 0, pad) for name, pad in pads.items() if name in inputs}


def one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


# ---------------------------------------------------------------- who does it


def open_pool(spec: str, trust_remote_code: bool, count: int) -> concurrent.futures.Executor:
    """`count` processes, which are starting then; a thread if it is 0."""
    if not count:
        return concurrent.futures.ThreadPoolExecutor(1)
    pool = concurrent.futures.ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), begin_worker, (spec, trust_remote_code))
    for _ in range(count):
        pool.submit(int)
    return pool


def worker_count(device: str) -> int:
    """Processes for this one's GPU; none where the CPU is what computes, or has too few cores."""
    cores = len(os.sched_getaffinity(0)) // processes()[1] if hasattr(os, "sched_getaffinity") else 1
    return min(WORKERS, cores - 1) if device != "cpu" and cores > 2 else 0


def submit_to(pool: concurrent.futures.Executor, spec: str, local: "Local") -> Callable:
    """The function that lets questions be encoded there: its future's result is for batches_of."""
    if isinstance(pool, concurrent.futures.ThreadPoolExecutor):
        return lambda questions: pool.submit(encode, local, questions)

    def submit(questions: list[Question]) -> concurrent.futures.Future:
        try:
            return pool.submit(encode_apart, spec, local.args, local.context, questions)
        except concurrent.futures.BrokenExecutor:
            fail(WORKER_ENDED, 1)

    return submit


def begin_worker(spec: str, trust_remote_code: bool) -> None:
    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent
    threading.Thread(target=follow_parent, daemon=True).start()
    torch.set_num_threads(1)
    worker_processor(spec, trust_remote_code)


def follow_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


@functools.cache
def worker_processor(spec: str, trust_remote_code: bool):
    return load_processor(spec, trust_remote_code)


def encode_apart(spec: str, args, context: int, questions: list[Question]) -> list[Batch]:
    """encode() in a process of its own. Tensors travel as arrays: torch would pass them through shared memory, of which containers have little."""
    batches = encode(SimpleNamespace(processor=worker_processor(spec, args.trust_remote_code), args=args, context=context), questions)
    for batch in batches:
        batch.inputs = {name: value.numpy() if hasattr(value, "numpy") else value for name, value in batch.inputs.items()}
    return batches
