"""Several ranks: the same rows as one; a rank that dies ends the stage; a stage that dies leaves no rank."""

import multiprocessing
import os
import signal
import sys
import time
from pathlib import Path
from subprocess import PIPE, STDOUT

import pytest
import torch
from conftest import ROOT, begin, lines_of, read_rows, write_rows

from mathse import launch
from mathse.jsonl import keys_of_rank
from mathse.records import fail, row_key

TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
LOCAL = ["--model", "toy/base", "--max-tokens", "24"]
BASE = ROOT / "toy" / "base"


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def descendants(pid: int) -> list[int]:
    return [found for child in children(pid) for found in (child, *descendants(child))]


# ---------------------------------------------------------------- how many, and who gets what


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_shares_are_balanced_and_whole_and_keep_problems_together(monkeypatch, ranks):
    rows = [{"id": f"p, {index // 2}", "sample": index % 2} for index in range(200)]
    lengths = {row_key(row): 50 + 37 * index % 900 for index, row in enumerate(rows)}
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    shares = []
    for rank in range(ranks):
        monkeypatch.setenv("RANK", str(rank))
        shares.append(keys_of_rank(lengths))
    assert sorted(key for part in shares for key in part) == sorted(lengths)
    loads = [sum(lengths[key] for key in part) for part in shares]
    assert max(loads) - min(loads) <= 2 * max(lengths.values())
    assert sum(len({key.rsplit(", ", 2)[0] for key in part}) for part in shares) == 100


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """A machine of 64 cores and 64 GiB, and the limits of its container."""
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(64))
    monkeypatch.setattr(launch, "CGROUPS", tmp_path)

    def limit(**files: str) -> None:
        for name, text in files.items():
            (tmp_path / name.replace("_", ".")).write_text(text)

    return limit


def test_cores_and_memory_obey_a_container(machine):
    quotas = {"max 100000": 64, "200000 100000": 2, "150000 100000": 1, "50000 100000": 1}
    for quota, count in quotas.items():
        machine(cpu_max=f"{quota}\n")
        assert launch.cores() == count
    free = launch.free_memory()
    machine(memory_max="max", memory_current="7", memory_stat="inactive_file 5")
    assert 0.8 * free < launch.free_memory() < 1.2 * free
    machine(memory_max="1000", memory_current="600", memory_stat="anon 1\ninactive_file 100\n")
    assert launch.free_memory() == 500


def test_ranks_follow_from_cores_memory_and_rows(machine, monkeypatch):
    def count(asked=None, most=1000, spec=str(BASE)):
        return launch.rank_count(asked, most, spec, 4)

    size = sum(path.stat().st_size for path in BASE.glob("*.safetensors"))
    machine(memory_max=str(4 * size * 1000), memory_current="0", memory_stat="inactive_file 0")
    machine(cpu_max="600000 100000")
    assert count() == 6 and count(asked=3) == 3
    assert [count(most=most) for most in (0, 1, 3)] == [1, 1, 3]
    machine(memory_max=str(int(4 * size * 2.5)))
    assert count() == 2
    assert count(spec="http://host/v1#m") == count(spec=None) == count(spec="hub/id") == 1
    monkeypatch.setenv("RANK", "0")  # by a launcher, be it of one process
    assert count() == count(asked=3) == 1


# ---------------------------------------------------------------- how a launch ends


def test_each_rank_is_as_a_launcher_would_have_started_it(tmp_path):
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR")
    launch.launch(3, lambda: (tmp_path / os.environ["RANK"]).write_text(" ".join(map(os.getenv, names))))
    found = sorted(path.read_text() for path in tmp_path.iterdir())
    assert found == [f"{rank} {rank} 3 3 127.0.0.1" for rank in range(3)]
    launch.launch(1, lambda: found.append(os.getpid()))  # a single one is this process
    assert len(found) == 4 and "RANK" not in os.environ


FAULTS = {  # a rank's fault: the exit code, what is said
    "user error": (lambda: fail("no such thing; get one"), 2, "error: no such thing; get one\n"),
    "fault": (lambda: {}["gone"], 1, "\nKeyError: 'gone'\n"),
    "killed": (lambda: os.kill(os.getpid(), signal.SIGKILL), 1, "ended by SIGKILL, perhaps out of memory"),
    "disk": (lambda: os.mkdir("/proc"), 1, "error: /proc: File exists"),
    "memory": (lambda: torch.empty(1 << 60), 1, "error: out of memory: set a smaller --batch-size (of 04"),
}


@pytest.mark.parametrize("failing", [{0}, {1}, {0, 1}])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_launch_ends_as_its_first_rank_that_fails(failing, fault, capfd):
    """The others would work on: they are ended. What is wrong is said once."""
    break_, code, said = FAULTS[fault]

    def work() -> None:
        if launch.processes()[0] in failing:
            break_()
        time.sleep(300)

    before = {*children(os.getpid())}
    with pytest.raises(SystemExit, match=str(code)):
        launch.launch(2, work)
    errors = capfd.readouterr().err
    assert errors.count(said) == 1, errors
    assert not {*children(os.getpid())} - before


def test_a_rank_whose_parent_is_gone_before_it_asks_ends_too():
    """As when a stage is interrupted while its ranks are being forked."""
    for gone in (False, True):
        parent = os.getpid() + gone  # another one than that which forks
        process = multiprocessing.get_context("fork").Process(target=launch.end_with_parent, args=[parent])
        process.start()
        process.join(60)
        assert process.exitcode == gone


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_a_stage_that_is_killed_leaves_no_rank(number, toy_world, tmp_path):
    """Nor the process that prepares a rank's batches."""
    lesson = [{"role": "user", "content": "<image>Q?"}, {"role": "assistant", "content": "A."}]
    image = str(next((toy_world / "images").glob("*.png")))
    rows = [{"id": str(k), "sample": 0, "images": [image], "messages": lesson} for k in range(16)]
    files = ["--input", write_rows(tmp_path / "t.jsonl", rows), "--model", BASE, "--output", tmp_path / "m"]
    words = [sys.executable, "04_finetune.py", *files, "--epochs", 10_000, "--processes", 2]
    process = begin(words, lambda begun: len(descendants(begun.pid)) >= 4, stderr=PIPE, text=True)
    forked, deadline = descendants(process.pid), time.monotonic() + 120
    process.send_signal(number)
    try:
        errors = process.communicate(timeout=60)[1]
    finally:
        process.kill()
    if number == signal.SIGINT:
        assert process.returncode == 130 and "Traceback" not in errors
        assert errors.splitlines()[-1].startswith("error: interrupted; what is complete is kept")
    while alive := [pid for pid in forked if Path(f"/proc/{pid}").exists()]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.02)


# ---------------------------------------------------------------- stages


@pytest.mark.parametrize("launcher", [False, True])
def test_a_rank_that_is_killed_ends_the_stage_and_the_rerun_goes_on(launcher, toy_world, tmp_path, run):
    """A rank of the stage, or a process of a launcher: the rows so far are kept."""
    flags = ["--input", toy_world / "train.jsonl", "--limit", 15, "--samples", 4, "--temperature", 1, *LOCAL]
    assert run("01_sample.py", *flags, "--output", tmp_path / "one.jsonl", "--processes", 1).returncode == 0
    output, part = tmp_path / "two.jsonl", tmp_path / "two.jsonl.part" / "rank_1.jsonl"
    words = [*(TORCHRUN if launcher else [sys.executable]), "01_sample.py", *flags, "--output", output]
    words += [] if launcher else ["--processes", 2]
    settings = {"stdout": PIPE, "stderr": STDOUT, "text": True}
    settings["env"] = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    process = begin([*words, "--batch-size", 8], lambda _: lines_of(part), **settings)
    os.kill(children(process.pid)[1], signal.SIGKILL)
    printed, kept = process.communicate(timeout=120)[0], lines_of(part)
    assert process.returncode == 1 and "SIGKILL" in printed and not output.exists(), printed
    assert launcher or printed.splitlines()[-1].startswith("error: "), printed
    assert kept and run("01_sample.py", *flags, "--output", output, "--processes", 2).returncode == 0
    assert output.read_text() == (tmp_path / "one.jsonl").read_text()


def test_all_stages_write_the_same_by_one_rank_and_by_several(toy_world, tmp_path, run):
    rows = []
    for row in read_rows(toy_world / "train.jsonl")[:6]:
        row |= {"images": [str(toy_world / name) for name in row["images"]], "prompt": "Q", "finish": "stop"}
        said = [f"It is {k}.\nThe answer to this problem is {k}." for k in range(2)]
        rows += [row | {"sample": k, "response": text} for k, text in enumerate(said)]
    wrong = {"status": "wrong", "error_step": "It is", "error_analysis": "no"}
    samples = write_rows(tmp_path / "samples.jsonl", rows)
    drafts = write_rows(tmp_path / "drafts.jsonl", [row | wrong for row in rows])
    problems = write_rows(tmp_path / "p.jsonl", rows[::2])
    cases = {
        "01_sample.py": ["--input", problems, "--samples", 3, "--temperature", 1],
        "02_verify.py": ["--input", samples, "--accept", "both"],
        "03_reflect.py": ["--input", drafts, "--drafts", "2"],
        "05_evaluate.py": ["--test", toy_world / "test.jsonl", "--limit", "6"],
    }
    for script, flags in cases.items():
        made = set()
        for ranks in (1, 3):
            output = tmp_path / f"{script}-{ranks}"
            done = run(script, *flags, *LOCAL, "--output", output, "--processes", ranks)
            assert done.returncode == 0, done.stderr[-3000:]
            made.add((output / "predictions.jsonl" if output.is_dir() else output).read_text())
        (text,) = made
        assert text.count("\n") >= 6, script
