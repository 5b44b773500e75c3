"""Several processes: a stage forks itself into ranks after its imports, each as a launcher would start it."""

import os
import signal
import socket
import sys
import traceback
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

from mathse.generate.processes import end_with_parent  # also for pack.py
from mathse.jsonl import become, stage_end
from mathse.records import fail


def rank_count(args: Namespace, rows: int, spec: str, memory: int) -> int:
    """How many ranks: `--processes`, else one a core, as far as `rows` and the machine's memory reach.

    `memory`: bytes that a rank takes for each byte of the weights in the folder `spec`.
    """
    if "RANK" in os.environ:
        return 1
    if args.processes:
        return args.processes
    size = sum(path.stat().st_size for path in Path(spec).glob("*.safetensors"))
    with open("/proc/meminfo") as file:
        free = 1024 * next(int(line.split()[1]) for line in file if line.startswith("MemAvailable"))
    fitting = free // (memory * size) if size else 1
    return max(1, min(len(os.sched_getaffinity(0)), rows, fitting))


def launch(ranks: int, work: Callable[[], None]) -> None:
    """Run work() in so many forked ranks, in this process if it is one. If one fails, all end."""
    if ranks == 1:
        return work()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    started, parent = set(), os.getpid()
    sys.stdout.flush()
    for rank in range(ranks):
        if not (process := os.fork()):
            code = 1
            try:
                import torch

                end_with_parent(parent)
                threads = max(1, len(os.sched_getaffinity(0)) // ranks)
                os.environ.update(meeting | {"OMP_NUM_THREADS": str(threads)})
                torch.set_num_threads(threads)
                become(rank, ranks)
                with stage_end():
                    work()
                code = 0
            except SystemExit as end:
                code = end.code or 0
            except BaseException:
                traceback.print_exc()
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)
        started.add(process)
    while started:
        process, status = os.wait()
        started.discard(process)
        if status:
            for other in started:
                os.kill(other, signal.SIGKILL)
                os.waitpid(other, 0)
            if (code := os.waitstatus_to_exitcode(status)) < 0:
                how = f"one of {ranks} processes ended by {signal.Signals(-code).name}"
                fail(f"{how}; what is complete is kept: call again to go on", 1)
            sys.exit(code)
