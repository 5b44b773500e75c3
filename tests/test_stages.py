"""Commands of the stages, checked or run one after the other by mathse.stages."""

import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT

SCRIPT = """
import atexit, os, signal, sys
name, *words = sys.argv[1:]
atexit.register(print, name, *map(repr, words), sys.stdin.read() == "", __name__, flush=True)
if name == "code":
    sys.exit(int(words[0]))
if name == "signal":
    os.kill(os.getpid(), int(words[0]))
if name == "raise":
    raise ValueError("a fault")
if name == "parent":  # run_rounds.sh is killed meanwhile
    os.kill(int(words[0]), signal.SIGKILL)
"""


@pytest.fixture
def stages(tmp_path):
    """Run commands of this script, given by their words; the finished process."""
    (tmp_path / "script.py").write_text(SCRIPT)

    def call(*commands: list[str], flags: tuple = (), launcher: str = sys.executable):
        text = b""
        for words in commands:
            words = ["7", launcher, str(len(words) + 1), str(tmp_path / "script.py"), *words]
            text += b"".join(os.fsencode(word) + b"\0" for word in words)
        command = [sys.executable, "-m", "mathse.stages", *flags]
        environment = os.environ | {"PYTHON": sys.executable}
        return subprocess.run(command, input=text, cwd=ROOT, capture_output=True, env=environment)

    return call


def test_each_command_gets_its_words_and_ends_as_a_script(stages):
    words = ["a b", "", "'\"$x\\", "Ärger", "two\nlines", "\udcff"]
    done = stages(["first", *words], ["second"])
    said = " ".join(map(repr, words))
    assert done.stdout.decode() == f"first {said} True __main__\nsecond True __main__\n"
    assert done.returncode == 0 and not done.stderr


@pytest.mark.parametrize("launcher", [sys.executable, f"env {sys.executable}"], ids=["fork", "launcher"])
@pytest.mark.parametrize(
    "words, code, line",
    [
        (["code", "3"], 3, ""),
        (["raise"], 1, "ValueError: a fault"),
        (["signal", str(int(signal.SIGKILL))], 137, "ended by SIGKILL"),
        (["signal", str(int(signal.SIGINT))], -signal.SIGINT, ""),
    ],
    ids=lambda value: str(value[0]) if isinstance(value, list) else None,
)
def test_the_first_command_that_fails_ends_all(stages, words, code, line, launcher):
    done = stages(["first"], words, ["third"], launcher=launcher)
    assert done.returncode == code and line in done.stderr.decode()
    assert done.stdout.startswith(b"first") and b"third" not in done.stdout


def test_a_check_prints_the_commands_and_adds_the_rows(stages):
    done = stages(["first"], ["code", "2"], ["third"], flags=("--check",))
    lines = done.stdout.decode().splitlines()
    assert done.returncode == 2 and not [line for line in lines if "third" in line]
    assert lines[0].startswith(f"+ {sys.executable} ") and lines[0].endswith("script.py first")
    assert "code '2' '--dry-run' '7' True __main__" in lines
    (quiet,) = stages(["first"], flags=("--check", "--quiet")).stdout.decode().splitlines()
    assert not quiet.startswith("+")  # what the script prints at its exit, after the check
    done = stages(["first"], flags=("--check",), launcher="no-such-launcher -n 2")
    assert done.returncode == 2 and done.stderr.decode().startswith(
        "error: LAUNCH: no-such-launcher: not found"
    )


def test_a_stage_ends_with_the_process_that_runs_it(tmp_path):
    (tmp_path / "script.py").write_text("import sys, time; print('at work', flush=True); time.sleep(100)")
    words = ["0", sys.executable, "1", str(tmp_path / "script.py")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    environment = os.environ | {"PYTHON": sys.executable}
    runner = subprocess.Popen([sys.executable, "-m", "mathse.stages"], cwd=ROOT, env=environment, **pipes)
    runner.stdin.write(b"".join(os.fsencode(word) + b"\0" for word in words))
    runner.stdin.close()
    assert runner.stdout.readline() == b"at work\n"
    runner.kill()
    begun = time.monotonic()
    assert runner.stdout.read() == b"" and time.monotonic() - begun < 60  # the pipe's other end is closed


def test_no_stage_begins_after_the_end_of_the_script(tmp_path):
    """run_rounds.sh is killed, and it alone: the stage at work ends, the next one does not begin."""
    (tmp_path / "script.py").write_text(SCRIPT)
    script = str(tmp_path / "script.py")
    words = (
        " ".join(
            f"'{word}'" for name in ("parent", "later") for word in ["0", "$PYTHON", "3", script, name, "$$"]
        )
        .replace("'$PYTHON'", '"$PYTHON"')
        .replace("'$$'", '"$$"')
    )
    begun = f"printf '%s\\0' {words} | \"$PYTHON\" -m mathse.stages; echo went on"
    environment = os.environ | {"PYTHON": sys.executable}
    log = tmp_path / "log"
    with log.open("w") as file:
        done = subprocess.run(["bash", "-c", begun], cwd=ROOT, env=environment, stdout=file, stderr=file)
    assert done.returncode == -signal.SIGKILL
    end = time.monotonic() + 60
    while "parent" not in log.read_text() and time.monotonic() < end:
        time.sleep(0.1)
    time.sleep(0.5)
    assert log.read_text().startswith("parent ") and len(log.read_text().splitlines()) == 1
