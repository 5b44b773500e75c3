"""The whole loop on a very small budget, and its rerun."""

import json
import random
import re
import shlex
import shutil
from pathlib import Path

import kill_runs
import pytest
from conftest import ROOT, finish, read_rows
from kill_runs import BUDGET as SMALL
from server import FAULTS, Server, faulty, teaching

import common
from mathse import chat, records

KEY = "sk-this-is-a-secret-0123456789"


def test_the_loop_runs_to_its_end(small_run):
    assert small_run.returncode == 0, small_run.stdout[-3000:] + small_run.stderr[-3000:]
    folder = ROOT / "runs" / "test-loop"
    metrics = json.loads((folder / "metrics.json").read_text())
    assert [stage["stage"] for stage in metrics["stages"]] == ["base", "round_0", "round_1", "final"]
    assert all(stage["benchmarks"]["toy_test"]["n"] == 20 for stage in metrics["stages"])
    assert not list(folder.rglob("*.part"))
    assert (
        "report: runs/test-loop/report.html" in small_run.stdout
        and (folder / "report.html").stat().st_size > 50_000
    )
    types = {row["error_type"] for row in read_rows(folder / "final" / "eval" / "errors.jsonl")}
    assert types & {"vision", "calculation", "reasoning"}
    rows = [json.loads(line) for line in (folder / "problems.jsonl").read_text().splitlines()]
    assert len(rows) == 20
    settings = json.loads((folder / "config.json").read_text())["settings"]
    assert (
        settings["MODEL"] == "toy/base"
        and settings["LIMIT"] == "20"
        and "--lr 1e-3" in settings["FINETUNE_FLAGS"]
    )


def test_records_grow_field_by_field(small_run):
    folder = ROOT / "runs" / "test-loop"
    sample = read_rows(folder / "round_1" / "samples.jsonl")[0]
    verified = next(
        row
        for row in read_rows(folder / "round_1" / "verified.jsonl")
        if records.row_key(row) == records.row_key(sample)
    )
    assert (
        {"id", "question", "images", "answer", "sample", "response", "finish", "tokens", "model", "seed"}
        <= set(sample)
        <= set(verified) | {"reason"}
    )
    assert {"answer_check", "orm_check", "status", "error_step", "error_analysis", "judge_reply"} <= set(
        verified
    )
    reflected = read_rows(folder / "final" / "reflected.jsonl")[0]
    assert (
        reflected["draft"]
        and reflected["draft"] != reflected["response"]
        and reflected["origin"] == "reflection-teacher"
    )
    trained = read_rows(folder / "final" / "train.jsonl")
    assert {"messages", "images", "id", "sample", "origin"} <= set(trained[0])
    assert {"teacher", "reflection-teacher"} <= {row["origin"] for row in trained}
    assert trained[0]["messages"][0]["content"].startswith("<image>")
    accepted = {
        row["id"]
        for name in ("round_0", "round_1", "final")
        for row in read_rows(folder / name / "verified.jsonl")
        if row["status"] == "correct"
    }
    assert {row["id"] for row in trained} == accepted


def test_every_row_that_is_trained_on_leads_back_to_its_sample(small_run):
    """train.jsonl -> the file of its verdicts -> sample, checkpoint, seed, prompt, verdict; of a
    reflection also its draft.
    """
    folder, seen = ROOT / "runs" / "test-loop" / "final", set()
    for row in read_rows(folder / "train.jsonl"):
        (found,) = [
            other
            for other in read_rows(folder / row["verified_in"])
            if (other["id"], other["sample"]) == (row["id"], row["sample"])
        ]
        assert (found["status"], found["response"], found["origin"]) == (
            "correct",
            row["messages"][-1]["content"],
            row["origin"],
        )
        assert (found["model"], found["seed"]) == (row["model"], row["seed"]) and row["model"]
        assert row["seed"] == records.derive_seed(
            0, row["origin"], row["id"], row["sample"]
        )  # it can be drawn again
        prompt = common.solve_prompt(found)
        assert found["prompt"] == prompt and row["messages"] == [
            *chat.user_message(prompt, row["images"]),
            {"role": "assistant", "content": found["response"]},
        ]
        if row["origin"] == "round-1":
            assert (ROOT / row["model"] / "config.json").is_file() and row[
                "model"
            ] == "runs/test-loop/round_0/model"
        if row["origin"] == "reflection-teacher":
            draft = row["draft_of"]
            (wrong,) = [
                other
                for other in read_rows(folder / draft["verified_in"])
                if (other["id"], other["sample"]) == (row["id"], draft["sample"])
            ]
            assert (wrong["status"], wrong["response"], wrong["origin"]) == (
                "wrong",
                found["draft"],
                draft["origin"],
            )
        assert Path(row["verified_in"]).parent.name == {"teacher": "round_0", "round-1": "round_1"}.get(
            row["origin"], ""
        )
        seen.add(row["origin"])
    assert {"teacher", "reflection-teacher"} <= seen


def test_solved_problems_are_not_sampled_again(small_run):
    folder = ROOT / "runs" / "test-loop"
    solved = {
        row["id"] for row in read_rows(folder / "round_0" / "verified.jsonl") if row["status"] == "correct"
    }
    sampled = {row["id"] for row in read_rows(folder / "round_1" / "samples.jsonl")}
    assert solved and not solved & sampled and len(solved | sampled) == 20


def test_the_orms_training_file_is_whole(small_run):
    """Annotated paths of M0, the correct ones of D0, corrections of what M0 does not solve."""
    folder = ROOT / "runs" / "test-loop" / "orm"
    names = ("annotated.jsonl", "corrected_annotated.jsonl", "../round_0/verified.jsonl")
    rows = {(name, records.row_key(row)): row for name in names for row in read_rows(folder / name)}
    trained = read_rows(folder / "train.jsonl")
    assert {row["verified_in"] for row in trained} == {*names} and {"correct", "wrong"} == {
        row["status"] for row in trained
    }
    for row in trained:
        found = rows[row["verified_in"], records.row_key({"id": row["id"], "sample": row["sample"]})]
        assert row["messages"][0]["content"].endswith(common.judge_prompt(found))
        assert row["status"] == found["status"]
        assert row["status"] == "correct" or found["teacher_check"] == "wrong"


def test_the_next_orm_learns_from_the_rounds_paths(small_run):
    """A round's paths train the ORM that judges later ones."""
    folder = ROOT / "runs" / "test-loop"
    recipe = json.loads((folder / "orm_1" / "model" / "recipe.json").read_text())
    inputs = [source["name"] for source in recipe["inputs"]["input"]]
    assert "runs/test-loop/round_1/annotated.jsonl" in inputs
    judge = json.loads((folder / "final" / "verified.jsonl.recipe.json").read_text())
    assert judge["inputs"]["model"][0]["name"] == "runs/test-loop/orm_1/model"


def recipes(folder: Path) -> dict[str, str]:
    return {str(path): path.read_text() for path in folder.rglob("*recipe.json")}


def test_a_second_call_only_skips(small_run, run):
    before = recipes(ROOT / "runs" / "test-loop")
    again = run("run_rounds.sh", RUN="test-loop", **SMALL)
    lines = [line for line in again.stdout.split("\n\n")[0].splitlines()]
    assert again.returncode == 0 and lines and all(line.startswith("skip ") for line in lines), again.stdout
    assert not again.stderr and "report: runs/test-loop/report.html" in again.stdout
    assert recipes(ROOT / "runs" / "test-loop") == before and len(before) == 25


@pytest.mark.parametrize("output", ["round_1/samples.jsonl", "final/verified.jsonl", "orm/model"])
def test_the_same_stage_by_hand_has_nothing_to_do(small_run, output):
    """The recipe of a run's stage, its code included, is that of the command that it names."""
    path = ROOT / "runs" / "test-loop" / output
    recipe = path / "recipe.json" if path.is_dir() else Path(f"{path}.recipe.json")
    _, *words = shlex.split(json.loads(recipe.read_text())["command"])
    done = finish(*words)
    assert done.stdout == f"skip runs/test-loop/{output}\n", done.stdout + done.stderr


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"SAMPLES": "3"}, "samples was 2, is 3"),
        ({"ROUNDS": "2"}, "input was 2 files, is 3"),  # of final/: said before round 2 is made
        ({"SEED": "1"}, "seed was 0, is 1"),
    ],
)
def test_other_settings_are_refused_by_name_before_anything_runs(small_run, run, changed, said):
    before = recipes(ROOT / "runs" / "test-loop")
    other = run("run_rounds.sh", RUN="test-loop", **(SMALL | changed))
    assert other.returncode == 2 and said in other.stderr and len(other.stderr.splitlines()) == 1
    assert not other.stdout and recipes(ROOT / "runs" / "test-loop") == before


def test_a_run_folder_that_was_moved_is_gone_on_with(small_run, run, tmp_path):
    """Its files name images by their way from where they lay."""
    folder = ROOT / "runs" / "test-loop"
    shutil.copytree(folder, tmp_path / "far" / "away")
    flags = ["--input", tmp_path / "far" / "away" / "round_1" / "verified.jsonl", "--model", "toy/base"]
    done = run("03_reflect.py", *flags, "--output", tmp_path / "r.jsonl", "--limit", 1, "--max-tokens", 4)
    assert done.returncode == 0, done.stderr
    (row,) = read_rows(tmp_path / "r.jsonl")
    assert (tmp_path / row["images"][0]).resolve() == (ROOT / "toy" / "images").resolve() / Path(
        row["images"][0]
    ).name


def test_force_makes_anew_what_depends_on_a_setting_and_nothing_else(small_run, run, tmp_path):
    """Another acceptance of reflections: only the last steps; what they read, byte for byte as it was."""
    folder = ROOT / "runs" / "test-force"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ROOT / "runs" / "test-loop", folder)
    before = {path: path.read_bytes() for path in folder.rglob("*.jsonl")}
    try:
        done = run("run_rounds.sh", RUN="test-force", FORCE="1", **(SMALL | {"REFLECT_ACCEPT": "both"}))
        assert done.returncode == 0, done.stderr
        made = re.findall(r"^\+ python .*--output runs/test-force/(\S+)", done.stdout, re.MULTILINE)
        assert made == ["final/verified.jsonl", "final/model", "final/eval", "final/eval/errors.jsonl"]
        changed = {
            str(path.relative_to(folder).parts[0])
            for path, text in before.items()
            if path.read_bytes() != text
        }
        assert changed <= {"final", "ledger.jsonl"}
        again = run("run_rounds.sh", RUN="test-force", **(SMALL | {"REFLECT_ACCEPT": "both"}))
        assert again.returncode == 0 and "+ python" not in again.stdout
    finally:
        shutil.rmtree(folder, ignore_errors=True)


KILLED = {  # steps, a kind each: calls of an endpoint, of a local model, training, a folder of figures
    "round_0/samples.jsonl", "round_1/samples.jsonl", "round_1/model", "final/eval",
}  # fmt: skip


def test_a_run_that_is_killed_in_its_steps_ends_as_one_that_is_not(small_run, python):
    """Killed in a step of each kind, with a teacher of whose replies three in ten fail. kill_runs.py kills in
    all of them.
    """
    import teacher

    assert small_run.returncode == 0
    steps = {name: took for name, took in kill_runs.seconds_of("test-loop").items() if name in KILLED}
    known = [ROOT / "runs" / "test-loop" / "problems.jsonl", ROOT / "toy" / "test.jsonl"]
    server = Server(faulty(teaching(teacher.Teacher(known, wrong=0.1, seed=0))), seconds=0.0)
    budget = SMALL | {"TEACHER": server.spec, "OPENAI_API_KEY": KEY, "PYTHON": python}
    budget |= {"ENDPOINT_FLAGS": "--timeout 3 --concurrency 4"}
    folder = ROOT / "runs" / "test-kill"
    shutil.rmtree(folder, ignore_errors=True)
    try:
        kills = kill_runs.kill_every_step("test-kill", budget, steps, random.Random(0), twice=1)
        assert kills.total() >= 4 and len(kills) >= 3
        assert kill_runs.differences("test-kill", "test-loop") == []
        assert server.count > len(FAULTS) * 3
        files = [path for path in folder.rglob("*") if path.is_file()]  # the log of all calls among them
        assert not [path for path in files if KEY.encode() in path.read_bytes()]
        assert b"Traceback" not in (folder / "log").read_bytes()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
