"""Every stage from the command line: --help, and mistakes that end in one line before a model is loaded."""

import json
import re

import pytest
from conftest import read_rows, write_rows
from PIL import Image

STAGES = ["01_sample.py", "02_verify.py", "03_reflect.py", "04_finetune.py", "05_evaluate.py", "benchmarks.py", "decontaminate.py", "report.py"]


@pytest.mark.parametrize("script", [*STAGES, "toy/problems.py", "toy/teacher.py", "toy/pretrain.py"])
def test_help_needs_no_torch(run, script):
    done = run(script, "--help", PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 0 and "default" in done.stdout
    assert not re.search(r"\|\s+torch$", done.stderr, re.MULTILINE) and re.search(r"\|\s+argparse$", done.stderr, re.MULTILINE)


@pytest.fixture
def picture(tmp_path):
    Image.new("RGB", (20, 20)).save(tmp_path / "x.png")
    return "x.png"


def problem(**changes) -> dict:
    return {"id": "a", "question": "What?", "images": ["x.png"], "answer": "1"} | changes


GOOD = json.dumps(problem())


@pytest.mark.parametrize(
    "script, flags, message",
    [
        ("01_sample.py", ["--input", "p.jsonl", "--model", "no/such/folder"], "--model: no/such/folder: no such folder"),
        ("01_sample.py", ["--input", "p.jsonl", "--model", "."], "no config.json"),
        ("01_sample.py", ["--input", "p.jsonl", "--model", "http://127.0.0.1:9/v1#m"], "cannot be reached"),
        ("01_sample.py", ["--input", "p.jsonl", "--model", "http://127.0.0.1:9/v1"], "an endpoint is written"),
        ("01_sample.py", ["--input", "p.jsonl", "--model", ".", "--samples", "4"], "--samples: more than one"),
        ("01_sample.py", ["--input", "p.jsonl", "--model", ".", "--samples", "0"], "--samples: must be at least 1"),
        ("01_sample.py", ["--input", "p.jsonl", "--model", ".", "--temperature", "-1"], "--temperature: -1.0: must not be negative"),
        ("01_sample.py", ["--input", "no.jsonl", "--model", "."], "no.jsonl: no such file"),
        ("02_verify.py", ["--input", "p.jsonl"], "--model: needed for --accept both"),
        ("02_verify.py", ["--input", "p.jsonl", "--accept", "answer"], "sample: missing"),
        ("03_reflect.py", ["--input", "p.jsonl", "--model", "."], "sample: missing"),
        ("04_finetune.py", ["--input", "p.jsonl", "--model", "."], "no config.json"),
        ("04_finetune.py", ["--input", "p.jsonl", "--model", ".", "--init", "previous"], "--previous: needed"),
        ("04_finetune.py", ["--input", "p.jsonl", "--model", "http://127.0.0.1:9/v1#m"], "an endpoint cannot be fine-tuned"),
        ("05_evaluate.py", ["--test", "p.jsonl", "--model", "toy/base", "--judge", "no/such/judge"], "--judge: no/such/judge: no such folder"),
        ("05_evaluate.py", ["--test", "p.jsonl"], "all three are needed"),
        ("05_evaluate.py", ["--test", "nobench:p", "--model", "."], "nobench:p: no such file"),
        ("05_evaluate.py", ["--test", "mathvision:none", "--model", "."], "no folder none"),
        ("05_evaluate.py", ["--test", "p.jsonl", "--model", ".", "--against", "none"], "--against: none: no metrics.json in it"),
        ("05_evaluate.py", ["--test", "p.jsonl", "--model", ".", "--prompt", "benchmark"], "has no prompt of its own"),
        ("04_finetune.py", ["--input", "p.jsonl", "--model", "toy/base", "--log-with", "nothing"], "--log-with: nothing: not installed here"),
        ("benchmarks.py", ["--input", "hf:train"], "a hub data set is written"),
    ],
)
def test_bad_flags(run, tmp_path, picture, script, flags, message):
    (tmp_path / "p.jsonl").write_text(GOOD)
    flags = [str(tmp_path / flag) if flag.endswith(".jsonl") else flag for flag in flags]
    done = run(script, *flags, "--output", tmp_path / "out")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and message in done.stderr, done.stderr


def test_answers_alone_need_no_model(run, tmp_path, picture):
    draft = {"draft_of": {"verified_in": "../round_1/verified.jsonl", "origin": "round-1", "sample": 0}}  # relative to the file that holds it
    rows = [problem(sample=k, response=text, finish=finish) | draft for k, (text, finish) in enumerate([
        ("The answer to this problem is 1.", "stop"), ("The answer to this problem is 2.", "stop"), ("Hm.", "stop"), ("The answer", "length")])]  # fmt: skip
    write_rows(tmp_path / "s.jsonl", rows)
    done = run("02_verify.py", "--input", tmp_path / "s.jsonl", "--output", tmp_path / "sub" / "v.jsonl", "--accept", "answer")
    assert done.returncode == 0, done.stderr
    verified = read_rows(tmp_path / "sub" / "v.jsonl")
    assert [row["status"] for row in verified] == ["correct", "wrong", "undecided", "undecided"]
    assert (tmp_path / "sub" / verified[0]["images"][0]).resolve() == (tmp_path / "x.png").resolve()
    assert verified[0]["draft_of"] == {"verified_in": "../../round_1/verified.jsonl", "origin": "round-1", "sample": 0}
    again = run("02_verify.py", "--input", tmp_path / "s.jsonl", "--output", tmp_path / "sub" / "v.jsonl", "--accept", "answer")
    assert again.stdout.startswith("skip ")


def test_dry_run_prints_every_command_and_runs_nothing(run, tmp_path):
    done = run("run_rounds.sh", DRY_RUN="1", RUN="dry", MODEL="Qwen/Qwen2-VL-7B-Instruct", TEACHER="https://example.org/v1#gpt-4o", DATA="problems.jsonl", GPUS="8", ROUNDS="2")
    assert done.returncode == 0, done.stderr
    for word in ("01_sample.py", "02_verify.py", "03_reflect.py", "04_finetune.py --orm", "05_evaluate.py", "--nproc_per_node 8", "model calls", "round_2", "final"):
        assert word in done.stdout


def test_an_endpoint_is_asked_by_one_process(run):
    """Several would multiply --concurrency, and count --max-requests each for itself."""
    done = run("run_rounds.sh", DRY_RUN="1", RUN="dry", MODEL="m/m", TEACHER="https://example.org/v1#t", ORM="https://example.org/v1#orm", DATA="problems.jsonl", GPUS="8", ROUNDS="1")
    asking = [line for line in done.stdout.splitlines() if "--model https" in line]
    assert len(asking) == 4 and not [line for line in asking if "torch.distributed" in line], done.stdout
