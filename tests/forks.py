"""A process that has imported what stages import, and runs each command in a fork: seconds less a command.

Reads a line of JSON a command: words (without the interpreter), environment, output and errors (files to
write). Answers with a line that holds its exit code.
"""

import json
import os
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parent.parent)
from mathse.jsonl import stage_end
from mathse.stages import import_ahead, run


def main() -> None:
    with stage_end():  # its settings stand before torch is imported
        import_ahead()
    for line in sys.stdin:
        command = json.loads(line)
        if process := os.fork():
            print(os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), flush=True)
            continue
        os.environ.clear()
        os.environ.update(command["environment"])
        for stream, name in enumerate((os.devnull, command["output"], command["errors"])):
            os.dup2(os.open(name, os.O_RDWR | os.O_CREAT, 0o600), stream)
        return run(command["words"])


if __name__ == "__main__":
    main()
