"""The whole loop on a very small budget, and its rerun."""

import json
from pathlib import Path

from conftest import ROOT, read_rows
from kill_runs import BUDGET as SMALL

import common


def test_the_loop_runs_to_its_end(small_run):
    assert small_run.returncode == 0, small_run.stdout[-3000:] + small_run.stderr[-3000:]
    folder = ROOT / "runs" / "test-loop"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert [stage["stage"] for stage in metrics["stages"]] == ["base", "round_0", "round_1", "final"]
    assert all(stage["benchmarks"]["toy_test"]["n"] == 20 for stage in metrics["stages"])
    assert not list(folder.rglob("*.part"))
    assert "report: runs/test-loop/report.html" in small_run.stdout and (folder / "report.html").stat().st_size > 50_000
    assert set(metrics["stages"][-1]["benchmarks"]["toy_test"]["error_types"]) >= {"vision", "calculation", "unclassified"}
    rows = [json.loads(line) for line in (folder / "problems.jsonl").read_text().splitlines()]
    assert len(rows) == 20


def test_records_grow_field_by_field(small_run):
    folder = ROOT / "runs" / "test-loop"
    sample = read_rows(folder / "round_1" / "samples.jsonl")[0]
    verified = next(row for row in read_rows(folder / "round_1" / "verified.jsonl") if common.row_key(row) == common.row_key(sample))
    assert {"id", "question", "images", "answer", "sample", "response", "finish", "tokens", "model", "seed"} <= set(sample) <= set(verified) | {"reason"}
    assert {"answer_check", "orm_check", "status", "error_step", "error_analysis", "judge_reply"} <= set(verified)
    reflected = read_rows(folder / "final" / "reflected.jsonl")[0]
    assert reflected["draft"] and reflected["draft"] != reflected["response"] and reflected["origin"] == "reflection"
    trained = read_rows(folder / "final" / "train.jsonl")
    assert {"messages", "images", "id", "sample", "origin"} <= set(trained[0])
    assert {"teacher", "reflection"} <= {row["origin"] for row in trained}
    assert trained[0]["messages"][0]["content"].startswith("<image>")
    accepted = {row["id"] for name in ("round_0", "round_1", "final") for row in read_rows(folder / name / "verified.jsonl") if row["status"] == "correct"}
    assert {row["id"] for row in trained} == accepted


def test_every_row_that_is_trained_on_leads_back_to_its_sample(small_run):
    """train.jsonl -> the file of its verdicts -> sample, checkpoint, seed, prompt, verdict; of a reflection also its draft."""
    folder, seen = ROOT / "runs" / "test-loop" / "final", set()
    for row in read_rows(folder / "train.jsonl"):
        (found,) = [other for other in read_rows(folder / row["verified_in"]) if (other["id"], other["sample"]) == (row["id"], row["sample"])]
        assert (found["status"], found["response"], found["origin"]) == ("correct", row["messages"][-1]["content"], row["origin"])
        assert (found["model"], found["seed"]) == (row["model"], row["seed"]) and row["model"]
        assert row["seed"] == common.derive_seed(0, row["origin"], row["id"], row["sample"])  # it can be drawn again
        assert row["messages"][0]["content"] == common.solve_messages(found)[0]["content"]
        if row["origin"] == "round-1":
            assert (ROOT / row["model"] / "config.json").is_file() and row["model"] == "runs/test-loop/round_0/model"
        if row["origin"] == "reflection":
            draft = row["draft_of"]
            (wrong,) = [other for other in read_rows(folder / draft["verified_in"]) if (other["id"], other["sample"]) == (row["id"], draft["sample"])]
            assert (wrong["status"], wrong["response"], wrong["origin"]) == ("wrong", found["draft"], draft["origin"])
        assert Path(row["verified_in"]).parent.name == {"teacher": "round_0", "round-1": "round_1"}.get(row["origin"], "")
        seen.add(row["origin"])
    assert {"teacher", "reflection"} <= seen


def test_solved_problems_are_not_sampled_again(small_run):
    folder = ROOT / "runs" / "test-loop"
    solved = {row["id"] for row in read_rows(folder / "round_0" / "verified.jsonl") if row["status"] == "correct"}
    sampled = {row["id"] for row in read_rows(folder / "round_1" / "samples.jsonl")}
    assert solved and not solved & sampled and len(solved | sampled) == 20


def test_a_second_call_only_skips(small_run, run):
    again = run("run_rounds.sh", RUN="test-loop", **SMALL)
    assert again.returncode == 0 and all(line.startswith("skip ") for line in again.stdout.splitlines()) and not again.stderr


def test_other_settings_are_refused(small_run, run):
    other = run("run_rounds.sh", RUN="test-loop", **(SMALL | {"SAMPLES": "3"}))
    assert other.returncode == 2 and "SAMPLES was '2', is '3'" in other.stderr
