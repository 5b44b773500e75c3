import contextlib
import fcntl
import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LONGEST = 600  # seconds that a command may take
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as a shell begins what stands in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path[:0] = [str(ROOT), str(ROOT / "toy"), str(ROOT / "tests")]
FIRST = ("test_kills.py", "test_training.py", "test_processes.py", "test_settings.py")  # the longest
# files whose tests share a slow set-up: each stays with one process
TOGETHER = {"test_evaluate.py", "test_report.py", "test_decontaminate.py"}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Tests are dealt out one by one, but for those of TOGETHER."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduler(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::")[0]
            return file if Path(file).name in TOGETHER else nodeid

    return Scheduler(config, log)


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: FIRST.index(item.path.name) if item.path.name in FIRST else len(FIRST))


@pytest.fixture(scope="session")
def stage():
    """A stage as a module: its name starts with a digit, so it cannot be imported by a statement."""
    return lambda name: importlib.import_module(name)


@contextlib.contextmanager
def forking_python():
    """What runs a stage as Python would, but in a fork of a process that has imported what it needs."""
    with tempfile.TemporaryDirectory() as folder:
        address, command = Path(folder, "socket"), Path(folder, "python")
        command.write_text(f'#!/bin/sh\nexec {sys.executable} -IS {ROOT}/tests/fork.py {address} "$@"\n')
        command.chmod(0o755)
        words = [sys.executable, "tests/forks.py", address]
        server = subprocess.Popen(words, cwd=ROOT, start_new_session=True)
        try:
            while not address.exists():
                assert server.poll() is None
                time.sleep(0.01)
            yield str(command)
        finally:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


@pytest.fixture(scope="session")
def python():
    with forking_python() as command:
        yield command


def finish(
    script: str, *arguments: object, python: str = sys.executable, **environment: str
) -> subprocess.CompletedProcess:
    """Run a script of the project as a user does; the finished process."""
    command = ["bash" if script.endswith(".sh") else python, script, *map(str, arguments)]
    environment = os.environ | {"PYTHON": python} | environment
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=LONGEST)


def one_line(done: subprocess.CompletedProcess, *words: str, code: int = 2) -> bool:
    """Whether a command ended in one line on stderr that holds these words."""
    is_one = done.stderr.startswith("error: ") and done.stderr.count("\n") == 1
    return done.returncode == code and is_one and all(word in done.stderr for word in words)


def begin(words: list, is_ready: Callable[[subprocess.Popen], bool], **settings) -> subprocess.Popen:
    """A command that is as far as wanted, and still running."""
    process = subprocess.Popen([*map(str, words)], cwd=ROOT, **settings)
    deadline = time.monotonic() + LONGEST
    while not is_ready(process):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    return process


@pytest.fixture
def call(monkeypatch):
    """A command's main() in this process, with these flags."""

    def run(main: Callable, *words: object) -> object:
        monkeypatch.setattr(sys, "argv", ["command", *map(str, words)])
        return main()

    return run


def lines_of(path: Path) -> int:
    """Whole lines of a file that may not be there yet."""
    return path.read_bytes().count(b"\n") if path.exists() else 0


def kill(process: subprocess.Popen) -> None:
    """End a command of fork.py, and so its fork, as SIGKILL does."""
    process.kill()
    process.wait()
    time.sleep(0.5)


@pytest.fixture(scope="session")
def run(python):
    """As finish(), stages in forks."""
    return partial(finish, python=python)


@pytest.fixture(scope="session")
def run_two(python):
    """A script in two processes, as a launcher would start them; the finished launch."""
    return partial(finish, python=python, RANKS="2", ACCELERATE_USE_CPU="true", OMP_NUM_THREADS="1")


@pytest.fixture(scope="session")
def small_run(run):
    """The whole loop on a very small budget, as runs/test-loop, made by one of the workers; the finished
    process. It is read, not changed.
    """
    from test_kills import BUDGET

    runs, session = ROOT / "runs", os.environ.get("PYTEST_XDIST_TESTRUNUID", str(os.getpid()))
    runs.mkdir(exist_ok=True)
    with (runs / "test-loop.json").open("a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        made, done = json.loads(file.read() or "[null, null]")
        if made != session:
            shutil.rmtree(runs / "test-loop", ignore_errors=True)
            done = vars(run("run_rounds.sh", RUN="test-loop", **BUDGET))
            file.truncate(0)
            file.write(json.dumps([session, done]))
    return subprocess.CompletedProcess(**done)


@pytest.fixture(scope="session")
def toy_data(run):
    """toy/train.jsonl and toy/test.jsonl, as run_rounds.sh makes them."""
    if not (ROOT / "toy" / "test.jsonl").exists():
        assert run("toy/problems.py", "--output", "toy").returncode == 0


@pytest.fixture(scope="session")
def toy_world(tmp_path_factory, run):
    """A folder with a few toy problems: train.jsonl, test.jsonl, images."""
    folder = tmp_path_factory.mktemp("world")
    assert run("toy/problems.py", "--output", folder, "--train", 30, "--test", 10).returncode == 0
    return folder


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory):
    """Folder of a tiny random model by architecture, made once."""
    import tiny

    made = {}

    def folder(kind: str) -> Path:
        if kind not in made:
            try:
                made[kind] = tiny.make_model(kind, tmp_path_factory.mktemp(kind))
            except ImportError as error:  # before transformers 5.20 or so of Idefics3's image processor
                if "Torchvision" in str(error):
                    pytest.skip(f"{kind}: this version of transformers needs torchvision for it")
                raise
        return made[kind]

    return folder


def write_rows(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read_rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]
