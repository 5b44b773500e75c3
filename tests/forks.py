"""A process that has imported what stages import, and runs each command in a fork: seconds less a stage.

    python tests/forks.py SOCKET

A command (tests/fork.py) has its caller's folder, environment and files, and ends when its caller does; with
RANKS in the environment it is as many processes, set up as a launcher would.
"""

import atexit
import gc
import importlib
import json
import os
import pkgutil
import runpy
import select
import signal
import socket
import sys
import threading
import traceback
from functools import partial
from pathlib import Path

sys.path[0] = str(Path(__file__).parent.parent)
import mathse
from mathse.launch import launch, stage_end


def main() -> None:
    """Answer each call in a fork of this process, which forks what is called."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(sys.argv[1])
    listener.listen(64)
    with stage_end():  # its settings stand before torch is imported
        for module in pkgutil.walk_packages(mathse.__path__, "mathse."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    gc.freeze()  # else each fork copies all of it when it collects
    answering = set()
    while True:
        connection, _ = listener.accept()
        if not (process := os.fork()):
            listener.close()
            return answer(connection)
        connection.close()
        answering.add(process)
        answering -= {process for process in answering if os.waitpid(process, os.WNOHANG)[0]}


def answer(connection: socket.socket) -> None:
    """Run what is called, and send its exit code; end it when the caller ends."""
    files = socket.recv_fds(connection, 1, 3)[1]
    call = json.loads(connection.makefile().readline())
    if not (process := os.fork()):
        connection.close()
        be(files, **call)
    ended = os.pidfd_open(process)
    if connection in select.select([connection, ended], [], [])[0]:
        signal.pidfd_send_signal(ended, signal.SIGKILL)
    else:
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        connection.sendall(b"%d" % code)
    os._exit(0)


def be(files: list[int], words: list[str], folder: str, environment: dict) -> None:
    """Become what is called."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, file in enumerate(files):
        os.dup2(file, number)
        os.close(file)
    if words[0] == "-m":
        path = Path(*words.pop(1).split("."))
        words[0] = str((path / "__main__.py" if path.is_dir() else path.with_suffix(".py")).absolute())
    sys.argv, code = words, 0
    work = partial(runpy.run_path, os.path.abspath(words[0]), run_name="__main__")
    try:
        launch(int(os.environ.pop("RANKS", 1)), work)
    except SystemExit as end:
        code = end.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    threading._shutdown()  # as Python ends, but for freeing all memory, which copies it: 0.4 s
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
