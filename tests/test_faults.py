"""Stages against endpoints that fail: every request ends as an answer or an error row, none is paid
twice, limits hold, the key stays secret.
"""

import time
from pathlib import Path
from subprocess import DEVNULL

import pytest
from conftest import begin, kill, lines_of, one_line, read_rows, write_rows
from server import HANG, Server, choices, completion, faulty, good, text_of

from mathse.records import read_json

KEY = "sk-this-is-a-secret-0123456789"


@pytest.fixture
def words(tmp_path):
    """The words of 01_sample.py on 60 problems."""
    row = {"images": []}
    rows = [row | {"id": f"p{k}", "question": f"Question {k}?", "answer": str(k)} for k in range(60)]
    problems = write_rows(tmp_path / "problems.jsonl", rows)
    files = ["--input", str(problems), "--output", str(tmp_path / "out.jsonl")]
    return lambda spec: ["01_sample.py", *files, "--model", spec]


@pytest.fixture
def sample(words, run):
    return lambda server, *flags, **environment: run(*words(server.spec), *flags, **environment)


def question(body: dict) -> str:
    """The id of the problem that a request is about."""
    return "p" + text_of(body).split("Question ")[1].split("?")[0]


def secret_free(printed: str, folder: Path) -> bool:
    files = b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())
    return KEY not in printed and KEY.encode() not in files and "Traceback" not in printed


def test_every_request_is_answered_once_or_an_error_row(words, sample, tmp_path, stage, monkeypatch, capsys):
    bad = faulty(good)

    def behave(number, body):
        if question(body) == "p7":
            return 500, b"always", {}
        if question(body) == "p8":
            return 400, {"error": f"too long for the key {KEY}"}, {}
        if question(body) == "p9":
            return 200, completion(f"the key is {KEY}"), {}
        return bad(number, body)

    server = Server(behave)
    monkeypatch.setattr("mathse.generate.endpoint.random.uniform", lambda low, high: 0.02)  # short pauses
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setattr("sys.argv", [*words(server.spec), "--concurrency", "8", "--timeout", "3"])
    stage("01_sample").main()
    printed, written = capsys.readouterr(), read_rows(tmp_path / "out.jsonl")
    rows = {row["id"]: row for row in written}
    assert len(rows) == len(written) == 60
    assert {name for name, row in rows.items() if row["finish"] == "error"} == {"p7", "p8"}
    answered = [question(body) for body in server.answered]
    assert sorted(answered) == sorted(rows.keys() - {"p7", "p8"})
    assert server.peak <= 8 and rows["p9"]["response"] == "the key is ***"
    assert secret_free(printed.out + printed.err, tmp_path)
    # rows that failed are tried again when that is asked for, and no others
    server.behave, server.count, server.answered = good, 0, []
    assert sample(server).stdout.startswith("skip ") and not server.count
    assert sample(server, "--retry-errors").returncode == 0
    again = read_rows(tmp_path / "out.jsonl")
    assert len(again) == 60 and {row["finish"] for row in again} == {"stop"}
    assert [row for row in again if row in written] == [row for row in written if row["finish"] == "stop"]
    assert sorted(map(question, server.answered)) == ["p7", "p8"]
    assert sample(server, "--retry-errors").stdout.startswith("skip ")


def test_a_killed_stage_asks_for_no_finished_reply_again(words, sample, tmp_path, python):
    server = Server(good, seconds=0.15)
    command, part = [python, *words(server.spec)], tmp_path / "out.jsonl.part" / "rank_0.jsonl"
    kill(begin([*command, "--concurrency", 4], lambda _: lines_of(part) >= 20, stderr=DEVNULL))
    kept = {row["id"] for row in read_rows(part)}
    server.seen, server.behave = [], good
    assert sample(server).returncode == 0
    asked = [question(body) for _, body in server.seen]
    assert sorted(asked) == sorted({f"p{number}" for number in range(60)} - kept) and len(kept) >= 20
    assert len({row["id"] for row in read_rows(tmp_path / "out.jsonl")}) == 60


def test_limits_stop_cleanly_and_the_same_command_goes_on(sample, tmp_path):
    server = Server(good, seconds=0.0)
    done = sample(server, "--max-requests", 25)
    assert done.returncode == 3 and server.count == 25
    assert done.stderr.splitlines()[-1] == "stopped: --max-requests 25 is reached; call again to go on"
    assert len(read_rows(tmp_path / "out.jsonl.part" / "rank_0.jsonl")) == 25
    assert not (tmp_path / "out.jsonl").exists()
    spent, prices = ["--spent", tmp_path / "spent.tsv"], {"PRICE_IN": "1", "PRICE_OUT": "1"}
    done = sample(server, *spent, "--concurrency", 4, "--max-cost", "0.00007", **prices)
    # 10 tokens a reply: 7 replies, and what is in flight
    assert done.returncode == 3 and "--max-cost 7e-05 is reached" in done.stderr and 32 <= server.count < 60
    before = server.count
    done = sample(server, *spent, "--max-cost", "0.00007", **prices)
    assert done.returncode == 3 and server.count == before, "the limit holds for all calls together"
    assert sample(server, *spent).returncode == 0
    assert server.count == len(read_rows(tmp_path / "out.jsonl")) == 60
    assert len((tmp_path / "spent.tsv").read_text().splitlines()) == 35


def refusing(meant, reply: tuple):
    """Behaves well but to the problems that are meant, which get this reply at once."""

    def behave(number, body):
        if "Question" in text_of(body) and meant(int(question(body)[1:])):
            return reply
        time.sleep(0.2)
        return 200, choices(*["x"] * body.get("n", 1)), {}

    return behave


@pytest.mark.parametrize("status", [400, 403])
def test_rows_that_a_server_refuses_end_no_stage(status, sample, tmp_path):
    """More than twenty in a row, before the first answer too: it is asked whether it answers at all; of a
    403, which may mean the key, each time.
    """
    server = Server(
        refusing(lambda number: number < 30, (status, {"error": "not this one"}, {})), seconds=0.0
    )
    assert sample(server, "--max-requests", 40).returncode == 3
    assert sample(server).returncode == 0
    rows = read_rows(tmp_path / "out.jsonl")
    assert [row["finish"] for row in rows] == ["error"] * 30 + ["stop"] * 30
    assert server.count <= 60 + (2 if status == 400 else 31)  # questions of ours
    assert sample(server, "--retry-errors", "--max-requests", 3).returncode == 3
    assert sample(server).stdout.startswith("skip ")
    done = sample(server, "--retry-errors")
    assert done.returncode == 0 and read_rows(tmp_path / "out.jsonl") == rows, done.stderr


def test_samples_of_few_problems_that_are_refused_end_no_stage(sample, tmp_path):
    server = Server(refusing(lambda number: number < 3, (400, {"error": "too long"}, {})), seconds=0.0)
    done = sample(server, "--samples", 8, "--temperature", 1, "--concurrency", 64)
    assert done.returncode == 0, done.stderr
    assert sum(row["finish"] == "error" for row in read_rows(tmp_path / "out.jsonl")) == 24


def test_a_key_that_is_refused_near_the_end_is_no_fault_of_rows(sample, tmp_path):
    server = Server(lambda *request: good(*request) if request[0] < 45 else (403, {"error": "limit"}, {}))
    assert sample(server).returncode == 3
    server.behave = good
    assert sample(server).returncode == 0
    assert {row["finish"] for row in read_rows(tmp_path / "out.jsonl")} == {"stop"}


def test_a_refusal_that_was_paid_for_is_final(sample, tmp_path):
    paid = completion("", "content_filter") | {"usage": {"prompt_tokens": 900, "completion_tokens": 0}}
    server = Server(refusing(lambda number: number == 0, (200, paid, {})), seconds=0.0)
    flags = "--spent", tmp_path / "spent.tsv"
    assert sample(server, *flags, "--concurrency", 1, "--max-requests", 1).returncode == 3
    assert sample(server, *flags).returncode == 0 and server.count == 60
    assert [row["finish"] for row in read_rows(tmp_path / "out.jsonl")] == ["error"] + ["stop"] * 59


def test_rows_that_have_all_failed_are_no_output(sample, tmp_path):
    server = Server(refusing(lambda number: True, (400, {"error": "not this one"}, {})), seconds=0.0)
    done = sample(server)
    assert done.returncode == 1 and not (tmp_path / "out.jsonl").exists()
    assert "all 60 rows have failed, the first: HTTP 400: not this one; mend the cause" in done.stderr


def test_an_endpoint_that_hangs_does_not_hold_the_command(sample):
    hangs = Server(lambda number, body: (HANG, b"", {}))
    assert one_line(sample(hangs, "--timeout", 0.3, "--concurrency", 20), "none was answered")


@pytest.mark.parametrize("script", ["01_sample.py", "03_reflect.py"])
def test_rows_of_another_file_are_told_apart_by_their_problems(script, run, tmp_path):
    """With the keys of predictions: what is made of them is found again, and nothing is asked twice."""
    row = {"question": "1?", "images": [], "answer": 2, "prompt": "1?", "response": "3", "status": "wrong"}
    row |= {
        "benchmark": "toy_test",
        "sample": 1,
        "finish": "stop",
        "judge_reply": "x",
        "judge_tokens": [9, 9],
    }
    row["messages"] = [{"role": role, "content": "x"} for role in ("user", "assistant")]
    rows, server = [row | {"id": str(k)} for k in range(3)], Server(good, seconds=0.0)
    path = write_rows(tmp_path / "in.jsonl", rows)
    files = [path, path] if script == "03_reflect.py" else [path]
    done = run(script, "--input", *files, "--output", tmp_path / "o.jsonl", "--model", server.spec)
    assert done.returncode == 0 and server.count == 3, done.stderr
    made = [(row["id"], row["sample"]) for row in read_rows(tmp_path / "o.jsonl")]
    assert made == [(str(k), 0) for k in range(3)]
    assert read_json(tmp_path / "o.jsonl.recipe.json")["tokens"] == [21, 9]


def test_a_list_of_answers_is_all_of_them(run, tmp_path):
    problem = {"question": "x?", "images": [], "solution": "x is found."}
    rows = [problem | {"id": "a", "answer": ["3", "-3"]}]
    rows += [problem | {"id": "b", "answer": ["A", "C"], "options": ["1", "2", "3"]}]
    path, made = write_rows(tmp_path / "p.jsonl", rows), tmp_path / "s.jsonl"
    assert run("01_sample.py", "--input", path, "--output", made, "--model", "solutions").returncode == 0
    checked = "--input", made, "--output", tmp_path / "v.jsonl", "--accept", "answer"
    assert run("02_verify.py", *checked).returncode == 0
    assert [row["status"] for row in read_rows(tmp_path / "v.jsonl")] == ["correct", "correct"]
