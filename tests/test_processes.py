"""Stages split among processes: the same keys, and greedily the same content, as in one; a process that
dies stops the stage.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from conftest import ROOT, read_rows, write_rows

from mathse.jsonl import share

LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
LOCAL = ["--model", "toy/base", "--max-tokens", "24"]


def begin_two(*arguments: object) -> subprocess.Popen:
    environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*LAUNCH, *map(str, arguments)],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def two(*arguments: object) -> str:
    process = begin_two(*arguments)
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output[-3000:]
    return output


@pytest.fixture
def one(stage, monkeypatch):
    """A stage in this process: torch need not be imported again."""

    def call(script: str, *arguments: object) -> None:
        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        stage(script.removesuffix(".py")).main()

    return call


def rows_of(path: Path) -> list[dict]:
    return sorted(read_rows(path), key=lambda row: (row["id"], row.get("sample", 0)))


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("world", [1, 2, 3, 8])
def test_shares_are_balanced_and_whole(monkeypatch, world):
    lengths, shares = {f"p{index}": 50 + 37 * index % 900 for index in range(200)}, []
    monkeypatch.setenv("WORLD_SIZE", str(world))
    for rank in range(world):
        monkeypatch.setenv("RANK", str(rank))
        shares.append(share(lengths))
    assert sorted(key for part in shares for key in part) == sorted(lengths)
    loads = [sum(lengths[key] for key in part) for part in shares]
    assert max(loads) - min(loads) <= max(lengths.values())


def test_a_process_that_dies_stops_the_stage_and_the_rerun_goes_on(toy_world, tmp_path, one):
    flags = ["--input", toy_world / "train.jsonl", "--limit", 8, *LOCAL]
    one("01_sample.py", *flags, "--output", tmp_path / "one.jsonl")
    output = tmp_path / "two.jsonl"
    launcher = begin_two("01_sample.py", *flags, "--output", output)
    deadline = time.monotonic() + 120
    part = Path(f"{output}.part") / "rank_1.jsonl"
    while not part.exists() or len(workers := children(launcher.pid)) < 2:
        assert time.monotonic() < deadline and launcher.poll() is None
        time.sleep(0.02)
    os.kill(workers[1], signal.SIGKILL)
    printed = launcher.communicate(timeout=120)[0]
    assert launcher.returncode != 0 and "SIGKILL" in printed and not output.exists()
    two("01_sample.py", *flags, "--output", output)
    assert rows_of(output) == rows_of(tmp_path / "one.jsonl") and len(rows_of(output)) == 8


def test_other_stages_give_the_same_with_two_processes(toy_world, tmp_path, one):
    problems = read_rows(toy_world / "train.jsonl")[:6]
    rows = [
        row
        | {
            "prompt": "Q",
            "sample": k,
            "response": f"It is {k}.\nThe answer to this problem is {k}.",
            "finish": "stop",
        }
        for row in problems
        for k in range(2)
    ]
    for row in rows:
        row["images"] = [str(toy_world / image) for image in row["images"]]
    samples = write_rows(tmp_path / "samples.jsonl", rows)
    wrong = write_rows(
        tmp_path / "wrong.jsonl",
        [row | {"status": "wrong", "error_step": "It is", "error_analysis": "no"} for row in rows],
    )
    cases = {
        "02_verify.py": (["--input", samples, "--accept", "both", "--retry-undecided", "1"], "out.jsonl"),
        "03_reflect.py": (["--input", wrong], "out.jsonl"),
        "05_evaluate.py": (["--test", toy_world / "test.jsonl", "--limit", "6"], "predictions.jsonl"),
    }
    for script, (flags, name) in cases.items():
        folders = [tmp_path / f"{script[:2]}-{count}" for count in (1, 2)]
        outputs = folders if script.startswith("05") else [folder / name for folder in folders]
        one(script, *flags, *LOCAL, "--output", outputs[0])
        two(script, *flags, *LOCAL, "--output", outputs[1])
        first, second = read_rows(folders[0] / name), read_rows(folders[1] / name)  # in the same order
        assert first == second and len(first) >= 6, script
    metrics = [(tmp_path / f"05-{count}" / "metrics.json").read_text() for count in (1, 2)]
    assert metrics[0] == metrics[1]
