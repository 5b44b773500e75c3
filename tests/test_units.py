"""Small functions, by tables."""

import argparse
import json
import random
import re

import problems as toy
import pytest
import teacher
from conftest import read_rows, write_rows
from test_rows import GOOD, RIGHT, STEP

import common
from mathse import chat, cli, records
from mathse.generate import Reply
from mathse.jsonl import Output
from mathse.recipe import Recipe

ASKED = {"question": "Is <image> larger than <image>?", "images": ["a.png", "b.png"]}


def test_fill_is_one_pass_and_defuses_tokens():
    assert chat.fill("{a} {b} {c}", a="{b}", b="x") == "{b} x {c}"
    assert chat.fill('{"k": {a}}', a="1") == '{"k": 1}'
    assert "<image>" not in chat.fill("{a}", a="see <image> and <|im_end|>")


def test_images_stand_where_the_questions_marks_are():
    (message,) = chat.chat_parts(chat.user_message(common.solve_prompt(ASKED), ASKED["images"]))
    assert [part["type"] for part in message["content"]] == ["text", "image", "text", "image", "text"]


@pytest.mark.parametrize(
    "write, read",
    [
        ("".join, "Is [] larger than []?"),
        (lambda parts: "".join(sorted(parts, key="[]".__ne__)), "[][]Is image 1 larger than image 2?"),
    ],
    ids=["in place", "images in front"],
)
def test_a_template_without_places_gets_images_in_front_and_whole_sentences(write, read):
    class Processor:
        def apply_chat_template(self, messages: list) -> str:
            return write([part.get("text", "[]") for message in messages for part in message["content"]])

    messages = chat.user_message(ASKED["question"], ASKED["images"])
    fitted = chat.fitting(Processor(), messages)
    assert Processor().apply_chat_template(chat.chat_parts(fitted)) == read


def test_marks_that_are_too_few_or_too_many_are_words():
    contents = {
        ("Q", 2): "<image><image>Q",
        ("Q <image>", 1): "Q <image>",
        ("In <image>?", 2): "<image><image>In the image?",  # a prompt of a forker's
        ("In <image> and <image>?", 1): "<image>In image 1 and image 2?",
    }
    for (prompt, images), content in contents.items():
        assert chat.user_message(prompt, ["x.png"] * images) == [{"role": "user", "content": content}]


def test_question_text():
    texts = {
        (): "Q",
        ("A", "B", "C"): "Q",  # the choices are drawn in the picture
        ("3", "4"): "Q\nChoices:\nA. 3\nB. 4",
        ("(A) 3", "(B) 4"): "Q\nChoices:\n(A) 3\n(B) 4",
    }
    for options, text in texts.items():
        assert chat.question_text({"question": " Q ", "options": [*options]}) == text


def recipe_of(path, **settings) -> Recipe:
    return Recipe(path, "01_sample.py", argparse.Namespace(force=False), **settings)


def test_an_output_is_in_the_order_of_its_keys_whoever_wrote_it(tmp_path):
    """Parts of two processes, a failed row to be tried again, a row that stands twice, a torn line."""
    rows = [{"id": name, "images": [], "finish": "stop"} for name in "abcd"]
    path, part = tmp_path / "rows.jsonl", tmp_path / "rows.jsonl.part"
    first = Output(recipe_of(path))
    first.write(rows[2])
    write_rows(part / "earlier.jsonl", [rows[0] | {"finish": "error"}])
    write_rows(part / "rank_1.jsonl", [rows[3], rows[1], rows[2], rows[1] | {"finish": "error"}])
    first.file.close()  # as when its process is killed
    first.recipe.lock.close()
    with (part / "rank_0.jsonl").open("ab") as file:
        file.write(b'{"id": "a", "ima')
    again = Output(recipe_of(path))
    assert again.done == {records.row_key(row) for row in rows[1:]}
    again.write(rows[0])
    again.finish(map(records.row_key, rows))
    assert read_rows(path) == rows and not part.exists()


def test_an_empty_folder_is_no_output(tmp_path):
    (tmp_path / "model").mkdir()
    recipe = recipe_of(tmp_path / "model", is_folder=True)
    assert not recipe.is_done()
    recipe.start()
    recipe.complete(recipe.part)
    assert recipe.is_done()


@pytest.mark.parametrize(
    "replies, verdict, step",
    [
        ([GOOD], "wrong", STEP),
        ([GOOD, RIGHT, GOOD], "wrong", STEP),
        ([RIGHT, GOOD], "undecided", None),
        (["?", GOOD, "?"], "wrong", STEP),
        (["?", RIGHT], "correct", None),
        (["?", "?"], "undecided", None),
    ],
)
def test_most_of_an_orms_replies_decide(stage, replies, verdict, step):
    """They are kept in their samples' order; a path that was cut off is shown to nobody."""
    row = {"question": "?", "images": [], "sample": 0, "response": "The answer is 5.", "answer": "5"}
    rows = [row | {"id": name, "finish": finish} for name, finish in (("a", "stop"), ("b", "length"))]

    def generate(requests):
        for request in requests:
            for k in reversed(request.seeds):
                yield Reply(request.row, k, replies[k], tokens=3, prompt_tokens=20)

    args, count = argparse.Namespace(orm_samples=len(replies), seed=0), len(replies)
    whole, cut_off = sorted(stage("02_verify").verify(args, iter(rows), generate), key=lambda row: row["id"])
    told = [(row["orm_check"], row["error_step"], row["judge_tokens"]) for row in (whole, cut_off)]
    assert told == [(verdict, step, [20 * count, 3 * count]), ("undecided", None, [0, 0])]
    assert whole["judge_reply"] == (replies if count > 1 else replies[0])


@pytest.mark.parametrize(
    "policy, answer, orm, status",
    [
        ("answer", "correct", None, "correct"),
        ("answer", None, None, "undecided"),
        ("orm", "wrong", "correct", "correct"),
        ("both", "correct", "correct", "correct"),
        ("both", "correct", "wrong", "wrong"),
        ("both", "wrong", "correct", "wrong"),
        ("both", "correct", "undecided", "undecided"),
        ("both", None, "correct", "correct"),  # no reference answer
        ("orm", "correct", "undecided", "undecided"),
    ],
)
def test_decide(stage, policy, answer, orm, status):
    row = {"answer_check": answer, "orm_check": orm, "rule": "none", "finish": "stop"}
    found, reason = stage("02_verify").decide(row, [row], argparse.Namespace(accept=policy, agree=0.0))
    assert found == status and (reason is not None) == (status == "undecided")


def test_paths_agree_by_value(stage):
    """1/2 and 0.5 are one vote, a path without an answer or its end has none; what is wrong stays wrong."""
    row = {"id": "a", "answer_check": "correct", "orm_check": None, "finish": "stop"}
    said = ("1/2", "0.5", "3", "-"), ("7", "8", "9"), ("1",)
    problems = [
        [row | {"sample": k, "response": f"The answer is {text}."} for k, text in enumerate(texts)]
        for texts in said
    ]
    problems[0][3]["response"] = "No idea"
    problems[1][2]["answer_check"], problems[2][0]["finish"] = "wrong", "length"
    for share, expected in ((0.3, "ccuu ccw u"), (0.5, "ccuu uuw u"), (0.6, "uuuu uuw u")):
        args = argparse.Namespace(accept="answer", agree=share)
        statuses = [[stage("02_verify").decide(row, paths, args)[0] for row in paths] for paths in problems]
        assert " ".join("".join(status[0] for status in found) for found in statuses) == expected


@pytest.mark.parametrize(
    "check_correct, statuses, told",
    [
        (False, ["correct", "correct", "wrong", "undecided"], [None, None, "wrong", "correct"]),
        (True, ["correct", "undecided", "wrong", "undecided"], ["correct", "wrong", "wrong", "correct"]),
    ],
)
def test_annotations_that_contradict_the_answer_check_are_dropped(stage, check_correct, statuses, told):
    """A right path, one right by luck, a wrong one with its mistake, a wrong one that the teacher calls
    right.
    """
    row = {"question": "?", "images": [], "sample": 0, "answer": "5", "finish": "stop"}
    answers = {"right": 5, "luck": 5, "wrong": 6, "praised": 7}
    rows = [row | {"id": name, "response": f"The answer is {said}."} for name, said in answers.items()]
    asked = []

    def generate(requests):
        for request in requests:
            asked.append(request.row["id"])
            yield Reply(request.row, 0, GOOD if asked[-1] in ("luck", "wrong") else RIGHT)

    args = argparse.Namespace(check_correct=check_correct, seed=0)
    annotated = {row["id"]: row for row in stage("02_verify").annotate(args, iter(rows), generate)}
    found = [annotated[name] for name in answers]
    assert [row["status"] for row in found] == statuses
    assert [row.get("teacher_check") for row in found] == told
    assert {*asked} == {name for name, verdict in zip(answers, told) if verdict}
    assert "contradicts the answer check" in found[3]["reason"] and found[2]["error_step"] == STEP


def test_draws_are_nested_and_by_number_or_share(stage, tmp_path):
    sample = stage("01_sample")
    path = write_rows(tmp_path / "p.jsonl", [{"id": f"p{k}", "question": "Q"} for k in range(50)])

    def drawn(draw: str) -> set[str]:
        args = argparse.Namespace(input=[path], limit=0, unsolved_in=[], seed=0, model="m")
        args.draw = cli.share_or_count(draw)
        return {*sample.choose(args, check=True)}

    assert [len(drawn(draw)) for draw in ("all", "7", "0.3", ".02", "1", "99")] == [50, 7, 15, 1, 1, 50]
    assert drawn("1") < drawn("7") < drawn("0.3") < drawn("all")
    for unclear in ("0", "1.0", "0.0", "1.5", "-1", "nan", "1e3", "30%", "", "every"):
        with pytest.raises(argparse.ArgumentTypeError, match="a share between 0 and 1, or all"):
            cli.share_or_count(unclear)


def test_the_first_mistake_of_a_toy_solution():
    right = "Step 1: The picture shows a rectangle with sides 7 and 5.\nStep 2: The area is 7 * 5 = 35.\n"
    right += "The answer to this problem is B."

    def mistake(old: str, new: str) -> tuple[str, str] | None:
        return toy.first_mistake(right, right.replace(old, new))

    assert mistake("B", "B") is mistake("is B.", "is 35.") is None
    assert mistake("is B.", "is A.")[0] == "The answer to this problem is A."
    assert mistake("= 35", "= 36") == ("Step 2: The area is 7 * 5 = 36.", "7 * 5 is not 36.")
    assert mistake("is B.", "is 36.")[0].endswith("is 36.")


@pytest.mark.parametrize("name", list(toy.FAMILIES))
def test_toy_families(name):
    rng, family = random.Random(name), toy.FAMILIES[name]
    for _ in range(200):
        record, numbers, canvas = toy.make_problem(name, rng)
        options = record.get("options", [])
        told = {key for key in numbers if "{" + key + "}" in family.facts + family.question}
        assert toy.parse_numbers(record) == {key: numbers[key] for key in told}
        assert not options or (record["answer"] in options and len(set(options)) == 4)
        wrong, line = toy.wrong_solution(family, numbers, options, "The picture shows", rng)
        rights, wrongs = record["solution"].split("\n"), wrong.split("\n")
        assert wrongs[:line] == rights[:line] and wrongs[line] != rights[line] and wrongs[-1] != rights[-1]
        assert canvas.image.size == (112, 112)


def test_teacher_answers_the_three_prompts(toy_world, stage, monkeypatch):
    feedback, reflect = stage("02_verify").FEEDBACK_PROMPT, stage("03_reflect").REFLECT_PROMPT
    row, *_ = read_rows(toy_world / "train.jsonl")
    picture = [(toy_world / row["images"][0]).read_bytes()]

    def asked(prompt: str, wrong: float = 0.0, **texts: str) -> str | None:
        server = teacher.Teacher([toy_world / "train.jsonl"], wrong=wrong, seed=0)
        return server.answer(chat.fill(prompt, question=chat.question_text(row), **texts), picture, 0)

    def verdict_on(response: str) -> dict:
        return json.loads(asked(feedback, answer=row["answer"], response=response))

    assert asked(common.SOLVE_PROMPT) == row["solution"] != asked(common.SOLVE_PROMPT, wrong=1.0)
    family, numbers, options = toy.FAMILIES[row["subject"]], toy.parse_numbers(row), row.get("options", [])
    wrong, line = toy.wrong_solution(family, numbers, options, "The picture shows", random.Random(1))
    verdict = verdict_on(wrong)
    assert verdict["status"] == "WRONG" and verdict["error_step"] == wrong.split("\n")[line]
    assert asked(reflect, response=wrong, error_step="x", error_analysis="y") == row["solution"]
    assert asked("What is this?") is None
    monkeypatch.setattr(teacher, "SOLVE_PROMPT", "Solve: {question}\nAgain: {question}")  # as a fork may
    assert asked(teacher.SOLVE_PROMPT) == row["solution"]
    # a picture's number, a sum's result and the operation changed: each is another type of error
    lines = row["solution"].split("\n")
    changed = {
        "vision": (0, re.sub(r"\d+", "99", lines[0].removeprefix("Step 1:"), count=1)),
        "calculation": (1, re.sub(r"= \d+", "= 9999", lines[1])),
        "reasoning": (1, "Step 2: It is 1 + 1 = 2."),
    }
    for kind, (place, text) in changed.items():
        assert verdict_on("\n".join([*lines[:place], text, *lines[place + 1 :]]))["error_type"] == kind
    assert verdict_on("I see nothing.")["error_type"] is None
