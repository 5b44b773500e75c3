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
from test_bad_input import refused

from mathse import recipe

SAMPLE = {"question": "What?", "images": [], "answer": "1", "finish": "stop"}
LIMITED = "--max-requests", 2, "--concurrency", 1


@pytest.fixture
def samples(tmp_path):
    rows = [SAMPLE | {"id": f"p{k}", "sample": 0, "response": f"The answer is {k % 2}."} for k in range(4)]
    return write_rows(tmp_path / "samples.jsonl", rows)


@pytest.fixture
def output(samples):
    """Where verify() and sample() write."""
    return samples.parent / "out.jsonl"


@pytest.fixture
def verify(samples, output, stage, call, capsys):
    """02_verify.py on the samples, again, in this process: what it prints, or that it ends in `error`."""

    def again(*flags, error=None):
        if error:
            return refused(capsys, lambda: again(*flags), error)
        words = "--input", samples, "--output", output, "--accept", "answer"
        call(stage("02_verify").main, *words, *flags)
        return capsys.readouterr().out

    again()
    return again


@pytest.fixture
def sample(samples, output, run):
    """01_sample.py on the samples' problems, and the server that it asks."""
    server = Server(good, seconds=0.0)
    words = "--input", samples, "--output", output, "--model", server.spec
    return partial(run, "01_sample.py", *words), server


def test_the_same_recipe_is_skipped(verify, output):
    made = json.loads(Path(f"{output}.recipe.json").read_text())
    assert made["stage"] == "02_verify.py" and made["flags"]["accept"] == "answer" and made["rows"] == 4
    assert {"command", "versions", "git_commit", "seconds", "tokens", "folder"} <= made.keys()
    # without effect: there is no model
    for flags in (), ("--timeout", 2, "--force"), ("--temperature", 1, "--max-tokens", 9):
        assert verify(*flags) == f"skip {output}\n"
    assert not list(output.parent.glob("*.part"))


def test_another_flag_is_refused_by_name_and_made_with_force(verify, output):
    remedy = "set it back, choose another --output, or make it anew with --force"
    verify("--limit", 2, error=f"{output}: was made with other settings: limit was 0, is 2; {remedy}")
    assert len(read_rows(output)) == 4
    verify("--limit", 2, "--force")
    assert len(read_rows(output)) == 2
    verify(error="limit was 2, is 0")


def test_an_input_with_another_content_is_refused_by_name(verify, samples):
    samples.write_text(samples.read_text().replace("answer is 0", "answer is 7"))
    verify(error=f"input {samples} has another content")
    verify("--force")
    assert verify().startswith("skip ")


def test_an_output_without_a_recipe_is_nobodys_to_overwrite(verify, output):
    output.write_text("mine\n")
    Path(f"{output}.recipe.json").unlink()
    verify(error="stands there, but not how it was made")
    assert output.read_text() == "mine\n"
    verify("--force")
    assert len(read_rows(output)) == 4


def test_an_edited_stage_is_refused_in_words(verify, output):
    path, name = Path(f"{output}.recipe.json"), "the code of 02_verify.py or common.py"
    made = json.loads(path.read_text())
    assert made["constants"].pop(name)
    path.write_text(json.dumps(made))
    verify(error=f"{name} was edited")


def test_another_answer_check_is_noticed(verify, stage, monkeypatch):
    monkeypatch.setattr(stage("02_verify"), "check_version", lambda: "another")
    verify(error="answer check was edited")


def test_an_unfinished_output_is_not_gone_on_with_by_another_recipe(sample, output):
    again, server = sample
    assert again(*LIMITED).returncode == 3
    assert one_line(again("--top-p", 0.5), "out.jsonl.part: was made", "top_p was 1.0, is 0.5")
    assert server.count == 2
    assert again("--top-p", 0.5, "--force").returncode == 0
    assert server.count == 6 and len(read_rows(output)) == 4
    assert json.loads(Path(f"{output}.recipe.json").read_text())["tokens"] == [28, 12]


def test_the_same_model_at_another_address_is_the_same(sample):
    """A server has another port each time; another model behind it is another one."""
    (again, _), other = sample, Server(good, seconds=0.0)
    assert again().returncode == 0
    assert again("--model", other.spec).stdout.startswith("skip ") and other.count == 0
    assert one_line(again("--model", other.spec.replace("#m", "#n")), "model was", "#n")


COMMON = """
PROMPT = "Solve."
OTHER = "of another stage"
BY_MODULE: str = "a"
RENAMED = 1
def solve(row):
    \"\"\"A docstring.\"\"\"
    return PROMPT
"""
STAGE = """
import common
from common import RENAMED as name, solve
class Draft:
    def text(self):
        return solve(self)
def decide():
    return 1
def main():
    decide()  # a comment
    return common.BY_MODULE
"""


@pytest.mark.parametrize(
    "file, old, new, noticed",
    [
        ("stage", "return solve(self)", "return solve(self) + '!'", True),  # a method
        ("stage", "    return common", "    return not common", True),  # main() itself
        ("common", "Solve", "Answer", True),  # a constant that a function which the stage names names
        ("common", "return PROMPT", "return PROMPT + row", True),
        ("common", 'BY_MODULE: str = "a"', 'BY_MODULE: str = "b"', True),  # common.X, and with its type
        ("common", "RENAMED = 1", "RENAMED = 2", True),
        ("common", "of another stage", "edited", False),
        ("common", "A docstring.", "Another.", False),
        ("stage", "return 1", "return 2", False),  # of what this call does not use
        ("stage", "decide()  # a comment", "decide(\n    )", False),
    ],
)
def test_every_edit_of_a_stage_and_of_what_it_takes_from_common_is_noticed(
    tmp_path, monkeypatch, file, old, new, noticed
):
    texts, digests = {"stage": STAGE, "common": COMMON}, set()
    monkeypatch.setattr(recipe, "COMMON", tmp_path / "common")
    assert old in texts[file]
    for edited in (texts, texts | {file: texts[file].replace(old, new)}):
        for name, text in edited.items():
            (tmp_path / name).write_text(text)
        digests.add(recipe.code_digest(tmp_path / "stage", ["decide"]))
    assert (len(digests) == 2) == noticed


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


def test_what_force_replaces_stays_until_it_is_replaced(sample, output):
    """An edit that is forced, interrupted and undone costs nothing; not undone, it goes on."""
    (again, server), edit = sample, ("--top-p", 0.5)
    assert again().returncode == 0
    before = output.read_text()
    assert again(*edit, "--force", *LIMITED).returncode == 3 and output.read_text() == before
    assert again().stdout.startswith("skip ") and server.count == 4 + 2
    assert again(*edit, "--force", *LIMITED).returncode == 3
    assert again(*edit).returncode == 0 and server.count == 4 + 2 + 4
    assert one_line(again(), "top_p was 0.5, is 1.0")


def test_a_dry_run_refuses_what_would_be_refused(verify, samples):
    assert "4 rows: about 0 model calls" in verify("--dry-run")
    verify("--limit", 2, "--dry-run", error="limit was 0, is 2")
    verify("--limit", 2, "--dry-run", "--force")
    samples.unlink()  # an earlier stage makes it again
    verify("--dry-run", 7)


def test_force_removes_nothing_that_no_stage_made(samples, stage, call, capsys):
    """A folder of somebody's files; an input that is the output, or lies in it."""
    precious, empty = (samples.parent / name for name in ("precious", "empty"))
    for folder in (precious, empty):
        folder.mkdir()
    (precious / "mine.txt").write_text("mine")
    flags = stage("02_verify").main, "--accept", "answer", "--force", "--input", samples, "--output"
    foreign, own = "a folder that no stage made", f"--input: {samples}: is the output too"
    for output, said in {precious: foreign, empty: foreign, samples: own, samples.parent: own}.items():
        refused(capsys, partial(call, *flags, output), said)
    assert (precious / "mine.txt").read_text() == "mine" and len(read_rows(samples)) == 4


def test_a_skip_leaves_what_another_call_has_begun(verify, output):
    """Its recipe is another one, and it is at work."""
    part = Path(f"{output}.part")
    part.mkdir()
    with (part / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        verify(error="is being written by another process")
    assert part.exists() and verify().startswith("skip ") and not part.exists()


# ---------------------------------------------------------------- fingerprints


def test_a_folder_is_its_content(tmp_path):
    """Not the names and sizes of its files; what tells times is not part of it."""
    model = tmp_path / "model"
    model.mkdir()

    def edited(name, text):
        before = recipe.fingerprint(str(model))
        (model / name).write_text(text)
        return recipe.fingerprint(str(model)) != before

    for name in ("config.json", "model.safetensors", "recipe.json", "train_log.jsonl"):
        (model / name).write_text("0123456789")
    assert not edited("recipe.json", "another") and not edited("train_log.jsonl", "another")
    assert edited("model.safetensors", "0123456780") and edited("config.json", "012345678X")
    assert recipe.fingerprint(f"mathvision:{model}") == recipe.fingerprint(str(model))


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
