"""Where problems come from: files, benchmarks in their own form, data sets of the hub; bad sources end the
command in one line; a source is read whole, also when a call is killed.
"""

import json
import sys

import pytest
from conftest import ROOT, read_rows, write_rows
from PIL import Image
from server import Server, completion
from test_bad_input import problem, refused
from test_rows import PHOTOGRAPH
from test_tables import write_table

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


SOURCES = {  # rows in DATA, what they are called beside blank images ("": they have theirs), their number
    "mathvista": ("benchmark_rows/mathvista_rows.jsonl", "testmini.jsonl", 42),
    "mathverse": ("benchmark_rows/mathverse_text_only_rows.jsonl", "testmini_text_only.jsonl", 40),
    "mathvision": ("mathv_testmini/problems.jsonl", "", 304),
}


@pytest.mark.parametrize("name", SOURCES)
def test_rows_of_the_sources(name, tmp_path):
    """Every row becomes a problem whose reference answer our answer check and the benchmark's rule accept."""
    file, target, count = SOURCES[name]
    if not (DATA / file).exists():
        pytest.skip("no rows of the source here")
    if target:
        (tmp_path / target).write_bytes((DATA / file).read_bytes())
    for row in read_rows(DATA / file):
        if target and row["image"]:
            blank(tmp_path / row["image"])
    rows = load(name, tmp_path if target else (DATA / file).parent)
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


def test_a_benchmark_as_a_data_set(tmp_path):
    """As the hub has it: the image in a column."""
    one = MATHV | {"decoded_image": Image.new("RGB", (20, 10), "red")}
    other = {"id": "2", "question": "<image1> or <image2>?", "options": ["A", "B"], "answer": "B"}
    write_table(tmp_path, "hf", [one, one | other])
    (tmp_path / "set" / "train.parquet").rename(tmp_path / "set" / "testmini.parquet")
    configs = "- config_name: default\n  data_files:\n  - split: testmini\n    path: testmini.parquet"
    (tmp_path / "set" / "README.md").write_text(f"---\nconfigs:\n{configs}\n---\n")
    rows = load("mathvision", tmp_path / "set")
    assert [row["question"] for row in rows] == ["How many?", "<image1> or <image2>?"]
    assert [row["options"] for row in rows] == [[], ["A", "B"]]
    assert [Image.open(row["images"][0]).size for row in rows] == [(20, 10)] * 2


def test_hub_rows_write_images_once(tmp_path, call):
    image, fields, made = Image.new("RGB", (20, 10)), "question=problem images=decoded_image", []
    rows = [{"problem": text, "answer": "1", "decoded_image": image} for text in ("one <image>", "two")]
    source = write_table(tmp_path, "hf", rows)
    for place in (tmp_path / "here", tmp_path / "there/deeper"):
        call("--fields", fields, source=source, output=place / "problems.jsonl")
        made.append(read_rows(place / "problems.jsonl"))
        assert len(list((place / "images").iterdir())) == 1
    assert made[0] == made[1]  # the ids too, though the data set has none
    assert [row["question"] for row in made[0]] == ["one <image>", "two"]
    assert made[0][0]["images"] == made[0][1]["images"] and not made[0][0]["images"][0].startswith("/")


def test_a_folder_of_parquet_files(folder):
    (folder / "set" / "data").mkdir(parents=True)
    for number in range(2):
        image = {"bytes": (folder / "x.png").read_bytes(), "path": "x.png"}
        write_table(folder, "parquet", [{"question": f"{number}?", "answer": number, "image": image}])
        part = f"train-0000{number}-of-00002.parquet"
        (folder / "rows.parquet").rename(folder / "set" / "data" / part)
    name, rows = read(str(folder / "set"), folder / "images", images=["image"])
    assert name == "set" and [(row["question"], row["answer"]) for row in rows] == [("0?", 0), ("1?", 1)]
    assert len({row["images"][0] for row in rows}) == 1


# ---------------------------------------------------------------- bad sources


BAD_SOURCES = {  # (benchmark, a file in its folder, None without a folder, what the file holds, words)
    "no path": ("mathvision", None, "", "no folder (none given); write mathvision:PATH"),
    "an empty folder": ("mathvista", "", "",
                        "none of testmini.json, testmini.jsonl, test.json in it; give the folder"),
    "broken line": ("mathvision", "test.jsonl", "{", "test.jsonl:1: not a JSON object"),
    "broken file": ("mathvista", "testmini.json", "{", "testmini.json: not JSON"),
    "a list of numbers": ("mathvista", "testmini.json", "[1, 2]", "json:1: a int instead of a row"),
    "a field of the source is missing": ("mathvision", "test.jsonl", {"id": "1"},
                                         ":1: KeyError('question'): the row is not in the source's own form"),
    "a field of another type": ("mathvista", "testmini.json", [{"precision": "x"}], ":1: ValueError"),
    "metadata is null": ("mathverse", "testmini.json", [VERSE | {"metadata": None}], ":1: TypeError"),
    "missing image": ("mathvision", "test.jsonl", MATHV | {"image": "no.png"}, ":1: images: "),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD_SOURCES)
def test_bad_sources(folder, capsys, case):
    name, file, content, words = BAD_SOURCES[case]
    if file:
        (folder / file).write_text(content if isinstance(content, str) else json.dumps(content))
    spec = f"{name}:" if file is None else f"{name}:{folder}"
    refused(capsys, lambda: read(spec, folder / "images"), words)


# ---------------------------------------------------------------- the command


@pytest.fixture
def call(tmp_path, monkeypatch):
    """Call the command in this process, by default on p.jsonl, with out.jsonl as output."""

    def run(*flags: object, source=tmp_path / "p.jsonl", output=tmp_path / "out.jsonl") -> None:
        words = ["--input", source, "--output", output, *flags]
        monkeypatch.setattr(sys, "argv", ["mathse.problems", *map(str, words)])
        command.main()

    return run


def test_an_image_that_cannot_be_decoded_ends_the_import(folder, capsys, call):
    """The stages look at headers only; this, the first step of a run, decodes every image once."""
    (folder / "cut.jpg").write_bytes(PHOTOGRAPH[:-900])
    write_rows(folder / "p.jsonl", [problem(id="fine"), problem(images=["cut.jpg"])])
    refused(capsys, call, "p.jsonl:2: images: ", "cannot be decoded", "repair the file or remove the row")
    assert not list(folder.glob("out.jsonl*"))
    write_rows(folder / "p.jsonl", [problem(id="fine")])  # the mended call is not refused
    call()
    assert [row["id"] for row in read_rows(folder / "out.jsonl")] == ["fine"]


def test_image_paths_are_relative_to_the_file_in_a_linked_folder_too(folder, call):
    write_rows(folder / "p.jsonl", [problem(images=["x.png", str(folder / "x.png")])])
    (folder / "disk" / "runs").mkdir(parents=True)
    (folder / "linked").symlink_to(folder / "disk" / "runs")
    for place, way in (("deeper", "../x.png"), ("linked", "../../x.png")):
        call(output=folder / place / "out.jsonl")
        assert read_rows(folder / place / "out.jsonl")[0]["images"] == [way] * 2


def test_limit_holds_for_the_input_and_each_test_set(folder, call):
    rows = [problem(id=str(number), question=f"{number} + 1?", images=[]) for number in range(6)]
    write_rows(folder / "p.jsonl", rows)
    write_rows(folder / "t.jsonl", rows[1:])
    call("--limit", 3, "--test", folder / "t.jsonl")  # 0, 1, 2 without 1, 2, 3
    assert [row["id"] for row in read_rows(folder / "out.jsonl")] == ["0"]


def test_a_dry_run_checks_and_writes_nothing(folder, capsys, call):
    write_rows(folder / "p.jsonl", [problem()])
    before = sorted(folder.iterdir())
    call("--dry-run", 0, "--test", folder / "p.jsonl")
    assert sorted(folder.iterdir()) == before
    assert capsys.readouterr() == ("    1 rows, 0 with a solution\n", "")
    refused(capsys, lambda: call("--dry-run", 0, "--test", folder / "no.jsonl"), "no.jsonl: no such file")
    words = "--fields: x: not a field of a problem; they are id, question"
    refused(capsys, lambda: call("--dry-run", 0, "--fields", "x=y"), words)


@pytest.mark.parametrize("flags", [[], ["--fields", "images="], ["--limit", 2]])
def test_a_table_in_which_no_row_has_a_picture_is_refused(tmp_path, capsys, call, flags):
    """Its column was not found; without pictures on purpose is fine."""
    rows = [{"question": f"{k} + 1?", "answer": "2"} for k in range(2)]
    table = write_table(tmp_path, "parquet", rows)
    if "images=" in flags:
        return call(*flags, source=table)
    refused(capsys, lambda: call(*flags, source=table), "images: none of 2 rows has a picture")
