"""An output carries its recipe: the same one is skipped, another one is refused by name or made anew
with --force.
"""

import fcntl
import json
from functools import partial
from pathlib import Path

import pytest
from conftest import ROOT, one_line, read_rows, write_rows
from server import Server, good

from mathse import recipe

SAMPLE = {"question": "What?", "images": [], "answer": "1", "finish": "stop"}


@pytest.fixture
def samples(tmp_path):
    rows = [SAMPLE | {"id": f"p{k}", "sample": 0, "response": f"The answer is {k % 2}."} for k in range(4)]
    return write_rows(tmp_path / "samples.jsonl", rows)


@pytest.fixture
def verify(samples, run):
    """02_verify.py on the samples again; its output stands, v.jsonl beside them."""
    words = ["--input", samples, "--output", samples.parent / "v.jsonl", "--accept", "answer"]
    assert run("02_verify.py", *words).returncode == 0
    return partial(run, "02_verify.py", *words)


def test_the_same_recipe_is_skipped(verify, samples):
    made = json.loads((samples.parent / "v.jsonl.recipe.json").read_text())
    assert made["stage"] == "02_verify.py" and made["flags"]["accept"] == "answer" and made["rows"] == 4
    names = {"command", "versions", "git_commit", "seconds", "tokens", "folder"}
    assert names <= made.keys()
    output = samples.parent / "v.jsonl"
    without_effect = (), ("--timeout", 2, "--force"), ("--temperature", 1, "--max-tokens", 9)  # no model
    for flags in without_effect:
        assert verify(*flags).stdout == f"skip {output}\n"
    assert not list(samples.parent.glob("*.part"))


def test_another_flag_is_refused_by_name_and_made_with_force(verify, samples):
    done = verify("--limit", 2)
    assert one_line(done, "v.jsonl: was made with other settings: limit was 0, is 2", "--force")
    assert len(read_rows(samples.parent / "v.jsonl")) == 4
    assert verify("--limit", 2, "--force").returncode == 0 and len(read_rows(samples.parent / "v.jsonl")) == 2
    assert one_line(verify(), "limit was 2, is 0")


def test_an_input_with_another_content_is_refused_by_name(verify, samples):
    samples.write_text(samples.read_text().replace("answer is 0", "answer is 7"))
    assert one_line(verify(), f"input {samples} has another content")
    assert verify("--force").returncode == 0 and verify().stdout.startswith("skip ")


def test_an_output_without_a_recipe_is_nobodys_to_overwrite(verify, samples):
    (samples.parent / "v.jsonl").write_text("mine\n")
    (samples.parent / "v.jsonl.recipe.json").unlink()
    assert one_line(verify(), "stands there, but not how it was made")
    assert (samples.parent / "v.jsonl").read_text() == "mine\n"
    assert verify("--force").returncode == 0 and len(read_rows(samples.parent / "v.jsonl")) == 4


def test_an_unfinished_output_is_not_gone_on_with_by_another_recipe(samples, run, tmp_path):
    server = Server(good, seconds=0.0)
    flags = ["--input", samples, "--output", tmp_path / "s.jsonl", "--model", server.spec]
    assert run("01_sample.py", *flags, "--max-requests", 2, "--concurrency", 1).returncode == 3
    other = run("01_sample.py", *flags, "--top-p", 0.5)
    assert one_line(other, "s.jsonl.part: was made", "top_p was 1.0, is 0.5")
    assert server.count == 2
    done = run("01_sample.py", *flags, "--top-p", 0.5, "--force")
    assert done.returncode == 0 and server.count == 6 and len(read_rows(tmp_path / "s.jsonl")) == 4
    made = json.loads((tmp_path / "s.jsonl.recipe.json").read_text())
    assert made["tokens"] == [28, 12]


def test_the_same_model_at_another_address_is_the_same(samples, run, tmp_path):
    """A server has another port each time; another model behind it is another one."""
    flags = ["--input", samples, "--output", tmp_path / "s.jsonl", "--model"]
    one, other = Server(good, seconds=0.0), Server(good, seconds=0.0)
    assert run("01_sample.py", *flags, one.spec).returncode == 0
    assert run("01_sample.py", *flags, other.spec).stdout.startswith("skip ") and other.count == 0
    assert one_line(run("01_sample.py", *flags, other.spec.replace("#m", "#n")), "model was", "#n")


COMMON = """
def load(spec):
    \"\"\"A docstring.\"\"\"
    return LIMIT  # a comment


LIMIT = 5
PROMPT = f"Solve {LIMIT}."
OTHER = "of another stage"
BY_MODULE: str = 'a'
RENAMED = 1


def solve(row):
    return PROMPT
"""
STAGE = """
import common
from common import RENAMED as name, load, solve


class Draft:
    def text(self):
        return solve(self)


def decide():
    return 1


def main():
    print(load)  # not before
    decide()
    return common.BY_MODULE
"""


@pytest.mark.parametrize(
    "file, old, new, noticed",
    [
        ("stage", "return solve(self)", "return solve(self) + '!'", True),  # a method
        ("stage", "print(load)", "print(load, 1)", True),  # main() itself
        ("common", "Solve", "Answer", True),  # a constant that a function which the stage names names
        ("common", "LIMIT = 5", "LIMIT = 6", True),
        ("common", "return PROMPT", "return PROMPT + row", True),
        ("common", "BY_MODULE: str = 'a'", "BY_MODULE: str = 'b'", True),  # common.X, and with its type
        ("common", "RENAMED = 1", "RENAMED = 2", True),
        ("common", "of another stage", "edited", False),
        ("common", "a comment", "another", False),
        ("common", "A docstring.", "Another.", False),
        ("stage", "return 1", "return 2", False),  # of what this call does not use
        ("stage", "# not before", "", False),
        ("stage", "print(load)", "print(\n        load\n    )", False),
    ],
)
def test_every_edit_of_a_stage_and_of_what_it_takes_from_common_is_noticed(
    tmp_path, monkeypatch, file, old, new, noticed
):
    paths = {"stage": tmp_path / "stage.py", "common": tmp_path / "common.py"}
    monkeypatch.setattr(recipe, "COMMON", paths["common"])
    paths["stage"].write_text(STAGE)
    paths["common"].write_text(COMMON)
    before = recipe.code_digest(paths["stage"], ["decide"])
    assert old in paths[file].read_text()
    paths[file].write_text(paths[file].read_text().replace(old, new))
    assert (recipe.code_digest(paths["stage"], ["decide"]) != before) == noticed


def test_an_edit_of_the_orms_prompt_asks_no_teacher_again(stage, tmp_path, monkeypatch):
    module, common = stage("02_verify"), tmp_path / "common.py"
    halves = module.VERIFYING, module.ANNOTATING, stage("04_finetune").OF_ORMS
    assert all(hasattr(module, name) for name in halves[0] + halves[1])
    monkeypatch.setattr(recipe, "COMMON", common)
    found = []
    for words in ("Check every step", "Check each step"):
        common.write_text((ROOT / "common.py").read_text().replace("Check every step", words))
        calls = zip(("02_verify.py", "02_verify.py", "04_finetune.py"), halves)
        found.append([recipe.code_digest(ROOT / script, unused) for script, unused in calls])
    assert [one == other for one, other in zip(*found)] == [True, False, True]


def test_an_edited_stage_is_refused_in_words(verify, samples, tmp_path):
    path = samples.parent / "v.jsonl.recipe.json"
    made = json.loads(path.read_text())
    (name,) = (name for name in made["constants"] if "code" in name)
    made["constants"][name] = "another"
    path.write_text(json.dumps(made))
    assert one_line(verify(), "the code of 02_verify.py or common.py was edited")


def test_another_answer_check_is_noticed(samples, tmp_path, stage, monkeypatch, capsys):
    """Verdicts of an edited mathse/answers, or of another math-verify, are not those that stand there."""
    module = stage("02_verify")
    flags = ["--input", samples, "--output", tmp_path / "v.jsonl", "--accept", "answer"]
    monkeypatch.setattr("sys.argv", ["02_verify.py", *map(str, flags)])
    module.main()
    monkeypatch.setattr(module, "check_version", lambda: "another")
    with pytest.raises(SystemExit):
        module.main()
    assert "answer check was edited" in capsys.readouterr().err


def test_what_force_replaces_stays_until_it_is_replaced(samples, run, tmp_path):
    """An edit that is forced, interrupted and undone costs nothing; not undone, it goes on."""
    server = Server(good, seconds=0.0)
    flags = ["--input", samples, "--output", tmp_path / "s.jsonl", "--model", server.spec]
    assert run("01_sample.py", *flags).returncode == 0
    before, limit = (tmp_path / "s.jsonl").read_text(), ["--max-requests", 2, "--concurrency", 1]
    assert run("01_sample.py", *flags, "--top-p", 0.5, "--force", *limit).returncode == 3
    assert (tmp_path / "s.jsonl").read_text() == before
    for undone in (True, False):
        count = server.count
        if undone:
            assert run("01_sample.py", *flags).stdout.startswith("skip ") and server.count == count
            assert run("01_sample.py", *flags, "--top-p", 0.5, "--force", *limit).returncode == 3
        else:
            assert run("01_sample.py", *flags, "--top-p", 0.5).returncode == 0 and server.count == count + 2
    assert one_line(run("01_sample.py", *flags), "top_p was 0.5, is 1.0")


def test_a_dry_run_refuses_what_would_be_refused(verify, samples):
    assert "4 rows: about 0 model calls" in verify("--dry-run").stdout
    assert one_line(verify("--limit", 2, "--dry-run"), "limit was 0, is 2")
    assert verify("--limit", 2, "--dry-run", "--force").returncode == 0
    samples.unlink()  # an earlier stage makes it again
    assert verify("--dry-run", 7).returncode == 0


def test_force_removes_nothing_that_no_stage_made(samples, run):
    """A folder of somebody's files; an input that is the output, or lies in it."""
    folder = samples.parent / "precious"
    folder.mkdir()
    (folder / "mine.txt").write_text("mine")
    flags = ["02_verify.py", "--accept", "answer", "--force"]
    (samples.parent / "empty").mkdir()
    foreign, own = "a folder that no stage made", f"--input: {samples}: is the output too"
    outputs = {folder: foreign, samples.parent / "empty": foreign, samples: own, samples.parent: own}
    for output, said in outputs.items():
        assert one_line(run(*flags, "--input", samples, "--output", output), said)
    assert (folder / "mine.txt").read_text() == "mine" and len(read_rows(samples)) == 4


def test_a_skip_leaves_what_another_call_has_begun(verify, samples):
    """Its recipe is another one, and it is at work."""
    part = samples.parent / "v.jsonl.part"
    part.mkdir()
    with (part / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert one_line(verify(), "is being written by another process") and part.exists()
    assert verify().stdout.startswith("skip ") and not part.exists()


# ---------------------------------------------------------------- fingerprints


def test_a_folder_is_its_content(tmp_path):
    """Not the names and sizes of its files; what tells times is not part of it."""
    (tmp_path / "model").mkdir()
    for name in ("config.json", "model.safetensors", "recipe.json", "train_log.jsonl"):
        (tmp_path / "model" / name).write_text("0123456789")
    found = {recipe.fingerprint(str(tmp_path / "model"))}
    (tmp_path / "model" / "recipe.json").write_text("another")
    (tmp_path / "model" / "train_log.jsonl").write_text("another")
    assert {recipe.fingerprint(str(tmp_path / "model"))} == found
    (tmp_path / "model" / "model.safetensors").write_text("0123456780")
    found.add(recipe.fingerprint(str(tmp_path / "model")))
    (tmp_path / "model" / "config.json").write_text("012345678X")
    found.add(recipe.fingerprint(f"mathvision:{tmp_path / 'model'}"))
    assert len(found) == 3 and recipe.fingerprint(f"mathvision:{tmp_path / 'model'}") in found
    for output in ("eval", "eval.jsonl", "evals/one"):  # what lies in it itself
        place = tmp_path / "model" / output
        before = recipe.fingerprint(str(tmp_path / "model"), place)
        place.parent.mkdir(exist_ok=True)
        for path in (place, Path(f"{place}.recipe.json")):
            path.write_text("new")
        assert recipe.fingerprint(str(tmp_path / "model"), place) == before
        assert recipe.fingerprint(str(tmp_path / "model"), tmp_path / "elsewhere") != before
    alike, output = tmp_path / "model" / "eval.json", tmp_path / "model" / "eval"  # an input all the same
    alike.write_text("one")
    before = recipe.fingerprint(str(tmp_path / "model"), output)
    alike.write_text("other")
    assert recipe.fingerprint(str(tmp_path / "model"), output) != before


def test_large_weights_are_told_apart_by_blocks(tmp_path, monkeypatch):
    """A change of the start, the middle or the end; and nearly all of a file trained anew changes."""
    monkeypatch.setattr(recipe, "BLOCKS", 8)
    monkeypatch.setattr(recipe, "BLOCK", 100)
    path, whole, found = tmp_path / "a.safetensors", bytearray(range(256)) * 40, set()
    for place in (None, 0, 5000, len(whole) - 1):
        changed = bytearray(whole)
        if place is not None:
            changed[place : place + 1500] = bytes(1500)[: len(whole) - place]
        path.write_bytes(changed)
        found.add(recipe.content_of(path))
    assert len(found) == 4
    path.write_bytes(whole + b"\0")
    assert recipe.content_of(path) not in found


def test_a_spec_that_is_no_file_is_its_text(tmp_path):
    texts = {name: name for name in ("owner/model", "hf:a/b:train")} | {"http://127.0.0.1:8000/v1#m": "#m"}
    assert {name: recipe.fingerprint(name) for name in texts} == texts
