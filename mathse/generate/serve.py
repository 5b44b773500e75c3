"""A server for a model folder: started by a command, waited for, asked as an endpoint, ended with the stage.

The command is the user's, such as `vllm serve {model} --port {port}`: a shell command, because a server lives
in an environment of its own. It may start as many processes as it likes: they are one process group, which is
ended with all its children when the stage ends, also by an error, Ctrl-C or SIGTERM, so that the devices are
free for what comes next.
"""

import argparse
import atexit
import contextlib
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from mathse.generate.endpoint import Endpoint
from mathse.generate.types import Reply, Request
from mathse.records import fail

SERVED_CONCURRENCY = 256  # requests in flight, if --concurrency does not say: they fill a server
RESTARTS = 1
LOAD_SECONDS = 1800  # for a server to load its model and answer
END_SECONDS = 20  # for it to end when it is asked to; then it is killed
LOG_TAIL = 4000  # characters of a log that are looked at for its last error
VLLM_FLAGS = "--generation-config vllm"  # else what a request omits comes from the folder's habits


class Server:
    """The process group of a server for one model."""

    def __init__(self, command: str, model: str, log: Path):
        self.port, self.log, self.process = free_port(), log, None
        self.url = f"http://127.0.0.1:{self.port}/v1"
        self.command = filled(command, model, self.port)
        atexit.register(self.end)

    def start(self) -> str:
        """Start it and wait until it answers; returns the endpoint's spec. Or ends the command."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        print(f"serve: {self.command} (its log: {self.log})", flush=True)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command,
                shell=True,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        begun = time.monotonic()
        while time.monotonic() < begun + LOAD_SECONDS:
            if names := self.models():
                print(f"serve: answers after {time.monotonic() - begun:.0f} s", flush=True)
                return f"{self.url}#{names[0]}"
            if not self.is_running():
                fail(f"--serve: the server ended ({last_error(self.log)}); see {self.log}")
            time.sleep(0.5)
        fail(f"--serve: no answer in {LOAD_SECONDS} s ({last_error(self.log)}); see {self.log}")

    def models(self) -> list[str]:
        """The names of the models that it serves, [] if it does not answer yet."""
        try:
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # loopback knows no proxy
            with opener.open(f"{self.url}/models", timeout=10) as answer:
                return [model["id"] for model in json.load(answer)["data"]]
        except (OSError, ValueError, LookupError, TypeError):
            return []

    def is_running(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def end(self) -> None:
        """End it and all its children: asked first, killed if they take their time."""
        if self.process is None:
            return
        deadline = time.monotonic() + END_SECONDS
        signals = [signal.SIGTERM, signal.SIGKILL]
        while signals and group_exists(self.process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signals.pop(0))
            while group_exists(self.process.pid) and time.monotonic() < deadline:
                self.process.poll()  # so that a process that ended is no zombie of ours
                time.sleep(0.05)
            deadline = time.monotonic() + 5
        self.process.poll()
        self.process = None


class Served:
    """A served model as a Generator: see types.py. A server that dies is started anew once."""

    def __init__(self, spec: str, args: argparse.Namespace, **wanted: object):
        """`wanted`: see Endpoint. What is asked of it costs nothing, so no limit of an endpoint holds."""
        self.server = Server(args.serve, spec, Path(f"{str(args.output).rstrip('/')}.serve.log"))
        self.lock, self.starts = threading.Lock(), 1
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that atexit ends the server
        unlimited = {
            "concurrency": args.concurrency or SERVED_CONCURRENCY,
            "max_requests": 0,
            "max_cost": 0,
            "spent": None,
        }
        args = argparse.Namespace(**vars(args) | unlimited)
        self.endpoint = Endpoint(self.server.start(), args, **wanted, starts=self.started)

    @property
    def work(self) -> Counter:
        return self.endpoint.work

    def spent(self) -> dict:
        return {}

    def __call__(self, requests: Iterable[Request], temperature: float | None = None) -> Iterator[Reply]:
        return self.endpoint(requests, temperature)

    def close(self) -> None:
        self.server.end()

    def started(self) -> int:
        """How often the server was started. If it is dead, it is started once more, at its old address."""
        with self.lock:
            if not self.server.is_running() and self.starts <= RESTARTS:
                print("serve: the server died; it is started anew", flush=True)
                self.server.end()
                self.server.start()
                self.starts += 1
            return self.starts


def filled(command: str, model: str, port: int) -> str:
    """The command with the model and the port in it; a vLLM is told not to take sampling from the folder."""
    place = os.path.abspath(model) if os.path.isdir(model) else model
    command = command.replace("{model}", shlex.quote(place)).replace("{port}", str(port))
    is_vllm = "vllm serve" in command and "--generation-config" not in command
    return f"{command} {VLLM_FLAGS}" if is_vllm else command


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def group_exists(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def last_error(log: Path) -> str:
    """The last line of a log that speaks of an error, else its last line."""
    lines = [
        line.strip()
        for line in log.read_bytes()[-LOG_TAIL:].decode("utf-8", "replace").splitlines()
        if line.strip()
    ]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or ["its log is empty"])[-1][:300]
