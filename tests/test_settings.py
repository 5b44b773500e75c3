"""The settings of run_rounds.sh, what its dry run says, and what a forker may do to its loop."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, one_line, read_rows, write_rows
from PIL import Image

import common

OWN = {"id": "1", "question": "What is 1 + 1?", "images": ["x.png"], "answer": "2"}
REAL = {"MODEL": "Qwen/Qwen2-VL-7B-Instruct", "TEACHER": "http://host/v1#t"}


@pytest.fixture
def own_data(tmp_path):
    """A folder with spaces in its name: 8 problems in several forms, a test set."""
    folder = tmp_path / "my own"
    folder.mkdir()
    Image.new("RGB", (30, 20), "red").save(folder / "x.png")
    rows = [OWN | {"id": f"p{k}", "question": f"What is {k} + 1?", "answer": str(k + 1)} for k in range(8)]
    write_rows(folder / "plain.jsonl", rows)
    write_rows(folder / "test set.jsonl", [row | {"id": f"t{row['id']}"} for row in rows[:2]])
    solved = [row | {"solution": f"It is {k} + 1."} for k, row in enumerate(rows)]
    write_rows(folder / "solved.jsonl", solved)
    write_rows(folder / "unknown.jsonl", [row | {"answer": None} for row in solved])
    write_rows(folder / "faulty.jsonl", [*solved[:4], {"id": "q", "question": 5}])
    return folder


TOY = {"MODEL": "toy/base", "DATA": "toy/train.jsonl", "TEST": "toy/test.jsonl"}
BESIDE = {"MODEL": TOY | {"TEACHER": "http://host/v1#t"}, "TEACHER": TOY, "ORM": {"ACCEPT": "both"}}
CHECKED = (  # settings with values of which each is wrong
    "ROUNDS=0 -1 two 1.5 99999999999999999999; SAMPLES=0 x; DISTILL=-5 x 0 1.0; LIMIT=-1 x; SEED=x; "
    "MAX_PIXELS=1e6; ACCEPT=orms; REFLECT_ACCEPT=x; REFLECT=1; INIT=x; ORM_UPDATE=2; PAIRS=yes; FORCE=no; "
    "DRY_RUN=no; RUN=a/b .. ."
)
WRONG = [  # a setting, its wrong value, and how the error begins
    ("FIELDS", "questoin=problem", "FIELDS: questoin"),
    ("SAMPLE_FLAGS", "--sampels 3", "01_sample.py: "),
    ("VERIFY_FLAGS", "--orm-samples 3", "--orm-samples"),
    ("FINETUNE_FLAGS", "--lora -1", "04_finetune.py: argument --lora"),
    ("DISTILL_FLAGS", "--epochs x", "04_finetune.py: argument --epochs"),
    ("ORM_FLAGS", "--lr 0", "04_finetune.py: argument --lr"),
    ("ENDPOINT_FLAGS", "--max-cost -1", "01_sample.py: argument --max-cost"),
    ("DATA_FLAGS", "--contaminated yes", "python -m mathse.problems: argument --contaminated"),
    ("LAUNCH", "no-such-launcher -n 2", "LAUNCH: no-such-launcher: not found"),
    ("MODEL", "no/such/folder", "MODEL: "),
    ("MODEL", "http://127.0.0.1:9/v1#m", "MODEL: "),
    ("TEACHER", "localhost:8000/v1#m", "TEACHER: localhost:8000/v1#m: no such folder"),
    ("TEACHER", "", "TEACHER: not set: name one"),
    ("REFLECTOR", "http://host/v1", "REFLECTOR: http://host/v1: an endpoint is written"),  # used days later
    ("ORM", "./no", "ORM: ./no: no such folder"),
    ("ORM", "none", "ORM: none: set ACCEPT=answer"),
    ("TEST", "toy/test.jsonl nobench:x", "nobench:x: no such file"),
    ("TEST", " ", "TEST: "),
    ("DATA", "no.jsonl", "no.jsonl: no such file"),
    ("DATA", "{own}/plain.jsonl", "TEACHER: not set, and {own}/plain.jsonl has no `solution`"),
    ("DATA", "{own}/unknown.jsonl", "{own}/unknown.jsonl: no problem has an answer"),
    ("DATA", "{own}/faulty.jsonl", "{own}/faulty.jsonl:5: question: 5 is not a string"),
]


@pytest.mark.parametrize("setting", CHECKED.split("; "))
def test_a_wrong_value_is_refused(run, setting):
    name, _, values = setting.partition("=")
    for value in values.split():
        done = run("run_rounds.sh", **{name: value})
        assert one_line(done, f"error: {name}: {value}: must be ") and not done.stdout, done.stderr


@pytest.mark.parametrize("name, value, said", WRONG)
def test_a_wrong_setting_is_refused_before_anything_runs(run, own_data, toy_data, name, value, said):
    settings = {"RUN": "test-bad", "ROUNDS": "1", "LIMIT": "8"} | BESIDE.get(name, {})
    settings[name] = value.format(own=own_data)
    done = run("run_rounds.sh", **settings)
    assert one_line(done, f"error: {said.format(own=own_data)}") and not done.stdout, done.stderr
    assert not (ROOT / "runs" / "test-bad").exists()


def test_an_argument_is_refused(run):
    said = "error: --help: settings stand in front of the command, as in ROUNDS=1 bash run_rounds.sh\n"
    assert run("run_rounds.sh", "--help").stderr == said


def test_a_dry_run_prints_every_command_and_their_sum_and_runs_nothing(run, toy_data):
    test = "toy/test.jsonl mathvision:no/folder"
    settings = REAL | {"DATA": "toy/train.jsonl", "TEST": test, "RUN": "dry", "DRY_RUN": "1"}
    settings |= {"REFLECTOR": "http://node1:8000/v1#owner/Model", "SAMPLE": "3", "XLA_FLAGS": "1"}
    done = run("run_rounds.sh", PRICE_IN="2.5", PRICE_OUT="10", **settings)
    assert done.returncode == 0, done.stderr
    words = [
        "-m mathse.problems",
        "01_sample.py",
        "02_verify.py --annotate",
        "03_reflect.py",
        "--orm --input",
    ]
    words += ["05_evaluate.py", "runs/dry/round_2/model", "runs/dry/final/eval", "--origin reflection-model "]
    assert [word for word in words if word not in done.stdout] == []
    assert "360 rows: about 360 model calls, 568,800 tokens in" in done.stdout  # 30 % are distilled
    assert "1,200 rows: about 1,200 model calls, 2,496,000 tokens in" in done.stdout  # each with a response
    assert "4,800 rows: about 4,800 model calls" in done.stdout  # 4 samples of each for the ORM
    assert "1,300 rows: about 1,300" in done.stdout  # 300 test problems, and 1,000 of a set that is no file
    assert "no/folder: no such folder from here; taken for a data set of the hub" in done.stdout
    calls = [int(found.replace(",", "")) for found in re.findall(r"about ([\d,]+) model", done.stdout)]
    costs = [float(found.replace(",", "")) for found in re.findall(r" out, about \$([\d,.]+)\n", done.stdout)]
    last = done.stdout.splitlines()[-1]
    assert last.startswith(f"in all about {sum(calls[:-1])} model calls, ")
    assert float(last.rpartition("$")[2]) == pytest.approx(sum(costs[:-1]), abs=0.05) and len(costs) > 3
    assert done.stderr == "SAMPLE: no setting of run_rounds.sh; did you mean SAMPLES?\n"
    assert not (ROOT / "runs" / "dry").exists()


def test_paths_may_hold_spaces(run, python, own_data, tmp_path):
    (tmp_path / "a b").mkdir()
    (tmp_path / "a b" / "python3").symlink_to(python)
    data, test = (own_data / "solved.jsonl").rename(own_data / "solved"), own_data / "test set.jsonl"
    for tests in (str(test), f"'{test}' toy/test.jsonl"):
        settings = {"DATA": str(data), "TEST": tests, "PYTHON": str(tmp_path / "a b" / "python3")}
        done = run("run_rounds.sh", DRY_RUN="1", RUN="dry", ROUNDS="1", **settings)
        assert done.returncode == 0 and "8 rows, 8 with a solution" in done.stdout, done.stderr
        (first, *_) = [line for line in done.stdout.splitlines() if "05_evaluate.py" in line]
        words = shlex.split(first)
        assert str(test) in words and ("toy/test.jsonl" in words) == (tests != str(test))


def test_own_problems_with_solutions_go_through_the_loop(run, own_data, request):
    """README's example: without a teacher, D0 is the problems' own solutions."""
    folder = ROOT / "runs" / "test-own"
    shutil.rmtree(folder, ignore_errors=True)
    request.addfinalizer(lambda: shutil.rmtree(folder))
    settings = {"DATA": str(own_data / "solved.jsonl"), "TEST": str(own_data / "test set.jsonl")}
    settings |= {"RUN": folder.name, "ROUNDS": "1", "DATA_FLAGS": "--contaminated warn"}
    done = run("run_rounds.sh", **settings)
    assert done.returncode == 0, done.stderr
    taught = read_rows(folder / "round_0" / "train.jsonl")
    assert len(taught) == 3 and {row["model"] for row in taught} == {"solutions"}
    for row in taught:
        k = int(row["id"].removeprefix("p"))
        assert row["messages"][-1]["content"] == f"It is {k} + 1.\n{common.CLOSING} {k + 1}."
    assert len(read_rows(folder / "round_1" / "samples.jsonl")) == 5 * 3  # the rest


def test_an_active_environment_without_the_packages_is_not_used(tmp_path):
    """Such as conda's base: .venv is made instead."""
    (tmp_path / "bin").mkdir()
    stub = "#!/bin/bash\n[[ $1 != -c ]] || exit 1\nmkdir -p .venv/bin; install /bin/true .venv/bin/pip\n"
    (tmp_path / "bin" / "python3").write_text(stub)
    (tmp_path / "bin" / "python3").chmod(0o755)
    (tmp_path / "requirements.txt").write_text("")
    environment = os.environ | {"CONDA_PREFIX": "/conda", "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    environment.pop("PYTHON", None)
    command = ["bash", "-c", f'source {ROOT}/mathse/environment.sh; echo "$PYTHON"']
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.stdout == ".venv/bin/python\n", done.stderr
    environment |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout == "python3\n", done.stderr


# ---------------------------------------------------------------- what a forker does to the loop


EDITS = {  # of a line's beginning: what stands there then
    "evaluate base\n": "",  # a stage left out
    "student round_0 ": 'echo hello; touch "$run.touched"; python3 own.py "$first"\nstudent round_0 ',
    "sample round_0 ": "first=$run/round_0/verified.jsonl\nsample round_0 ",
    'student "round_$i"': 'grep -q correct\\" "$run/round_$i/verified.jsonl" || break\n  student "round_$i"',
}
OWN_SCRIPT = """
import json, sys
rows = [json.loads(line) for line in open(sys.argv[1])]
kept = [row for row in rows if row["status"] == "correct"][:3]
open(sys.argv[1], "w").write("".join(json.dumps(row) + "\\n" for row in kept))
open(f"{sys.argv[1]}.seen", "a").write(f"{len(rows)}\\n")
"""


def test_a_loop_that_was_edited_runs(run, toy_data, tmp_path):
    """A stage left out, an echo, an own script between two stages that reads and writes the run folder, a
    break on what a file holds: a forker's edits of run_rounds.sh.
    """
    for path in ROOT.iterdir():
        if path.name not in ("run_rounds.sh", "runs", ".git", ".venv"):
            (tmp_path / path.name).symlink_to(path)
    script = (ROOT / "run_rounds.sh").read_text()
    for old, new in EDITS.items():
        assert script.count(old) == 1, old
        script = script.replace(old, new)
    (tmp_path / "run_rounds.sh").write_text(script)
    (tmp_path / "own.py").write_text(OWN_SCRIPT)
    settings = {"LIMIT": "16", "DISTILL": "12", "ORM": "none", "ACCEPT": "answer", "REFLECT": "none"}
    settings |= {"DISTILL_FLAGS": "--epochs 1", "SAMPLES": "1", "ERRORS": "0", "RUN": "edited", "ROUNDS": "2"}
    done = run(f"{tmp_path}/run_rounds.sh", **settings)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "edited"
    assert (folder / "round_0" / "verified.jsonl.seen").read_text() == "12\n"  # once, and not in the dry run
    assert len(read_rows(folder / "round_0" / "train.jsonl")) == 3 and done.stdout.count("hello\n") == 1
    verified = read_rows(folder / "round_1" / "verified.jsonl")
    assert not [row for row in verified if row["status"] == "correct"]  # so the break
    assert not (folder / "round_1" / "model").exists() and not (folder / "base").exists()
    assert "+ distilled" in done.stdout and (folder / "report.html").exists()
    plan = run(f"{tmp_path}/run_rounds.sh", DRY_RUN="1", **(settings | {"RUN": "planned"}))
    assert plan.returncode == 0 and not plan.stderr, plan.stderr
    assert "runs/planned/round_2/model" in plan.stdout  # a break is for what a real run finds
    assert [path.name for path in (tmp_path / "runs").glob("*.touched")] == ["edited.touched"]
