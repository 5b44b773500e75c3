"""What breaks from outside: a full disk, a folder that may not be written, a second call."""

import subprocess
from subprocess import DEVNULL

import pytest
from conftest import ROOT, begin, kill, lines_of, one_line, read_rows, write_rows
from server import Server, good

# ---------------------------------------------------------------- the disk


@pytest.fixture
def mount(tmp_path):
    """A small file system of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder]
    if subprocess.run(command, capture_output=True).returncode:
        pytest.skip("a file system cannot be mounted here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture
def samples(tmp_path):
    """About 200 kB of samples."""
    row = {"question": "What?", "images": [], "answer": "1", "sample": 0, "finish": "stop"}
    rows = [row | {"id": f"p{k}", "response": f"{'x' * 900} The answer is {k % 2}."} for k in range(200)]
    return write_rows(tmp_path / "samples.jsonl", rows)


def test_a_full_disk_ends_a_stage_in_one_line_and_the_rerun_goes_on(mount, samples, run):
    flags = ["--input", samples, "--output", mount / "v.jsonl", "--accept", "answer"]
    done = run("02_verify.py", *flags)
    assert one_line(done, "No space left", "call again", code=1), done.stderr
    kept = read_rows(mount / "v.jsonl.part" / "rank_0.jsonl")
    assert 10 < len(kept) < 200
    assert one_line(run("02_verify.py", *flags), "No space left", code=1)  # still full
    assert read_rows(mount / "v.jsonl.part" / "rank_0.jsonl")[: len(kept)] == kept
    subprocess.run(["mount", "-o", "remount,size=4m", mount], check=True)
    assert run("02_verify.py", *flags).returncode == 0
    ids = [sorted(row["id"] for row in read_rows(path)) for path in (samples, mount / "v.jsonl")]
    assert ids[0] == ids[1]


def test_a_full_disk_ends_training_in_one_line(mount, tiny_model, tmp_path, run):
    messages = [{"role": "user", "content": "Q?"}, {"role": "assistant", "content": "It is 1."}]
    rows = write_rows(tmp_path / "t.jsonl", [{"id": "1", "sample": 0, "images": [], "messages": messages}])
    flags = ["--input", rows, "--model", tiny_model("qwen2_vl"), "--workers", 0, "--output", mount / "m"]
    done = run("04_finetune.py", *flags)
    assert done.returncode == 1 and "Traceback" not in done.stderr, done.stderr
    assert "\nerror: " in f"\n{done.stderr}" and "call again" in done.stderr
    subprocess.run(["mount", "-o", "remount,size=16m", mount], check=True)
    assert run("04_finetune.py", *flags).returncode == 0 and (mount / "m" / "model.safetensors").exists()


def test_a_read_only_folder_ends_in_one_line(mount, samples, run):
    (mount / "runs").mkdir()
    subprocess.run(["mount", "-o", "remount,ro", mount], check=True)
    done = run("02_verify.py", "--input", samples, "--output", mount / "v.jsonl", "--accept", "answer")
    assert one_line(done, "Read-only file system", code=1)
    try:
        (ROOT / "runs").mkdir(exist_ok=True)
        (ROOT / "runs" / "test-ro").symlink_to(mount)
        done = run("run_rounds.sh", RUN="test-ro", LIMIT="2", ROUNDS="1")
    finally:
        (ROOT / "runs" / "test-ro").unlink()
    assert one_line(done, "Read-only file system", code=1), done.stderr


# ---------------------------------------------------------------- a second call


def test_a_second_call_on_one_output_is_refused(samples, run, python, tmp_path):
    """Also a forced one."""
    server = Server(good, seconds=0.5)
    flags = ["--input", samples, "--output", tmp_path / "s.jsonl", "--model", server.spec]
    part, command = tmp_path / "s.jsonl.part" / "rank_0.jsonl", [python, "01_sample.py", *flags]
    first = begin([*command, "--concurrency", 2], lambda _: lines_of(part), stdout=DEVNULL)
    forced = [*flags, "--force", "--max-tokens", 5]
    for words in (flags, forced):
        done = run("01_sample.py", *words)
        assert one_line(done, "is being written by another process"), done.stderr
    assert first.poll() is None and part.exists()
    kill(first)
    server.seconds = 0.0
    assert run("01_sample.py", *forced).returncode == 0
    assert len(read_rows(tmp_path / "s.jsonl")) == 200
