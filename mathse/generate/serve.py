"""A server for a model folder: started by a command, waited for, asked as an endpoint, ended with the stage.

The command is the user's, such as `vllm serve {model} --port {port}`: a shell command, because a server lives
in an environment of its own. It may start as many processes as it likes: they are one process group, which is
ended with all its children when the stage ends, also by an error, Ctrl-C, SIGTERM or a closed terminal.
"""

import argparse
import atexit
import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path

from mathse.generate.endpoint import Endpoint
from mathse.launch import free_port
from mathse.records import fail

SERVED_CONCURRENCY = 256  # requests in flight, if --concurrency does not say: they fill a server
RESTARTS = 1
LOAD_SECONDS = 1800  # for a server to load its model and answer
END_SECONDS = 20  # for it to end when it is asked to; then it is killed
VLLM_FLAGS = "--generation-config vllm"  # else what a request omits comes from the folder's habits


class Served(Endpoint):
    """A served model as a Generator. A server that dies is started anew once, where it was.

    What is asked of it costs nothing, so no limit of an endpoint holds.
    """

    def __init__(self, spec: str, args: argparse.Namespace, schema: dict | None = None):
        self.port, self.process, self.count = free_port(), None, 1
        self.log = Path(f"{str(args.output).rstrip('/')}.serve.log")
        self.command = filled(args.serve, spec, self.port)
        self.lock = threading.Lock()
        atexit.register(self.end)
        for number in (signal.SIGTERM, signal.SIGHUP):  # so that atexit ends the server
            if signal.getsignal(number) == signal.SIG_DFL:  # under nohup no terminal is missed
                signal.signal(number, lambda number, _: sys.exit(128 + number))
        name = self.start()
        free = {"max_requests": 0, "max_cost": 0, "spent": None}
        free["concurrency"] = args.concurrency or SERVED_CONCURRENCY
        args = argparse.Namespace(**vars(args) | free)
        super().__init__(f"http://127.0.0.1:{self.port}/v1#{name}", args, schema)

    def close(self) -> None:
        super().close()
        self.end()

    def start(self) -> str:
        """Start the server and wait until it answers, or end the command. Returns its model's name."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        print(f"serve: {self.command} (its log: {self.log})", flush=True)
        with self.log.open("ab") as log:
            streams = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
            self.process = subprocess.Popen(self.command, shell=True, start_new_session=True, **streams)
        begun = time.monotonic()
        while time.monotonic() < begun + LOAD_SECONDS:
            if name := self.answers():
                print(f"serve: answers after {time.monotonic() - begun:.0f} s", flush=True)
                return name
            if self.process.poll() is not None:
                fail(f"--serve: the server ended ({last_error(self.log)}); see {self.log}")
            time.sleep(0.5)
        fail(f"--serve: no answer in {LOAD_SECONDS} s ({last_error(self.log)}); see {self.log}")

    def answers(self) -> str:
        """The name of the model that it serves, "" if it does not answer yet."""
        try:
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback knows no proxy
            with opener.open(f"http://127.0.0.1:{self.port}/v1/models", timeout=10) as answer:
                return json.load(answer)["data"][0]["id"]
        except (OSError, ValueError, LookupError, TypeError):
            return ""

    def starts(self) -> int:
        """How often the server was started. One that is dead is started once more."""
        with self.lock:
            if self.process.poll() is not None and not self.stop.is_set():
                if self.count > RESTARTS:
                    self.stop.set()
                    fail(f"--serve: the server died again ({last_error(self.log)}); see {self.log}", 1)
                print("serve: the server died; it is started anew", flush=True)
                self.end()
                self.start()
                self.count += 1
            return self.count

    def end(self) -> None:
        """End the server and all its children: asked first, killed if they take their time."""
        for number, seconds in ((signal.SIGTERM, END_SECONDS), (signal.SIGKILL, 5)):
            deadline = time.monotonic() + seconds
            while self.process and signal_group(self.process.pid, number) and time.monotonic() < deadline:
                number = 0  # from now on only a look whether it is there
                self.process.poll()  # so that a process that ended is no zombie of ours
                time.sleep(0.05)


def signal_group(group: int, number: int) -> bool:
    """Signal a process group; whether there is one."""
    try:
        os.killpg(group, number)
    except OSError as error:
        return isinstance(error, PermissionError)
    return True


def filled(command: str, model: str, port: int) -> str:
    """The command with the model and the port in it; a vLLM is told not to take sampling from the folder."""
    place = os.path.abspath(model) if os.path.isdir(model) else model
    command = command.replace("{model}", shlex.quote(place)).replace("{port}", str(port))
    is_vllm = "vllm serve" in command and "--generation-config" not in command
    return f"{command} {VLLM_FLAGS}" if is_vllm else command


def last_error(log: Path) -> str:
    """The last line of a log that speaks of an error, else its last line."""
    lines = [line.strip() for line in log.read_bytes()[-4000:].decode("utf-8", "replace").splitlines()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or list(filter(None, lines)) or ["its log is empty"])[-1][:300]
