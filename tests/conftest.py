import importlib
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LONGEST = 600  # seconds that a command may take
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as a shell begins what stands in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
sys.path[:0] = [str(ROOT), str(ROOT / "toy"), str(ROOT / "tests")]
# files whose tests share a slow set-up: each stays with one process
TOGETHER = {"test_loop.py", "test_evaluate.py", "test_report.py", "test_decontaminate.py"}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Tests are dealt out one by one, but for those of TOGETHER."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduler(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file = nodeid.split("::")[0]
            return file if Path(file).name in TOGETHER else nodeid

    return Scheduler(config, log)


@pytest.fixture(scope="session")
def stage():
    """A stage as a module: its name starts with a digit, so it cannot be imported by a statement."""
    return lambda name: importlib.import_module(name)


@pytest.fixture(scope="session")
def forks():
    """Run a stage in a fork of a process that has imported what it needs (forks.py)."""
    server = None

    def call(
        words: list[str], environment: dict[str, str], processes: int = 1
    ) -> subprocess.CompletedProcess:
        nonlocal server
        if server is None or server.poll() is not None:
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
            command = [sys.executable, "tests/forks.py"]
            server = subprocess.Popen(command, cwd=ROOT, start_new_session=True, **pipes)
        with tempfile.TemporaryDirectory() as folder:
            files = {"output": f"{folder}/output", "errors": f"{folder}/errors"}
            command = {"words": words, "environment": environment, "processes": processes} | files
            server.stdin.write(json.dumps(command) + "\n")
            server.stdin.flush()
            if not select.select([server.stdout], [], [], LONGEST)[0]:
                os.killpg(server.pid, signal.SIGKILL)
                raise subprocess.TimeoutExpired(words, LONGEST)
            answer = server.stdout.readline()
            assert answer, "the process that forks has ended"
            said = [Path(name).read_text(encoding="utf-8") for name in files.values()]
        return subprocess.CompletedProcess(words, int(answer), *said)

    yield call
    if server and server.poll() is None:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()


def finish(script: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess:
    """Run a script of the project as a user does; the finished process."""
    command = ["bash" if script.endswith(".sh") else sys.executable, script, *map(str, arguments)]
    environment = os.environ | {"PYTHON": sys.executable} | environment
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=LONGEST)


@pytest.fixture(scope="session")
def run(forks):
    """As finish(), a stage in a fork of a process that is there."""

    def call(script: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess:
        if not script.startswith("0"):
            return finish(script, *arguments, **environment)
        return forks([script, *map(str, arguments)], os.environ | environment)

    return call


@pytest.fixture(scope="session")
def run_two(forks):
    """A script in two processes, as a launcher would start them; the finished launch."""

    def call(script: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess:
        environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"} | environment
        return forks([script, *map(str, arguments)], environment, processes=2)

    return call


@pytest.fixture(scope="session")
def small_run(run):
    """The whole loop on a very small budget, as runs/test-loop; the finished process."""
    from kill_runs import BUDGET

    shutil.rmtree(ROOT / "runs" / "test-loop", ignore_errors=True)
    yield run("run_rounds.sh", RUN="test-loop", **BUDGET)
    shutil.rmtree(ROOT / "runs" / "test-loop", ignore_errors=True)


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
            except (
                ImportError
            ) as error:  # before transformers 5.20 or so Idefics3's image processor asks for it
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
