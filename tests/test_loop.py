"""The whole loop on a very small budget, and its rerun."""

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from conftest import ROOT, one_line, read_rows
from test_kills import BUDGET as SMALL

import common
from mathse import chat, records

FOLDER = ROOT / "runs" / "test-loop"


def rows_of(name: str) -> list[dict]:
    return read_rows(FOLDER / name)


def by_sample(name: str) -> dict[tuple, dict]:
    return {(row["id"], row["sample"]): row for row in rows_of(name)}


def correct_in(*names: str) -> set[str]:
    return {row["id"] for name in names for row in rows_of(name) if row["status"] == "correct"}


def test_the_loop_runs_to_its_end(small_run):
    assert small_run.returncode == 0, small_run.stdout[-3000:] + small_run.stderr[-3000:]
    metrics = json.loads((FOLDER / "metrics.json").read_text())
    assert [stage["stage"] for stage in metrics["stages"]] == ["base", "round_0", "round_1", "final"]
    assert all(stage["benchmarks"]["toy_test"]["n"] == 20 for stage in metrics["stages"])
    assert not list(FOLDER.rglob("*.part")) and (FOLDER / "report.html").stat().st_size > 50_000
    assert "report: runs/test-loop/report.html" in small_run.stdout
    types = {row["error_type"] for row in rows_of("final/eval/errors.jsonl")}
    assert types & {"vision", "calculation", "reasoning"}
    settings = json.loads((FOLDER / "config.json").read_text())["settings"]
    assert (settings["MODEL"], settings["LIMIT"]) == ("toy/base", "20")
    assert "--lr 1e-3" in settings["FINETUNE_FLAGS"]


def test_records_grow_field_by_field(small_run):
    sample, *_ = samples = rows_of("round_1/samples.jsonl")
    assert {row["sample"] for row in samples} == {0, 1}  # SAMPLES
    verified = by_sample("round_1/verified.jsonl")[sample["id"], sample["sample"]]
    needed = {"id", "question", "images", "answer", "sample", "response", "finish", "tokens", "model", "seed"}
    assert needed <= sample.keys() <= verified.keys() | {"reason"}
    checks = {"answer_check", "orm_check", "status", "error_step", "error_analysis", "judge_reply"}
    assert checks <= verified.keys()
    reflected, *_ = rows_of("final/reflected.jsonl")
    assert reflected["draft"] and reflected["draft"] != reflected["response"]
    assert reflected["origin"] == "reflection-teacher"


def test_every_row_that_is_trained_on_leads_back_to_its_sample(small_run):
    """train.jsonl -> the file of its verdicts -> sample, checkpoint, seed, prompt, verdict; of a
    reflection also its draft.
    """
    rooms = {"teacher": "round_0", "round-1": "round_1", "reflection-teacher": ""}
    trained = rows_of("final/train.jsonl")
    assert {"teacher", "reflection-teacher"} <= {row["origin"] for row in trained}
    files = (f"{name}/verified.jsonl" for name in ("round_0", "round_1", "final"))
    assert {row["id"] for row in trained} == correct_in(*files)
    for row in trained:
        name, origin = row["id"], row["origin"]
        found = by_sample(f"final/{row['verified_in']}")[name, row["sample"]]
        said = {"role": "assistant", "content": found["response"]}
        assert (found["status"], found["origin"]) == ("correct", origin)
        assert (found["model"], found["seed"]) == (row["model"], row["seed"]) and row["model"]
        assert row["seed"] == records.derive_seed(0, origin, name, row["sample"])  # it can be drawn again
        assert found["prompt"] == common.solve_prompt(found)
        assert row["messages"] == [*chat.user_message(found["prompt"], row["images"]), said]
        assert Path(row["verified_in"]).parent.name == rooms[origin]
        if origin == "round-1":
            assert row["model"] == "runs/test-loop/round_0/model"
            assert (ROOT / row["model"] / "config.json").is_file()
        if origin == "reflection-teacher":
            draft = row["draft_of"]
            wrong = by_sample(f"final/{draft['verified_in']}")[name, draft["sample"]]
            told = ("wrong", found["draft"], draft["origin"])
            assert (wrong["status"], wrong["response"], wrong["origin"]) == told


def test_solved_problems_are_not_sampled_again(small_run):
    solved = correct_in("round_0/verified.jsonl")
    sampled = {row["id"] for row in rows_of("round_1/samples.jsonl")}
    assert solved and not solved & sampled and len(solved | sampled) == len(rows_of("problems.jsonl")) == 20


def test_the_orms_training_file_is_whole(small_run):
    """Annotated paths of M0, the correct ones of D0, corrections of what M0 does not solve."""
    trained = rows_of("orm/train.jsonl")
    names = {"annotated.jsonl", "corrected_annotated.jsonl", "../round_0/verified.jsonl"}
    assert {row["verified_in"] for row in trained} == names
    assert {row["status"] for row in trained} == {"correct", "wrong"}
    for row in trained:
        found = by_sample(f"orm/{row['verified_in']}")[row["id"], row["sample"]]
        assert row["messages"][0]["content"].endswith(common.judge_prompt(found))
        assert row["status"] == found["status"]
        assert row["status"] == "correct" or found["teacher_check"] == "wrong"


def recipes(folder: Path) -> dict[str, str]:
    return {str(path): path.read_text() for path in folder.rglob("*recipe.json")}


@pytest.mark.parametrize("output", ["round_1/samples.jsonl", "orm/model"])
def test_the_same_stage_by_hand_has_nothing_to_do(small_run, run, output):
    """The recipe of a run's stage, its code included, is that of the command that it names."""
    path = FOLDER / output
    recipe = path / "recipe.json" if path.is_dir() else Path(f"{path}.recipe.json")
    _, *words = shlex.split(json.loads(recipe.read_text())["command"])
    done = run(*words)
    assert done.stdout == f"skip runs/test-loop/{output}\n", done.stdout + done.stderr


@pytest.mark.parametrize(
    "changed, said",
    [
        ({"ROUNDS": "2"}, "input was 2 files, is 3"),  # of final/: said before round 2 is made
        ({"SEED": "1"}, "seed was 0, is 1"),
    ],
)
def test_other_settings_are_refused_by_name_before_anything_runs(small_run, run, changed, said):
    before = recipes(FOLDER)
    other = run("run_rounds.sh", RUN="test-loop", **(SMALL | changed))
    assert one_line(other, said) and not other.stdout and recipes(FOLDER) == before


def test_a_run_folder_that_was_moved_is_gone_on_with(small_run, run, tmp_path):
    """Its files name images by their way from where they lay."""
    far = tmp_path / "far" / "away"
    shutil.copytree(FOLDER, far)
    flags = ["--input", far / "round_1" / "verified.jsonl", "--model", "toy/base"]
    done = run("03_reflect.py", *flags, "--output", tmp_path / "r.jsonl", "--limit", 1, "--max-tokens", 4)
    assert done.returncode == 0, done.stderr
    (row,) = read_rows(tmp_path / "r.jsonl")
    image = tmp_path / row["images"][0]
    assert image.resolve() == (ROOT / "toy" / "images").resolve() / image.name


def test_force_makes_anew_what_depends_on_a_setting_and_another_call_only_skips(small_run, run):
    """The ORM, too, accepts reflections: it learns from the last round, which what judges them tells; what
    all this reads stays byte for byte as it was.
    """
    folder, settings = ROOT / "runs/test-force", SMALL | {"RUN": "test-force", "REFLECT_ACCEPT": "both"}
    settings |= {"ORM_UPDATE": "every"}
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(FOLDER, folder)
    try:
        texts = {path: path.read_bytes() for path in folder.rglob("*.jsonl")}
        done = run("run_rounds.sh", FORCE="1", **settings)
        assert done.returncode == 0, done.stderr
        made = re.findall(r"^\+ python .*--output runs/test-force/(\S+)", done.stdout, re.MULTILINE)
        steps = ["verified.jsonl", "model", "eval", "eval/errors.jsonl"]
        assert made == ["round_1/annotated.jsonl", "orm_1/model", *(f"final/{step}" for step in steps)]
        learnt = json.loads((folder / "orm_1/model/recipe.json").read_text())["inputs"]["input"]
        assert "runs/test-force/round_1/annotated.jsonl" in [source["name"] for source in learnt]
        judge = json.loads((folder / "final/verified.jsonl.recipe.json").read_text())["inputs"]["model"]
        assert judge[0]["name"] == "runs/test-force/orm_1/model"
        edited = [path.relative_to(folder) for path, text in texts.items() if path.read_bytes() != text]
        assert {path.parts[0] for path in edited} <= {"final"}
        before = recipes(folder)
        again = run("run_rounds.sh", **settings)
        lines = again.stdout.split("\n\n")[0].splitlines()
        assert len(lines) == len(before) == 25 and all(line.startswith("skip ") for line in lines), lines
        assert again.returncode == 0 and not again.stderr and recipes(folder) == before
        assert "report: runs/test-force/report.html" in again.stdout
    finally:
        shutil.rmtree(folder, ignore_errors=True)
