"""Check or run the stages that run_rounds.sh names, in the order of Algorithm 1.

Reads from stdin, each word ended by a NUL: rows, launcher, number of words, words of the command. With
--check each command gets `--dry-run ROWS`, all in this process; --quiet: nothing but errors is printed. Else
each is run: where Python alone launches it, in a fork of this process, so that imports are paid for once.
Ends as the first command that fails.
"""

import contextlib
import os
import runpy
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator

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
            print(f"+ {launcher} {shlex.join(command)}")
            try:
                run([*command, "--dry-run", rows])
            except SystemExit as end:
                if end.code:
                    raise


def run_all() -> None:
    """Run each command. Returns in each fork, too, when its command has ended."""
    waiting, caller = [*commands()], os.getppid()
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
                return run(command)
            code = end_of(lambda: os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))
        if code < 0 and -code != signal.SIGINT:
            kind = signal.Signals(-code).name
            fail(f"{command[0]}: ended by {kind}, perhaps out of memory; call again to go on", 128 - code)
        if code:
            sys.exit(code if code > 0 else 128 - code)


def end_of(wait: Callable[[], int]) -> int:
    """The exit code of a command. Ctrl-C ends it, and by its exit code all that was to follow."""
    interrupt = signal.signal(signal.SIGINT, lambda *_: None)
    try:
        return wait()
    finally:
        signal.signal(signal.SIGINT, interrupt)


def loads_model(command: list[str]) -> bool:
    """Whether it will load a local model, as far as one can tell without asking it."""
    values = dict(zip(command, command[1:]))
    spec, output = values.get("--model"), values.get("--output")
    return bool(spec and output) and not is_endpoint(spec) and not os.path.exists(output)


def import_ahead() -> None:
    """Import what a local model needs, for all forks to come. Not where there is a GPU: a process that has
    counted them cannot fork another that computes there.
    """
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"  # look for GPUs without beginning to use them
    import torch

    del os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"]
    if not torch.cuda.is_available():
        import mathse.generate.decoder
        import mathse.train.session  # noqa: F401


def main() -> None:
    if "--check" in sys.argv:
        check_all("--quiet" in sys.argv)
    else:
        with stage_end():
            run_all()


if __name__ == "__main__":
    main()
