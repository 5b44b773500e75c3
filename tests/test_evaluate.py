"""05_evaluate.py and its statistics (mathse/report/statistics.py)."""

import json

import pytest
from conftest import read_rows, write_rows
from PIL import Image
from server import Server, completion
from test_rows import turned

from mathse import answers
from mathse.report import statistics

# ---------------------------------------------------------------- statistics


WILSON = [
    (5, 10, 0.2366, 0.7634),
    (0, 10, 0, 0.2775),
    (10, 10, 0.7225, 1),
    (81, 263, 0.2553, 0.3662),
    (0, 0, 0, 1),
]
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


def prediction(name, check, sample=0, **more):
    undecided = check == "undecided"
    row = {"id": name, "sample": sample, "answer_check": check, "extracted": None if undecided else check}
    return row | {"rule": "none" if undecided else "number", "finish": "stop"} | more


def test_score(stage):
    checks = {"p": "correct wrong correct undecided", "q": "wrong wrong correct wrong"}
    given = [(name, k, check) for name in checks for k, check in enumerate(checks[name].split())]
    rows = [prediction(name, check, k, subject=name) for name, k, check in given]
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
    alike = [text and right and answers.same_vote(said[0], text, options) for text in said]
    checks = ["correct" if is_right else "wrong" for is_right in alike]
    rows = [
        {"extracted": text, "options": options, "answer_check": check} for text, check in zip(said, checks)
    ]
    assert stage("05_evaluate").majority(rows, len(rows)) == right


def five_problems(toy_world):
    rows = read_rows(toy_world / "test.jsonl")[:5]
    return [row | {"images": [str(toy_world / image) for image in row["images"]]} for row in rows]


def ask(run, script, flag, path, rows):
    """A stage on these rows, asking a server that always says 7; the finished process."""
    server = Server(lambda number, body: (200, completion("The answer to this problem is 7."), {}))
    flags = [flag, write_rows(path, rows), "--model", server.spec, "--output", path.with_suffix("")]
    done = run(script, *flags)
    assert done.returncode == 0, done.stderr
    return done


def test_a_problem_without_an_answer_is_left_out(run, toy_world, tmp_path):
    rows = five_problems(toy_world)
    rows[1]["answer"] = rows[3]["answer"] = None
    printed = ask(run, "05_evaluate.py", "--test", tmp_path / "some.jsonl", rows).stdout
    figures = json.loads((tmp_path / "some/metrics.json").read_text())["benchmarks"]["some"]
    assert figures["n"] == 3 and figures["without_answer"] == 2
    assert "of 3 right" in printed and "2 problems without an answer are left out" in printed
    assert len(read_rows(tmp_path / "some/predictions.jsonl")) == 5
    rows = [row | {"answer": None} for row in rows]
    printed = ask(run, "05_evaluate.py", "--test", tmp_path / "none.jsonl", rows).stdout
    assert "none: no score, because none of its 5 problems has an answer" in printed


def test_references_that_are_not_read_are_told(run, toy_world, tmp_path):
    rows = five_problems(toy_world)
    for row in rows[:4]:
        row |= {"options": None, "answer": f"about {row['id']} or so, see page 5"}
    errors = ask(run, "01_sample.py", "--input", tmp_path / "p.jsonl", rows).stderr
    (line,) = [line for line in errors.splitlines() if line.startswith("--input: 4 of 5 answers")]
    assert "not read as values" in line and line.count("see page 5") == 3 and line.endswith("; …)")


def test_several_samples_have_no_changes_and_other_problems_no_comparison():
    several = [prediction("a", check, k) for k, check in enumerate(["correct", "wrong"])]
    other = [prediction("z", "wrong")]
    change = statistics.compare(several, several + other)
    assert (change["changes"], change["only_after"]) == (None, 1)
    assert statistics.compare(several, other) is None


# ---------------------------------------------------------------- the stage, on a server


QUESTIONS = {"How many?": "6", "What is 1 + 1?": "2", "Which?": "B", "Lost?": "9"}
SAID = {
    "How many?": "So we get 6, as counted.\nThe answer to this problem is 6.",
    "What is 1 + 1?": "It is clearly two (2)",
    "Which?": "The answer to this problem is A.",
    "Lost?": "Let me see",
}


def behave(number, body):
    """A model that answers QUESTIONS."""
    parts = body["messages"][0]["content"]
    text = "".join(part["text"] for part in parts if part["type"] == "text")
    reply = next(SAID[name] for name in QUESTIONS if name in text)
    choice = {"message": {"content": reply}, "finish_reason": "stop"}
    return 200, {"choices": [choice], "usage": {"prompt_tokens": 10, "completion_tokens": 4}}, {}


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, run):
    """(folder with a test set and its evaluation, on a server; the server; the finished process)"""
    folder, server = tmp_path_factory.mktemp("evaluated"), Server(behave)
    (folder / "x.png").write_bytes(turned("PNG"))
    rows = [
        {"id": str(index), "question": question, "images": ["x.png"], "answer": answer, "subject": "s"}
        for index, (question, answer) in enumerate(QUESTIONS.items())
    ]
    rows[2]["options"] = ["3", "4"]
    write_rows(folder / "set.jsonl", rows)
    done = run("05_evaluate.py", *flags_of(folder, "eval", server))
    assert done.returncode == 0, done.stderr
    return folder, server, done


def flags_of(folder, name, server):
    return ["--test", folder / "set.jsonl", "--output", folder / name, "--model", server.spec]


def test_scores_stand_with_their_conditions(evaluated):
    folder, _, done = evaluated
    figures = json.loads((folder / "eval" / "metrics.json").read_text())["benchmarks"]["set"]
    predicted = read_rows(folder / "eval" / "predictions.jsonl")
    checks = {row["id"]: row["answer_check"] for row in predicted}
    assert (checks["0"], checks["2"], checks["3"]) == ("correct", "wrong", "undecided")
    assert figures["accuracy"] == sum(check == "correct" for check in checks.values()) / 4
    for word in ("conditions: ", "greedy", "answers ", "no answer found"):
        assert word in done.stdout
    assert [row["id"] for row in predicted] == ["0", "1", "2", "3"]
    assert all(row["prompt"].startswith(f"Problem: {row['question']}") for row in predicted)


def test_a_failed_answer_is_asked_for_again_and_counted_anew(evaluated, run):
    folder, fails = evaluated[0], [True]

    def refuse(number, body):
        return (400, {"error": "no"}, {}) if fails[0] and "Which?" in str(body) else behave(number, body)

    server, errors = Server(refuse), []
    for flags in ([], ["--retry-errors"]):
        assert run("05_evaluate.py", *flags_of(folder, "retried", server), *flags).returncode == 0
        metrics = json.loads((folder / "retried" / "metrics.json").read_text())
        errors.append(metrics["benchmarks"]["set"]["errors"])
        fails[0], server.count = False, 0 if fails[0] else server.count
    assert errors == [1, 0] and server.count == 1


def test_blank_image_and_against(evaluated, run):
    folder, server, _ = evaluated
    server.seen = []
    flags = [*flags_of(folder, "blank", server), "--blank-image", "--against", folder / "eval"]
    done = run("05_evaluate.py", *flags)
    assert done.returncode == 0, done.stderr
    assert "0 and 0 only in one" in done.stdout and "on 4 common problems" in done.stdout
    assert "NOT COMPARABLE" not in done.stdout
    parts = [part for _, body in server.seen for part in body["messages"][0]["content"]]
    shown = {part["image_url"]["url"] for part in parts if part["type"] == "image_url"}
    with Image.open(folder / "blank" / "images" / "blank_20x40.png") as image:  # as it is shown
        assert len(shown) == 1 and image.size == (20, 40) and image.convert("L").getextrema() == (255, 255)
    row = read_rows(folder / "blank" / "predictions.jsonl")[0]
    assert (folder / "blank" / row["images"][0]).resolve() == (folder / "x.png").resolve()
    assert "own_images" not in row


def test_against_an_evaluation_under_other_conditions(evaluated, run):
    folder, server, _ = evaluated
    flags = [*flags_of(folder, "short", server), "--max-tokens", 7, "--limit", 3]
    for top_p in (0.5, 1):  # the same answers, greedily
        assert run("05_evaluate.py", *flags, "--top-p", top_p, "--force").returncode == 0
        conditions = json.loads((folder / "short" / "metrics.json").read_text())["conditions"]
        assert conditions["top_p"] == top_p
    compared = run("05_evaluate.py", "--output", folder / "short", "--against", folder / "eval")
    assert "on 3 common problems (1 and 0 only in one)" in compared.stdout
    assert "NOT COMPARABLE, other conditions: max_tokens" in compared.stdout
    (change,) = json.loads((folder / "short" / "metrics.json").read_text())["against"].values()
    assert change["set"]["not_comparable"] == ["max_tokens"] and change["set"]["change"] == 0


def test_a_dry_run_refuses_several_samples_at_temperature_0_and_writes_nothing(evaluated, run):
    folder, server, _ = evaluated
    done = run("05_evaluate.py", *flags_of(folder, "dry", server), "--samples", 2, "--dry-run")
    assert done.returncode == 2 and "--samples" in done.stderr and not (folder / "dry").exists()
