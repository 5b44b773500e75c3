"""Kill a run (SIGKILL to its process group) at random moments of every step, call it again each time, and
compare what it ends with with a run that was never killed: the same rows and verdicts in every file, none
twice.

    python tests/kill_runs.py --kills 100          # some twenty minutes on two cores; prints a table of steps
"""

import argparse
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
from pathlib import Path

ROOT = Path(__file__).parent.parent
BUDGET = {
    "LIMIT": "20", "ROUNDS": "1", "SAMPLES": "2", "DISTILL": "13", "SAMPLE_FLAGS": "--max-tokens 96",
    "EVALUATE_FLAGS": "--max-tokens 96", "FINETUNE_FLAGS": "--epochs 1", "DISTILL_FLAGS": "--epochs 4",
    "ORM_FLAGS": "--epochs 1",
}  # fmt: skip
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
    name: str, budget: dict, seconds: dict[str, float], rng: random.Random, twice: int, limit: int = 1 << 30
) -> Counter:
    """Run to the end, killing every step once, `twice` of them twice, at a moment within its seconds:
    kills by step.
    """
    left, kills = Counter([*seconds, *rng.sample(sorted(seconds), twice)]), Counter()
    while True:
        process, seen, start = begin(name, budget), len(begun(name)), time.monotonic()
        killed = False
        while process.poll() is None and not killed:
            steps = begun(name)
            if len(steps) > seen and left[steps[-1]] and kills.total() < limit:
                moment = time.monotonic() + rng.uniform(0.0, 1.0) * max(1, seconds[steps[-1]])
                while time.monotonic() < moment and len(begun(name)) == len(steps) and process.poll() is None:
                    time.sleep(0.02)
                left[steps[-1]] -= 1
                killed = process.poll() is None
                if killed:
                    os.killpg(process.pid, signal.SIGKILL)
                    kills[begun(name)[-1]] += 1
            if time.monotonic() - start > HANG:
                os.killpg(process.pid, signal.SIGKILL)
                raise TimeoutError(f"{name}: a call hangs in {begun(name)[-1]}")
            time.sleep(0.02)
        if process.wait() != (-signal.SIGKILL if killed else 0):
            raise RuntimeError(f"{name}: exit code {process.returncode}, see its log")
        if not killed:
            return kills


def contents(name: str) -> dict[str, list]:
    """For every file of rows: what identifies each row, and its verdict."""
    files, folder = {}, ROOT / "runs" / name
    for path in sorted(folder.rglob("*.jsonl")):
        rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
        if path.name == "train_log.jsonl":
            found = [[row["step"], round(row["loss"], 5)] for row in rows]
        else:
            fields = ("id", "sample", "origin", "status", "answer_check", "orm_check")
            found = sorted([str(row.get(field)) for field in fields] for row in rows)
        files[str(path.relative_to(folder))] = found
    return files


def differences(name: str, reference: str) -> list[str]:
    """What a run holds that differs from the reference; rows that stand twice; unfinished outputs."""
    one, other = contents(name), contents(reference)
    found = [f"{file}: only in one" for file in one.keys() ^ other.keys()]
    for file in one.keys() & other.keys():
        extra = Counter(map(str, one[file])) - Counter(map(str, other[file]))
        missing = Counter(map(str, other[file])) - Counter(map(str, one[file]))
        if extra or missing:
            found.append(f"{file}: {extra.total()} rows differ: {[*extra][:2]} for {[*missing][:2]}")
        keys = Counter(tuple(map(str, row[:3])) for row in one[file])
        found += [f"{file}: {key} stands {count} times" for key, count in keys.items() if count > 1]
    return found + [f"{path}: left over" for path in (ROOT / "runs" / name).rglob("*.part*")]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--kills", type=int, default=100, help="in all, over several runs (default %(default)s)")
    add("--seed", type=int, default=0, help="draws the moments (default %(default)s)")
    args = parser.parse_args()
    rng, kills, number, bad = random.Random(args.seed), Counter(), 0, 0
    for name in ("kill-none", "kill-1"):
        shutil.rmtree(ROOT / "runs" / name, ignore_errors=True)
    assert begin("kill-none", BUDGET).wait() == 0, "the run itself fails: see runs/kill-none/log"
    seconds = seconds_of("kill-none")
    while kills.total() < args.kills:
        number += 1
        shutil.rmtree(ROOT / "runs" / "kill-1", ignore_errors=True)
        left = args.kills - kills.total()
        new = kill_every_step("kill-1", BUDGET, seconds, rng, twice=7, limit=left)
        kills += new
        found = differences("kill-1", "kill-none")
        bad += len(found)
        what = "; ".join(found) or "the same rows and verdicts as without a kill"
        print(f"run {number}: {new.total()} kills; {what}", flush=True)
    for step in seconds:
        print(f"{kills[step]:4d} kills in {step}")
    rows = sum(map(len, contents("kill-none").values()))
    size = f"{number} runs of {len(seconds)} steps and {rows} rows each"
    print(f"{kills.total()} kills, {size}; {bad} differences")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
