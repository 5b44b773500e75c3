"""--serve: a server for the model is started, asked and ended, whatever happens."""

import signal
import sys
from pathlib import Path
from subprocess import PIPE, STDOUT

import pytest
from conftest import ROOT, begin, lines_of, one_line, read_rows, write_rows

from mathse.generate import serve

FAKE = f"{sys.executable} {ROOT}/tests/fake_vllm.py {{model}} {{port}}"


def is_alive(pid: str) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


SAMPLED = ("--samples", 4, "--temperature", 1.0)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """What the fake server tells of itself. However a stage ends, neither it nor its child is left."""
    monkeypatch.setenv("FAKE_VLLM", str(tmp_path))
    yield tmp_path
    pids = (tmp_path / "pids").read_text().split() if (tmp_path / "pids").exists() else []
    assert not any(map(is_alive, pids))


@pytest.fixture
def words(toy_world, folder):
    """The words of a command that samples in folder/out."""
    world = ["--input", toy_world / "train.jsonl", "--limit", 6, "--model", "toy/base", *SAMPLED]
    return ["01_sample.py", *world, "--output", folder / "out/samples.jsonl", "--serve", FAKE]


def test_a_model_is_served_and_its_server_ended(run, words, folder):
    """A server that dies is started once more, and the samples are the same."""
    done = run(*words)
    assert done.returncode == 0, done.stderr
    rows = read_rows(folder / "out/samples.jsonl")
    assert len(rows) == 24 and {row["model"] for row in rows} == {"toy/base"}
    assert {row["finish"] for row in rows} == {"stop"}
    assert "serve: answers after" in done.stdout and (folder / "out/samples.jsonl.serve.log").exists()
    assert len((folder / "pids").read_text().split()) == 2
    bodies = read_rows(folder / "seen.jsonl")
    assert len(bodies) == 6 and {body["n"] for body in bodies} == {4}  # an image is read once
    for body in bodies:  # all that a folder's habits could change
        assert body["top_k"] == -1 and body["repetition_penalty"] == 1.0 and body["min_p"] == 0.0
    assert len({row["response"] for row in rows if row["id"] == rows[0]["id"]}) > 1
    assert run(*words).stdout.startswith("skip ")
    assert one_line(run(*words[:-2]), "serve was")  # served and local are not mixed
    again = folder / "out/again.jsonl"
    done = run(*words, "--output", again, "--concurrency", 2, "--serve", f"{FAKE} 4")
    assert done.returncode == 0, done.stderr
    assert "the server died; it is started anew" in done.stdout
    assert read_rows(again) == rows


def test_all_stages_are_served(run, toy_world, folder):
    """Verdicts keep to a schema."""
    told = {"prompt": "Q", "sample": 0, "response": "It is 0.", "finish": "stop", "status": "wrong"}
    rows = read_rows(toy_world / "train.jsonl")[:4]
    rows = [row | told | {"images": [str(toy_world / name) for name in row["images"]]} for row in rows]
    wrong, out = write_rows(folder / "wrong.jsonl", rows), folder / "out"
    commands = {  # the last one's bodies are looked at
        out / "reflected.jsonl": ["03_reflect.py", "--input", wrong],
        out / "predictions.jsonl": ["05_evaluate.py", "--test", toy_world / "test.jsonl", "--limit", 4],
        out / "verified.jsonl": ["02_verify.py", "--input", wrong],
    }
    for output, command in commands.items():
        place = out if "05_evaluate.py" in command else output
        done = run(*command, "--output", place, "--model", "toy/base", "--serve", FAKE)
        assert done.returncode == 0, done.stderr
        assert "serve: answers after" in done.stdout
        assert [row["finish"] for row in read_rows(output)] == ["stop"] * 4
    asked = read_rows(folder / "seen.jsonl")[-4:]
    assert all(body["response_format"]["type"] == "json_schema" for body in asked)
    assert {row["orm_check"] for row in read_rows(out / "verified.jsonl")} <= {"correct", "wrong"}


def test_greedy_samples_are_told(run, words):
    """As of a server that takes its sampling from somewhere else."""
    done = run(*words, "--serve", f"GREEDY=1 {FAKE}")
    assert done.returncode == 0, done.stderr
    assert "all samples of 6 of 6 problems are one text" in done.stdout


def test_a_server_that_dies_again_is_one_line(run, words):
    """At once: no request waits for it."""
    done = run(*words, "--concurrency", 2, "--serve", f"AGAIN=1 {FAKE} 2")
    assert done.returncode == 1, done.stderr
    assert done.stderr.count("error: ") == 1 and "--serve: the server died again" in done.stderr


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stage_that_is_stopped_ends_its_server(words, folder, stop):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # a child inherits what nohup ignores
    command = [sys.executable, *words]
    stage = begin(command, lambda _: lines_of(folder / "pids"), stdout=PIPE, stderr=STDOUT)
    stage.send_signal(stop)
    stage.communicate(timeout=60)
    assert stage.returncode != 0


def test_a_server_that_does_not_come_up_is_one_line(run, words):
    fails = "echo starting {model} {port}; echo 'RuntimeError: no such kernel' >&2; echo bye; exit 3"
    done = run(*words, "--serve", fails)
    assert one_line(done, "--serve: the server ended (RuntimeError: no such kernel)")


def test_vllm_is_told_to_have_no_habits(tmp_path):
    command = serve.filled("vllm serve {model} --port {port}", str(tmp_path), 81)
    assert command == f"vllm serve {tmp_path} --port 81 --generation-config vllm"
    own = "vllm serve {model} --port {port} --generation-config auto"
    assert serve.filled(own, "a/b", 81) == "vllm serve a/b --port 81 --generation-config auto"
