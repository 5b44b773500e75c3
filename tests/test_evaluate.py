"""05_evaluate.py, its figures (scores.py) and where its problems come from (benchmarks.py)."""

import json

import pytest
from conftest import ROOT, read_rows, write_rows
from PIL import Image
from test_endpoint import Server

import answers
import benchmarks
import scores

DATA = ROOT.parent / "shared" / "data"


# ---------------------------------------------------------------- figures


@pytest.mark.parametrize("correct, n, low, high", [(5, 10, 0.2366, 0.7634), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662), (0, 0, 0.0, 1.0)])
def test_wilson(correct, n, low, high):
    assert scores.wilson(correct, n) == pytest.approx((low, high), abs=2e-4)


@pytest.mark.parametrize("lost, gained, p", [(0, 0, 1.0), (5, 15, 0.04139), (15, 5, 0.04139), (0, 10, 2 / 1024), (3, 3, 1.0), (400, 600, 2.73e-10)])
def test_mcnemar(lost, gained, p):
    assert scores.mcnemar(lost, gained) == pytest.approx(p, rel=0.03)


def test_bootstrap_is_paired_and_repeats():
    differences = [1.0] * 60 + [-1.0] * 20 + [0.0] * 320
    low, high = scores.bootstrap(differences, seed=1)
    assert (low, high) == scores.bootstrap(differences, seed=1)
    error = (0.2 - 0.1**2) ** 0.5 / 20  # of the mean of 400
    assert low == pytest.approx(0.1 - 1.96 * error, abs=0.006) and high == pytest.approx(0.1 + 1.96 * error, abs=0.006)
    assert scores.bootstrap([0.25] * 9, seed=0) == (0.25, 0.25)


def prediction(name, check, sample=0, **more):
    return {"id": name, "sample": sample, "answer_check": check, "extracted": None if check == "undecided" else check, "rule": "none" if check == "undecided" else "number", "finish": "stop"} | more


def test_score():
    assert scores.pass_at_k(4, 1, 1) == 0.25 and scores.pass_at_k(4, 1, 4) == 1.0 and scores.pass_at_k(4, 0, 4) == 0.0
    checks = {"p": ["correct", "wrong", "correct", "undecided"], "q": ["wrong", "wrong", "correct", "wrong"]}
    rows = [prediction(name, check, k, subject=name) for name, values in checks.items() for k, check in enumerate(values)]
    figures = scores.score(rows, {"subject": "subject"})
    assert figures["accuracy"] == 0.375 and figures["pass_at"][4] == 1.0 and figures["majority_at"][4] == 0.5 and figures["unparsed"] == 0.125
    assert figures["splits"]["subject"]["q"] == {"n": 1, "accuracy": 0.25, "interval": scores.wilson(0.25, 1)}


def test_compare_takes_common_problems_only():
    before = [prediction("a", "correct"), prediction("b", "wrong"), prediction("c", "undecided"), prediction("only before", "correct")]
    after = [prediction("a", "wrong"), prediction("b", "correct"), prediction("c", "correct"), prediction("only after", "wrong")]
    change = scores.compare(before, after)
    assert (change["n"], change["only_before"], change["only_after"]) == (3, 1, 1)
    assert list(change["changes"].values()) == [0, 0, 1, 2] and change["change"] == pytest.approx(1 / 3, abs=1e-4) and change["p"] == 1.0
    several = [prediction("a", check, k) for k, check in enumerate(["correct", "wrong"])]
    assert scores.compare(several, several)["changes"] is None and scores.compare(before, [prediction("z", "wrong")]) is None


def test_differing_conditions():
    one = {"model": "a", "max_tokens": 128, "rule": "x"}
    assert scores.differing(one, one | {"model": "b", "seed": 4}) == []
    assert scores.differing(one, one | {"max_tokens": 64}) == ["max_tokens"] and scores.differing({"model": "a", "max_tokens": 128}, one) == ["rule"]


# ---------------------------------------------------------------- the stage, on a server


QUESTIONS = {"How many?": "6", "What is 1 + 1?": "2", "Which?": "B", "Lost?": "9"}
SAID = {"How many?": "So we get 6, as counted.\nThe answer to this problem is 6.", "What is 1 + 1?": "It is clearly two (2)", "Which?": "The answer to this problem is A.", "Lost?": "Let me see"}


def behave(number, body):
    """A model that answers QUESTIONS, a judge that finds what is said, and one that classifies errors; the prompts tell which is asked."""
    parts = body["messages"][0]["content"]
    text = "".join(part["text"] for part in parts if part["type"] == "text")
    question = next(name for name in QUESTIONS if name in text)
    if "Reply with the final answer" in text:
        reply = {"How many?": "6", "What is 1 + 1?": "2", "Which?": "A", "Lost?": "NONE"}[question]
    elif "which type it is" in text:
        reply = '```json\n{"error_type": "vision"}\n```'
    else:
        reply = SAID[question]
    return 200, {"choices": [{"message": {"content": reply}, "finish_reason": "stop"}], "usage": {"prompt_tokens": 10, "completion_tokens": 4}}, {}


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, run):
    """(folder with a test set and its evaluation by, judge and classifier on, a server; the server; the finished process)"""
    folder, server = tmp_path_factory.mktemp("evaluated"), Server(behave)
    Image.new("RGB", (30, 20), "red").save(folder / "x.png")
    rows = [{"id": str(index), "question": question, "images": ["x.png"], "answer": answer, "subject": "s"} for index, (question, answer) in enumerate(QUESTIONS.items())]
    rows[2]["options"] = ["3", "4"]
    write_rows(folder / "set.jsonl", rows)
    done = run("05_evaluate.py", "--test", folder / "set.jsonl", "--output", folder / "eval", "--model", server.spec, "--judge", server.spec, "--classify", server.spec)
    assert done.returncode == 0, done.stderr
    return folder, server, done


def test_judge_and_error_types(evaluated):
    folder, _, done = evaluated
    metrics = json.loads((folder / "eval" / "metrics.json").read_text())
    figures = metrics["benchmarks"]["set"]
    by_rules = {row["id"]: row["answer_check"] for row in read_rows(folder / "eval" / "predictions.jsonl")}
    judged = {row["id"]: row for row in read_rows(folder / "eval" / "judged.jsonl")}
    assert by_rules["0"] == "correct" and by_rules["2"] == "wrong" and by_rules["3"] == "undecided"
    assert [judged[name]["judge_check"] for name in "0123"] == ["correct", "correct", "wrong", "undecided"] and judged["1"]["judge_tokens"] == [10, 4]
    assert figures["judge"]["accuracy"] == 0.5 and figures["judge"]["unparsed"] == 0.25  # beside the rules' own score
    assert figures["accuracy"] == sum(check == "correct" for check in by_rules.values()) / 4
    errors = read_rows(folder / "eval" / "errors.jsonl")
    assert {row["id"] for row in errors} == {name for name, check in by_rules.items() if check == "wrong"} and figures["error_types"]["vision"] == len(errors)
    for word in ("conditions: ", "greedy", "math-verify", "no answer found", "answers extracted by"):
        assert word in done.stdout


def test_a_judge_sees_no_picture_and_is_not_asked_again(evaluated, run):
    folder, server, _ = evaluated
    extracting = [body for _, body in server.seen if "Reply with the final answer" in str(body)]
    assert len(extracting) == 4 and "image_url" not in str(extracting)
    count = server.count
    again = run("05_evaluate.py", "--test", folder / "set.jsonl", "--output", folder / "eval", "--model", server.spec, "--judge", server.spec)
    assert again.stdout.startswith("skip ") and server.count == count
    other = run("05_evaluate.py", "--test", folder / "set.jsonl", "--output", folder / "plain", "--model", server.spec)
    later = run("05_evaluate.py", "--test", folder / "set.jsonl", "--output", folder / "plain", "--model", server.spec, "--judge", server.spec)
    assert other.returncode == later.returncode == 0 and "judge" in json.loads((folder / "plain" / "metrics.json").read_text())["benchmarks"]["set"]
    assert len([body for _, body in server.seen if "expert mathematics teacher" in str(body)]) == 8  # the answers themselves were not asked for again
    changed = run("05_evaluate.py", "--test", folder / "set.jsonl", "--output", folder / "plain", "--model", server.spec, "--classify", server.spec, "--max-tokens", 7)
    assert changed.returncode == 2 and "max_tokens was 2048, is 7" in changed.stderr
    fewer = run("05_evaluate.py", "--test", folder / "set.jsonl", "--output", folder / "plain", "--model", server.spec, "--classify", server.spec, "--limit", 2)
    assert fewer.returncode == 2 and "limit was 0, is 2" in fewer.stderr


def test_a_reply_of_a_judge_that_failed_is_asked_for_again(evaluated, run):
    """And an answer that failed too, after which the judge is asked about the new one alone."""
    folder, _, _ = evaluated
    refused = ["judge"]

    def refuse(number, body):
        judging = "Reply with the final answer" in str(body)
        return (400, {"error": "no"}, {}) if "Which?" in str(body) and ("judge" if judging else "answer") in refused else behave(number, body)

    server = Server(refuse)
    flags = ["--test", folder / "set.jsonl", "--output", folder / "again", "--model", server.spec, "--judge", server.spec, "--concurrency", 1]
    assert run("05_evaluate.py", *flags).returncode == 0
    refused[:], server.seen = [], []
    assert run("05_evaluate.py", *flags, "--retry-errors").returncode == 0 and len(server.seen) == 1
    judged = {row["id"]: row for row in read_rows(folder / "again" / "judged.jsonl")}
    assert len(judged) == 4 and judged["2"]["judge_extracted"] == "A"

    refused[:] = ["answer"]
    flags[3] = folder / "once more"
    assert run("05_evaluate.py", *flags).returncode == 0 and len(read_rows(folder / "once more" / "judged.jsonl")) == 3
    refused[:], server.seen = [], []
    assert run("05_evaluate.py", *flags, "--retry-errors").returncode == 0 and len(server.seen) == 2
    assert len(read_rows(folder / "once more" / "judged.jsonl")) == 4 and (folder / "once more" / "metrics.json").exists()


def test_a_judge_that_stops_ends_a_launch_of_several_processes(evaluated, run):
    """Only the first of them asks an endpoint, and the others wait for its file."""
    folder, server, _ = evaluated
    flags = ["--test", folder / "set.jsonl", "--output", folder / "stops", "--model", server.spec]
    assert run("05_evaluate.py", *flags).returncode == 0
    done = run("05_evaluate.py", *flags, "--judge", server.spec, "--max-requests", 1, RANK="0", WORLD_SIZE="2", LOCAL_WORLD_SIZE="2")
    assert done.returncode == 3 and "--max-requests 1 is reached" in done.stderr and len(read_rows(folder / "stops" / "judged.jsonl.part")) == 1


def test_blank_image_and_against(evaluated, run):
    folder, server, _ = evaluated
    count = len(server.seen)
    done = run("05_evaluate.py", "--test", folder / "set.jsonl", "--output", folder / "blank", "--model", server.spec, "--blank-image", "--against", folder / "eval")
    assert done.returncode == 0, done.stderr
    assert "0 and 0 only in one" in done.stdout and "on 4 common problems" in done.stdout and "NOT COMPARABLE" not in done.stdout
    shown = {part["image_url"]["url"] for _, body in server.seen[count:] for part in body["messages"][0]["content"] if part["type"] == "image_url"}
    with Image.open(folder / "blank" / "images" / "blank_30x20.png") as image:
        assert len(shown) == 1 and image.size == (30, 20) and image.convert("L").getextrema() == (255, 255)
    row = read_rows(folder / "blank" / "predictions.jsonl")[0]
    assert (folder / "blank" / row["images"][0]).resolve() == (folder / "x.png").resolve() and "seen" not in row
    run("05_evaluate.py", "--test", folder / "set.jsonl", "--output", folder / "short", "--model", server.spec, "--max-tokens", 7, "--limit", 3)
    compared = run("05_evaluate.py", "--output", folder / "short", "--against", folder / "eval")
    assert "on 3 common problems (1 and 0 only in one)" in compared.stdout and "NOT COMPARABLE, other conditions: max_tokens" in compared.stdout
    (change,) = json.loads((folder / "short" / "metrics.json").read_text())["against"].values()
    assert change["set"]["not_comparable"] == ["max_tokens"] and change["set"]["change"] == 0


# ---------------------------------------------------------------- benchmarks


def test_the_benchmarks_own_prompt(tmp_path, run):
    Image.new("RGB", (9, 9)).save(tmp_path / "1.png")
    write_rows(tmp_path / "testmini.jsonl", [{"id": "1", "question": "How many?\n<image1>", "image": "1.png", "options": ["3", "6"], "answer": "B", "level": 2, "subject": "counting"}])
    server = Server(lambda number, body: (200, {"choices": [{"message": {"content": "\\boxed{B}"}, "finish_reason": "stop"}]}, {}))
    done = run("05_evaluate.py", "--test", f"mathvision:{tmp_path}", "--output", tmp_path / "eval", "--model", server.spec, "--prompt", "benchmark")
    assert done.returncode == 0, done.stderr
    text = server.seen[0][1]["messages"][0]["content"][1]["text"]
    assert text.startswith("Please solve the problem step by step and put your answer in one") and "(A) 3\n(B) 6" in text and "expert" not in text
    figures = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert figures["conditions"]["prompt"] == "benchmark" and figures["benchmarks"]["mathvision"]["official"]["accuracy"] == 1 and figures["benchmarks"]["mathvision"]["splits"]["level"]["2"]["n"] == 1


def load(name, folder):
    return list(benchmarks.load_problems(f"{name}:{folder}", folder)[1])


def test_mathvision_rows(tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "1.png")
    rows = [
        {"id": "1", "question": "How many?\n<image1>", "image": "1.png", "options": [], "answer": "6", "level": 2, "subject": "counting", "solution": None},
        {"id": "2", "question": "<image1> or <image2>?", "image": "1.png", "options": ["A", "B"], "answer": "A", "level": 1, "subject": "logic", "solution": None},
    ]
    write_rows(tmp_path / "testmini.jsonl", rows)
    name, problems = benchmarks.load_problems(f"mathvision:{tmp_path}", tmp_path)
    first, second = problems
    assert name == "mathvision" and first["question"] == "How many?" and second["question"] == "<image1> or <image2>?"


@pytest.mark.parametrize(
    "benchmark, response, answer, options, precision, right",
    [
        ("mathvision", "So the answer is (B).", "B", ["3", "4"], None, True),
        ("mathvision", "\\boxed{4}", "B", ["3", "4"], None, True),  # the option's value
        ("mathvision", "\\boxed{4.0}", "B", ["3", "4"], None, True),
        ("mathvision", "\\boxed{3}", "B", ["3", "4"], None, False),
        ("mathvision", "\\boxed{\\frac{7}{3}}", "7/3", [], None, True),
        ("mathvision", "The answer is 12. I am sure.", "12", [], None, True),
        ("mathvision", "The area is 2.504", "2.5", [], None, True),
        ("mathvision", "\\boxed{72 \\mathrm{~cm}}", "72", [], None, False),  # right, but not to this rule
        ("mathvision", "\\boxed{\\text{(A) } 3}", "A", ["3", "4"], None, False),
        ("mathvision", "", "12", [], None, False),
        ("mathvista", "The answer is (B).", "no", ["yes", "no"], None, True),
        ("mathvista", "The answer is nope.", "no", ["yes", "no"], None, True),  # the nearest option
        ("mathvista", "The answer is 12.7.", "12", [], None, True),  # int() cuts off
        ("mathvista", "The answer is 5.768.", "5.77", [], 2, True),
        ("mathvista", "The answer is 5.76.", "5.77", [], 2, False),
        ("mathvista", "The answer is 12 apples.", "12", [], None, False),
        ("mathverse", "The answer is B.", "B", ["3", "4"], None, True),
        ("mathverse", "The answer is 4 + 4.", "8", [], None, False),
    ],
)
def test_the_benchmarks_own_rules(benchmark, response, answer, options, precision, right):
    row = {"response": response, "answer": answer, "options": options, "precision": precision, "question": ""}
    with answers.AnswerChecker() as checker:
        (row,) = answers.check_rows([row])
        assert benchmarks.RULES[benchmark](row, checker.same) == right


def test_mathvista_and_mathverse_rows(tmp_path):
    vista = {"question": "How long?", "image": "images/1.jpg", "choices": None, "unit": "cm", "precision": 1.0, "answer": "2.5", "question_type": "free_form",
             "answer_type": "float", "pid": "7", "metadata": {"task": "geometry problem solving", "grade": "high school", "source": "GEOS"}}  # fmt: skip
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    write_json = lambda content: (tmp_path / "testmini.json").write_text(json.dumps(content))  # noqa: E731
    (tmp_path / "images").mkdir()
    for name in ("1.jpg", "a.png"):
        Image.new("RGB", (9, 9)).save(tmp_path / "images" / name)
    write_json({"7": vista})
    (row,) = load("mathvista", tmp_path)
    assert row["question"].startswith("How long? (Unit: cm)\nHint: ") and "one decimal place" in row["question"] and row["precision"] == 1
    assert row["subject"] == "geometry problem solving" and row["query"].endswith("\nQuestion: How long? (Unit: cm)")
    write_json([vista | {"answer_type": "text", "question_type": "multi_choice", "choices": ["2", "3"], "answer": "3", "unit": None, "precision": None}])
    (row,) = load("mathvista", tmp_path)
    assert row["question"] == "How long?" and row["query"].endswith("Question: How long?\nChoices:\n(A) 2\n(B) 3") and "option letter" in row["query"]
    verse = {"sample_index": "3", "problem_index": "1", "problem_version": "Text Lite", "question": "Find x.\nChoices:\nA:4 cm\nB:5", "image": "a.png", "answer": "B", "metadata": {"subject": "Plane Geometry", "subfield": "Angle"}}
    versions = ["Text Dominant", "Text Lite", "Vision Intensive", "Vision Dominant", "Vision Only"]
    write_json([verse | {"problem_version": version, "question": "" if version == "Vision Only" else verse["question"]} for version in versions])
    write_rows(tmp_path / "testmini_text_only.jsonl", [verse | {"problem_version": "Text Only", "image": "", "question": "A bearing?", "answer": "118掳T"}])
    rows = load("mathverse", tmp_path)
    assert [row["source"] for row in rows] == [*versions, "Text Only"] and len({row["id"] for row in rows}) == 6
    assert (rows[1]["question"], rows[1]["options"]) == ("Find x.", ["4 cm", "5"]) and rows[4]["question"] and not rows[5]["images"] and rows[5]["answer"] == "118°T"


def test_mathvl_rows(tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "1.png")
    rows = [
        {"id": "1", "image": "1.png", "question": "如图，求面积。", "answer": "B", "options": ["2", "4"], "type": "choice", "subject": "面积", "grade": "初二"},
        {"id": "2", "image": ["1.png", "1.png"], "question": "填空", "answer": "25; 0.5", "type": "blank"},
        {"id": "3", "image": None, "question": "1 + 1 = ?", "answer": 2},
    ]
    write_rows(tmp_path / "test.jsonl", rows)
    one, two, three = load("mathvl", tmp_path)
    assert (one["id"], one["options"], one["source"], one["level"]) == ("mathvl/1", ["2", "4"], "choice", "初二") and len(two["images"]) == 2 and three["images"] == []
    write_rows(tmp_path / "test.jsonl", [{"id": "1", "image": "1.png", "answer": "1"}])  # no question
    with pytest.raises(SystemExit):
        load("mathvl", tmp_path)


def test_a_benchmark_as_a_data_set(tmp_path):
    """As the hub has it: the picture in a column. `datasets` reads a local folder the same way; the hub itself is not tried."""
    datasets = pytest.importorskip("datasets")
    table = {"id": ["1", "2"], "question": ["How many?\n<image1>", "Which?"], "options": [[], ["A", "B"]], "answer": ["6", "B"], "level": [1, 2], "subject": ["counting", "logic"],
             "image": ["images/1.jpg", "images/2.jpg"], "decoded_image": [Image.new("RGB", (20, 10), colour) for colour in ("red", "blue")]}  # fmt: skip
    features = {name: datasets.Value("string") for name in ("id", "question", "answer", "subject", "image")} | {"level": datasets.Value("int64"), "decoded_image": datasets.Image()}
    features["options"] = datasets.List(datasets.Value("string"))
    datasets.Dataset.from_dict(table, features=datasets.Features(features)).to_parquet(tmp_path / "set" / "testmini.parquet")
    (tmp_path / "set" / "README.md").write_text("---\nconfigs:\n- config_name: default\n  data_files:\n  - split: testmini\n    path: testmini.parquet\n---\n")
    rows = [benchmarks.mathvision(row) for row in benchmarks.benchmark_hub_rows("mathvision", str(tmp_path / "set"), tmp_path / "pictures")]
    assert [row["question"] for row in rows] == ["How many?", "Which?"] and [row["options"] for row in rows] == [[], ["A", "B"]]
    assert [Image.open(row["images"][0]).size for row in rows] == [(20, 10)] * 2


@pytest.mark.parametrize("name, count", [("mathvista", 42), ("mathverse", 40), ("mathvision", 304)])
def test_rows_of_the_sources(name, count, tmp_path):
    """Every row of the sources that is here becomes a problem whose reference answer our answer check and the benchmark's rule accept."""
    if name == "mathvision":
        path, folder = DATA / "mathv_testmini" / "problems.jsonl", DATA / "mathv_testmini"
    else:
        path, folder = DATA / "benchmark_rows" / ("mathvista_rows.jsonl" if name == "mathvista" else "mathverse_text_only_rows.jsonl"), tmp_path
    if not path.exists():
        pytest.skip("no rows of the source here")
    if name != "mathvision":
        (tmp_path / ("testmini.jsonl" if name == "mathvista" else "testmini_text_only.jsonl")).write_bytes(path.read_bytes())
        (tmp_path / "images").mkdir()
        for row in read_rows(path):  # its pictures are not here
            if row["image"]:
                Image.new("RGB", (5, 5)).save(tmp_path / row["image"])
    rows = load(name, folder)
    assert len(rows) == count
    with answers.AnswerChecker() as checker:
        for row, result in zip(rows, answers.check_rows(row | {"response": f"The answer to this problem is {row['answer']}."} for row in rows)):
            assert result["answer_check"] == "correct", (row["question"], row["answer"], result["extracted"])
            stated = {"extracted": str(row["answer"]), "response": f"\\boxed{{{row['answer']}}}"}  # MATH-V's rule reads the response, in the form that its prompt asks for
            assert benchmarks.RULES[name](result | stated, checker.same), (name, row["answer"])
            for field in benchmarks.SPLITS[name].values():
                assert row[field] is not None
