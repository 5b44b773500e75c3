"""Long-lived workers of a benchmark: arms that live in environments of their own take turns, one at a time,
asked over a pipe.

A script that starts workers is started again as `PYTHON SCRIPT --worker JOB` and answers each line on stdin
by one on stdout.
"""

import json
import os
import resource
import subprocess
import sys
import time
from pathlib import Path


class Worker:
    """`python`: of the arm's environment; `job`: what the worker is told at its start; `log`: its stderr."""

    def __init__(self, python: str, script: str, job: dict, log: Path):
        threads = {"OMP_NUM_THREADS": str(job["threads"]), "OMP_WAIT_POLICY": "PASSIVE"}
        environment = os.environ | threads | {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
        self.log = log
        with log.open("w") as file:
            command = [python, script, "--worker", json.dumps(job)]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": file, "text": True}
            self.process = subprocess.Popen(command, env=environment, **pipes)

    def ask(self, question) -> dict:
        """Its answer, or {"error": the end of its log} if it has ended."""
        try:
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()
            line = self.process.stdout.readline()
        except BrokenPipeError:
            line = ""
        return json.loads(line) if line else {"error": " | ".join(self.log.read_text().splitlines()[-4:])}

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
        if not line:
            os._exit(0)
        return json.loads(line)

    def answer(self, answer: dict) -> None:
        self.out.write(json.dumps(answer) + "\n")
        self.out.flush()


def seconds() -> float:
    """On a GPU those of the clock, else of this process (the sum of its threads), which other work on the
    machine disturbs less.
    """
    import torch

    if not torch.cuda.is_available():
        return time.process_time()
    torch.cuda.synchronize()
    return time.perf_counter()


def peak_memory() -> float:
    """MB: of the GPU, else of the whole process."""
    import torch

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def versions(*names: str) -> str:
    import importlib.metadata
    import platform

    found = [f"{name} {importlib.metadata.version(name)}" for name in names]
    return ", ".join([f"Python {platform.python_version()}", *found])
