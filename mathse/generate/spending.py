"""What an endpoint has cost: requests and tokens, within --max-requests and --max-cost."""

import argparse
import threading
from pathlib import Path

from mathse.cli import price
from mathse.records import fail


class Budget:
    """Requests sent and tokens used. `--spent FILE` adds them up over several calls.

    The file has a line a request: prompt and new tokens.
    """

    def __init__(self, args: argparse.Namespace):
        self.max_requests = args.max_requests
        self.max_cost = args.max_cost
        self.lock = threading.Lock()
        self.prices = [price("PRICE_IN"), price("PRICE_OUT")]
        if self.max_cost and not any(self.prices):
            needs = (
                "PRICE_IN and PRICE_OUT in the environment: the price of a million tokens read and written"
            )
            fail(f"--max-cost: needs {needs}")
        self.requests = 0
        self.tokens = [0, 0]  # read, written
        self.file = None
        if args.spent:
            Path(args.spent).parent.mkdir(parents=True, exist_ok=True)
            self.file = open(args.spent, "a+b", buffering=0)
            self.requests, self.tokens = read_spent(args.spent)
        self.before = self.requests, self.cost()

    def cost(self) -> float:
        return sum(count * each for count, each in zip(self.tokens, self.prices)) / 1e6

    def spent(self) -> dict:
        """Requests and cost of this call."""
        with self.lock:
            return {"requests": self.requests - self.before[0], "cost": self.cost() - self.before[1]}

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
    whole = [line for line in lines if len(line) == 2]  # the others are torn by a kill
    counts = [(int(prompt), int(new)) for prompt, new in whole]
    return len(counts), [sum(column) for column in zip((0, 0), *counts)]
