"""Stages split among processes: the same keys, and greedily the same content, as in one; a process that
dies stops the stage.
"""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from conftest import ROOT, read_rows, write_rows

from mathse.generate import Reply, Request
from mathse.generate.processes import SMALL, Dealer, Forked, end_with_parent
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


@pytest.fixture
def forked():
    """The processes that the test has forked and that are there."""
    before = {*children(os.getpid())}
    return lambda: {*children(os.getpid())} - before


def descendants(pid: int) -> list[int]:
    return [found for child in children(pid) for found in (child, *descendants(child))]


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
    assert launcher.returncode == 1 and "SIGKILL" in printed and not output.exists()
    again = begin_two("01_sample.py", *flags, "--output", output)
    printed = again.communicate(timeout=120)[0]
    assert again.returncode == 0, printed[-3000:]
    assert rows_of(output) == rows_of(tmp_path / "one.jsonl") and len(rows_of(output)) == 8


def test_other_stages_give_the_same_with_two_processes(toy_world, tmp_path, one, run_two):
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
        done = run_two(script, *flags, *LOCAL, "--output", outputs[1])
        assert done.returncode == 0, done.stderr[-3000:]
        first, second = read_rows(folders[0] / name), read_rows(folders[1] / name)  # in the same order
        assert first == second and len(first) >= 6, script
    metrics = [(tmp_path / f"05-{count}" / "metrics.json").read_text() for count in (1, 2)]
    assert metrics[0] == metrics[1]


# ---------------------------------------------------------------- processes of one model


class Echo:
    """A model that says which process answered; `fault` is raised at the request whose text is "fault"."""

    def __init__(self, fault: BaseException | None = None):
        self.work, self.fault = Counter(), fault

    def __call__(self, requests, temperature=None):
        for request in requests:
            if request.messages == "fault":
                if self.fault is None:
                    os.kill(os.getpid(), signal.SIGKILL)
                raise self.fault
            for number in request.seeds:
                self.work["samples"] += 1
                yield Reply(request.row, number, text=f"{os.getpid()} {request.messages}")

    def spent(self):
        return {}


def questions(count: int, samples: int = 1) -> list[Request]:
    """Three requests a problem, apart from each other."""
    rows = [{"id": f"p{index % (count // 3)}", "images": [], "kept": index} for index in range(count)]
    return [Request(row, str(row["kept"]), dict.fromkeys(range(samples), 0)) for row in rows]


@pytest.mark.parametrize("count", [2, 3])
def test_each_sample_is_answered_once_and_a_problem_by_one_process(count):
    generate = Forked(Echo(), count)
    for _ in range(2):  # a model may be called again
        replies = list(generate(iter(questions(300, 2))))
        assert sorted((reply.row["kept"], reply.sample) for reply in replies) == [
            (index, sample) for index in range(300) for sample in range(2)
        ]
        assert all(reply.text.split()[1] == str(reply.row["kept"]) for reply in replies)
        by = {}
        for reply in replies:
            by.setdefault(reply.row["id"], set()).add(reply.text.split()[0])
        assert all(len(answered) == 1 for answered in by.values())
        assert len(set.union(*by.values())) == count
    assert generate.work["samples"] == 1200


def test_a_few_samples_are_not_worth_a_second_process():
    few = list(Forked(Echo(), 2)(questions(SMALL - SMALL % 3 - 3)))
    assert {reply.text.split()[0] for reply in few} == {str(os.getpid())}


def test_who_gets_what_does_not_depend_on_who_asks_first():
    def dealt(order: list[int]) -> list[list[int]]:
        dealer, taken = Dealer(iter(questions(600)), 2), [[], []]
        while any(more := [dealer.take(place) for place in order]):
            for place, requests in zip(order, more):
                taken[place] += [int(request.messages) for request in requests]
        return taken

    assert dealt([0, 1]) == dealt([1, 0]) and sum(map(len, dealt([0, 1]))) == 600


@pytest.mark.parametrize(
    "fault, ends, printed",
    [
        (SystemExit(1), SystemExit, ""),
        (KeyError("gone"), RuntimeError, "KeyError: 'gone'"),
        (None, SystemExit, "was ended from outside"),
    ],
)
def test_a_process_that_ends_ends_the_stage(forked, fault, ends, printed, capfd):
    asked = questions(300)
    asked[150].messages = "fault"
    with pytest.raises(ends) as error:
        list(Forked(Echo(fault), 2)(asked))
    assert printed in capfd.readouterr().err + str(error.value)
    assert ends is not SystemExit or error.value.code == 1
    assert not forked()


def test_a_stage_that_is_killed_leaves_no_process(toy_world, tmp_path):
    same = ["--model", "toy/base", "--processes", 2]
    sample = ["01_sample.py", "--input", toy_world / "train.jsonl", "--samples", 64, "--temperature", 2]
    lesson = [{"role": "user", "content": "<image>Q?"}, {"role": "assistant", "content": "A."}]
    image = str(next((toy_world / "images").glob("*.png")))
    rows = [{"id": str(k), "sample": 0, "images": [image], "messages": lesson} for k in range(16)]
    train = ["04_finetune.py", "--input", write_rows(tmp_path / "t.jsonl", rows), "--epochs", 10_000]
    commands = {  # a training process has one that prepares its batches
        signal.SIGKILL: (train, 4),
        signal.SIGTERM: (sample + ["--max-tokens", "400"], 2),
        signal.SIGINT: (train, 4),
    }
    for number, (command, count) in commands.items():
        flags = [*same, "--output", tmp_path / f"{number}"]
        process = subprocess.Popen([sys.executable, *map(str, command + flags)], cwd=ROOT)
        deadline = time.monotonic() + 120
        while len(forked := descendants(process.pid)) < count:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.02)
        process.send_signal(number)
        try:
            process.wait(60)
        finally:
            process.kill()
        while alive := [pid for pid in forked if Path(f"/proc/{pid}").exists()]:
            assert time.monotonic() < deadline, alive
            time.sleep(0.02)


@pytest.mark.parametrize("gone", [False, True])
def test_a_process_whose_parent_is_gone_before_it_asks_ends_too(gone):
    """As when a stage is interrupted while its processes are being forked."""
    context = multiprocessing.get_context("fork")
    parent = os.getpid() + gone  # another one than that which forks
    process = context.Process(target=end_with_parent, args=[parent])
    process.start()
    process.join(60)
    assert process.exitcode == (-signal.SIGKILL if gone else 0)


def test_one_process_and_two_write_the_same(toy_world, tmp_path, one):
    flags = ["--input", toy_world / "train.jsonl", "--samples", 3, "--temperature", "1", *LOCAL]
    for count in (1, 2):
        one("01_sample.py", *flags, "--output", tmp_path / f"{count}.jsonl", "--processes", count)
    assert (tmp_path / "1.jsonl").read_text() == (tmp_path / "2.jsonl").read_text()
    assert "processes" not in json.loads((tmp_path / "2.jsonl.recipe.json").read_text())["flags"]
