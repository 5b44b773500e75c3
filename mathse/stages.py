"""Check or run the stages that run_rounds.sh names, in the order of Algorithm 1.

Reads from stdin, each word ended by a NUL: rows, launcher, number of words, words of the command. With
--check each command gets `--dry-run ROWS`, all in this process; --quiet: nothing but errors is printed. Else
each is run: where Python alone launches it, in a fork of this process, so that imports are paid for once.
Ends as the first command that fails.
"""

import contextlib
import gc
import os
import runpy
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import NoReturn

from mathse.generate.processes import end_with_parent
from mathse.jsonl import stage_end
from mathse.records import fail, is_endpoint


def commands() -> Iterator[tuple[str, str, list[str]]]:
    """(rows, launcher, command without its interpreter)"""
    words = iter(os.fsdecode(sys.stdin.buffer.read()).split("\0")[:-1])
    for rows in words:
        launcher, count = next(words), int(next(words))
        yield rows, launcher, [next(words) for _ in range(count)]


def run(command: list[str]) -> None:
    """As `python COMMAND`."""
    if command[0] == "-m":
        sys.argv = command[1:]
        runpy.run_module(command[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = command
        runpy.run_path(os.path.abspath(command[0]), run_name="__main__")  # as Python names a script itself


def check_all(quiet: bool) -> None:
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it without a word
    with contextlib.ExitStack() as opened:
        if quiet:
            nowhere = opened.enter_context(open(os.devnull, "w"))
            opened.enter_context(contextlib.redirect_stdout(nowhere))
        for rows, launcher, command in commands():
            check_launcher(launcher)
            print(f"+ {launcher} {shlex.join(command)}")
            try:
                run([*command, "--dry-run", rows])
            except SystemExit as end:
                if end.code:
                    raise


def check_launcher(launcher: str) -> None:
    try:
        program = shlex.split(launcher)[0]
    except (ValueError, IndexError):
        fail(f"LAUNCH: {launcher}: must be a command; close its quotes")
    if not shutil.which(program):
        fail(f"LAUNCH: {program}: not found; install it or name its path")


def run_all() -> None:
    """Run each command. Returns in each fork, too, when its command has ended."""
    waiting, caller, own = [*commands()], os.getppid(), os.getpid()
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for _, launcher, command in waiting:
        if os.getppid() != caller:  # run_rounds.sh was ended: no further stage
            sys.exit(1)
        if launcher != os.environ["PYTHON"]:
            code = end_of(subprocess.Popen([*shlex.split(launcher), *command]).wait)
        else:
            if loads_model(command):
                import_ahead()
            if not (process := os.fork()):
                end_with_parent(own, by=signal.SIGTERM)
                return run(command)
            code = end_of(lambda: os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))
        if code:
            end_as(command, code)


def end_of(wait: Callable[[], int]) -> int:
    """The exit code of a command, which takes Ctrl-C in the place of this process."""
    interrupt = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        return wait()
    finally:
        signal.signal(signal.SIGINT, interrupt)


def end_as(command: list[str], code: int) -> NoReturn:
    """End as this command did."""
    if code == -signal.SIGINT:  # else a shell, or a loop in it, would not know that it was interrupted
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    if code < 0:
        output = flag(command, "--output") or shlex.join(command[:2])
        reason = ", perhaps out of memory" if code == -signal.SIGKILL else ""
        fail(f"{output}: ended by {signal.Signals(-code).name}{reason}; call again to go on", 128 - code)
    sys.exit(code)


def flag(command: list[str], name: str) -> str | None:
    return dict(zip(command, command[1:])).get(name)


def loads_model(command: list[str]) -> bool:
    """Whether it will load a local model, as far as one can tell without asking it."""
    spec, output = flag(command, "--model"), flag(command, "--output")
    return bool(spec and output) and not is_endpoint(spec) and not os.path.exists(output)


def import_ahead() -> None:
    """Import what a local model needs, for all forks to come. Not where there is a GPU: a process that has
    looked for one cannot fork others that compute there, so a fork looks.
    """
    import torch

    if not (looks := os.fork()):
        os._exit(torch.cuda.is_available())
    if os.waitpid(looks, 0)[1] == 0:
        import mathse.generate.engine
        import mathse.train.session  # noqa: F401

        gc.freeze()  # else each fork copies and frees all of it when it ends: 0.6 s


def main() -> None:
    if "--check" in sys.argv:
        check_all("--quiet" in sys.argv)
    else:
        with stage_end():
            run_all()


if __name__ == "__main__":
    main()
