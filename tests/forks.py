"""A process that has imported what stages import, and runs each command in a fork: seconds less a command.

Reads a line of JSON a command: words (without the interpreter), environment, output and errors (files to
write), and the number of processes that a launcher would start. Answers with a line that holds the exit code.
"""

import gc
import json
import os
import runpy
import signal
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parent.parent)
from mathse.launch import free_port, stage_end


def main() -> None:
    with stage_end():  # its settings stand before torch is imported
        import mathse.generate.engine
        import mathse.train.fit  # noqa: F401

        gc.freeze()  # else each fork copies and frees all of it when it ends
    for line in sys.stdin:
        command = json.loads(line)
        if command["processes"] > 1:
            command["environment"] |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        started = set()
        for rank in range(command["processes"]):
            if not (process := os.fork()):
                prepare(command, rank)
                sys.argv = command["words"]
                return runpy.run_path(os.path.abspath(sys.argv[0]), run_name="__main__")
            started.add(process)
        print(end_of(started), flush=True)


def prepare(command: dict, rank: int) -> None:
    os.environ.clear()
    os.environ.update(command["environment"])
    if command["processes"] > 1:
        import torch

        names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": command["processes"]}
        os.environ.update({name: str(number) for name, number in names.items()})
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
