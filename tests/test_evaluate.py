"""05_evaluate.py and its statistics (mathse/report/statistics.py)."""

import json
import shutil

import pytest
from conftest import read_rows, write_rows
from PIL import Image
from server import Server

from mathse import answers
from mathse.report import statistics

# ---------------------------------------------------------------- statistics


@pytest.mark.parametrize(
    "correct, n, low, high",
    [
        (5, 10, 0.2366, 0.7634),
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (81, 263, 0.2553, 0.3662),
        (0, 0, 0.0, 1.0),
    ],
)
def test_wilson(correct, n, low, high):
    assert statistics.wilson(correct, n) == pytest.approx((low, high), abs=2e-4)


@pytest.mark.parametrize(
    "lost, gained, p",
    [(0, 0, 1.0), (5, 15, 0.04139), (15, 5, 0.04139), (0, 10, 2 / 1024), (3, 3, 1.0), (400, 600, 2.73e-10)],
)
def test_mcnemar(lost, gained, p):
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
    assert statistics.pass_at_k(4, 1, 1) == 0.25
    assert statistics.pass_at_k(4, 1, 4) == 1.0 and statistics.pass_at_k(4, 0, 4) == 0.0
    checks = {
        "p": ["correct", "wrong", "correct", "undecided"],
        "q": ["wrong", "wrong", "correct", "wrong"],
    }
    rows = [
        prediction(name, check, k, subject=name)
        for name, values in checks.items()
        for k, check in enumerate(values)
    ]
    figures = stage("05_evaluate").score(rows, {"subject": "subject"})
    assert figures["accuracy"] == 0.375 and figures["unparsed"] == 0.125
    assert figures["pass_at"][4] == 1.0 and figures["majority_at"][4] == 0.5
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
    alike = answers.same_vote
    rows = [
        {
            "extracted": text,
            "options": options,
            "answer_check": "correct" if text and right and alike(said[0], text, options) else "wrong",
        }
        for text in said
    ]
    assert stage("05_evaluate").majority(rows, len(rows)) == right


def five_problems(toy_world):
    rows = read_rows(toy_world / "test.jsonl")[:5]
    return [row | {"images": [str(toy_world / image) for image in row["images"]]} for row in rows]


def test_a_problem_without_an_answer_is_left_out(run, toy_world, tmp_path):
    def evaluate(name):
        test, output = write_rows(tmp_path / f"{name}.jsonl", rows), tmp_path / name
        flags = ["--test", test, "--model", "toy/base", "--max-tokens", 8, "--output", output]
        done = run("05_evaluate.py", *flags)
        assert done.returncode == 0, done.stderr
        return done.stdout

    rows = five_problems(toy_world)
    rows[1]["answer"] = rows[3]["answer"] = None
    printed = evaluate("some")
    figures = json.loads((tmp_path / "some/metrics.json").read_text())["benchmarks"]["some"]
    assert figures["n"] == 3 and figures["without_answer"] == 2
    assert "of 3 right" in printed and "2 problems without an answer are left out" in printed
    assert len(read_rows(tmp_path / "some/predictions.jsonl")) == 5
    for row in rows:
        row["answer"] = None
    assert "none: no score, because none of its 5 problems has an answer" in evaluate("none")


def test_references_that_are_not_read_are_told(run, toy_world, tmp_path):
    rows = five_problems(toy_world)
    for row in rows[:4]:
        row["options"] = None
        row["answer"] = f"about {row['id']} or so, see page 5"
    flags = ["--input", write_rows(tmp_path / "p.jsonl", rows), "--model", "toy/base", "--max-tokens", 8]
    done = run("01_sample.py", *flags, "--output", tmp_path / "s.jsonl")
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("--input: 4 of 5 answers")]
    assert "not read as values" in line and line.count("see page 5") == 3 and line.endswith("; …)")


def test_compare_takes_common_problems_only():
    before = [prediction("a", "correct"), prediction("b", "wrong"), prediction("c", "undecided")]
    before.append(prediction("only before", "correct"))
    after = [prediction("a", "wrong"), prediction("b", "correct"), prediction("c", "correct")]
    after.append(prediction("only after", "wrong"))
    change = statistics.compare(before, after)
    assert (change["n"], change["only_before"], change["only_after"]) == (3, 1, 1)
    assert list(change["changes"].values()) == [0, 0, 1, 2]
    assert change["change"] == pytest.approx(1 / 3, abs=1e-4) and change["p"] == 1.0
    several = [prediction("a", check, k) for k, check in enumerate(["correct", "wrong"])]
    assert statistics.compare(several, several)["changes"] is None
    assert statistics.compare(before, [prediction("z", "wrong")]) is None


def test_differing_conditions():
    one = {"model": "a", "max_tokens": 128, "rule": "x"}
    assert statistics.differing(one, one | {"model": "b", "seed": 4}) == []
    assert statistics.differing(one, one | {"max_tokens": 64}) == ["max_tokens"]
    assert statistics.differing({"model": "a", "max_tokens": 128}, one) == ["rule"]


# ---------------------------------------------------------------- the stage, on a server


QUESTIONS = {"How many?": "6", "What is 1 + 1?": "2", "Which?": "B", "Lost?": "9"}
SAID = {
    "How many?": "So we get 6, as counted.\nThe answer to this problem is 6.",
    "What is 1 + 1?": "It is clearly two (2)",
    "Which?": "The answer to this problem is A.",
    "Lost?": "Let me see",
}
EXTRACTED = {"How many?": "6", "What is 1 + 1?": "2", "Which?": "A", "Lost?": "NONE"}
EXTRACTING, CLASSIFYING = "Reply with the final answer", "which type it is"


def behave(number, body):
    """A model that answers QUESTIONS, finds what is said, or classifies errors, as the prompt asks."""
    parts = body["messages"][0]["content"]
    text = "".join(part["text"] for part in parts if part["type"] == "text")
    question = next(name for name in QUESTIONS if name in text)
    reply = SAID[question]
    if EXTRACTING in text:
        reply = EXTRACTED[question]
    elif CLASSIFYING in text:
        reply = '```json\n{"error_type": "vision"}\n```'
    choice = {"message": {"content": reply}, "finish_reason": "stop"}
    return 200, {"choices": [choice], "usage": {"prompt_tokens": 10, "completion_tokens": 4}}, {}


def asked(server, words):
    """The bodies of the server's requests that hold these words."""
    return [body for _, body in server.seen if words in str(body)]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory, run):
    """(folder with a test set and its evaluation, with judge and classifier, on a server; the server; the
    finished process)
    """
    folder, server = tmp_path_factory.mktemp("evaluated"), Server(behave)
    Image.new("RGB", (30, 20), "red").save(folder / "x.png")
    rows = [
        {"id": str(index), "question": question, "images": ["x.png"], "answer": answer, "subject": "s"}
        for index, (question, answer) in enumerate(QUESTIONS.items())
    ]
    rows[2]["options"] = ["3", "4"]
    write_rows(folder / "set.jsonl", rows)
    judges = "--judge", server.spec, "--classify", server.spec
    done = run("05_evaluate.py", *flags_of(folder, "eval", server), *judges)
    assert done.returncode == 0, done.stderr
    return folder, server, done


def flags_of(folder, name, server):
    return ["--test", folder / "set.jsonl", "--output", folder / name, "--model", server.spec]


def test_judge_and_error_types(evaluated):
    folder, _, done = evaluated
    metrics = json.loads((folder / "eval" / "metrics.json").read_text())
    figures = metrics["benchmarks"]["set"]
    predicted = read_rows(folder / "eval" / "predictions.jsonl")
    by_rules = {row["id"]: row["answer_check"] for row in predicted}
    judged = {row["id"]: row for row in read_rows(folder / "eval" / "judged.jsonl")}
    assert (by_rules["0"], by_rules["2"], by_rules["3"]) == ("correct", "wrong", "undecided")
    checks = [judged[name]["judge_check"] for name in "0123"]
    assert checks == ["correct", "correct", "wrong", "undecided"] and judged["1"]["judge_tokens"] == [10, 4]
    assert figures["judge"]["accuracy"] == 0.5 and figures["judge"]["unparsed"] == 0.25
    assert figures["accuracy"] == sum(check == "correct" for check in by_rules.values()) / 4
    errors = read_rows(folder / "eval" / "errors.jsonl")
    assert {row["id"] for row in errors} == {name for name, check in by_rules.items() if check == "wrong"}
    assert figures["error_types"]["vision"] == len(errors)
    for word in ("conditions: ", "greedy", "mpmath", "no answer found", "answers extracted by"):
        assert word in done.stdout


def test_rows_are_in_the_order_of_the_test_set_and_carry_their_prompt(evaluated):
    folder, _, _ = evaluated
    for name in ("predictions.jsonl", "judged.jsonl"):
        assert [row["id"] for row in read_rows(folder / "eval" / name)] == ["0", "1", "2", "3"]
    for row in read_rows(folder / "eval" / "predictions.jsonl"):
        assert row["prompt"].startswith(f"Problem: {row['question']}")


def test_a_judge_sees_no_image_and_is_not_asked_again(evaluated, run):
    folder, server, _ = evaluated
    before = asked(server, EXTRACTING)
    assert len(before) == 4 and "image_url" not in str(before)
    count = server.count
    again = run("05_evaluate.py", *flags_of(folder, "eval", server), "--judge", server.spec)
    assert again.stdout.startswith("skip ") and server.count == count
    assert f"skip {folder / 'eval'}\n" in again.stdout
    plain = flags_of(folder, "plain", server)
    other = run("05_evaluate.py", *plain)
    later = run("05_evaluate.py", *plain, "--judge", server.spec)
    assert other.returncode == later.returncode == 0
    assert "judge" in json.loads((folder / "plain" / "metrics.json").read_text())["benchmarks"]["set"]
    assert len(asked(server, "expert mathematics teacher")) == 8  # answers are not asked for again
    changed = run("05_evaluate.py", *plain, "--classify", server.spec, "--max-tokens", 7)
    assert changed.returncode == 2 and "max_tokens was 2048, is 7" in changed.stderr
    fewer = run("05_evaluate.py", *plain, "--classify", server.spec, "--limit", 2)
    assert fewer.returncode == 2 and "limit was 0, is 2" in fewer.stderr


def test_another_classifier_leaves_the_answers(evaluated, run):
    """Refused by name; with --force the errors alone are asked about anew."""
    folder, server, _ = evaluated
    shutil.copytree(folder / "eval", folder / "classified")
    flags = [*flags_of(folder, "classified", server), "--classify", server.spec + "2"]
    refused = run("05_evaluate.py", *flags)
    assert refused.returncode == 2 and "errors.jsonl" in refused.stderr and "model was" in refused.stderr
    server.seen = []
    done = run("05_evaluate.py", *flags, "--force")
    assert done.returncode == 0, done.stderr
    errors = read_rows(folder / "classified" / "errors.jsonl")
    assert len(server.seen) == len(asked(server, CLASSIFYING)) == len(errors)
    assert {row["judge_model"] for row in errors} == {server.spec + "2"}
    for name in ("predictions.jsonl", "judged.jsonl"):
        assert (folder / "classified" / name).read_bytes() == (folder / "eval" / name).read_bytes()


def test_answers_made_anew_make_old_replies_stale(evaluated, run):
    """They are not in the figures, and with --force the judge is asked about the new answers."""
    folder, server, _ = evaluated
    shutil.copytree(folder / "eval", folder / "anew")
    flags = [*flags_of(folder, "anew", server), "--limit", 3, "--force"]
    assert run("05_evaluate.py", *flags).returncode == 0
    figures = json.loads((folder / "anew" / "metrics.json").read_text())["benchmarks"]["set"]
    assert figures["n"] == 3 and "judge" not in figures and "error_types" not in figures
    server.seen = []
    assert run("05_evaluate.py", *flags, "--judge", server.spec).returncode == 0
    assert len(server.seen) == len(read_rows(folder / "anew" / "judged.jsonl")) == 3
    figures = json.loads((folder / "anew" / "metrics.json").read_text())["benchmarks"]["set"]
    assert figures["judge"]["n"] == 3


@pytest.fixture
def refusing():
    """(a server that refuses requests about "Which?", what it refuses: "judge", "answer")"""
    refused = []

    def refuse(number, body):
        kind = "judge" if EXTRACTING in str(body) else "answer"
        if "Which?" in str(body) and kind in refused:
            return 400, {"error": "no"}, {}
        return behave(number, body)

    return Server(refuse), refused


def test_a_reply_of_a_judge_that_failed_is_asked_for_again(evaluated, refusing, run):
    folder, (server, refused) = evaluated[0], refusing
    flags = [*flags_of(folder, "again", server), "--judge", server.spec, "--concurrency", 1]
    refused[:] = ["judge"]
    assert run("05_evaluate.py", *flags).returncode == 0
    refused[:], server.seen = [], []
    assert run("05_evaluate.py", *flags, "--retry-errors").returncode == 0 and len(server.seen) == 1
    judged = {row["id"]: row for row in read_rows(folder / "again" / "judged.jsonl")}
    assert len(judged) == 4 and judged["2"]["judge_extracted"] == "A"


def test_after_a_failed_answer_the_judge_is_asked_about_the_new_one_alone(evaluated, refusing, run):
    """Also if the call that tries the answer again does not ask the judge."""
    folder, (server, refused) = evaluated[0], refusing
    for name, judge_at_once in (("once more", True), ("later", False)):
        flags, judge = flags_of(folder, name, server), ["--judge", server.spec]
        refused[:] = ["answer"]
        assert run("05_evaluate.py", *flags, *judge).returncode == 0
        assert len(read_rows(folder / name / "judged.jsonl")) == 3
        refused[:], server.seen = [], []
        done = run("05_evaluate.py", *flags, "--retry-errors", *(judge if judge_at_once else []))
        assert done.returncode == 0, done.stderr
        done = run("05_evaluate.py", *flags, *judge)
        assert done.returncode == 0, done.stderr
        assert len(server.seen) == 2 and len(read_rows(folder / name / "judged.jsonl")) == 4
        figures = json.loads((folder / name / "metrics.json").read_text())["benchmarks"]["set"]
        assert figures["errors"] == 0 and figures["judge"]["n"] == 4


def test_a_judge_that_stops_ends_a_launch_of_two_processes(evaluated, run, run_two):
    """Process 0 alone asks an endpoint, and the other waits for it."""
    folder, server, _ = evaluated
    flags = flags_of(folder, "stops", server)
    assert run("05_evaluate.py", *flags).returncode == 0
    server.seen = []
    flags += ["--judge", server.spec]
    done = run_two("05_evaluate.py", *flags, "--max-requests", 1)
    assert done.returncode == 1 and "--max-requests 1 is reached" in done.stderr
    (part,) = (folder / "stops" / "judged.jsonl.part").glob("rank_*.jsonl")
    assert part.name == "rank_0.jsonl" and len(read_rows(part)) == 1
    done = run_two("05_evaluate.py", *flags)
    assert done.returncode == 0, done.stderr
    assert len(server.seen) == len(read_rows(folder / "stops" / "judged.jsonl")) == 4


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
    with Image.open(folder / "blank" / "images" / "blank_30x20.png") as image:
        assert len(shown) == 1 and image.size == (30, 20) and image.convert("L").getextrema() == (255, 255)
    row = read_rows(folder / "blank" / "predictions.jsonl")[0]
    assert (folder / "blank" / row["images"][0]).resolve() == (folder / "x.png").resolve()
    assert "own_images" not in row


def test_against_an_evaluation_under_other_conditions(evaluated, run):
    folder, server, _ = evaluated
    run("05_evaluate.py", *flags_of(folder, "short", server), "--max-tokens", 7, "--limit", 3)
    compared = run("05_evaluate.py", "--output", folder / "short", "--against", folder / "eval")
    assert "on 3 common problems (1 and 0 only in one)" in compared.stdout
    assert "NOT COMPARABLE, other conditions: max_tokens" in compared.stdout
    (change,) = json.loads((folder / "short" / "metrics.json").read_text())["against"].values()
    assert change["set"]["not_comparable"] == ["max_tokens"] and change["set"]["change"] == 0


def test_dry_run(evaluated, run):
    """It checks test sets and models, prints the calls and writes nothing."""
    folder, server, _ = evaluated
    count = server.count
    flags = ["--output", folder / "dry", "--model", server.spec, "--judge", server.spec, "--dry-run", 10]
    done = run("05_evaluate.py", "--test", folder / "set.jsonl", *flags)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("about 10 model calls") == 2 and not (folder / "dry").exists()
    for wrong in (["--classify", "no-model"], ["--samples", 2]):
        done = run("05_evaluate.py", "--test", folder / "set.jsonl", *flags, *wrong)
        assert done.returncode == 2 and wrong[0] in done.stderr
    done = run("05_evaluate.py", "--test", folder / "gone.jsonl", *flags)
    assert done.returncode == 2 and "gone.jsonl" in done.stderr
    assert server.count == count
