"""A process that has imported what stages import, and runs each command in a fork: seconds less a command.

Reads a line of JSON a command: words (without the interpreter), environment, output and errors (files to
write), and the number of processes that a launcher would start. Answers with a line that holds the exit code.
"""

import json
import os
import signal
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parent.parent)
from mathse.generate.serve import free_port
from mathse.jsonl import become, stage_end
from mathse.stages import import_ahead, run


def main() -> None:
    with stage_end():  # its settings stand before torch is imported
        import_ahead()
    for line in sys.stdin:
        command = json.loads(line)
        if command["processes"] > 1:
            command["environment"] |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        started = set()
        for rank in range(command["processes"]):
            if not (process := os.fork()):
                prepare(command, rank)
                return run(command["words"])
            started.add(process)
        print(end_of(started), flush=True)


def prepare(command: dict, rank: int) -> None:
    os.environ.clear()
    os.environ.update(command["environment"])
    if command["processes"] > 1:
        import torch

        become(rank, command["processes"])
        torch.set_num_threads(1)  # as a launcher's OMP_NUM_THREADS would
    for stream, name in enumerate((os.devnull, command["output"], command["errors"])):
        os.dup2(os.open(name, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600), stream)


def end_of(started: set[int]) -> int:
    """The exit code of a process; of several 1, as of a launcher, if one fails, which ends the others."""
    alone, first = len(started) == 1, 0
    while started:
        process, status = os.wait()
        started.discard(process)
        if status and not first:
            first = os.waitstatus_to_exitcode(status)
            for other in started:
                os.kill(other, signal.SIGTERM)
    return first if alone else int(first != 0)


if __name__ == "__main__":
    main()
