"""A run that is killed (SIGKILL to its process group) at random moments of its steps, and called again each
time, ends with what a run has that was never killed: the same rows and verdicts in every file, none twice.
"""

import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter

import teacher
from conftest import ROOT, forking_python
from server import FAULTS, Server, faulty, teaching

BUDGET = {
    "LIMIT": "20", "ROUNDS": "1", "SAMPLES": "2", "DISTILL": "13", "SAMPLE_FLAGS": "--max-tokens 96",
    "EVALUATE_FLAGS": "--max-tokens 96", "FINETUNE_FLAGS": "--epochs 1", "DISTILL_FLAGS": "--epochs 4",
    "ORM_FLAGS": "--epochs 1",
}  # fmt: skip
KEY = "sk-this-is-a-secret-0123456789"
KILLED = (  # steps, a kind each: calls of an endpoint, of a local model, training, a folder of figures
    "round_0/samples.jsonl", "round_1/samples.jsonl", "round_1/model", "final/eval",
)  # fmt: skip
KILLS = int(os.environ.get("KILLS", 0))  # in all steps, at least so many; 100 take some twenty minutes
HANG = 900  # seconds after which a call is taken to hang


def begin(name: str, budget: dict[str, str]) -> subprocess.Popen:
    """A call of the run in a process group of its own, its output appended to RUN/log."""
    folder = ROOT / "runs" / name
    folder.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"PYTHON": sys.executable, "RUN": name} | budget
    with (folder / "log").open("ab") as log:
        same = {"cwd": ROOT, "env": environment, "stdout": log, "stderr": log, "start_new_session": True}
        return subprocess.Popen(["bash", "run_rounds.sh"], **same)


def begun(name: str) -> list[str]:
    """The outputs that have been begun, in the order of the log, one each time."""
    path = ROOT / "runs" / name / "log"
    text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
    return re.findall(rf"^\+ python .*--output runs/{name}/(\S+)", text, re.MULTILINE)


def seconds_of(name: str) -> dict[str, float]:
    """{output: seconds} of a finished run, from its recipes."""
    folder, seconds = ROOT / "runs" / name, {}
    for path in folder.rglob("*recipe.json"):
        recipe = json.loads(path.read_text())
        seconds[re.search(rf"--output runs/{name}/(\S+)", recipe["command"])[1]] = recipe["seconds"]
    return seconds


def kill_every_step(
    name: str, budget: dict, seconds: dict[str, float], rng: random.Random, twice: int
) -> Counter:
    """Run to the end, killing every step once, `twice` of them twice, at a moment within its seconds:
    kills by step.
    """
    left, kills = Counter([*seconds, *rng.sample(sorted(seconds), twice)]), Counter()
    while True:
        process, seen, deadline = begin(name, budget), len(begun(name)), time.monotonic() + HANG
        killed = False
        while process.poll() is None and not killed:
            steps = begun(name)
            if len(steps) > seen and left[steps[-1]]:
                moment = time.monotonic() + rng.uniform(0.0, 1.0) * max(1, seconds[steps[-1]])
                while time.monotonic() < moment and len(begun(name)) == len(steps) and process.poll() is None:
                    time.sleep(0.02)
                left[steps[-1]] -= 1
                killed = process.poll() is None
                kills[begun(name)[-1]] += killed
            if killed or time.monotonic() > deadline:
                os.killpg(process.pid, signal.SIGKILL)
            time.sleep(0.02)
        if process.wait() != (-signal.SIGKILL if killed else 0):
            raise RuntimeError(f"{name}: exit code {process.returncode} in {begun(name)[-1]}, see its log")
        if not killed:
            return kills


FIELDS = "id sample origin status answer_check orm_check step loss".split()


def contents(name: str) -> dict[str, Counter]:
    """For every file of rows: what identifies each row, and its verdict or loss."""
    files, folder = {}, ROOT / "runs" / name
    for path in folder.rglob("*.jsonl"):
        rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
        rows = (row | {"loss": round(row.get("loss", 0), 5)} for row in rows)
        found = Counter(tuple(str(row.get(field)) for field in FIELDS) for row in rows)
        files[str(path.relative_to(folder))] = found
    return files


def differences(name: str, reference: str) -> list[str]:
    """What a run holds that differs from the reference; rows that stand twice; unfinished outputs."""
    one, other = contents(name), contents(reference)
    found = [f"{file}: only in one" for file in one.keys() ^ other.keys()]
    for file in one.keys() & other.keys():
        found += [f"{file}: {row} is new" for row in one[file] - other[file]]
        found += [f"{file}: {row} is missing" for row in other[file] - one[file]]
        found += [f"{file}: {row} stands {count} times" for row, count in one[file].items() if count > 1]
    return found + [f"{path}: left over" for path in (ROOT / "runs" / name).rglob("*.part*")]


def test_a_run_that_is_killed_in_its_steps_ends_as_one_that_is_not(small_run):
    """With a teacher of whose replies three in ten fail. What is printed: the kills of each step."""
    assert small_run.returncode == 0
    seconds = seconds_of("test-loop")
    steps = seconds if KILLS else {name: seconds[name] for name in KILLED}
    known = [ROOT / "runs" / "test-loop" / "problems.jsonl", ROOT / "toy" / "test.jsonl"]
    server = Server(faulty(teaching(teacher.Teacher(known, wrong=0.1, seed=0))), seconds=0.0)
    budget = BUDGET | {"TEACHER": server.spec, "OPENAI_API_KEY": KEY}
    budget |= {"ENDPOINT_FLAGS": "--timeout 6 --concurrency 4"}
    folder, rng, kills = ROOT / "runs" / "test-kill", random.Random(0), Counter()
    try:
        with forking_python() as budget["PYTHON"]:  # another process: sets have another order there
            while kills.total() < max(4, KILLS):
                shutil.rmtree(folder, ignore_errors=True)
                kills += kill_every_step("test-kill", budget, steps, rng, 7 if KILLS else 0)
                assert differences("test-kill", "test-loop") == []
                files = [
                    path for path in folder.rglob("*") if path.is_file()
                ]  # the log of all calls among them
                assert not [path for path in files if KEY.encode() in path.read_bytes()]
                assert b"Traceback" not in (folder / "log").read_bytes()
        print(kills)
        assert len(kills) >= 3 and server.count > len(FAULTS) * 3
    finally:
        shutil.rmtree(folder, ignore_errors=True)
