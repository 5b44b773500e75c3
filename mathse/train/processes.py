"""A training on the CPU's cores: processes forked from the one that read the command, each with its share of
every step's rows.

A small model's layers are too short to be split among threads. What an import costs is paid once: a fork
shares it.
"""

import multiprocessing
import os
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path

from mathse.generate.processes import core_count, failures_to, receive, settle_fork
from mathse.jsonl import become, processes
from mathse.records import fail

LEAST_ROWS = 4  # of a step for each process: with fewer, what the rows share is read too often
ENDED = (
    "a process that trains was ended from outside, perhaps out of memory: set a smaller --micro-batch or "
    "fewer --processes; the last checkpoint is kept"
)


def process_count(asked: int | None, batch_size: int) -> int:
    """How many processes to fork: the number asked for, else one a core. With GPUs, and where a launcher has
    started several, none.
    """
    if processes()[1] > 1:
        return 1
    import torch

    if torch.cuda.is_available():
        if asked and asked > 1:
            fail("--processes: more than one is for CPUs; start one process a GPU by torchrun")
        return 1
    return asked or max(1, min(core_count(), batch_size // LEAST_ROWS))


def train_on_cores(count: int, train: Callable[[], dict]) -> dict:
    """What `train` returns in the first of `count` processes. Ends the stage as the first that fails does."""
    if count == 1:
        return train()
    import mathse.train.session  # here, that the forks need not  # noqa: F401

    context = multiprocessing.get_context("fork")
    connections, started, results = [], [], {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            for rank in range(count):
                ours, theirs = context.Pipe(duplex=False)
                work = rank, count, Path(folder) / "meeting", train, theirs
                process = context.Process(target=take_part, args=work)
                process.start()
                started.append(process)
                connections.append(ours)
                theirs.close()
            while waiting := [connection for connection in connections if connection not in results]:
                results |= {connection: receive(connection, ENDED) for connection in wait(waiting)}
            return results[connections[0]]
        finally:
            for process in started:
                process.kill()
                process.join()


def take_part(rank: int, count: int, meeting: Path, train: Callable[[], dict], result: Connection) -> None:
    """A process: joins the others by the file `meeting`, trains, and sends what the training returned."""
    import torch

    from mathse.train.distributed import join_processes

    settle_fork(result.fileno())
    threads = max(1, core_count() // count)
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # else accelerate chooses
    become(rank, count)
    join = {"init_method": meeting.as_uri(), "rank": rank, "world_size": count}
    torch.distributed.init_process_group("gloo", **join)
    join_processes()
    with failures_to(result):
        result.send(train())
        torch.distributed.destroy_process_group()
