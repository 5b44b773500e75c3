"""Commands as a user calls them: --help, from elsewhere, in any shell. (Mistakes: test_bad_input.)"""

import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT, finish, one_line, read_rows, write_rows
from PIL import Image
from test_bad_input import problem

SCRIPTS = ["01_sample.py", "02_verify.py", "03_reflect.py", "04_finetune.py", "05_evaluate.py"]
SCRIPTS += ["-m mathse.problems", "-m mathse.report", "toy/problems.py", "toy/teacher.py", "toy/pretrain.py"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_needs_no_torch(script):
    done = finish(*script.split(), "--help", PYTHONPROFILEIMPORTTIME="1")
    assert done.returncode == 0 and "default" in done.stdout
    imported = re.findall(r"\|\s+(\S+)$", done.stderr, re.MULTILINE)
    assert "torch" not in imported and "argparse" in imported


def test_answers_alone_need_no_model(run, tmp_path):
    Image.new("RGB", (20, 20)).save(tmp_path / "x.png")
    told = {"verified_in": "../round_1/verified.jsonl", "origin": "round-1", "sample": 0}
    said = [("The answer to this problem is 1.", "stop"), ("The answer to this problem is 2.", "stop")]
    said += [("Hm.", "stop"), ("The answer", "length")]
    rows = [problem(sample=k, response=text, finish=end, draft_of=told) for k, (text, end) in enumerate(said)]
    output = tmp_path / "sub" / "v.jsonl"
    flags = ["--input", write_rows(tmp_path / "s.jsonl", rows), "--output", output, "--accept", "answer"]
    done = run("02_verify.py", *flags)
    assert done.returncode == 0, done.stderr
    verified = read_rows(output)
    assert [row["status"] for row in verified] == ["correct", "wrong", "undecided", "undecided"]
    assert (output.parent / verified[0]["images"][0]).resolve() == (tmp_path / "x.png").resolve()
    # relative to the file that holds it
    assert verified[0]["draft_of"] == told | {"verified_in": "../../round_1/verified.jsonl"}


def test_the_toy_refuses_in_one_line():
    said = "argument --train: -1: must be a whole number of at least 1"
    assert one_line(finish("toy/problems.py", "--train", "-1"), said)


# ---------------------------------------------------------------- where a stage speaks, and lives


SHELLS = {  # how a shell calls a command, {}
    "an ASCII terminal": "PYTHONIOENCODING=ascii {}",
    "no locale": "LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 {}",
    "a reader that leaves": "{} | true",
    "a reader of errors that leaves": "{} 2>&1 > /dev/null | true",
    "closed outputs": "{} <&- >&- 2>&-",
    "no home": "env -u HOME {}",
    "a home that takes no files": "HOME=/proc {}",
}


@pytest.mark.parametrize("case", SHELLS)
def test_a_command_goes_on_wherever_it_speaks(tmp_path, case):
    """A line names an answer that is not read, with letters that not every terminal has."""
    row = {"id": "Größe ∑", "question": "1 + 1?", "images": [], "answer": "eine Ähre"}
    write_rows(tmp_path / "p.jsonl", [row | {"id": f"{row['id']} {k}"} for k in range(3)])
    files = f"--input {tmp_path}/p.jsonl --output {tmp_path}/Größe/out.jsonl"
    call = SHELLS[case].format(f"{sys.executable} -m mathse.problems {files}")
    shell = ["bash", "-o", "pipefail", "-c", call]
    done = subprocess.run(shell, cwd=ROOT, capture_output=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert len(read_rows(tmp_path / "Größe" / "out.jsonl")) == 3  # and nothing that was meant for people


def test_a_data_set_is_streamed_without_a_home(tmp_path):
    datasets = pytest.importorskip("datasets")
    rows = [{"question": "1 + 1?", "answer": "2"}]
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "set" / "train.parquet")
    words = ["--input", f"hf:{tmp_path}/set:train", "--fields", "images=", "--output", tmp_path / "p.jsonl"]
    command = [sys.executable, "-m", "mathse.problems", *map(str, words)]
    environment = {"HOME": "/proc", "PATH": os.environ["PATH"], "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0 and len(read_rows(tmp_path / "p.jsonl")) == 1, done.stderr
