"""A training on the CPU's cores: processes forked from the one that read the command, each with its share of
every step's rows.

A small model's layers are too short to be split among threads. What an import costs is paid once: a fork
shares it.
"""

import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path

from mathse.generate.processes import core_count, failures_to, receive, settle_fork
from mathse.jsonl import become, processes, stage_end
from mathse.records import fail

LEAST_ROWS = 4  # of a step for each process: a problem's rows share their prompt only within a process
# Memory of a process for each byte of the model's files: fp32 weights, gradients and Adam's two averages are
# 16 bytes a parameter, of which a file in bf16 has 2.
COPIES = 8
KILLED = (
    "a process that trains was ended from outside, perhaps out of memory: set a smaller --micro-batch or "
    "fewer --processes; the last checkpoint is kept"
)


def process_count(asked: int | None, batch_size: int, spec: str) -> int:
    """How many processes train: on a CPU as many as asked for, else one a core, as far as the steps' rows
    and the memory for the model in the folder `spec` reach. With GPUs, and of several that a launcher has
    started, each trains by itself: 1.
    """
    if processes()[1] > 1:
        return 1
    import torch

    if torch.cuda.is_available():
        if asked and asked > 1:
            fail("--processes: more than one is for CPUs; start one process a GPU by torchrun")
        return 1
    if asked:
        return asked
    from mathse.train.vision_cache import free_memory

    size = sum(path.stat().st_size for path in Path(spec).glob("*.safetensors"))
    fitting = free_memory() // (COPIES * size) if size else 1
    return max(1, min(core_count(), batch_size // LEAST_ROWS, fitting))


def train_on_cores(count: int, train: Callable[[], dict]) -> dict:
    """What `train` returns in the first of `count` processes. Ends the stage as the first that fails does."""
    if count == 1:
        return train()
    import mathse.train.session  # noqa: F401  # its imports are shared with the forks

    context = multiprocessing.get_context("fork")
    connections, started, results = [], [], {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            for rank in range(count):
                ours, theirs = context.Pipe(duplex=False)
                work = rank, count, f"{folder}/meeting", train, theirs
                process = context.Process(target=take_part, args=work)
                process.start()
                started.append(process)
                connections.append(ours)
                theirs.close()
            while waiting := [connection for connection in connections if connection not in results]:
                results |= {connection: receive(connection, KILLED) for connection in wait(waiting)}
            return results[connections[0]]
        finally:
            for process in started:
                process.kill()
                process.join()


def take_part(rank: int, count: int, meeting: str, train: Callable[[], dict], result: Connection) -> None:
    """A process: joins the others by the file `meeting`, trains, and sends what the training returned."""
    settle_fork(result.fileno())
    become(rank, count)
    with failures_to(result), stage_end():
        join(rank, count, meeting)
        summary = train()
        sys.stdout.flush()  # the stage kills this process once it has the summary
        result.send(summary)


def join(rank: int, count: int, meeting: str) -> None:
    import torch
    from torch.distributed import FileStore, init_process_group

    from mathse.train.distributed import TIMEOUT, join_processes

    threads = core_count()
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)  # else accelerate chooses
    init_process_group("gloo", store=FileStore(meeting, count), rank=rank, world_size=count, timeout=TIMEOUT)
    join_processes()
