import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "toy"), str(ROOT / "tests")]


@pytest.fixture(scope="session")
def stage():
    """A stage as a module: its name starts with a digit, so it cannot be imported by a statement."""
    return lambda name: importlib.import_module(name)


@pytest.fixture(scope="session")
def run():
    """Run a script of the project as a user does; returns the finished process."""

    def call(script: str, *arguments: object, **environment: str) -> subprocess.CompletedProcess:
        interpreter = "bash" if script.endswith(".sh") else sys.executable
        command = [interpreter, script, *map(str, arguments)]
        environment = os.environ | {"PYTHON": sys.executable} | environment
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment, timeout=600)

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
