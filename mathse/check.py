"""Run commands of the stages in one process: run_rounds.sh checks all of them so before it runs any.

Reads lines from stdin: a line that begins with `+ ` is printed, each other one is a command without its
interpreter. Ends as the first command that fails. With --quiet nothing but errors is printed.
"""

import contextlib
import os
import runpy
import shlex
import sys


def run(command: list[str]) -> None:
    """As `python COMMAND`; its imports stay for the next one."""
    if command[0] == "-m":
        sys.argv = command[1:]
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = command
        runpy.run_path(command[0], run_name="__main__")


def main() -> None:
    with contextlib.ExitStack() as opened:
        if "--quiet" in sys.argv:
            nowhere = opened.enter_context(open(os.devnull, "w"))
            opened.enter_context(contextlib.redirect_stdout(nowhere))
        for line in sys.stdin:
            if line.startswith("+ "):
                print(line, end="")
                continue
            try:
                run(shlex.split(line))
            except SystemExit as end:
                if end.code:
                    raise


if __name__ == "__main__":
    main()
