"""Every stage from the command line: --help, and mistakes that end in one line before a model is loaded."""

import json
import re

import pytest
from conftest import ROOT, finish, read_rows, write_rows
from PIL import Image

SCRIPTS = ["01_sample.py", "02_verify.py", "03_reflect.py", "04_finetune.py", "05_evaluate.py"]
SCRIPTS += ["-m mathse.problems", "-m mathse.report", "toy/problems.py", "toy/teacher.py", "toy/pretrain.py"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_needs_no_torch(script):
    done = finish(*script.split(), "--help", PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 0 and "default" in done.stdout
    assert not re.search(r"\|\s+torch$", done.stderr, re.MULTILINE) and re.search(
        r"\|\s+argparse$", done.stderr, re.MULTILINE
    )


@pytest.fixture
def image(tmp_path):
    Image.new("RGB", (20, 20)).save(tmp_path / "x.png")
    return "x.png"


def problem(**changes) -> dict:
    return {"id": "a", "question": "What?", "images": ["x.png"], "answer": "1"} | changes


BAD = [
    ("01_sample.py", "--input p.jsonl --model no/such/folder", "--model: no/such/folder: no such folder"),
    ("01_sample.py", "--input p.jsonl --model toy", "no config.json"),
    ("01_sample.py", "--input p.jsonl --model http://127.0.0.1:9/v1#m", "cannot be reached"),
    ("01_sample.py", "--input p.jsonl --model http://127.0.0.1:9/v1", "an endpoint is written"),
    ("01_sample.py", "--input p.jsonl --model toy/base --samples 4", "--samples: more than one"),
    ("01_sample.py", "--input no.jsonl --model toy/base", "no.jsonl: no such file"),
    ("01_sample.py", "--input p.jsonl", "the following arguments are required: --model"),
    ("02_verify.py", "--input p.jsonl", "--model: needed for --accept both"),
    ("02_verify.py", "--input p.jsonl --accept answer", "sample: missing"),
    ("02_verify.py", "--input p.jsonl --model toy/base --orm-samples 3", "--orm-samples: more than one"),
    ("03_reflect.py", "--input p.jsonl --model toy/base", "prompt: missing"),
    ("04_finetune.py", "--input p.jsonl --model toy", "no config.json"),
    ("04_finetune.py", "--input p.jsonl --model toy/base", "sample: missing"),
    ("04_finetune.py", "--input p.jsonl --model toy/base --init previous", "--previous: needed"),
    ("04_finetune.py", "--input p.jsonl --model http://127.0.0.1:9/v1#m", "an endpoint cannot be fine-tuned"),
    (
        "04_finetune.py",
        "--input p.jsonl --model toy/base --log-with nothing",
        "--log-with: nothing: not installed here",
    ),
    (
        "05_evaluate.py",
        "--test p.jsonl --model toy/base --judge no/such/judge",
        "--judge: no/such/judge: no such folder",
    ),
    ("05_evaluate.py", "--test p.jsonl", "both are needed"),
    ("05_evaluate.py", "--test nobench:p --model toy/base", "nobench:p: no such file"),
    ("05_evaluate.py", "--test mathvision:none --model toy/base", "no folder none"),
    (
        "05_evaluate.py",
        "--test p.jsonl --model toy/base --against none",
        "--against: none: no metrics.json in it",
    ),
    ("05_evaluate.py", "--test p.jsonl --model toy/base --prompt benchmark", "has no prompt of its own"),
    ("-m", "mathse.problems --input hf:train", "a hub data set is written"),
]


@pytest.mark.parametrize("script, flags, message", BAD)
def test_bad_flags(run, tmp_path, image, script, flags, message):
    (tmp_path / "p.jsonl").write_text(json.dumps(problem()))
    words = [str(tmp_path / flag) if flag.endswith(".jsonl") else flag for flag in flags.split()]
    done = run(script, *words, "--output", tmp_path / "out")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and message in done.stderr, done.stderr


def test_answers_alone_need_no_model(run, tmp_path, image):
    draft = {
        "draft_of": {"verified_in": "../round_1/verified.jsonl", "origin": "round-1", "sample": 0}
    }  # relative to the file that holds it
    said = [("The answer to this problem is 1.", "stop"), ("The answer to this problem is 2.", "stop")]
    said += [("Hm.", "stop"), ("The answer", "length")]
    rows = [problem(sample=k, response=text, finish=finish) | draft for k, (text, finish) in enumerate(said)]
    write_rows(tmp_path / "s.jsonl", rows)
    done = run(
        "02_verify.py",
        "--input",
        tmp_path / "s.jsonl",
        "--output",
        tmp_path / "sub" / "v.jsonl",
        "--accept",
        "answer",
    )
    assert done.returncode == 0, done.stderr
    verified = read_rows(tmp_path / "sub" / "v.jsonl")
    assert [row["status"] for row in verified] == ["correct", "wrong", "undecided", "undecided"]
    assert (tmp_path / "sub" / verified[0]["images"][0]).resolve() == (tmp_path / "x.png").resolve()
    assert verified[0]["draft_of"] == {
        "verified_in": "../../round_1/verified.jsonl",
        "origin": "round-1",
        "sample": 0,
    }
    again = run(
        "02_verify.py",
        "--input",
        tmp_path / "s.jsonl",
        "--output",
        tmp_path / "sub" / "v.jsonl",
        "--accept",
        "answer",
    )
    assert again.stdout.startswith("skip ")


REAL = {
    "DRY_RUN": "1",
    "RUN": "dry",
    "MODEL": "Qwen/Qwen2-VL-7B-Instruct",
    "TEACHER": "https://example.org/v1#gpt-4o",
    "DATA": "toy/train.jsonl",
    "TEST": "toy/test.jsonl",
    "GPUS": "8",
}


def test_dry_run_prints_every_command_and_runs_nothing(run, toy_data):
    done = run("run_rounds.sh", PRICE_IN="2.5", PRICE_OUT="10", **REAL)
    assert done.returncode == 0, done.stderr
    for word in (
        "mathse.problems",
        "01_sample.py",
        "02_verify.py --annotate",
        "03_reflect.py",
        "--orm --input",
    ):
        assert word in done.stdout
    for word in ("05_evaluate.py", "--nproc_per_node 8", "round_2", "runs/dry/final/eval"):
        assert word in done.stdout
    assert "about 360 model calls" in done.stdout  # 30 % of 1,200 problems are distilled
    assert len(re.findall(r"model calls, [\d,]+ tokens in and [\d,]+ out, about \$", done.stdout)) >= 3
    assert not (ROOT / "runs" / "dry").exists()


def test_an_endpoint_is_asked_by_one_process(run, toy_data):
    """Several would multiply --concurrency, and count --max-requests each for itself."""
    done = run("run_rounds.sh", ORM="https://example.org/v1#orm", ROUNDS="1", **REAL)
    asking = [line for line in done.stdout.splitlines() if "--model 'https" in line]
    assert len(asking) == 4 and not [line for line in asking if "torch.distributed" in line], done.stdout
    local = [line for line in done.stdout.splitlines() if "04_finetune.py" in line]
    assert len(local) == 3 and all("--nproc_per_node 8 04_finetune.py" in line for line in local)
