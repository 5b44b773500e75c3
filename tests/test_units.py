"""Small functions, by tables."""

import argparse
import json
import random
import re

import problems as toy
import pytest
from conftest import read_rows, write_rows
from test_rows import GOOD, RIGHT, STEP

import common
from mathse import chat, cli, records
from mathse.generate import Reply
from mathse.jsonl import Output
from mathse.recipe import Recipe


def test_fill_is_one_pass_and_defuses_tokens():
    assert chat.fill("{a} {b} {c}", a="{b}", b="x") == "{b} x {c}"
    assert chat.fill('{"k": {a}}', a="1") == '{"k": 1}'
    assert "<image>" not in chat.fill("{a}", a="see <image> and <|im_end|>")


ASKED = {"question": "Is <image> larger than <image>?", "images": ["a.png", "b.png"]}


def test_images_stand_where_the_questions_marks_are(stage):
    """In the prompt, a judge's prompt and what is learnt of it alike; a response has no marks."""
    prompt = common.solve_prompt(ASKED)
    (message,) = chat.user_message(prompt, ASKED["images"])
    assert message["content"] == prompt and ASKED["question"] in prompt
    row = ASKED | {"prompt": prompt, "response": "<image>", "status": "correct"}
    (judged,) = chat.user_message(common.judge_prompt(row), row["images"])
    assert judged["content"].count("<image>") == 2 and ASKED["question"] in judged["content"]
    for flags, asked in ((False, message), (True, judged)):
        learnt = stage("04_finetune").training_row(row, argparse.Namespace(orm=flags, binary=False))
        assert learnt["messages"][0] == asked
    parts = chat.chat_parts([message])[0]["content"]
    assert [part["type"] for part in parts] == ["text", "image", "text", "image", "text"]


IN_FRONT = "[][]Is image 1 larger than image 2?"
TEMPLATES = {  # how a chat template writes a message's parts -> what a model reads of ASKED
    "in place": ("".join, "Is [] larger than []?"),
    "images in front": (lambda parts: "".join(sorted(parts, key="[]".__ne__)), IN_FRONT),
}


@pytest.mark.parametrize("case", TEMPLATES)
def test_a_template_without_places_gets_images_in_front_and_whole_sentences(case):
    write, expected = TEMPLATES[case]

    class Processor:
        def apply_chat_template(self, messages: list) -> str:
            return write([part.get("text", "[]") for message in messages for part in message["content"]])

    messages = chat.user_message(ASKED["question"], ASKED["images"])
    fitted = chat.fitting(Processor(), messages)
    assert Processor().apply_chat_template(chat.chat_parts(fitted)) == expected


@pytest.mark.parametrize(
    "prompt, images, content",
    [
        ("Q", 2, "<image><image>Q"),
        ("Q <image>", 1, "Q <image>"),
        ("In <image>?", 2, "<image><image>In the image?"),  # a prompt of a forker's
        ("In <image> and <image>?", 1, "<image>In image 1 and image 2?"),
    ],
)
def test_marks_that_are_too_few_or_too_many_are_words(prompt, images, content):
    assert chat.user_message(prompt, ["x.png"] * images) == [{"role": "user", "content": content}]


@pytest.mark.parametrize(
    "options, expected",
    [
        ([], "Q"),
        (["A", "B", "C"], "Q"),  # the choices are drawn in the picture
        (["3", "4"], "Q\nChoices:\nA. 3\nB. 4"),
        (["(A) 3", "(B) 4"], "Q\nChoices:\n(A) 3\n(B) 4"),
    ],
)
def test_question_text(options, expected):
    assert chat.question_text({"question": " Q ", "options": options}) == expected


def recipe_of(path, **flags) -> Recipe:
    return Recipe(path, "01_sample.py", argparse.Namespace(force=False, **flags))


def test_an_output_is_in_the_order_of_its_keys_whoever_wrote_it(tmp_path):
    """Parts of two processes, a failed row that was tried again, a row that stands twice, a torn line."""
    rows = [{"id": name, "images": [], "finish": "stop"} for name in "abcd"]
    path, part = tmp_path / "rows.jsonl", tmp_path / "rows.jsonl.part"
    first = Output(recipe_of(path))
    first.write(rows[2])
    first.write(rows[0] | {"finish": "error"})
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
    recipe = Recipe(tmp_path / "model", "04_finetune.py", argparse.Namespace(force=False), is_folder=True)
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
    verified = {row["id"]: row for row in stage("02_verify").verify(args, iter(rows), generate)}
    told = {
        name: (row["orm_check"], row["error_step"], row["judge_tokens"]) for name, row in verified.items()
    }
    assert told == {"a": (verdict, step, [20 * count, 3 * count]), "b": ("undecided", None, [0, 0])}
    assert verified["a"]["judge_reply"] == (replies if count > 1 else replies[0])


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


@pytest.mark.parametrize("share, expected", [(0.3, "ccuu ccw u"), (0.5, "ccuu uuw u"), (0.6, "uuuu uuw u")])
def test_paths_agree_by_value(stage, share, expected):
    """1/2 and 0.5 are one vote, a path without an answer or its end has none; what is wrong stays wrong."""
    row = {"id": "a", "answer_check": "correct", "orm_check": None, "finish": "stop"}
    problems = [
        [
            row | {"sample": k, "response": f"The answer is {said}." if said else "No idea"}
            for k, said in paths
        ]
        for paths in map(enumerate, (["1/2", "0.5", "3", None], ["7", "8", "9"], ["1"]))
    ]
    problems[1][2]["answer_check"], problems[2][0]["finish"] = "wrong", "length"
    args = argparse.Namespace(accept="answer", agree=share)
    decide = stage("02_verify").decide
    statuses = ("".join(decide(row, paths, args)[0][0] for row in paths) for paths in problems)
    assert " ".join(statuses) == expected


@pytest.mark.parametrize(
    "check_correct, statuses",
    [
        (False, ["correct", "correct", "wrong", "undecided"]),
        (True, ["correct", "undecided", "wrong", "undecided"]),
    ],
)
def test_annotations_that_contradict_the_answer_check_are_dropped(stage, check_correct, statuses):
    """A right path, one right by luck, a wrong one with its mistake, a wrong one that the teacher calls
    right.
    """
    args = argparse.Namespace(check_correct=check_correct, seed=0)
    says = {"luck": "WRONG", "wrong": "WRONG"}
    answers = {"right": 5, "luck": 5, "wrong": 6, "praised": 7}
    row = {"question": "?", "images": [], "sample": 0, "answer": "5", "finish": "stop"}
    rows = [row | {"id": name, "response": f"The answer is {said}."} for name, said in answers.items()]
    asked = []

    def generate(requests):
        for request in requests:
            asked.append(request.row["id"])
            step, analysis = ("1", "No.") if asked[-1] in says else (None, None)
            verdict = {"status": says.get(asked[-1], "CORRECT"), "error_step": step}
            yield Reply(request.row, 0, json.dumps(verdict | {"error_analysis": analysis}))

    found = {row["id"]: row for row in stage("02_verify").annotate(args, iter(rows), generate)}
    assert [found[row["id"]]["status"] for row in rows] == statuses
    assert set(asked) == ({"wrong", "praised"} | ({"right", "luck"} if check_correct else set()))
    assert "contradicts the answer check" in found["praised"]["reason"]
    assert found["wrong"]["error_analysis"] == "No."
    told = {name: row.get("teacher_check") for name, row in found.items()}
    right = ("correct", "wrong") if check_correct else (None, None)
    assert told == {"right": right[0], "luck": right[1], "wrong": "wrong", "praised": "correct"}


def test_drafts_do_not_hang_on_the_order_of_the_rows(stage, tmp_path):
    """Replies arrive in another order each time, and after a kill in yet another one."""
    rows, same = [], {"question": "Q", "prompt": "Q", "images": [], "status": "wrong"}
    for k in range(48):
        said = {"response": f"r{k % 3} {k}" if k % 5 else "same", "error_step": "s" if k % 3 else None}
        rows.append({"id": f"p{k // 4}", "sample": k % 4} | same | said)
    chosen = []
    for seed in range(3):
        random.Random(seed).shuffle(rows)
        path = write_rows(tmp_path / "v.jsonl", rows)
        args = argparse.Namespace(input=[path], drafts=2, limit=0)
        chosen.append(stage("03_reflect").choose_drafts(args, check=True))
    assert chosen[0] == chosen[1] == chosen[2] and len(chosen[0]) == 24


def test_draws_are_nested_and_by_number_or_share(stage, tmp_path):
    sample = stage("01_sample")
    path = write_rows(tmp_path / "p.jsonl", [{"id": f"p{k}", "question": "Q"} for k in range(50)])

    def drawn(draw: str) -> set[str]:
        args = argparse.Namespace(input=[path], limit=0, unsolved_in=[], seed=0, model="m")
        args.draw = cli.share_or_count(draw)
        return {*sample.choose(args, check=True)}

    assert [len(drawn(draw)) for draw in ("all", "7", "0.3", ".02", "1", "99")] == [50, 7, 15, 1, 1, 50]
    assert drawn("1") < drawn("7") < drawn("0.3") < drawn("all")


@pytest.mark.parametrize("text", ["0", "1.0", "0.0", "1.5", "-1", "nan", "1e3", "30%", "", "every"])
def test_a_draw_that_could_mean_two_things_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="a share between 0 and 1, or all"):
        cli.share_or_count(text)


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


def test_teacher_answers_the_three_prompts(toy_world, stage):
    import teacher

    feedback, reflect = stage("02_verify").FEEDBACK_PROMPT, stage("03_reflect").REFLECT_PROMPT
    row, *_ = read_rows(toy_world / "train.jsonl")
    picture = [(toy_world / row["images"][0]).read_bytes()]
    question = chat.question_text(row)

    def asked(prompt: str, wrong: float = 0.0, **texts: str) -> str | None:
        server = teacher.Teacher([toy_world / "train.jsonl"], wrong=wrong, seed=0)
        return server.answer(chat.fill(prompt, question=question, **texts), picture, 0)

    assert asked(common.SOLVE_PROMPT) == row["solution"] != asked(common.SOLVE_PROMPT, wrong=1.0)
    family, numbers, options = toy.FAMILIES[row["subject"]], toy.parse_numbers(row), row.get("options", [])
    wrong, line = toy.wrong_solution(family, numbers, options, "The picture shows", random.Random(1))
    verdict = json.loads(asked(feedback, answer=row["answer"], response=wrong))
    assert verdict["status"] == "WRONG" and verdict["error_step"] == wrong.split("\n")[line]
    assert asked(reflect, response=wrong, error_step="x", error_analysis="y") == row["solution"]
    assert asked("What is this?") is None
    # a picture's number, a sum's result and the operation changed: each is another type of error
    lines = row["solution"].split("\n")
    changed = {
        "vision": (0, re.sub(r"\d+", "99", lines[0].removeprefix("Step 1:"), count=1)),
        "calculation": (1, re.sub(r"= \d+", "= 9999", lines[1])),
        "reasoning": (1, "Step 2: It is 1 + 1 = 2."),
        None: (0, "I see nothing."),
    }
    for kind, (place, text) in changed.items():
        response = "\n".join([*lines[:place], text, *lines[place + 1 :]]) if kind else text
        told = json.loads(asked(feedback, answer=row["answer"], response=response))
        assert told["status"] == "WRONG" and told["error_type"] == kind, kind
