"""Where problems come from: files, benchmarks in their own form, data sets of the hub; bad sources end the
command in one line; a source is read whole, also when a call is killed.
"""

import json

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


def test_mathvista_rows(folder, read):
    choice = {"answer_type": "text", "question_type": "multi_choice", "choices": ["2", "3"], "answer": "3"}
    rows = {"7": VISTA, "8": VISTA | choice | {"pid": "8", "unit": None, "precision": None}}
    (folder / "testmini.json").write_text(json.dumps(rows))
    row, other = read(f"mathvista:{folder}")
    assert row["question"].startswith("How long? (Unit: cm)\nHint: ")
    assert "one decimal place" in row["question"] and row["precision"] == 1
    assert row["subject"] == "geometry problem solving"
    assert row["query"].endswith("\nQuestion: How long? (Unit: cm)")
    assert other["question"] == "How long?" and "option letter" in other["query"]
    assert other["query"].endswith("Question: How long?\nChoices:\n(A) 2\n(B) 3")


VERSIONS = ("Text Dominant", "Text Lite", "Vision Intensive", "Vision Dominant", "Vision Only")


def versions(number: str, width: str) -> list[dict]:
    """A problem of MathVerse in its five versions; Vision Only has neither question nor choices."""
    row = VERSE | {"problem_index": number, "question": VERSE["question"].replace("5", width)}
    rows = [row | {"problem_version": name, "question_type": "multi-choice"} for name in VERSIONS]
    rows[-1]["question"] = ""
    return rows


@pytest.mark.parametrize("order", [1, -1])
def test_every_version_of_a_mathverse_problem_has_its_choices(folder, order, read):
    """The answer check reads an option's text in all versions; a prompt tells only what its version tells."""
    rows = [*versions("1", "5"), *versions("2", "7")][::order]
    (folder / "testmini.json").write_text(json.dumps(rows))
    text_only = {"problem_version": "Text Only", "image": "", "question": "A bearing?", "answer": "118掳T"}
    write_rows(folder / "testmini_text_only.jsonl", [VERSE | text_only])
    found = {row["id"]: row for row in read(f"mathverse:{folder}")}
    text_only = found.pop("mathverse/1/text-only")
    assert (text_only["source"], text_only["images"], text_only["answer"]) == ("Text Only", [], "118°T")
    assert len(found) == 10 and {row["source"] for row in found.values()} == {*VERSIONS}
    assert found["mathverse/1/text-lite"]["question"] == "Find x."
    for name, row in found.items():
        assert row["question"] and row["options"] == ["4 cm", "7" if "/2/" in name else "5"]
        assert ("Choices" in question_text(row)) == ("vision-only" not in name)
    said = [{"response": f"The answer to this problem is {text}."} for text in ("5", "4 cm", "B")]
    checked = check_rows(found["mathverse/1/vision-only"] | response for response in said)
    assert [result["answer_check"] for result in checked] == ["correct", "wrong", "correct"]


def test_vision_only_alone_has_the_choices_of_the_evaluations_text(folder, read):
    *_, row = versions("1", "5")
    for text, options in ((VERSE["question"], ["4 cm", "5"]), ("", [])):
        (folder / "testmini.json").write_text(json.dumps([row | {"question_for_eval": text}]))
        (found,) = read(f"mathverse:{folder}")
        assert (found["options"], found["answer"]) == (options, "B")
        assert ("options_drawn" in found) == bool(options) and "Choices" not in question_text(found)


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
    row = {"response": response, "answer": answer, "options": options}
    assert problems.RULES["mathvision"](row) == right


SOURCES = {  # rows in DATA, what they are called beside blank images (None: they have theirs), their number
    "mathvista": ("benchmark_rows/mathvista_rows.jsonl", "testmini.jsonl", 42),
    "mathverse": ("benchmark_rows/mathverse_text_only_rows.jsonl", "testmini_text_only.jsonl", 40),
    "mathvision": ("mathv_testmini/problems.jsonl", None, 304),
}


@pytest.mark.parametrize("name", SOURCES)
def test_rows_of_the_sources(name, tmp_path, read):
    """Every row becomes a problem whose reference answer our answer check and the benchmark's rule accept."""
    file, target, count = SOURCES[name]
    if not (DATA / file).exists():
        pytest.skip("no rows of the source here")
    if target:
        given = read_rows(DATA / file)
        write_rows(tmp_path / target, given)
        for image in filter(None, (row["image"] for row in given)):
            blank(tmp_path / image)
    rows = read(f"{name}:{tmp_path if target else (DATA / file).parent}")
    assert len(rows) == count
    said = [row | {"response": f"The answer to this problem is {row['answer']}."} for row in rows]
    for row, result in zip(rows, check_rows(said)):
        assert result["answer_check"] == "correct", (row["question"], row["answer"], result["extracted"])
        boxed = result | {"response": f"\\boxed{{{row['answer']}}}"}  # the form that MATH-V's prompt asks for
        assert name not in problems.RULES or problems.RULES[name](boxed), row["answer"]
        assert None not in [row[field] for field in problems.SPLITS[name].values()]


# ---------------------------------------------------------------- data sets of the hub
# `datasets` reads a local folder the same way; the hub itself is not tried


def test_a_benchmark_as_a_data_set(tmp_path, read):
    """As the hub has it: the image in a column."""
    one = MATHV | {"decoded_image": Image.new("RGB", (20, 10), "red")}
    other = {"id": "2", "question": "<image1> or <image2>?", "options": ["A", "B"], "answer": "B"}
    write_table(tmp_path, "hf", [one, one | other])
    (tmp_path / "set" / "train.parquet").rename(tmp_path / "set" / "testmini.parquet")
    configs = "- config_name: default\n  data_files:\n  - split: testmini\n    path: testmini.parquet"
    (tmp_path / "set" / "README.md").write_text(f"---\nconfigs:\n{configs}\n---\n")
    rows = read(f"mathvision:{tmp_path / 'set'}")
    assert [row["question"] for row in rows] == ["How many?", "<image1> or <image2>?"]
    assert [row["options"] for row in rows] == [[], ["A", "B"]]
    assert [Image.open(row["images"][0]).size for row in rows] == [(20, 10)] * 2


def test_hub_rows_write_images_once(tmp_path, convert):
    image, fields, made = Image.new("RGB", (20, 10)), "question=problem images=decoded_image", []
    rows = [{"problem": text, "answer": "1", "decoded_image": image} for text in ("one <image>", "two")]
    source = write_table(tmp_path, "hf", rows)
    for place in (tmp_path / "here", tmp_path / "there/deeper"):
        convert("--fields", fields, source=source, output=place / "problems.jsonl")
        made.append(read_rows(place / "problems.jsonl"))
        assert len(list((place / "images").iterdir())) == 1
    assert made[0] == made[1]  # the ids too, though the data set has none
    assert [row["question"] for row in made[0]] == ["one <image>", "two"]
    assert made[0][0]["images"] == made[0][1]["images"] and not made[0][0]["images"][0].startswith("/")


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
def test_bad_sources(folder, read, case):
    name, file, content, words = BAD_SOURCES[case]
    if file:
        (folder / file).write_text(content if isinstance(content, str) else json.dumps(content))
    assert words in read(f"{name}:" if file is None else f"{name}:{folder}")


# ---------------------------------------------------------------- the command


@pytest.fixture
def convert(tmp_path, call):
    """Call the command in this process, by default on p.jsonl, with out.jsonl as output."""

    def run(*flags: object, source=tmp_path / "p.jsonl", output=tmp_path / "out.jsonl") -> None:
        call(command.main, "--input", source, "--output", output, *flags)

    return run


def test_an_image_that_cannot_be_decoded_ends_the_import(folder, capsys, convert):
    """The stages look at headers only; this, the first step of a run, decodes every image once."""
    (folder / "cut.jpg").write_bytes(PHOTOGRAPH[:-900])
    write_rows(folder / "p.jsonl", [problem(id="fine"), problem(images=["cut.jpg"])])
    refused(capsys, convert, "p.jsonl:2: images: ", "cannot be decoded", "repair the file or remove the row")
    assert not list(folder.glob("out.jsonl*"))
    write_rows(folder / "p.jsonl", [problem(id="fine")])  # the mended call is not refused
    convert()
    assert [row["id"] for row in read_rows(folder / "out.jsonl")] == ["fine"]


def test_image_paths_are_relative_to_the_file_in_a_linked_folder_too(folder, convert):
    write_rows(folder / "p.jsonl", [problem(images=["x.png", str(folder / "x.png")])])
    (folder / "disk" / "runs").mkdir(parents=True)
    (folder / "linked").symlink_to(folder / "disk" / "runs")
    for place, way in (("deeper", "../x.png"), ("linked", "../../x.png")):
        convert(output=folder / place / "out.jsonl")
        assert read_rows(folder / place / "out.jsonl")[0]["images"] == [way] * 2


def test_limit_holds_for_the_input_and_each_test_set(folder, convert):
    rows = [problem(id=str(number), question=f"{number} + 1?", images=[]) for number in range(6)]
    write_rows(folder / "p.jsonl", rows)
    write_rows(folder / "t.jsonl", rows[1:])
    convert("--limit", 3, "--test", folder / "t.jsonl")  # 0, 1, 2 without 1, 2, 3
    assert [row["id"] for row in read_rows(folder / "out.jsonl")] == ["0"]


def test_a_dry_run_checks_and_writes_nothing(folder, capsys, convert):
    write_rows(folder / "p.jsonl", [problem()])
    before = sorted(folder.iterdir())
    convert("--dry-run", 0, "--test", folder / "p.jsonl")
    assert sorted(folder.iterdir()) == before
    assert capsys.readouterr() == ("    1 rows, 0 with a solution\n", "")
    refused(capsys, lambda: convert("--dry-run", 0, "--test", folder / "no.jsonl"), "no.jsonl: no such file")
    words = "--fields: x: not a field of a problem; they are id, question"
    refused(capsys, lambda: convert("--dry-run", 0, "--fields", "x=y"), words)
