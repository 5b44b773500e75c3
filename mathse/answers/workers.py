"""Check many responses: plain answers in this process, the others in worker processes that can be killed."""

import json
import os
import select
import subprocess
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

from mathse.answers.check import NeedsMathematics, check
from mathse.answers.conclude import SPAN
from mathse.answers.find import TAIL, find_answer

ROOT = Path(__file__).resolve().parents[2]  # holds the package mathse
START_SECONDS = 60  # for a worker to import math-verify


def ask_a_worker(given: object, reference: object, precision: int | None) -> bool | None:
    raise NeedsMathematics


class Worker:
    """A process that answers one check a line; started when it is needed, killed when it is late."""

    def __init__(self, seconds: float, megabytes: int):
        self.seconds, self.process = seconds, None
        # -P and PYTHONPATH: the worker starts from any working directory, and imports nothing from there
        self.command = [sys.executable, "-P", "-m", "mathse.answers", str(megabytes), str(seconds)]

    def check(self, response: str, problem: dict, finish: str) -> dict:
        """The worker's verdict, or an undecided one when it does not come in time or the worker dies."""
        try:
            if self.process is None:
                self.start()
            self.process.stdin.write(json.dumps([response, problem, finish]).encode() + b"\n")
            self.process.stdin.flush()
            return json.loads(self.read_line(self.seconds))
        except (OSError, ValueError, TimeoutError) as error:
            self.kill()
            rule = "timeout" if isinstance(error, TimeoutError) else "crash"
            return {"answer_check": "undecided", "extracted": find_answer(response)[0], "rule": rule}

    def start(self) -> None:
        paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(self.command, env=environment, **pipes)
        if self.read_line(START_SECONDS) != b"ready\n":
            shown = f"PYTHONPATH={ROOT} {' '.join(self.command)}"
            raise RuntimeError(f"no worker starts; see what this says: {shown}")

    def read_line(self, seconds: float) -> bytes:
        if not select.select([self.process.stdout], [], [], seconds)[0]:
            raise TimeoutError
        return self.process.stdout.readline()

    def kill(self) -> None:
        if self.process:
            self.process.kill()
            self.process.communicate()
        self.process = None


class AnswerChecker:
    """Checks plain answers here and the others in up to `workers` processes, in order."""

    def __init__(self, workers: int = 1, seconds: float = 5.0, megabytes: int = 2048):
        self.idle: SimpleQueue[Worker] = SimpleQueue()
        self.workers = [Worker(seconds, megabytes) for _ in range(max(1, workers))]
        for worker in self.workers:
            self.idle.put(worker)
        self.threads = ThreadPoolExecutor(len(self.workers))  # each waits for a worker's reply

    def __enter__(self) -> "AnswerChecker":
        return self

    def __exit__(self, *error: object) -> None:
        self.threads.shutdown(cancel_futures=True)
        for worker in self.workers:
            worker.kill()

    def in_worker(self, response: str, problem: dict, finish: str) -> dict:
        worker = self.idle.get()
        try:
            return worker.check(response, problem, finish)
        finally:
            self.idle.put(worker)

    def same(self, given: str, reference: str) -> bool:
        """Whether two values are equal to two decimals, whatever is around them."""
        response, problem = f"\\boxed{{{given[:SPAN]}}}", {"answer": reference, "precision": 2}
        (result,) = self.check_many([(response, problem, "stop")])
        return result["answer_check"] == "correct"

    def check_many(self, items: Iterable[tuple[str, dict, str]]) -> Iterator[dict]:
        """One result an item, in order; only a window of the items is held in memory."""
        window = deque()
        for response, problem, finish in items:
            try:
                window.append(check(response, problem, finish, ask_a_worker))
            except NeedsMathematics:
                needed = {name: problem.get(name) for name in ("answer", "options", "precision", "question")}
                window.append(self.threads.submit(self.in_worker, str(response)[-TAIL:], needed, finish))
            full = 32 * len(self.workers)
            while window and (isinstance(window[0], dict) or window[0].done() or len(window) > full):
                result = window.popleft()
                yield result if isinstance(result, dict) else result.result()
        for result in window:
            yield result if isinstance(result, dict) else result.result()


def check_rows(
    rows: Iterable[dict], closing: str = "", stated_only: bool = False, workers: int = 1
) -> Iterator[dict]:
    """Rows with a problem's and a sample's fields, each with its verdict added."""
    waiting = deque()

    def items() -> Iterator[tuple[str, dict, str]]:
        for row in rows:
            waiting.append(row)
            yield row["response"], row, row.get("finish", "stop")

    with AnswerChecker(workers) as checker:
        for result in checker.check_many(items()):
            yield waiting.popleft() | result
