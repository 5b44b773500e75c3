"""A run that is killed and called again."""

import random
import shutil

import kill_runs
import teacher
from conftest import ROOT, forking_python
from server import FAULTS, Server, faulty, teaching

KEY = "sk-this-is-a-secret-0123456789"
KILLED = {  # steps, a kind each: calls of an endpoint, of a local model, training, a folder of figures
    "round_0/samples.jsonl", "round_1/samples.jsonl", "round_1/model", "final/eval",
}  # fmt: skip


def test_a_run_that_is_killed_in_its_steps_ends_as_one_that_is_not(small_run):
    """Killed in a step of each kind, with a teacher of whose replies three in ten fail. kill_runs.py kills in
    all of them.
    """
    assert small_run.returncode == 0
    steps = {name: took for name, took in kill_runs.seconds_of("test-loop").items() if name in KILLED}
    known = [ROOT / "runs" / "test-loop" / "problems.jsonl", ROOT / "toy" / "test.jsonl"]
    server = Server(faulty(teaching(teacher.Teacher(known, wrong=0.1, seed=0))), seconds=0.0)
    budget = kill_runs.BUDGET | {"TEACHER": server.spec, "OPENAI_API_KEY": KEY}
    budget |= {"ENDPOINT_FLAGS": "--timeout 6 --concurrency 4"}
    folder = ROOT / "runs" / "test-kill"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        with forking_python() as python:  # another process: sets have another order there
            budget["PYTHON"] = python
            kills = kill_runs.kill_every_step("test-kill", budget, steps, random.Random(0), twice=1)
        assert kills.total() >= 4 and len(kills) >= 3
        assert kill_runs.differences("test-kill", "test-loop") == []
        assert server.count > len(FAULTS) * 3
        files = [path for path in folder.rglob("*") if path.is_file()]  # the log of all calls among them
        assert not [path for path in files if KEY.encode() in path.read_bytes()]
        assert b"Traceback" not in (folder / "log").read_bytes()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
