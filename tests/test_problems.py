"""Where problems come from: tables as people have them, the forms of public data sets with invented content,
benchmarks, data sets of the hub. What would be lost is refused by a line whose command works.
"""

import csv
import decimal
import json
import re
import zipfile

import datasets
import pyarrow
import pytest
from conftest import ROOT, one_line, read_rows, write_rows
from PIL import Image
from pyarrow import parquet
from server import Server, completion
from test_bad_input import problem, refused
from test_rows import PHOTOGRAPH, coded, text

import mathse.problems.__main__ as command
from mathse import problems
from mathse.answers import check_rows
from mathse.chat import question_text
from mathse.images import open_image
from mathse.problems.benchmarks import BENCHMARKS, Benchmark

DATA = ROOT.parent / "shared" / "data"

PNG, OTHER = (coded(Image.new("RGB", (20, 10), colour)) for colour in ("red", "blue"))


def stored(image: bytes = PNG) -> dict:
    """As `datasets` stores an image."""
    return {"bytes": image, "path": None}


def write_table(folder, kind: str, rows: list[dict]) -> str:
    """A source of this kind; beside it lie a.png and b.png. Returns its spec."""
    for name in ("a.png", "b.png"):
        (folder / name).write_bytes(PNG)
    path = folder / f"rows.{kind}"
    if kind in ("jsonl", "json"):
        path.write_text("\n".join(map(json.dumps, rows)) if kind == "jsonl" else json.dumps(rows))
    elif kind in ("csv", "tsv"):
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0], delimiter="," if kind == "csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        datasets.Dataset.from_list(rows).to_parquet(folder / "set" / "train.parquet")
        return f"hf:{folder / 'set'}:train"
    return str(path)


@pytest.fixture
def folder(tmp_path):
    """A folder with two sound images, x.png and images/x.png."""
    (tmp_path / "images").mkdir()
    for name in ("x.png", "images/x.png"):
        (tmp_path / name).write_bytes(PNG)
    return tmp_path


@pytest.fixture
def read(tmp_path, capsys):
    """The problems of a source, by --fields, or the line by which it is refused."""

    def found(spec: object, fields: str = "") -> list[dict] | str:
        capsys.readouterr()  # what was written before
        try:
            _, rows = problems.open_source(str(spec), tmp_path / "images", problems.parse_fields(fields), 0)
            return [row for _, row in rows]
        except SystemExit as end:
            error = capsys.readouterr().err
            assert end.code == 2 and error.startswith("error: ") and len(error) < 1000, error
            assert len(error.splitlines()) == 1, error
            return error

    return found


NAN = float("nan")
ALL, TYPED, FILES = "jsonl parquet csv hf", "jsonl parquet hf", "jsonl parquet csv"  # kinds of files
BOTH, STORED = "jsonl parquet", "parquet hf"
ROW = {"question": "Q?", "images": ["a.png"], "answer": "1"}
TWO = {"options": ["3", "4"]}
VALUES = {  # name: (kinds of files, further columns, --fields, what they become)
    "a gap in the answer": (ALL, {"answer": NAN}, "", {"answer": None}),
    "gaps behind the options": (BOTH, {"options": [1, 2.5, NAN], "answer": 2.5}, "", {"options": [1, 2.5]}),
    "a precision beside gaps": (ALL, {"precision": 2.0}, "", {"precision": 2}),
    "a number as id, beside gaps": (TYPED, {"id": 7.0}, "", {"id": "7"}),
    "a truth value": (TYPED, {"answer": True}, "", {"answer": "True"}),
    "a decimal": ("parquet hf", {"answer": decimal.Decimal("2.50")}, "", {"answer": "2.50"}),
    "bytes": ("parquet", {"answer": b"1"}, "", {"answer": "1"}),
    "options as JSON": (ALL, {"options": '["1", "2"]'}, "", {"options": ["1", "2"]}),
    "options as numpy writes them": ("csv", {"options": "['1' '2'\n '3']"}, "", {"options": ["1", "2", "3"]}),
    "LaTeX in a list's text": ("csv", {"options": r"['1', '\frac{1}{2}', '\\nu']"}, "",
                               {"options": ["1", r"\frac{1}{2}", r"\nu"]}),
    "options by letters": (TYPED, {"options": {"B": "2", "A": "1"}}, "", {"options": ["1", "2"]}),
    "their labels": (TYPED, {"options": {"text": ["1"], "label": ["A"]}}, "", {"options": ["1"]}),
    "options in one line": ("jsonl csv", {"options": "A. 1; B. (2, 3)"}, "", {"options": ["1", "(2, 3)"]}),
    "truth values as options": (TYPED, {"options": [True, False], "answer": True}, "",
                                {"options": ["True", "False"], "answer": "True"}),
    "options in columns": (ALL, {"A": "1", "B": "2", "C": None}, "options=A,B,C", {"options": ["1", "2"]}),
    "a count beside gaps": (TYPED, TWO | {"answer": 1.0}, "answer=options[answer]", {"answer": "4"}),
    "a count from 1": ("jsonl", TWO | {"answer": 1}, "answer=options[answer-1]", {"answer": "3"}),
    "a count beside another answer": (TYPED, TWO | {"answer": 1, "gold": "9"}, "answer=options[answer],-gold",
                                      {"answer": "4"}),
    "no count": ("jsonl", TWO | {"answer": None}, "answer=options[answer]", {"answer": None}),
    "nested in JSON": ("csv parquet", {"reward": '{"truth": "9"}'}, "answer=reward.truth", {"answer": "9"}),
    "a name with a space": ("jsonl csv", {"the answer": "9"}, "'answer=the answer,-answer'", {"answer": "9"}),
    "two texts": ("jsonl csv", {"hint": "A hint."}, "question=hint,question", {"question": "A hint.\nQ?"}),
    "a column left out": (FILES, {"gold": "2"}, "answer=answer,-gold", {"answer": "1"}),
    "the same answer twice": (FILES, {"gold": "1"}, "", {"answer": "1"}),
    "letters of the options": (BOTH, TWO | {"answer": "3", "A": "3", "B": "4"}, "", TWO),
    "letters that are no options": ("jsonl", {"A": [0, 1], "B": [1, 0]}, "options=", {"options": None}),
    "our names, --fields for others": (FILES, {}, "question=problem images=image", {"question": "Q?"}),
}  # fmt: skip
REFUSED = {  # name: (further columns, --fields, words of the refusal)
    "a second image": ({"image_2": "b.png"}, "", 'set --fields, for example "images=images,image_2"'),
    "an image by another name": ({"drawing": "b.png"}, "", 'or "images=images,-drawing" to do without'),
    "an image as text": ({"drawing": text(OTHER)}, "", "there is a column 'drawing'"),
    "one image of a set": ({"images": None, "image_1": "a.png", "image_2": "b.png"}, "images=image_1",
                           '"images=image_1,image_2"'),
    "options beside options": ({"options": ["1", "2"], "choices": ["3", "4"]}, "", "a column 'choices'"),
    "letters beside other options": ({"options": ["1", "3"], "A": "1", "B": "2"}, "", "a column 'B'"),
    "a letter of a set": ({"A": "1", "B": "2", "C": "3"}, "options=A,B", '"options=A,B,C"'),
    "numbered options": ({"option1": "1", "option2": "2"}, "", '"options=option1,option2"'),
    "short names": ({"opa": "1", "opb": "2"}, "", '"options=opa,opb"'),
    "another answer": ({"ground_truth": "2"}, "", 'or "answer=answer,-ground_truth" to do without'),
    "a gap between options": ({"A": "1", "B": None, "C": "3"}, "options=A,B,C", "options: must be a list"),
    "half a base64 text": ({"images": "data:image/png;base64,iVBOR"}, "", "base64 text that breaks off"),
    "an image without bytes": ({"images": {"bytes": "", "path": None}}, "", "images: an image without bytes"),
    "a number beside options": (TWO | {"answer": 1}, "", 'set --fields "answer=options[answer]"'),
    "a count beyond": (TWO | {"answer": 2}, "answer=options[answer]", "2 counts none of"),
    "Infinity": ({"answer": float("inf")}, "", "is not a number that JSON has"),
    "a number as image": ({"images": 3}, "", "images: a int is not an image"),
    "base64 of no image": ({"images": text(b"GIF89a" + bytes(40))}, "", "images: "),
    "an image that holds nothing": ({"images": {"bytes": None, "path": None}}, "", "without bytes and path"),
    "half an option": (TWO | {"answer": 0.5}, "answer=options[answer]", "0.5 counts none"),
    "an image that is not there": ({"images": ["no.png"]}, "", "no.png: no such file"),
}  # fmt: skip
CASES = [(name, kind) for name, (kinds, *_) in VALUES.items() for kind in kinds.split()]
CASES += [(name, kind) for name in REFUSED for kind in BOTH.split()]


@pytest.mark.parametrize("name, kind", CASES)
def test_what_values_become(tmp_path, read, name, kind):
    *_, columns, fields, expected = (VALUES | REFUSED)[name]
    found = read(write_table(tmp_path, kind, [ROW | {"images": text(PNG)} | columns]), fields)
    if isinstance(expected, str):
        assert expected in found
    else:
        (row,) = found
        assert {field: row.get(field) for field in expected} == expected and len(row["images"]) == 1
        json.dumps(row, allow_nan=False)


IMAGES = {  # what stands in the column of images -> the number of images, in these kinds of files
    "a path": ("a.png", 1, FILES),
    "paths": (["a.png", "b.png"], 2, BOTH),
    "the text of a list": ("['a.png', 'b.png']", 2, FILES),
    "none": (None, 0, ALL),
    "no paths": ([], 0, TYPED),
    "base64": (text(PNG), 1, ALL),
    "a long data URL": (f"data:image/png;base64,{text(PNG + bytes(1 << 17))}", 1, ALL),
    "bytes": (PNG, 1, STORED),
    "as datasets has it": (stored(), 1, STORED),
    "several": ([stored(), stored(OTHER)], 2, STORED),
    "several by name": ({"left": stored(), "right": stored(OTHER)}, 2, STORED),
}


@pytest.mark.parametrize("name, kind", [(name, kind) for name in IMAGES for kind in IMAGES[name][2].split()])
def test_what_a_column_of_images_may_hold(tmp_path, read, name, kind):
    value, count, _ = IMAGES[name]
    other = [text(OTHER)] if isinstance(value, list) else text(OTHER)  # one row must have a picture
    rows = [ROW | {"images": value}, ROW | {"question": "Other?", "images": value or other}]
    row, _ = read(write_table(tmp_path, kind, rows))
    assert [open_image(image, 0).size for image in row["images"]] == [(20, 10)] * count


# ---------------------------------------------------------------- marks


MARKS = {  # a question: (its images, the question as it is read, None if it is refused)
    "<image>\nHow wide?": (1, "How wide?"),
    "<image>How wide?": (1, "How wide?"),
    "<image> is how wide?": (1, "<image> is how wide?"),
    "How wide?\n<image>": (1, "How wide?"),
    "How wide? <image1>": (1, "How wide?"),
    "Is <image> wider than <image>?": (2, "Is <image> wider than <image>?"),
    "<image><image>Which is wider?": (2, "Which is wider?"),
    "<image>, <image>: which is wider?": (2, "<image>, <image>: which is wider?"),
    "Is <image 1> wider than <image_2>?": (2, "Is <image> wider than <image>?"),
    "Is <image 2> wider than <image 1>, or <image 2>?": (2, "Is <image> wider than <image>, or image 1?"),
    "See <image_0> and <image_1>.": (2, "See <image> and <image>."),
    "<|vision_start|><|image_pad|><|vision_end|>How wide?": (1, "How wide?"),
    "See <ImageHere>.": (1, "See <image>."),
    "<image1> or <image2>?": (1, "<image1> or <image2>?"),  # of MATH-V, drawn in one
    "In <image3>, see.": (1, "In <image>, see."),
    "No mark?": (2, "No mark?"),
    "The tag <img>?": (1, "The tag <img>?"),
    "<image><image>How wide?": (1, None),
    "<image>How wide is it?": (2, None),
    "See <image>.": (0, None),
    "See <image 2> and <image 3>.": (2, None),
    "See <image> and <image 1>.": (2, None),
}


@pytest.mark.parametrize("question", MARKS)
def test_marks_of_images(tmp_path, read, question):
    count, expected = MARKS[question]
    row = ROW | {"question": question, "images": ["b.png", "a.png"][:count]}
    found = read(write_table(tmp_path, "jsonl", [ROW, row]))
    if expected is None:
        assert "question: has marks of " in found and f"{count} images" in found
    else:
        assert (found[1]["question"], len(found[1]["images"])) == (expected, count)


def test_marks_in_options_and_without_images_on_purpose(tmp_path, read):
    """As MMMU has them: each option is an image."""
    row = ROW | {"images": ["b.png", "a.png"], "options": ["<image 2>", "<image 1>"], "answer": "B"}
    (found,) = read(write_table(tmp_path, "jsonl", [row]))
    assert found["options"] == ["<image>"] * 2 and found["images"][0].endswith("a.png")
    (found,) = read(write_table(tmp_path, "jsonl", [ROW | {"question": "In <image>?"}]), "images=")
    assert (found["question"], found["images"]) == ("In the image?", [])


# ---------------------------------------------------------------- forms of public data sets


def conversation(question: str, answer: str) -> list[dict]:
    return [{"from": "human", "value": f"<image>\n{question}"}, {"from": "gpt", "value": answer}]


def forms(number: int) -> dict[str, tuple]:
    """{data set: (kind of file; options and answer of row 7; its row of this number)}; in row 0 some columns
    are gaps.
    """
    k, later, shown = str(number), number or None, stored()
    return {
        "Geometry3K in EasyR1's form": ("parquet", [], "7", {
            "images": [shown], "problem": f"<image>Find $x_{k}$.", "answer": k,
        }),
        "Geometry3K in verl's form": ("parquet", [], "7", {
            "data_source": "x", "prompt": [{"role": "user", "content": f"<image>Find $x_{k}$. Think."}],
            "images": [shown], "reward_model": {"style": "rule", "ground_truth": k},
            "extra_info": {"index": number, "answer": k, "question": f"<image>Find $x_{k}$."},
        }),
        "MMMU": ("parquet", ["$1$", r"$\frac{1}{2}$"], "B", {
            "id": f"v_{k}", "question": f"How many of <image 1> fit {k}?", "answer": "B", "explanation": "",
            "options": r"['$1$', '$\\frac{1}{2}$']", "image_1": shown, "image_2": None, "image_3": None,
            "img_type": "['Plots']",
        }),
        "We-Math": ("json", ["10", "20", "No correct answer"], "B", {
            "ID": f"1steps_{k}", "knowledge concept": "Area", "question": f"Area {k}?", "key": k,
            "option": "A. 10; B. 20; C. No correct answer", "answer": "B", "image_path": "a.png",
        }),
        "ScienceQA": ("parquet", ["a circle", "a square", "both"], "both", {
            "image": shown if later else None, "question": f"Which is larger, {k}?", "hint": "", "answer": 2,
            "choices": ["a circle", "a square", "both"], "grade": "grade2", "solution": "",
        }),
        "CLEVR-Math": ("parquet", [], 7, {
            "id": f"c{k}", "question": f"Take {k}. How many?", "image": shown, "label": number,
        }),
        "MathV360K": ("json", [], "B", {
            "id": k, "image": "a.png", "conversations": conversation(f"How long, {k}?\n(A) 3\n(B) 4", "B"),
        }),
        "MMBench in VLMEvalKit's form": ("tsv", ["3", "4", "7", "7"], "A", {
            "index": number, "question": f"Q{k}?", "hint": "", "A": "3", "B": "4", "C": later, "D": later,
            "answer": "A", "category": "x", "image": text(PNG),
        }),
        "MathVista as a table": ("parquet", ["2", "3"], "3", {
            "pid": k, "question": f"Q{k}?", "image": "images/1.jpg", "decoded_image": shown,
            "choices": ["2", "3"], "unit": None, "precision": None, "answer": "3",
        }),
        "options in columns": ("csv", ["3", "4"], "A", {
            "problem": f"Q{k}?", "option_a": "3", "option_b": "4", "correct_option": "A", "diagram": "a.png",
        }),
    }  # fmt: skip


@pytest.mark.parametrize("name", forms(7))
def test_a_refusal_names_a_command_that_works(tmp_path, read, name):
    """A stranger's way: call, and do what the line says, at most twice."""
    kind, options, answer, _ = forms(7)[name]
    spec = write_table(tmp_path, kind, [forms(number)[name][-1] for number in range(8)])
    fields, said = "", []
    while isinstance(found := read(spec, fields), str):
        said.append(found)
        assert len(said) < 3, said
        (fields,) = re.findall(r'--fields,? (?:for example )?"([^"]+)"', found.partition(", or ")[0])
    last = found[-1]
    assert len(found) == 8 and (last.get("options") or [], last["answer"]) == (options, answer), said
    assert len(last["images"]) == 1 and last["question"].strip() and "7" in last["question"]


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
    for told, options in ((VERSE["question"], ["4 cm", "5"]), ("", [])):
        (folder / "testmini.json").write_text(json.dumps([row | {"question_for_eval": told}]))
        (found,) = read(f"mathverse:{folder}")
        assert (found["options"], found["answer"]) == (options, "B")
        assert ("options_drawn" in found) == bool(options) and "Choices" not in question_text(found)


def test_the_benchmarks_own_prompt(folder, run):
    """05_evaluate.py asks with it, and scores by the benchmark's rule and splits."""
    write_rows(folder / "testmini.jsonl", [MATHV | {"options": ["3", "6"], "answer": "B"}])
    server = Server(lambda number, body: (200, completion("\\boxed{B}"), {}))
    flags = ["--test", f"mathvision:{folder}", "--model", server.spec, "--prompt", "benchmark"]
    inside = run("05_evaluate.py", *flags, "--output", folder / "eval")
    assert one_line(inside, f"predictions.jsonl: lies in mathvision:{folder}, which is an input; choose")
    output = folder.with_name("eval")
    done = run("05_evaluate.py", *flags, "--output", output)
    assert done.returncode == 0, done.stderr
    text = server.seen[0][1]["messages"][0]["content"][1]["text"]
    assert text.startswith("Please solve the problem step by step and put your answer in one")
    assert "(A) 3\n(B) 6" in text and "expert" not in text
    metrics = json.loads((output / "metrics.json").read_text())
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


SHARED = {  # rows in DATA, what they are called beside blank images (None: they have theirs), their number
    "mathvista": ("benchmark_rows/mathvista_rows.jsonl", "testmini.jsonl", 42),
    "mathverse": ("benchmark_rows/mathverse_text_only_rows.jsonl", "testmini_text_only.jsonl", 40),
    "mathvision": ("mathv_testmini/problems.jsonl", None, 304),
}


@pytest.mark.parametrize("name", SHARED)
def test_rows_of_the_sources(name, tmp_path, read):
    """Every row becomes a problem whose reference answer our answer check and the benchmark's rule accept."""
    file, target, count = SHARED[name]
    if not (DATA / file).exists():
        pytest.skip("no rows of the source here")
    if target:
        given = read_rows(DATA / file)
        write_rows(tmp_path / target, given)
        (tmp_path / "images").mkdir()
        for image in filter(None, (row["image"] for row in given)):
            (tmp_path / image).write_bytes(PNG)
    rows = read(f"{name}:{tmp_path if target else (DATA / file).parent}")
    assert len(rows) == count
    said = [row | {"response": f"The answer to this problem is {row['answer']}."} for row in rows]
    for row, result in zip(rows, check_rows(said)):
        assert result["answer_check"] == "correct", (row["question"], row["answer"], result["extracted"])
        boxed = result | {"response": f"\\boxed{{{row['answer']}}}"}  # the form that MATH-V's prompt asks for
        assert name not in problems.RULES or problems.RULES[name](boxed), row["answer"]
        assert None not in [row[field] for field in problems.SPLITS[name].values()]


# ---------------------------------------------------------------- rows and sources


GOLD = ROW | {"answer": "2", "gold": "1"}
SAME_ID = [ROW | {"id": 1, "images": name} for name in ("a.png", "b.png")]
ELSEWHERE = ROW | {"images": "zip://a.png::https://127.0.0.1:9/x.zip"}  # which is not fetched
ROWS = [  # kind of file, rows, --fields -> the answers read, or words of the refusal
    ("csv", SAME_ID, "", "rows.csv:3: id: '1' stands there already"),
    ("csv", SAME_ID, "id=", ["1", "1"]),
    ("jsonl", [GOLD, ROW], "answer=gold,-answer", ["1", None]),  # --fields are for a whole source
    ("jsonl", [ROW, GOLD], "answer=gold,-answer", ":2: has columns of --fields"),
    ("jsonl", [ROW], "question=question answer=glod", "glod: none of 1 rows has such a column; mend"),
    ("parquet", [ROW], "question=question answer=glod", "glod: no such column; it has question, images, ans"),
    ("hf", [ELSEWHERE], "", "is no part of the data set"),
    ("hf", [ROW | {"images": f"zip://a.png::{ROOT / 'README.md'}"}], "", "images: File is not a zip file"),
]


@pytest.mark.parametrize("kind, rows, fields, expected", ROWS)
def test_rows_of_a_source(tmp_path, read, kind, rows, fields, expected):
    found = read(write_table(tmp_path, kind, rows), fields)
    assert expected in found if isinstance(found, str) else [row["answer"] for row in found] == expected


def test_a_source_without_a_column_of_fields_is_read_by_our_names(tmp_path, read, capsys):
    assert read(write_table(tmp_path, "parquet", [ROW]), "answer=glod")[0]["answer"] == "1"
    assert "read by our names" in capsys.readouterr().err
    fields = "question=problem answer=answer,-gold"  # meant where the question is called so
    assert read(write_table(tmp_path, "jsonl", [ROW]), fields)[0]["question"] == "Q?"


def test_a_row_that_stands_twice_is_read_once_and_counted(tmp_path, read, capsys):
    rows = [ROW, ROW | {"answer": "2"}, ROW, ROW | {"id": "x"}, ROW | {"id": "x"}]
    rows = [row | {"index": index} for index, row in enumerate(rows)]
    found = read(write_table(tmp_path, "jsonl", rows))
    assert [row["answer"] for row in found] == ["1", "2", "1"] and len({row["id"] for row in found}) == 3
    assert "2 of 5 rows stand there twice and are read once" in capsys.readouterr().err


SPLIT = "hf:NAME:SPLIT or hf:NAME:CONFIGURATION:SPLIT"
SOURCES = [  # files, the answers read or words of the refusal, a spec that is not the file or its folder
    ({"t.CSV": "question,answer,images\nOne, two,3,a.png\n"}, "more cells than names in the head line"),
    ({"t.CSV": 'question,answer,images\n"One, two",3,a.png\n'}, ["3"]),
    ({"t.CSV": "question;answer;images\nOne, two;3,5;a.png\n"}, ["3,5"]),
    ({"t.CSV": "question\tanswer\timages\nOne\t007\ta.png\n"}, ["007"]),
    ({"t.CSV": "\ufeffquestion,answer,images\r\nOne,3,a.png\r\n\r\nTwo,,a.png\r\n"}, ["3", None]),
    ({"t.CSV": 'question,answer,images\n"One\ntwo",None,a.png\nTwo,NA,a.png\n'}, ["None", "NA"]),
    ({"t.CSV": "question,answer,answer,images\nOne,3,4,a.png\n"}, "a name twice"),
    ({"t.CSV": 'question,answer,images\n"One,3,a.png\n'}, "unexpected end of data; save it anew as CSV"),
    ({"t.CSV": "question,answer,images\n"}, "the file is empty"),
    ({"t.CSV": "question,answer,images\n,3,a.png\n"}, "t.CSV:2: question: None is not a string with text"),
    ({"t.CSV": b"question,answer,images\nGr\xf6\xdfe,3,a.png\n"}, "save it anew as CSV in UTF-8"),
    ({"t.CSV": "question,answer\nOne,3\nTwo,4\n"}, "images: none of 2 rows has a picture"),
    ({"t.json": [ROW]}, ["1"]),
    ({"t.json": {"7": ROW}}, ["1"]),
    ({"t.json": {"data": [ROW], "version": 1}}, ["1"]),
    ({"t.json": ROW}, ["1"]),
    ({"t.json": f"{json.dumps(ROW)}\n{json.dumps(ROW | {'answer': '2'})}"}, ["1", "2"]),
    ({"t.json": {"train": [ROW], "test": [ROW]}}, "holds several lists of rows (train, test)"),
    ({"t.jsonl": ROW | {"options": "3, 4", "question": "<image>?"}}, "options: must be a list"),
    ({"t.jsonl": ROW | {"precision": "inf"}}, "precision: 'inf' is not a whole number from 0"),
    ({"t.parquet": "PAR1" * 9}, "cannot be read"),
    ({"notes.txt": ""}, "holds no table"),
    ({"a.jsonl": ROW, "data/b.csv": "question,answer"}, "holds files of several kinds (jsonl, csv)"),
    ({"train-0-of-1.jsonl": ROW, "test-0-of-1.jsonl": ROW}, "several splits (test, train); give one file"),
    ({"data/train-0-of-2.jsonl": ROW, "data/train-1-of-2.jsonl": ROW | {"answer": "2"}}, ["1", "2"]),
    ({}, "no folder (none given); write mathvision:PATH", "mathvision:"),
    ({}, "none of testmini.json, testmini.jsonl, test.json in it; give the folder", "mathvista:{}"),
    ({"test.jsonl": "{"}, "test.jsonl:1: not a JSON object", "mathvision:{}"),
    ({"testmini.json": "{"}, "testmini.json: not JSON", "mathvista:{}"),
    ({"testmini.json": [1, 2]}, "json:1: a int instead of a row", "mathvista:{}"),
    (
        {"test.jsonl": {"id": "1"}},
        ":1: KeyError('question'): the row is not in the source's",
        "mathvision:{}",
    ),
    ({"testmini.json": [{"precision": "x"}]}, ":1: ValueError", "mathvista:{}"),
    ({"testmini.json": [VERSE | {"metadata": None}]}, ":1: TypeError", "mathverse:{}"),
    ({"test.jsonl": MATHV | {"image": "no.png"}}, ":1: images: ", "mathvision:{}"),
    *(({}, SPLIT, spec) for spec in ("hf:x:y:z:w", "hf:train", "hf:", "hf:x:", "hf::train")),
]


@pytest.mark.parametrize("case", SOURCES)
def test_sources(tmp_path, read, case):
    files, expected, *spec = case
    folder = tmp_path / "set"
    (folder / "data").mkdir(parents=True)
    for name in ("a.png", "data/a.png"):
        (folder / name).write_bytes(PNG)
    for name, content in files.items():
        content = content if isinstance(content, str | bytes) else json.dumps(content)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    path = folder / name if name.startswith("t.") else folder
    found = read(spec[0].format(folder) if spec else path)
    assert expected in found if isinstance(found, str) else [row["answer"] for row in found] == expected


def test_an_id_is_made_of_the_content_wherever_it_lies(tmp_path, read):
    ids = []
    for place in (tmp_path / "one", tmp_path / "another/deep"):
        place.mkdir(parents=True)
        spec = write_table(place, "jsonl", [ROW, ROW | {"images": [text(PNG)]}])
        ids.append([row["id"] for row in read(spec)])
    assert ids[0] == ids[1] and len({*ids[0]}) == 2


def test_what_else_a_json_row_holds_stays_but_not_what_stages_write(tmp_path, read):
    row = ROW | {"level": 2, "extra": {"deep": [1]}}
    row |= {"sample": 3, "response": "no", "status": "wrong", "gold": "1"}
    (found,) = read(write_table(tmp_path, "jsonl", [row]))
    assert found.keys() == {"id", "question", "images", "answer", "level", "extra"}


@pytest.mark.parametrize("reads", ["img", "image", None])
def test_an_adapter_reads_its_own_column_of_images(tmp_path, read, monkeypatch, reads):
    def adapter(row: dict) -> dict:
        return {"id": "7", "question": "?", "answer": "2", "images": reads and row[reads]}

    (tmp_path / "a.png").write_bytes(PNG)
    (tmp_path / "own.csv").write_text("img\na.png\n")
    monkeypatch.setitem(BENCHMARKS, "own", Benchmark(adapter, [("own.csv",)], {}))
    found = read(f"own:{tmp_path}")
    if reads == "img":
        assert found[0]["images"] == [str(tmp_path / "a.png")]
    else:
        words = "KeyError('image')" if reads else "the adapter of own reads none, but there is a column 'img'"
        assert words in found


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


def test_a_configuration_of_a_data_set(tmp_path, read):
    for name in ("plain", "hard"):
        write_table(tmp_path, "hf", [ROW | {"question": name, "images": None, "image": text(PNG)}])
        (tmp_path / "set/train.parquet").rename(tmp_path / f"set/{name}.parquet")
    parts = (f"- config_name: {name}\n  data_files: {name}.parquet" for name in ("plain", "hard"))
    (tmp_path / "set/README.md").write_text("---\nconfigs:\n" + "\n".join(parts) + "\n---\n")
    (row,) = read(f"hf:{tmp_path / 'set'}:hard:train", "images=image")
    assert row["question"] == "hard"
    error = read(f"hf:{tmp_path / 'set'}:train")
    assert all(word in error for word in ("cannot be loaded", "plain", "hard"))


def test_a_folder_that_datasets_saved(tmp_path, read):
    row = {"question": "Q?", "answer": "1", "image": Image.new("RGB", (20, 10))}
    datasets.Dataset.from_list([row]).save_to_disk(tmp_path / "set")
    (tmp_path / "set/cache-1.arrow").write_bytes(b"of a map()")
    (row,) = read(tmp_path / "set", "images=image")
    assert (row["answer"], row["source"]) == ("1", "set") and open_image(row["images"][0], 0).size == (20, 10)


def test_images_in_an_archive(tmp_path, read):
    """As a data set of an image folder has them."""
    (tmp_path / "set").mkdir()
    with zipfile.ZipFile(tmp_path / "set/train.zip", "w") as file:
        file.writestr("metadata.csv", "file_name,question,answer\na.png,Q?,1\n")
        file.writestr("a.png", PNG)
    (row,) = read(f"hf:{tmp_path / 'set'}:train", "images=image")
    assert open_image(row["images"][0], 0).size == (20, 10)


# ---------------------------------------------------------------- the command


@pytest.fixture
def convert(tmp_path, call):
    """Call the command in this process, by default on p.jsonl, with out.jsonl as output."""

    def run(*flags: object, source=tmp_path / "p.jsonl", output=tmp_path / "out.jsonl") -> None:
        call(command.main, "--input", source, "--output", output, *flags)

    return run


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
