"""05_evaluate.py and its statistics (mathse/report/statistics.py)."""

import json

import pytest
from conftest import one_line, read_rows, write_rows
from PIL import Image
from server import Server, completion, text_of
from test_rows import turned

from mathse import answers
from mathse.images import blank_image
from mathse.report import statistics

# ---------------------------------------------------------------- statistics


WILSON = [
    (5, 10, 0.2366, 0.7634), (0, 10, 0, 0.2775), (10, 10, 0.7225, 1), (81, 263, 0.2553, 0.3662), (0, 0, 0, 1)
]  # fmt: skip
MCNEMAR = [(0, 0, 1), (5, 15, 0.04139), (15, 5, 0.04139), (0, 10, 2 / 1024), (3, 3, 1), (400, 600, 2.73e-10)]


def test_wilson_and_mcnemar():
    for correct, n, *bounds in WILSON:
        assert statistics.wilson(correct, n) == pytest.approx(bounds, abs=2e-4)
    for lost, gained, p in MCNEMAR:
        assert statistics.mcnemar(lost, gained) == pytest.approx(p, rel=0.03)


def test_bootstrap_is_paired_and_repeats():
    differences = [1.0] * 60 + [-1.0] * 20 + [0.0] * 320
    low, high = statistics.bootstrap(differences, seed=1)
    assert (low, high) == statistics.bootstrap(differences, seed=1)
    error = (0.2 - 0.1**2) ** 0.5 / 20  # of the mean of 400
    assert low == pytest.approx(0.1 - 1.96 * error, abs=0.006)
    assert high == pytest.approx(0.1 + 1.96 * error, abs=0.006)
    assert statistics.bootstrap([0.25] * 9, seed=0) == (0.25, 0.25)


def prediction(name, check, sample=0):
    extracted, rule = (None, "none") if check == "undecided" else (check, "number")
    row = {"id": name, "sample": sample, "answer_check": check, "subject": name}
    return row | {"extracted": extracted, "rule": rule, "finish": "stop"}


def test_score(stage):
    checks = {"p": "correct wrong correct undecided", "q": "wrong wrong correct wrong"}
    rows = [prediction(name, check, k) for name in checks for k, check in enumerate(checks[name].split())]
    figures = stage("05_evaluate").score(rows, {"subject": "subject"})
    assert figures["accuracy"] == 0.375 and figures["unparsed"] == 0.125
    assert figures["pass_at"] == {1: 0.375, 2: 0.6667, 4: 1.0} and figures["majority_at"][4] == 0.5
    expected = {"n": 1, "accuracy": 0.25, "interval": statistics.wilson(0.25, 1)}
    assert figures["splits"]["subject"]["q"] == expected


@pytest.mark.parametrize(
    "said, options, right",
    [
        (["1/2", "3", "0.5", "7"], None, True),  # two spellings, one vote
        (["3", "3.0", "0.5", "1/2", "\\frac{3}{1}"], None, False),
        (["12 cm", "120 mm", "5 cm", "5 cm"], None, True),
        (["B", "C. 18 cm", "(B) 12 cm", "12 cm"], ["6 cm", "12 cm", "18 cm"], True),
        (["√8", "2\\sqrt{2}", "3", "3", "\\sqrt{8}"], None, True),
        ([None, None, None], None, False),
    ],
)
def test_the_majority_is_of_values(stage, said, options, right):
    """The right answers are those equal to the first."""
    rows = [{"extracted": text, "options": options} for text in said]
    for row, text in zip(rows, said):
        is_right = text and right and answers.same_vote(said[0], text, options)
        row["answer_check"] = "correct" if is_right else "wrong"
    assert stage("05_evaluate").majority(rows, len(rows)) == right


def test_several_samples_have_no_changes_and_other_problems_no_comparison():
    several = [prediction("a", check, k) for k, check in enumerate(["correct", "wrong"])]
    other = [prediction("z", "wrong")]
    change = statistics.compare(several, several + other)
    assert (change["changes"], change["only_after"]) == (None, 1)
    assert statistics.compare(several, other) is None


# ---------------------------------------------------------------- the stage, on a server


QUESTIONS = {  # a question, its answer and what a model says
    "How many?": ("6", "So we get 6, as counted.\nThe answer to this problem is 6."),
    "What is 1 + 1?": ("2", "It is clearly two (2)"),
    "Which?": ("B", "The answer to this problem is A."),
    "Lost?": ("9", "Let me see"),
}
ROWS = [
    {"id": str(number), "question": question, "images": ["x.png"], "answer": answer, "subject": "s"}
    for number, (question, (answer, _)) in enumerate(QUESTIONS.items())
]
ROWS[2]["options"] = ["3", "4"]


def behave(number, body):
    """A model that answers QUESTIONS."""
    said = next(said for question, (_, said) in QUESTIONS.items() if question in text_of(body))
    return 200, completion(said), {}


def write_set(folder, rows):
    (folder / "x.png").write_bytes(turned("PNG"))
    return write_rows(folder / "set.jsonl", rows)


def evaluate(run, server, output, *flags):
    """A server's evaluation on the set beside its output: what is printed, its metrics, its predictions."""
    files = "--test", output.parent / "set.jsonl", "--output", output
    done = run("05_evaluate.py", *files, "--model", server.spec, *flags)
    assert done.returncode == 0, done.stderr
    metrics = json.loads((output / "metrics.json").read_text())
    return done.stdout, metrics, read_rows(output / "predictions.jsonl")


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, run):
    """(folder with a test set and its evaluation, on a server; the server; what evaluate() told)"""
    folder, server = tmp_path_factory.mktemp("evaluated"), Server(behave)
    write_set(folder, ROWS)
    return folder, server, evaluate(run, server, folder / "eval")


def test_scores_stand_with_their_conditions(evaluated):
    printed, metrics, predicted = evaluated[2]
    checks = [row["answer_check"] for row in predicted]
    assert [checks[k] for k in (0, 2, 3)] == ["correct", "wrong", "undecided"]
    assert metrics["benchmarks"]["set"]["accuracy"] == checks.count("correct") / 4
    for word in ("conditions: ", "greedy", "answers ", "no answer found"):
        assert word in printed
    assert [row["id"] for row in predicted] == ["0", "1", "2", "3"]
    assert all(row["prompt"].startswith(f"Problem: {row['question']}") for row in predicted)


def test_a_problem_without_an_answer_is_left_out(run, tmp_path):
    write_set(tmp_path, [row | {"answer": None} if row["id"] in "13" else row for row in ROWS])
    printed, metrics, predicted = evaluate(run, Server(behave), tmp_path / "some")
    figures = metrics["benchmarks"]["set"]
    assert (figures["n"], figures["without_answer"], len(predicted)) == (2, 2, 4)
    assert "of 2 right" in printed and "2 problems without an answer are left out" in printed
    write_set(tmp_path, [row | {"answer": None} for row in ROWS])
    printed, *_ = evaluate(run, Server(behave), tmp_path / "none")
    assert "set: no score, because none of its 4 problems has an answer" in printed


def test_references_that_are_not_read_are_told(run, tmp_path):
    said = ["6", *(f"about {k} or so, see page 5" for k in range(4))]
    rows = [ROWS[0] | {"id": str(k), "answer": answer} for k, answer in enumerate(said)]
    flags = "--input", write_set(tmp_path, rows), "--model", Server(behave).spec
    errors = run("01_sample.py", *flags, "--output", tmp_path / "s.jsonl").stderr
    (line,) = [line for line in errors.splitlines() if line.startswith("--input: 4 of 5 answers")]
    assert "not read as values" in line and line.count("see page 5") == 3 and line.endswith("; …)")


def test_a_failed_answer_is_asked_for_again_and_counted_anew(evaluated, run):
    folder, fails = evaluated[0], [True]

    def refuse(number, body):
        return (400, {"error": "no"}, {}) if fails[0] and "Which?" in str(body) else behave(number, body)

    server = Server(refuse)
    _, metrics, _ = evaluate(run, server, folder / "retried")
    assert metrics["benchmarks"]["set"]["errors"] == 1
    fails[0], server.count = False, 0
    _, metrics, _ = evaluate(run, server, folder / "retried", "--retry-errors")
    assert metrics["benchmarks"]["set"]["errors"] == 0 and server.count == 1


def test_blank_image_and_against(evaluated, run):
    folder, server, _ = evaluated
    server.seen = []
    flags = "--blank-image", "--against", folder / "eval"
    printed, _, (row, *_) = evaluate(run, server, folder / "blank", *flags)
    assert "0 and 0 only in one" in printed and "on 4 common problems" in printed
    assert "NOT COMPARABLE" not in printed
    parts = [part for _, body in server.seen for part in body["messages"][0]["content"]]
    shown = {part["image_url"]["url"] for part in parts if part["type"] == "image_url"}
    with Image.open(folder / "blank/images/blank_20x40.png") as image:  # as it is shown
        assert len(shown) == 1 and image.size == (20, 40) and image.convert("L").getextrema() == (255, 255)
    assert (folder / "blank" / row["images"][0]).resolve() == (folder / "x.png").resolve()
    assert "own_images" not in row
    gone = str(folder / "gone.png")  # since the inputs were checked: its reply will say so
    assert blank_image(gone, folder) == gone


def test_against_an_evaluation_under_other_conditions(evaluated, run):
    folder, server, _ = evaluated
    for top_p in (0.5, 1):  # the same answers, greedily
        flags = "--max-tokens", 7, "--limit", 3, "--top-p", top_p, "--force"
        _, metrics, _ = evaluate(run, server, folder / "short", *flags)
        assert metrics["conditions"]["top_p"] == top_p
    compared = run("05_evaluate.py", "--output", folder / "short", "--against", folder / "eval")
    assert "on 3 common problems (1 and 0 only in one)" in compared.stdout
    assert "NOT COMPARABLE, other conditions: max_tokens" in compared.stdout
    (change,) = json.loads((folder / "short/metrics.json").read_text())["against"].values()
    assert change["set"]["not_comparable"] == ["max_tokens"] and change["set"]["change"] == 0


def test_a_dry_run_refuses_several_samples_at_temperature_0_and_writes_nothing(evaluated, run):
    folder, server, _ = evaluated
    flags = "--test", folder / "set.jsonl", "--model", server.spec, "--samples", 2, "--dry-run"
    assert one_line(run("05_evaluate.py", *flags, "--output", folder / "dry"), "--samples")
    assert not (folder / "dry").exists()
