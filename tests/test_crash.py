"""What breaks from outside: kills, a full disk, a folder that may not be written, a second call, other settings."""

import fcntl
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import kill_runs
import pytest
from conftest import ROOT, read_rows, write_rows
from server import FAULTS, Server, faulty, teaching

import config

KEY = "sk-this-is-a-secret-0123456789"


# ---------------------------------------------------------------- kills


def test_a_run_that_is_killed_in_every_step_ends_as_one_that_is_not(small_run):
    """Killed at 20 moments or more, with a teacher of whose replies three in ten fail."""
    import teacher

    assert small_run.returncode == 0
    seconds = kill_runs.seconds_of("test-loop")
    server = Server(faulty(teaching(teacher.Teacher([ROOT / "runs" / "test-loop" / "problems.jsonl", ROOT / "toy" / "test.jsonl"], wrong=0.1, seed=0))), seconds=0.0)
    budget = kill_runs.BUDGET | {"TEACHER": server.spec, "OPENAI_API_KEY": KEY, "TIMEOUT": "10", "CONCURRENCY": "4", "CLASSIFY": "TEACHER"}
    folder = ROOT / "runs" / "test-kill"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        kills = kill_runs.kill_every_step("test-kill", budget, seconds, random.Random(0), twice=6)
        assert kills.total() >= 20 and len(kills) >= 12
        assert kill_runs.differences("test-kill", "test-loop") == []
        assert server.count > len(FAULTS) * 3
        assert not [path for path in folder.rglob("*") if path.is_file() and KEY.encode() in path.read_bytes()]  # the log of all its output is there too
        assert b"Traceback" not in (folder / "log").read_bytes()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_the_seconds_of_a_killed_call_are_kept(run, tmp_path):
    """A call that began 100 s ago and last wrote 60 s ago; the next one ends after its first step."""
    folder, now = ROOT / "runs" / "test-seconds", time.time()
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        for name, text, ago in ((".step", "data.jsonl\t0\n", 100), ("data.jsonl.part", "", 60)):
            (folder / name).write_text(text)
            os.utime(folder / name, (now - ago, now - ago))
        python = tmp_path / "python"  # makes the first step's output and nothing else
        python.write_text(f"#!/bin/sh\ncase $1 in -c) ;; config.py) cat > /dev/null ;; benchmarks.py) touch '{folder}/data.jsonl' ;; *) exit 3 ;; esac\n")
        python.chmod(0o755)
        assert run("run_rounds.sh", RUN="test-seconds", DATA="d.jsonl", TEST="t.jsonl", PYTHON=str(python)).returncode == 3
        lines = [line.split("\t") for line in (folder / "timings.tsv").read_text().splitlines()]
        assert lines[0] == ["data.jsonl", "40"] and [name for name, _ in lines] == ["data.jsonl"] * 2
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_training_that_is_killed_goes_on_exactly(tiny_model, tmp_path, run):
    """SIGKILL between two checkpoints: the log of all steps equals that of a training without a kill."""
    rows = [{"id": str(k), "sample": 0, "images": [], "messages": [{"role": "user", "content": f"Q{k}?"}, {"role": "assistant", "content": f"It is {k}."}]} for k in range(6)]
    flags = ["--input", write_rows(tmp_path / "t.jsonl", rows), "--model", tiny_model("qwen2_vl"), "--epochs", 12, "--lr", "1e-3", "--batch-size", 2, "--workers", 0, "--save-steps", 5]
    assert run("04_finetune.py", *flags, "--output", tmp_path / "whole").returncode == 0
    output = tmp_path / "killed"
    process = subprocess.Popen([sys.executable, "04_finetune.py", *map(str, flags), "--output", str(output)], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    log = Path(f"{output}.part") / "train_log.jsonl"
    while not log.exists() or log.read_bytes().count(b"\n") < 13:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    again = run("04_finetune.py", *flags, "--output", output)
    assert again.returncode == 0 and "resumed at step " in again.stdout, again.stderr
    logs = [learnt(tmp_path / name) for name in ("whole", "killed")]
    assert logs[0] == logs[1] and len(logs[0]) == 36
    assert not list(output.glob("checkpoint*"))
    Path(output).rename(f"{output}.part")  # as a kill between the last write and the rename leaves it
    assert run("04_finetune.py", *flags, "--output", output).returncode == 0 and learnt(output) == logs[0]


def learnt(folder: Path) -> list[dict]:
    """The log without what the clock says."""
    return [{name: value for name, value in row.items() if name not in ("tokens_per_second", "mfu")} for row in read_rows(folder / "train_log.jsonl")]


# ---------------------------------------------------------------- the disk


@pytest.fixture
def mount(tmp_path):
    """A small file system of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("a file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture
def samples(tmp_path):
    """About 200 kB of samples."""
    rows = [{"id": f"p{k}", "question": "What?", "images": [], "answer": "1", "sample": 0, "response": f"{'x' * 900} The answer is {k % 2}.", "finish": "stop"} for k in range(200)]
    return write_rows(tmp_path / "samples.jsonl", rows)


def one_line(done: subprocess.CompletedProcess, *words: str) -> bool:
    return len(done.stderr.splitlines()) == 1 and done.stderr.startswith("error: ") and all(word in done.stderr for word in words)


def test_a_full_disk_ends_a_stage_in_one_line_and_the_rerun_goes_on(mount, samples, run):
    flags = ["--input", samples, "--output", mount / "v.jsonl", "--accept", "answer"]
    done = run("02_verify.py", *flags)
    assert done.returncode == 1 and one_line(done, "No space left", "call again"), done.stderr
    kept = read_rows(mount / "v.jsonl.part")
    assert 10 < len(kept) < 200
    again = run("02_verify.py", *flags)  # still full
    assert again.returncode == 1 and one_line(again, "No space left") and read_rows(mount / "v.jsonl.part")[: len(kept)] == kept
    subprocess.run(["mount", "-o", "remount,size=4m", mount], check=True)
    assert run("02_verify.py", *flags).returncode == 0
    assert sorted(row["id"] for row in read_rows(mount / "v.jsonl")) == sorted(row["id"] for row in read_rows(samples))


def test_a_full_disk_ends_training_in_one_line(mount, tiny_model, tmp_path, run):
    rows = [{"id": "a", "sample": 0, "images": [], "messages": [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "A."}]}]
    flags = ["--input", write_rows(tmp_path / "t.jsonl", rows), "--model", tiny_model("qwen2_vl"), "--workers", 0, "--output", mount / "m"]
    done = run("04_finetune.py", *flags)
    assert done.returncode == 1 and [line for line in done.stderr.splitlines() if line.startswith("error: ")], done.stderr
    assert "Traceback" not in done.stderr and "call again" in done.stderr
    subprocess.run(["mount", "-o", "remount,size=16m", mount], check=True)
    assert run("04_finetune.py", *flags).returncode == 0 and (mount / "m" / "model.safetensors").exists()


def test_a_read_only_folder_ends_in_one_line(mount, samples, run):
    (mount / "runs").mkdir()
    subprocess.run(["mount", "-o", "remount,ro", mount], check=True)
    done = run("02_verify.py", "--input", samples, "--output", mount / "v.jsonl", "--accept", "answer")
    assert done.returncode == 1 and one_line(done, "Read-only file system")
    try:
        (ROOT / "runs").mkdir(exist_ok=True)
        (ROOT / "runs" / "test-ro").symlink_to(mount)
        done = run("run_rounds.sh", RUN="test-ro", LIMIT="2")
    finally:
        (ROOT / "runs" / "test-ro").unlink()
    assert done.returncode == 2 and "Read-only file system" in done.stderr and "cannot be written" in done.stderr and len(done.stderr.splitlines()) == 2


# ---------------------------------------------------------------- a second call


def test_a_second_call_on_one_output_is_refused(samples, run, tmp_path):
    flags = ["--input", samples, "--output", tmp_path / "v.jsonl", "--accept", "answer"]
    with Path(f"{tmp_path / 'v.jsonl'}.part.json").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        done = run("02_verify.py", *flags)
        assert done.returncode == 2 and one_line(done, "is being written by another process")
    assert run("02_verify.py", *flags).returncode == 0


def test_a_second_call_on_one_run_is_refused(small_run, run):
    with (ROOT / "runs" / "test-loop" / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        done = run("run_rounds.sh", RUN="test-loop", **kill_runs.BUDGET)
    assert done.returncode == 2 and one_line(done, "is being written by another call")


# ---------------------------------------------------------------- settings


PLAN = """\
r/problems.jsonl\tpython\tbenchmarks.py\t--input\tD\t--output\tr/problems.jsonl
r/base/eval/metrics.json\tpython\t05_evaluate.py\t--test\tT\t--output\tr/base/eval\t--model\tM\t--batch-size\t{rows}
r/round_1/samples.jsonl\tpython\t-m\ttorch.distributed.run\t01_sample.py\t--input\tr/problems.jsonl\t--output\tr/round_1/samples.jsonl\t--samples\t{samples}\t--max-cost\t{cost}
r/round_1/model\tpython\t04_finetune.py\t--input\tr/round_1/samples.jsonl\t--output\tr/round_1/model\t--batch-size\t{batch}{tracker}
r/round_1/eval/metrics.json\tpython\t05_evaluate.py\t--test\tT\t--output\tr/round_1/eval\t--model\tr/round_1/model
r/report.html\tpython\treport.py\tr
"""
USUAL = {"rows": 64, "samples": 4, "cost": 0, "batch": 128, "tracker": ""}
LATER = ["r/round_1/model", "r/round_1/eval/metrics.json", "r/report.html"]


@pytest.mark.parametrize(
    "change, edited, stale",
    [
        ({}, set(), []),
        ({"rows": 8, "cost": 5, "tracker": "\t--log-with\twandb"}, set(), []),  # how, not what
        ({"samples": 8}, set(), ["r/round_1/samples.jsonl", *LATER]),
        ({"batch": 64}, set(), LATER),
        ({}, {"T"}, ["r/base/eval/metrics.json", "r/round_1/eval/metrics.json", "r/report.html"]),
        ({}, {"D"}, ["r/problems.jsonl", "r/round_1/samples.jsonl", *LATER]),
        ({}, {"r/round_1/samples.jsonl"}, LATER),  # opened again to try what failed
    ],
)
def test_what_a_changed_setting_makes_stale(change, edited, stale):
    plan, begun = (config.read_steps(PLAN.format(**settings).splitlines()) for settings in (USUAL | change, USUAL))
    assert config.stale_outputs(plan, begun, edited) == stale


def test_a_step_that_is_no_longer_asked_for_is_stale():
    begun = config.read_steps(PLAN.format(**USUAL).splitlines())
    plan = {out: words for out, words in begun.items() if "round_1" not in out}
    assert config.stale_outputs(plan, begun, set()) == [out for out in begun if "round_1" in out]


def test_force_starts_anew_what_a_setting_changes(run, tmp_path):
    """From the refusal to the second run's files, with an answer check only: no model is loaded."""
    folder = tmp_path / "r"
    paths = [folder / name for name in ("problems.jsonl", "samples.jsonl", "verified.jsonl")]

    def call(samples: int, *flags: str) -> subprocess.CompletedProcess:
        steps = {paths[0]: ["benchmarks.py", "--input", "D"], paths[1]: ["01_sample.py", "--input", paths[0], "--samples", samples], paths[2]: ["02_verify.py", "--input", paths[1]]}
        plan = "".join("\t".join(map(str, [out, *words])) + "\n" for out, words in steps.items())
        command = [sys.executable, "config.py", str(folder), "--settings", f"SAMPLES={samples}", *flags]
        done = subprocess.run(command, cwd=ROOT, input=plan, capture_output=True, text=True)
        if done.returncode == 0:
            (folder / "commands.tsv").write_text(plan)
            for path in paths:
                path.write_text('{"id": "a", "finish": "stop"}\n')
        return done

    folder.mkdir()
    assert call(4).returncode == 0 and call(4).stdout == ""
    written = json.loads((folder / "config.json").read_text())
    assert written["settings"] == {"SAMPLES": "4"} and {"versions", "git_commit", "git_dirty", "inputs", "machine"} <= written.keys()
    refused = call(8)
    assert refused.returncode == 2 and "SAMPLES was '4', is '8'" in refused.stderr and "FORCE=1" in refused.stderr and len(refused.stderr.splitlines()) == 1
    assert all(path.exists() for path in paths)
    forced = call(8, "--force")
    assert forced.returncode == 0 and str(paths[1]) in forced.stdout and str(paths[2]) in forced.stdout and str(paths[0]) not in forced.stdout
    paths[1].write_text('{"id": "a", "finish": "error"}\n{"id": "b", "finish": "stop"}\n')
    retried = call(8, "--retry-errors")
    assert retried.returncode == 0 and f"{paths[1]}: tries again" in retried.stdout and f"starts anew: {paths[2]}" in retried.stdout
    assert os.path.getsize(f"{paths[1]}.part") > 30


def test_force_in_a_copied_run_leaves_the_other_alone(tmp_path):
    for name in ("run", "copy"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "samples.jsonl").write_text("{}\n")
        (tmp_path / name / "commands.tsv").write_text(f"{tmp_path / 'run' / 'samples.jsonl'}\t01_sample.py\t--samples\t4\n")
        (tmp_path / name / "config.json").write_text(json.dumps({"settings": {"SAMPLES": "4"}, "versions": {}, "git_commit": ""}))
    plan = f"{tmp_path / 'copy' / 'samples.jsonl'}\t01_sample.py\t--samples\t8\n"
    command = [sys.executable, "config.py", str(tmp_path / "copy"), "--settings", "SAMPLES=8", "--force"]
    done = subprocess.run(command, cwd=ROOT, input=plan, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "samples.jsonl").exists() and not (tmp_path / "copy" / "samples.jsonl").exists()


def test_another_classifier_leaves_the_answers(tmp_path):
    folder = tmp_path / "base" / "eval"
    folder.mkdir(parents=True)

    def call(by: str, *flags: str) -> subprocess.CompletedProcess:
        plan = f"{folder / 'metrics.json'}\t05_evaluate.py\t--output\t{folder}\t--classify\t{by}\n{tmp_path / 'report.html'}\treport.py\t{tmp_path}\n"
        done = subprocess.run([sys.executable, "config.py", str(tmp_path), "--settings", f"CLASSIFY={by}", *flags], cwd=ROOT, input=plan, capture_output=True, text=True)
        (tmp_path / "commands.tsv").write_text(plan)
        return done

    assert call("a/b").returncode == 0
    for name in ("metrics.json", "errors.jsonl", "predictions.jsonl"):
        (folder / name).write_text("{}\n")
    (tmp_path / "report.html").write_text("")
    done = call("c/d", "--force")
    assert done.returncode == 0 and "classifies its errors anew" in done.stdout and "starts anew: " + str(tmp_path / "report.html") in done.stdout, done.stderr
    assert [path.name for path in folder.iterdir()] == ["predictions.jsonl"] and not (tmp_path / "report.html").exists()


def test_a_benchmark_that_changes_is_noticed(tmp_path):
    def call() -> subprocess.CompletedProcess:
        command = [sys.executable, "config.py", str(tmp_path / "run"), "--inputs", f"mathvision:{tmp_path / 'MATH-V'}", "owner/model", "hf:owner/name:train"]
        return subprocess.run(command, cwd=ROOT, input="", capture_output=True, text=True)

    (tmp_path / "MATH-V").mkdir()
    (tmp_path / "run").mkdir()
    write_rows(tmp_path / "MATH-V" / "test.jsonl", [{"id": "1"}])
    assert call().returncode == call().returncode == 0
    write_rows(tmp_path / "MATH-V" / "test.jsonl", [{"id": "1"}, {"id": "2"}])
    assert call().returncode == 2 and one_line(call(), f"mathvision:{tmp_path / 'MATH-V'} has another content")


@pytest.mark.parametrize("failed", ["predictions.jsonl", "errors.jsonl"])
def test_predictions_that_are_tried_again_are_asked_about_again(tmp_path, failed):
    """The replies about other predictions are kept, but their file is open again, and the figures are made anew."""
    folder = tmp_path / "base" / "eval"
    folder.mkdir(parents=True)
    (folder / "metrics.json").write_text("{}")
    for name in ("predictions.jsonl", "errors.jsonl"):
        write_rows(folder / name, [{"id": "a", "finish": "stop"}, {"id": "b", "finish": "error" if name == failed else "stop"}])
    plan = f"{folder / 'metrics.json'}\t05_evaluate.py\t--output\t{folder}\n"
    done = subprocess.run([sys.executable, "config.py", str(tmp_path), "--retry-errors"], cwd=ROOT, input=plan, capture_output=True, text=True)
    assert done.returncode == 0 and "tries again" in done.stdout, done.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["errors.jsonl.part", "predictions.jsonl.part"]
