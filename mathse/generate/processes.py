"""A local model on all cores: processes forked from the one that loaded it, each with its share of the
problems.

A small model's layers are too short to be split among threads. Two processes sample from the toy base 1.3
times, and judge 1.5 times, as fast as one (docs/SERVING.md). The weights are loaded once, and a fork shares
them.

Each problem goes to the process that has had the fewest samples so far. So what a process computes follows
from the order of the requests, not from how fast they were answered.
"""

import contextlib
import ctypes
import itertools
import multiprocessing
import os
import signal
import sys
import traceback
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait

from mathse.generate.types import Generator, Reply, Request
from mathse.jsonl import processes
from mathse.records import fail

CHUNK = 64  # requests that a process takes at a time
SMALL = 16  # samples that are not worth a second process
ENDED = (
    "a process that generates was ended from outside, perhaps out of memory: set a smaller --batch-size or "
    "fewer --processes; the rows so far are kept"
)
PR_SET_PDEATHSIG = 1  # of Linux' prctl: the signal that a process gets when its parent dies


def core_count() -> int:
    """The cores for each process of this launch, at least 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, cores // processes()[1])


@dataclass
class Failure:
    """How a process ended early: the exit code of a line that it has printed, or a traceback."""

    code: object = None
    trace: str = ""


class Forked:
    """A model on the CPU as a Generator of several processes: see types.py. Few samples stay in this one."""

    def __init__(self, model: Generator, count: int):
        print(f"engine: {count} processes of one thread", flush=True)
        self.model = model
        self.count = count
        self.others = Counter()  # work of processes that have ended

    @property
    def work(self) -> Counter:
        return self.model.work + self.others

    def spent(self) -> dict:
        return self.model.spent()

    def close(self) -> None:
        self.model.close()

    def __call__(self, requests: Iterable[Request], temperature: float | None = None) -> Iterator[Reply]:
        requests, first, samples = iter(requests), [], 0
        while samples < SMALL and (request := next(requests, None)):
            first.append(request)
            samples += len(request.seeds)
        requests = itertools.chain(first, requests)
        if samples < SMALL:
            yield from self.model(requests, temperature)
        else:
            yield from self.share_out(Dealer(requests, self.count), temperature)

    def share_out(self, dealer: "Dealer", temperature: float | None) -> Iterator[Reply]:
        context, numbers, started = multiprocessing.get_context("fork"), {}, []
        try:
            for number in range(self.count):
                ours, theirs = context.Pipe()
                process = context.Process(target=answer, args=(self.model, theirs, temperature), daemon=True)
                process.start()
                started.append(process)
                theirs.close()
                numbers[ours] = number
            while numbers:
                for connection in wait(list(numbers)):
                    message = receive(connection)
                    if isinstance(message, Reply):
                        yield dealer.returned(message)
                    elif isinstance(message, Counter):
                        self.others += message
                        del numbers[connection]
                    else:
                        send(connection, dealer.take(numbers[connection]))
        finally:
            for process in started:
                process.terminate()
            for process in started:
                process.join()


class Dealer:
    """Deals requests out to processes. A request travels with what a model needs of its row, `number` stands
    for the row.
    """

    def __init__(self, requests: Iterator[Request], count: int):
        self.requests = enumerate(requests)
        self.dealt = [deque() for _ in range(count)]
        self.samples = [0] * count
        self.place_of = {}  # of each problem
        self.open = {}  # {number: [row, samples that have not come back]}

    def take(self, place: int) -> list[Request]:
        """The next requests of a process, none when it has had all."""
        mine = self.dealt[place]
        while len(mine) < CHUNK:
            number, request = next(self.requests, (None, None))
            if request is None:
                break
            self.open[number] = [request.row, len(request.seeds)]
            least = self.samples.index(min(self.samples))
            owner = self.place_of.setdefault(request.row.get("id", number), least)
            self.samples[owner] += len(request.seeds)
            needed = {name: request.row[name] for name in ("id", "images") if name in request.row}
            self.dealt[owner].append(replace(request, row=needed | {"number": number}))
        return [mine.popleft() for _ in range(min(CHUNK, len(mine)))]

    def returned(self, reply: Reply) -> Reply:
        """The reply with the caller's row."""
        number = reply.row["number"]
        row, left = self.open[number]
        self.open[number][1] = left - 1
        if left == 1:
            del self.open[number]
        return replace(reply, row=row)


def receive(connection: Connection, ended: str = ENDED) -> object:
    """A process's next message. Ends the stage as the process has ended; `ended` says that it was killed."""
    try:
        message = connection.recv()
    except (EOFError, OSError):  # OSError: it ended in the middle of a message
        fail(ended, 1)
    if isinstance(message, Failure):
        if message.trace:
            raise RuntimeError(f"in another process of this stage:\n{message.trace}")
        sys.exit(message.code)
    return message


def send(connection: Connection, requests: list[Request]) -> None:
    try:
        connection.send(requests)
    except OSError:
        fail(ENDED, 1)


def answer(model: Generator, connection: Connection, temperature: float | None) -> None:
    """A process: asks for requests, sends a Reply for each sample, and at last what work it did."""
    import torch

    settle_fork(connection.fileno())
    torch.set_num_threads(1)  # the parent's threads are not in a fork
    before = Counter(model.work)
    with failures_to(connection):
        for reply in model(taken(connection), temperature):
            connection.send(reply)
        connection.send(model.work - before)


@contextlib.contextmanager
def failures_to(connection: Connection) -> Iterator[None]:
    """Around what a forked process does: how it fails is sent to the stage, see receive()."""
    try:
        yield
    except SystemExit as end:
        sys.stdout.flush()  # the stage kills this process once it knows
        connection.send(Failure(code=end.code))
    except Exception:
        sys.stdout.flush()
        connection.send(Failure(trace=traceback.format_exc()))


def end_with_parent(parent: int, *_: object, by: int = signal.SIGKILL) -> None:
    """Let Linux end this process, by a signal, when `parent`, which forked it, is gone, however it ended."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, by)
    if os.getppid() != parent:  # gone before Linux was asked
        os.kill(os.getpid(), by)


def settle_fork(kept: int) -> None:
    """Make this process one that a stage has forked: it ends with the stage, and keeps no file of it open but
    the standard streams and number `kept`. Whoever waits for the end of a pipe, such as the stage for a
    worker of the answer check, would wait for this process, too.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with_parent(multiprocessing.parent_process().pid)
    for number in map(int, os.listdir("/proc/self/fd")):
        if number > 2 and number != kept:
            with contextlib.suppress(OSError):
                os.close(number)


def taken(connection: Connection) -> Iterator[Request]:
    while True:
        connection.send("more")
        requests = connection.recv()
        if not requests:
            return
        yield from requests
