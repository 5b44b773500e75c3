"""Where problems come from: files, benchmarks in their own form, data sets of the hub; bad sources end the
command in one line; a source is read whole, also when a call is killed.
"""

import json
import sys

import datasets
import pyarrow
import pytest
from conftest import ROOT, read_rows, write_rows
from PIL import Image
from pyarrow import parquet
from server import Server, completion
from test_bad_input import problem, refused
from test_rows import PHOTOGRAPH

import mathse.problems.__main__ as command
from mathse import problems
from mathse.answers import check_rows
from mathse.chat import question_text

DATA = ROOT.parent / "shared" / "data"


def load(name, folder):
    return read(f"{name}:{folder}", folder)[1]


def read(spec: str, folder, **fields) -> tuple[str, list[dict]]:
    """(name, problems) of a source, its images saved in a folder."""
    name, rows = problems.open_source(spec, folder, fields, 0)
    return name, [row for _, row in rows]


def blank(path):
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", (9, 9)).save(path)


@pytest.fixture
def folder(tmp_path):
    """A folder with two sound images, x.png and images/x.png."""
    blank(tmp_path / "x.png")
    blank(tmp_path / "images/x.png")
    return tmp_path


# ---------------------------------------------------------------- benchmarks


MATHV = {
    "id": "1", "question": "How many?\n<image1>", "image": "x.png", "options": [], "answer": "6",
    "subject": "counting", "level": 1, "solution": None,
}  # fmt: skip
VISTA = {
    "question": "How long?", "image": "images/x.png", "choices": None, "unit": "cm", "precision": 1.0,
    "answer": "2.5", "question_type": "free_form", "answer_type": "float", "pid": "7",
    "metadata": {"task": "geometry problem solving", "grade": "high school", "source": "GEOS"},
}  # fmt: skip
VERSE = {
    "sample_index": "3", "problem_index": "1", "problem_version": "Text Lite", "image": "x.png",
    "question": "Find x.\nChoices:\nA:4 cm\nB:5", "answer": "B",
    "metadata": {"subject": "Plane Geometry", "subfield": "Angle"},
}  # fmt: skip


def test_mathvision_rows(folder):
    several = MATHV | {"id": "2", "question": "<image1> or <image2>?", "options": ["A", "B"], "answer": "A"}
    write_rows(folder / "testmini.jsonl", [MATHV, several])
    first, second = load("mathvision", folder)
    assert first["question"] == "How many?" and second["question"] == "<image1> or <image2>?"


def test_mathvista_rows(folder):
    choice = {"answer_type": "text", "question_type": "multi_choice", "choices": ["2", "3"], "answer": "3"}
    rows = {"7": VISTA, "8": VISTA | choice | {"pid": "8", "unit": None, "precision": None}}
    (folder / "testmini.json").write_text(json.dumps(rows))
    row, other = load("mathvista", folder)
    assert row["question"].startswith("How long? (Unit: cm)\nHint: ")
    assert "one decimal place" in row["question"] and row["precision"] == 1
    assert row["subject"] == "geometry problem solving"
    assert row["query"].endswith("\nQuestion: How long? (Unit: cm)")
    assert other["question"] == "How long?" and "option letter" in other["query"]
    assert other["query"].endswith("Question: How long?\nChoices:\n(A) 2\n(B) 3")


def test_mathverse_rows(folder):
    rows = verse_versions()
    (folder / "testmini.json").write_text(json.dumps(rows))
    text_only = {"problem_version": "Text Only", "image": "", "question": "A bearing?", "answer": "118掳T"}
    write_rows(folder / "testmini_text_only.jsonl", [VERSE | text_only])
    found = load("mathverse", folder)
    assert [row["source"] for row in found] == [*(row["problem_version"] for row in rows), "Text Only"]
    assert len({row["id"] for row in found}) == 6
    assert (found[1]["question"], found[1]["options"]) == ("Find x.", ["4 cm", "5"]) and found[4]["question"]
    assert not found[5]["images"] and found[5]["answer"] == "118°T"


def verse_versions() -> list[dict]:
    """A problem of MathVerse in its five versions; Vision Only has neither question nor choices."""
    versions = ["Text Dominant", "Text Lite", "Vision Intensive", "Vision Dominant", "Vision Only"]
    rows = [VERSE | {"problem_version": name, "question_type": "multi-choice"} for name in versions]
    rows[-1]["question"] = ""
    return rows


@pytest.mark.parametrize("case", ["in order", "Vision Only first", "Vision Only alone", "no choices"])
def test_every_version_of_a_mathverse_problem_has_its_choices(folder, case):
    """The answer check reads an option's text in all versions; a prompt tells only what its version tells."""
    rows = verse_versions()
    rows += [row | {"problem_index": "2", "question": row["question"].replace("5", "7")} for row in rows]
    if case == "Vision Only first":
        rows.reverse()
    if case in ("Vision Only alone", "no choices"):
        rows = [rows[4] | {"question_for_eval": VERSE["question"] if case != "no choices" else ""}]
    (folder / "testmini.json").write_text(json.dumps(rows))
    found = {row["id"]: row for row in load("mathverse", folder)}
    assert len(found) == len(rows)
    if case == "no choices":
        (row,) = found.values()
        assert row["options"] == [] and row["answer"] == "B" and "options_drawn" not in row
        return
    for name, row in found.items():
        assert row["options"] == ["4 cm", "7" if "/2/" in name else "5"]
        assert ("Choices" in question_text(row)) == ("vision-only" not in name)
    row = found["mathverse/1/vision-only"]
    said = [row | {"response": f"The answer to this problem is {text}."} for text in ("5", "4 cm", "B")]
    checks = [result["answer_check"] for result in check_rows(said)]
    assert checks == ["correct", "wrong", "correct"]


def test_the_benchmarks_own_prompt(folder, run):
    """05_evaluate.py asks with it, and scores by the benchmark's rule and splits."""
    write_rows(folder / "testmini.jsonl", [MATHV | {"options": ["3", "6"], "answer": "B"}])
    server = Server(lambda number, body: (200, completion("\\boxed{B}"), {}))
    flags = ["--output", folder / "eval", "--model", server.spec, "--prompt", "benchmark"]
    done = run("05_evaluate.py", "--test", f"mathvision:{folder}", *flags)
    assert done.returncode == 0, done.stderr
    text = server.seen[0][1]["messages"][0]["content"][1]["text"]
    assert text.startswith("Please solve the problem step by step and put your answer in one")
    assert "(A) 3\n(B) 6" in text and "expert" not in text
    metrics = json.loads((folder / "eval" / "metrics.json").read_text())
    figures = metrics["benchmarks"]["mathvision"]
    assert metrics["conditions"]["prompt"] == "benchmark"
    assert figures["official"]["accuracy"] == 1 and figures["splits"]["level"]["1"]["n"] == 1


RULED = [  # response, answer, options, whether it is right
    ("So the answer is (B).", "B", ["3", "4"], True),
    ("\\boxed{4}", "B", ["3", "4"], True),  # the option's value
    ("\\boxed{4.0}", "B", ["3", "4"], True),
    ("\\boxed{3}", "B", ["3", "4"], False),
    ("\\boxed{\\frac{7}{3}}", "7/3", [], True),
    ("The answer is 12. I am sure.", "12", [], True),
    ("The area is 2.504", "2.5", [], True),
    ("\\boxed{72 \\mathrm{~cm}}", "72", [], False),  # right, but not to this rule
    ("\\boxed{\\text{(A) } 3}", "A", ["3", "4"], False),
    ("", "12", [], False),
]


@pytest.mark.parametrize("response, answer, options, right", RULED)
def test_the_rule_of_mathvision(response, answer, options, right):
    row = {"response": response, "answer": answer, "options": options, "question": ""}
    assert problems.RULES["mathvision"](row) == right


def place_source(name, folder):
    """The folder of a benchmark whose rows lie in DATA, or None; images that are not there are made."""
    if name == "mathvision":
        there = DATA / "mathv_testmini"
        return there if there.exists() else None
    file, target = {
        "mathvista": ("mathvista_rows.jsonl", "testmini.jsonl"),
        "mathverse": ("mathverse_text_only_rows.jsonl", "testmini_text_only.jsonl"),
    }[name]
    path = DATA / "benchmark_rows" / file
    if not path.exists():
        return None
    (folder / target).write_bytes(path.read_bytes())
    for row in read_rows(path):
        if row["image"]:
            blank(folder / row["image"])
    return folder


@pytest.mark.parametrize("name, count", [("mathvista", 42), ("mathverse", 40), ("mathvision", 304)])
def test_rows_of_the_sources(name, count, tmp_path):
    """Every row becomes a problem whose reference answer our answer check and the benchmark's rule accept."""
    place = place_source(name, tmp_path)
    if place is None:
        pytest.skip("no rows of the source here")
    rows = load(name, place)
    assert len(rows) == count
    said = [row | {"response": f"The answer to this problem is {row['answer']}."} for row in rows]
    for row, result in zip(rows, check_rows(said)):
        assert result["answer_check"] == "correct", (row["question"], row["answer"], result["extracted"])
        boxed = {"response": f"\\boxed{{{row['answer']}}}"}  # the form that MATH-V's prompt asks for
        rule = problems.RULES.get(name)
        assert rule is None or rule(result | boxed), (name, row["answer"])
        for field in problems.SPLITS[name].values():
            assert row[field] is not None


# ---------------------------------------------------------------- data sets of the hub
# `datasets` reads a local folder the same way; the hub itself is not tried


def make_data_set(folder, split: str, **columns: list) -> None:
    """A data set of one split with lists of texts in `options`, images in `decoded_image`, else texts."""
    text = datasets.Value("string")
    kinds = {"decoded_image": datasets.Image(), "options": datasets.List(text)}
    features = datasets.Features({name: kinds.get(name, text) for name in columns})
    datasets.Dataset.from_dict(columns, features=features).to_parquet(folder / f"{split}.parquet")


def test_a_benchmark_as_a_data_set(tmp_path):
    """As the hub has it: the image in a column."""
    make_data_set(
        tmp_path / "set", "testmini", id=["1", "2"], question=["How many?\n<image1>", "Which?"],
        options=[[], ["A", "B"]], answer=["6", "B"], level=["1", "2"], subject=["counting", "logic"],
        image=["images/1.jpg", "images/2.jpg"],
        decoded_image=[Image.new("RGB", (20, 10), colour) for colour in ("red", "blue")],
    )  # fmt: skip
    configs = "- config_name: default\n  data_files:\n  - split: testmini\n    path: testmini.parquet"
    (tmp_path / "set" / "README.md").write_text(f"---\nconfigs:\n{configs}\n---\n")
    rows = load("mathvision", tmp_path / "set")
    assert [row["question"] for row in rows] == ["How many?", "Which?"]
    assert [row["options"] for row in rows] == [[], ["A", "B"]]
    assert [Image.open(row["images"][0]).size for row in rows] == [(20, 10)] * 2


def test_hub_rows_write_images_once(tmp_path, call):
    columns = {"problem": ["one <image>", "two"], "answer": ["1", "2"]}
    make_data_set(tmp_path / "set", "train", **columns, decoded_image=[Image.new("RGB", (20, 10), "red")] * 2)
    fields = "question=problem images=decoded_image"
    made = []
    for place in (tmp_path / "here", tmp_path / "there/deeper"):
        call("--fields", fields, source=f"hf:{tmp_path / 'set'}:train", output=place / "problems.jsonl")
        made.append(read_rows(place / "problems.jsonl"))
        assert len(list((place / "images").iterdir())) == 1
    assert made[0] == made[1]  # the ids too, though the data set has none
    assert [row["question"] for row in made[0]] == ["one <image>", "two"]
    assert made[0][0]["images"] == made[0][1]["images"] and not made[0][0]["images"][0].startswith("/")


# ---------------------------------------------------------------- parquet files


def make_table(path, **columns: list) -> str:
    """A parquet file as any program writes it; returns its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pyarrow.table(columns), path)
    return str(path)


def test_a_folder_of_parquet_files(folder):
    for number in range(2):
        image = {"bytes": (folder / "x.png").read_bytes(), "path": "x.png"}
        path = folder / "set" / "data" / f"train-0000{number}-of-00002.parquet"
        make_table(path, question=[f"{number}?"], answer=[number], image=[image])
    name, rows = read(str(folder / "set"), folder / "images", images=["image"])
    assert name == "set" and [(row["question"], row["answer"]) for row in rows] == [("0?", 0), ("1?", 1)]
    assert len({row["images"][0] for row in rows}) == 1
    name, rows = read(str(folder / "set"), folder, images=[])  # without, on purpose
    assert [row["images"] for row in rows] == [[], []]


# ---------------------------------------------------------------- bad sources


def source(name: str, file: str, content: object):
    """A benchmark's folder with one file of rows; returns its spec."""

    def make(folder) -> str:
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / file).write_text(text)
        return f"{name}:{folder}"

    return make


# name: (what makes the source, words of the message)
BAD_SOURCES = {
    "unknown benchmark": (lambda folder: "nobench:there", "no such file; a source is"),
    "no folder": (lambda folder: "mathvision:there", "no folder there; write mathvision:PATH"),
    "no path": (lambda folder: "mathvision:", "no folder (none given); write mathvision:PATH"),
    "an empty folder": (lambda folder: f"mathvista:{folder}",
                        "none of testmini.json, testmini.jsonl, test.json in it; give the folder"),
    "broken line": (source("mathvision", "test.jsonl", "{"), "test.jsonl:1: not a JSON object"),
    "broken file": (source("mathvista", "testmini.json", "{"), "testmini.json: not JSON"),
    "a list of numbers": (source("mathvista", "testmini.json", [1, 2]), "json:1: a int instead of a row"),
    "a field of the source is missing": (source("mathvision", "test.jsonl", {"id": "1"}),
                                         ":1: KeyError('question'): the row is not in the source's own form"),
    "no question": (source("mathvision", "test.jsonl", {"id": "1", "image": "x.png"}), ":1: KeyError"),
    "a field of another type": (source("mathvista", "testmini.json", [{"precision": "x"}]), ":1: ValueError"),
    "metadata is null": (source("mathverse", "testmini.json", [VERSE | {"metadata": None}]), ":1: TypeError"),
    "missing image": (source("mathvision", "test.jsonl", MATHV | {"image": "no.png"}), ":1: images: "),
}  # fmt: skip


@pytest.mark.parametrize("case", list(BAD_SOURCES))
def test_bad_sources(folder, capsys, case):
    make, words = BAD_SOURCES[case]
    spec = make(folder)
    refused(capsys, lambda: read(spec, folder / "images"), words)


def test_an_unknown_field_is_refused(capsys):
    words = "--fields: questoin: not a field of a problem; they are id, question"
    refused(capsys, lambda: problems.parse_fields("questoin=problem"), words)


# ---------------------------------------------------------------- the command


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Call the command in this process, by default on p.jsonl, with out.jsonl as output."""

    def run(*flags: object, source=tmp_path / "p.jsonl", output=tmp_path / "out.jsonl") -> None:
        words = ["--input", source, "--output", output, *flags]
        monkeypatch.setattr(sys, "argv", ["mathse.problems", *map(str, words)])
        command.main()

    return run


@pytest.mark.parametrize("content", [PHOTOGRAPH[:-900], PHOTOGRAPH[:700]], ids=["truncated", "half"])
def test_an_image_that_cannot_be_decoded_ends_the_import(folder, capsys, call, content):
    """The stages look at headers only; this, the first step of a run, decodes every image once."""
    (folder / "cut.jpg").write_bytes(content)
    write_rows(folder / "p.jsonl", [problem(id="fine"), problem(images=["cut.jpg"])])
    refused(capsys, call, "p.jsonl:2: images: ", "cannot be decoded", "repair the file or remove the row")
    assert not list(folder.glob("out.jsonl*"))
    write_rows(folder / "p.jsonl", [problem(id="fine")])  # the mended call is not refused
    call()
    assert [row["id"] for row in read_rows(folder / "out.jsonl")] == ["fine"]


def test_image_paths_stay_relative_to_the_file(folder, call):
    write_rows(folder / "p.jsonl", [problem(images=["x.png", str(folder / "x.png")])])
    call(output=folder / "deeper" / "out.jsonl")
    assert read_rows(folder / "deeper" / "out.jsonl")[0]["images"] == ["../x.png"] * 2


def test_limit_holds_for_the_input_and_each_test_set(folder, call):
    rows = [problem(id=str(number), question=f"{number} + 1?", images=[]) for number in range(6)]
    write_rows(folder / "p.jsonl", rows)
    write_rows(folder / "t.jsonl", rows[1:])
    call("--limit", 3, "--test", folder / "t.jsonl")  # 0, 1, 2 without 1, 2, 3
    assert [row["id"] for row in read_rows(folder / "out.jsonl")] == ["0"]


def test_the_output_may_not_be_an_input(folder, capsys, call):
    path = write_rows(folder / "out.jsonl", [problem()])
    write_rows(folder / "p.jsonl", [problem()])
    refused(capsys, lambda: call("--force", "--test", path), "--test: ", "out.jsonl: is the output too")
    assert read_rows(path) == [problem()]


def test_a_dry_run_checks_and_writes_nothing(folder, capsys, call):
    write_rows(folder / "p.jsonl", [problem()])
    before = sorted(folder.iterdir())
    call("--dry-run", 0, "--test", folder / "p.jsonl")
    assert sorted(folder.iterdir()) == before
    assert capsys.readouterr() == ("    1 rows, 0 with a solution\n", "")
    refused(capsys, lambda: call("--dry-run", 0, "--test", folder / "no.jsonl"), "no.jsonl: no such file")
    refused(capsys, lambda: call("--dry-run", 0, "--fields", "x=y"), "--fields: x: not a field")


@pytest.mark.parametrize("flags", [[], ["--fields", "images="], ["--limit", 2]])
def test_a_table_in_which_no_row_has_a_picture_is_refused(tmp_path, capsys, call, flags):
    """Its column was not found; without pictures on purpose is fine."""
    table = make_table(tmp_path / "train.parquet", question=["1 + 1?", "2 + 1?"], answer=["2", "3"])
    if "images=" in flags:
        return call(*flags, source=table)
    refused(capsys, lambda: call(*flags, source=table), "images: none of 2 rows has a picture")
