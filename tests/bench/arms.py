"""Arms of a benchmark, which take turns: their medians as a table, clocks, and workers for arms that live in
environments of their own: started as `PYTHON SCRIPT --worker JOB`, they answer each line on stdin by one.
"""

import contextlib
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

Measures = dict[str, float]  # {unit: value}


def in_turns(arms: dict[str, Callable[[], Measures]], repeats: int) -> dict[str, list[Measures]]:
    """What each arm measures, one after the other, so that what else the machine does meets all alike."""
    found = {name: [] for name in arms}
    for _ in range(repeats):
        for name, work in arms.items():
            found[name].append(work())
    return found


def show(found: dict[str, list[Measures]]) -> None:
    """A line an arm: of each measure the median (lowest-highest), and how many times the first arm's."""
    first = {}
    for name, turns in found.items():
        told = []
        for unit in turns[0]:
            values = [turn[unit] for turn in turns]
            middle = statistics.median(values)
            digits = 0 if middle >= 100 else 2
            numbers = (f"{value:,.{digits}f}" for value in (middle, min(values), max(values)))
            ratio = middle / first.setdefault(unit, middle)
            told.append("{} ({}-{}) {}, {:.2f} x".format(*numbers, unit, ratio))
        print(f"  {name:28} {'; '.join(told)}", flush=True)


def timed(work: Callable, group: int = 0) -> Callable[[], Measures]:
    """An arm that measures how long `work` takes; `group`: of the processes of a server that helps."""

    def measured() -> Measures:
        clock, processor = time.perf_counter(), processor_seconds(group)
        work()
        seconds()  # a GPU is done
        processor, clock = processor_seconds(group) - processor, time.perf_counter() - clock
        return {"s of the processor": processor, "s": clock}

    return measured


def processor_seconds(group: int = 0) -> float:
    """Of this process, which other work disturbs less than the clock, and of the processes of a group."""
    total, ticks = time.process_time(), os.sysconf("SC_CLK_TCK")
    for stat in Path("/proc").glob("[0-9]*/stat") if group else ():
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / ticks if int(fields[2]) == group else 0
    return total


def seconds() -> float:
    """By the clock on a GPU, else of the processor."""
    import torch

    if not torch.cuda.is_available():
        return processor_seconds()
    torch.cuda.synchronize()
    return time.perf_counter()


def peak_memory() -> float:
    """MB: of the GPU, else of the whole process."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


class Worker:
    """`python`: of the arm's environment; `job`: what the worker is told at its start; `log`: its stderr."""

    def __init__(self, python: str, script: str, job: dict, log: Path):
        threads = {"OMP_NUM_THREADS": str(job["threads"]), "OMP_WAIT_POLICY": "PASSIVE"}
        environment = os.environ | threads | {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
        command, self.log = [python, script, "--worker", json.dumps(job)], log
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": log.open("w"), "text": True}
        self.process = subprocess.Popen(command, env=environment, **pipes)

    def ask(self, question) -> dict:
        """Its answer; ends the benchmark with the end of its log if it has ended."""
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(question), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        return json.loads(line) if line else sys.exit(" | ".join(self.log.read_text().splitlines()[-4:]))

    def close(self) -> None:
        self.process.communicate()


class Channel:
    """The worker's side. Libraries print what they like: that goes to stderr."""

    def __init__(self):
        self.out = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)

    def next(self):
        """The parent's next question; the worker ends with its parent's interest."""
        line = sys.stdin.readline()
        return json.loads(line) if line else os._exit(0)

    def answer(self, answer: dict) -> None:
        print(json.dumps(answer), file=self.out, flush=True)
