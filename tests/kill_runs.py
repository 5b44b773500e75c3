"""Kill a run (SIGKILL to its whole process group) at random moments of every stage, call it again each time, and compare what
it ends with with a run that was never killed: the same keys and verdicts in every file, none twice.

    python tests/kill_runs.py --kills 100          # some twenty minutes on two cores; prints a table of stages
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parent.parent
BUDGET = dict(LIMIT="20", ROUNDS="1", SAMPLES="2", DISTILL="13", EPOCHS="1", DISTILL_EPOCHS="4", ORM_EPOCHS="1", ORM_PROBLEMS="14", ORM_SAMPLES="2", MAX_TOKENS="96")
HANG = 900  # seconds after which a call is taken to hang


def begin(name: str, budget: dict[str, str]) -> subprocess.Popen:
    """A call of the run in a process group of its own, its output appended to RUN/log."""
    folder = ROOT / "runs" / name
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(["bash", "run_rounds.sh"], cwd=ROOT, env=os.environ | {"PYTHON": sys.executable, "RUN": name} | budget, stdout=log, stderr=log, start_new_session=True)


def begun(name: str) -> list[str]:
    """The steps that have been begun, a name each time."""
    path = ROOT / "runs" / name / "commands.tsv"
    return [line.split("\t")[0].split("/", 2)[2] for line in path.read_text().splitlines()] if path.exists() else []


def seconds_of(name: str) -> dict[str, int]:
    lines = (ROOT / "runs" / name / "timings.tsv").read_text().splitlines()
    return {step: int(spent) for step, spent in (line.split("\t") for line in lines)}


def kill_every_step(name: str, budget: dict[str, str], seconds: dict[str, int], rng: random.Random, twice: int, limit: int = 1 << 30) -> Counter:
    """Run to the end, killing every step once, `twice` of them twice, at a moment of its time by `seconds`: kills by step."""
    left = Counter(seconds.keys())
    left.update(rng.sample(sorted(seconds), twice))
    kills = Counter()
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
    """Of every file of rows: what identifies each row, and its verdict."""
    files = {}
    for path in sorted((ROOT / "runs" / name).rglob("*.jsonl")):
        rows = map(json.loads, path.read_text(encoding="utf-8").splitlines())
        if path.name == "train_log.jsonl":
            files[str(path.relative_to(ROOT / "runs" / name))] = [[row["step"], round(row["loss"], 5)] for row in rows]
        else:
            fields = ("id", "sample", "origin", "status", "answer_check", "orm_check")
            files[str(path.relative_to(ROOT / "runs" / name))] = sorted([str(row.get(field)) for field in fields] for row in rows)
    return files


def differences(name: str, reference: str) -> list[str]:
    """What a run holds that differs from the reference; rows that stand twice; unfinished files."""
    one, other = contents(name), contents(reference)
    found = [f"{file}: only in one" for file in one.keys() ^ other.keys()]
    for file in one.keys() & other.keys():
        extra, missing = (Counter(map(str, a)) - Counter(map(str, b)) for a, b in ((one[file], other[file]), (other[file], one[file])))
        found += [f"{file}: {extra.total()} rows differ: {[*extra][:2]} for {[*missing][:2]}"] if extra or missing else []
        keys = Counter(tuple(map(str, row[:3])) for row in one[file])
        found += [f"{file}: {key} stands {count} times" for key, count in keys.items() if count > 1]
    return found + [f"{path}: left over" for path in (ROOT / "runs" / name).rglob("*.part*")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100, help="in all, over as many runs as that takes (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the moments (default %(default)s)")
    args = parser.parse_args()
    rng, kills, number, bad = random.Random(args.seed), Counter(), 0, 0
    for name in ("kill-none", "kill-1"):
        shutil.rmtree(ROOT / "runs" / name, ignore_errors=True)
    assert begin("kill-none", BUDGET).wait() == 0, "the run itself fails: see runs/kill-none/log"
    seconds = seconds_of("kill-none")
    while kills.total() < args.kills:
        number += 1
        shutil.rmtree(ROOT / "runs" / "kill-1", ignore_errors=True)
        new = kill_every_step("kill-1", BUDGET, seconds, rng, twice=7, limit=args.kills - kills.total())
        kills += new
        found = differences("kill-1", "kill-none")
        bad += len(found)
        print(f"run {number}: {new.total()} kills; {'; '.join(found) or 'the same rows and verdicts as without a kill'}", flush=True)
    for step in seconds:
        print(f"{kills[step]:4d} kills in {step}")
    rows = sum(map(len, contents("kill-none").values()))
    print(f"{kills.total()} kills, {number} runs of {len(seconds)} steps and {rows} rows each; {bad} differences")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
