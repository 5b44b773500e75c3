"""Small functions, by tables."""

import argparse
import base64
import io
import json
import math
import random
import re
import time

import problems as toy
import pytest
from conftest import ROOT, read_rows, write_rows
from PIL import Image

import common
from mathse import chat, images, records
from mathse.generate import Reply
from mathse.jsonl import Output
from mathse.recipe import Recipe
from mathse.report.statistics import audit_truth
from mathse.train.rows import held_problems


def test_fill_is_one_pass_and_defuses_tokens():
    assert chat.fill("{a} {b} {c}", a="{b}", b="x") == "{b} x {c}"
    assert chat.fill('{"k": {a}}', a="1") == '{"k": 1}'
    assert "<image>" not in chat.fill("{a}", a="see <image> and <|im_end|>")


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


def close(output: Output) -> None:
    """As when its process is killed."""
    output.file.close()


def test_output_resumes_after_a_torn_line(tmp_path):
    path = tmp_path / "out.jsonl"
    rows = [{"id": name, "images": []} for name in "abc"]
    output = Output(recipe_of(path))
    for row in rows[:2]:
        output.write(row)
    close(output)
    with (tmp_path / "out.jsonl.part" / "rank_0.jsonl").open("ab") as file:
        file.write(b'{"id": "c", "ima')
    again = Output(recipe_of(path))
    assert again.done == {records.row_key(row) for row in rows[:2]}
    again.write(rows[2])
    again.finish(records.row_key(row) for row in rows)
    assert [row["id"] for row in read_rows(path)] == list("abc") and not (
        tmp_path / "out.jsonl.part"
    ).exists()


def test_an_output_is_in_the_order_of_its_keys_whoever_wrote_it(tmp_path):
    """Parts of two processes, a failed row that was tried again, a row that stands twice."""
    rows = [{"id": name, "images": [], "finish": "stop"} for name in "abcd"]
    first = Output(recipe_of(tmp_path / "one.jsonl"))
    for row in reversed(rows):
        first.write(row)
    first.finish(map(records.row_key, rows))
    second = Output(recipe_of(tmp_path / "two.jsonl"))
    second.write(rows[2])
    second.write(rows[0] | {"finish": "error"})
    part = tmp_path / "two.jsonl.part"
    write_rows(part / "rank_1.jsonl", [rows[3], rows[1], rows[2], rows[1] | {"finish": "error"}])
    close(second)
    again = Output(recipe_of(tmp_path / "two.jsonl"))
    assert again.done == {records.row_key(row) for row in rows[1:]}
    again.write(rows[0])
    again.finish(map(records.row_key, rows))
    assert (tmp_path / "one.jsonl").read_bytes() == (tmp_path / "two.jsonl").read_bytes()


def test_unfinished_output_keeps_its_part(tmp_path):
    output = Output(recipe_of(tmp_path / "out.jsonl"))
    output.write({"id": "a", "images": []})
    with pytest.raises(SystemExit) as ended:
        output.finish([records.row_key({"id": "a"}), records.row_key({"id": "b"})])
    assert ended.value.code == 3
    assert not (tmp_path / "out.jsonl").exists() and (tmp_path / "out.jsonl.part").exists()


def test_an_empty_folder_is_no_output(tmp_path):
    (tmp_path / "model").mkdir()
    recipe = Recipe(tmp_path / "model", "04_finetune.py", argparse.Namespace(force=False), is_folder=True)
    assert not recipe.is_done()
    recipe.start()
    recipe.complete(recipe.part)
    assert recipe.is_done()


def test_a_second_writer_is_refused(tmp_path, capsys):
    first = Output(recipe_of(tmp_path / "out.jsonl"))
    with pytest.raises(SystemExit):
        Output(recipe_of(tmp_path / "out.jsonl"))
    assert "is being written by another process" in capsys.readouterr().err
    first.finish([])


def test_image_paths_survive_a_linked_folder(tmp_path):
    (tmp_path / "disk" / "runs").mkdir(parents=True)
    (tmp_path / "project").mkdir()
    (tmp_path / "project" / "runs").symlink_to(tmp_path / "disk" / "runs")
    Image.new("RGB", (5, 5)).save(tmp_path / "project" / "x.png")
    folder = tmp_path / "project" / "runs"
    row = records.relative_images({"images": [str(tmp_path / "project" / "x.png")]}, folder)
    assert (folder / row["images"][0]).is_file()


def test_seeds_come_from_names():
    assert records.derive_seed(0, "round-1", "p", 3) == records.derive_seed(0, "round-1", "p", 3)
    assert len({records.derive_seed(0, "round-1", "p", k) for k in range(1000)}) == 1000


@pytest.mark.parametrize(
    "mode, size",
    [
        ("RGB", (3000, 2000)),
        ("L", (5, 5)),
        ("RGBA", (40, 30)),
        ("P", (40, 30)),
        ("CMYK", (40, 30)),
        ("1", (1, 1)),
        ("I;16", (9, 9)),
    ],
)
def test_open_image(tmp_path, mode, size):
    path = tmp_path / ("x.jpg" if mode in ("CMYK",) else "x.png")
    Image.new(mode, size).save(path)
    image = images.open_image(str(path), 100_000)
    assert image.mode == "RGB" and image.width * image.height <= 100_000
    assert abs(image.width / image.height - size[0] / size[1]) < 0.05 * size[0] / size[1]


def test_transparency_becomes_white(tmp_path):
    Image.new("RGBA", (4, 4), (0, 0, 0, 0)).save(tmp_path / "x.png")
    assert images.open_image(str(tmp_path / "x.png"), 0).getpixel((0, 0)) == (255, 255, 255)


GOOD = '{"status": "WRONG", "error_step": "Step 2: 3 + 4 = 8", "error_analysis": "3 + 4 is not 8."}'
STEP = "Step 2: 3 + 4 = 8"
RIGHT = '{"status": "CORRECT", "error_step": null, "error_analysis": null}'
C, W, U = "correct", "wrong", "undecided"


def wrong(step: str) -> str:
    """A reply whose error step is spelt like this, with the quotes."""
    return '{"status": "WRONG", "error_step": ' + step + ', "error_analysis": "x"}'


def status(text: str) -> str:
    return '{"status": ' + text + "}"


REPLIES = {  # group: [(a judge's reply, verdict, error step)]
    "plain": [
        (GOOD, W, STEP),
        (f"Here it is:\n```json\n{GOOD}\n```\nI hope this helps: {{x}}.", W, STEP),
        (f"<|begin_of_box|>{GOOD}<|end_of_box|>", W, STEP),
        (f"<answer>{GOOD}</answer>", W, STEP),
        (f"[{GOOD}]", W, STEP),
        (RIGHT, C, None),
        ("The solution is correct.", U, None),
        ("", U, None),
    ],
    "nearly JSON": [
        ("{'status': 'WRONG', 'error_step': 'Step 1', 'error_analysis': 'no',}", W, "Step 1"),
        ("{'status': 'WRONG', 'error_step': 'the triangle's side', }", W, "the triangle's side"),
        ("{'status': 'WRONG', 'error_step': \"it's 4\", 'error_analysis': None}", W, "it's 4"),
        ("{'status': 'WRONG', 'error_step': 'it\\'s 4'}", W, "it's 4"),
        ("{'status': 'CORRECT', 'error_step': None, 'error_analysis': None}", C, None),
        ('{"status": "WRONG" "error_step": "Step 1"}', W, "Step 1"),
        ('{"error_step": "Step 1",\n"error_analysis": "a",\n"status": "WRONG"\n}', W, "Step 1"),
        ('{status: "WRONG", error_step: "Step 1"}', W, "Step 1"),
        ('{"status": "WRONG", "error_step": "he calls it "big", but"}', W, 'he calls it "big", but'),
        ('{"status": "WRONG", "error_step": "3 + 4\n= 8"}', W, "3 + 4\n= 8"),
        ('{"Status": " wrong ", "Error_Step": "Step 1"}', W, "Step 1"),
        ('{"STATUS": "CORRECT", "errorStep": null, "confidence": true}', C, None),
        ("**Status:** WRONG\n**Error step:** Step 1", W, "Step 1"),
        ('"status": "WRONG",\n"error_step": "Step 1"\n}', W, "Step 1"),
    ],
    "the word": [
        (status('"INCORRECT"'), W, None),
        (status('"correct."'), C, None),
        (status('"**CORRECT**"'), C, None),
        (status("WRONG"), W, None),
        (status('"MAYBE"'), U, None),
        (status('"Right"'), U, None),
        (status('"NOT CORRECT"'), U, None),
        (status('"PARTIALLY CORRECT"'), U, None),
        (status('"CORRECT answer but WRONG reasoning"'), U, None),
        (status('"CORRECT" or "WRONG"'), U, None),  # the form, repeated
        (status('"CORRECT|WRONG"'), U, None),
        (status("true"), U, None),
        (status("null"), U, None),
        (status('["CORRECT"]'), U, None),
        (status('"CORRECT", "status": "WRONG"'), U, None),
    ],
    "behind the thinking": [
        (f'<think>Maybe {{"status": "WRONG"}}? No.</think>\n{RIGHT}', C, None),
        (f'It says {{"status": "CORRECT"}}, but step 2 ...</think>{GOOD}', W, STEP),  # opened by the template
        (f"<think></think>{GOOD}", W, STEP),
        (f"<|begin_of_thought|>{RIGHT}<|end_of_thought|>\n{GOOD}", W, STEP),
        (f"<thinking>{RIGHT}</thinking>{GOOD}", W, STEP),
        (f"<reasoning>\n{RIGHT}\n</reasoning>\n{GOOD}", W, STEP),
        (f"<seed:think>{RIGHT}</seed:think>{GOOD}", W, STEP),
        (f"\u25c1think\u25b7{RIGHT}\u25c1/think\u25b7{GOOD}", W, STEP),
        (f"[THINK]{RIGHT}[/THINK]{GOOD}", W, STEP),
        (f"<|channel|>analysis<|message|>{RIGHT}<|end|><|channel|>final<|message|>{GOOD}", W, STEP),
        (f"<think>I would say {RIGHT} but let me check", U, None),
        (f"<THINK>{RIGHT}", U, None),
        (f"<think>{RIGHT}</think>", U, None),
        (f"<think>a</think>{RIGHT}<think>Wait,", U, None),
        (f"<|begin_of_thought|>{RIGHT}", U, None),
        (f"<|channel|>analysis<|message|>{RIGHT}", U, None),
    ],
    "which object": [
        (f"Status: CORRECT for step 1. Status: WRONG for step 2.\n{GOOD}", W, STEP),
        (f"Step 2: \\frac{{1}}{{2}}, {{x}}, \\{{a: b\\}}. {GOOD}", W, STEP),
        ('{"status": "CORRECT", "error_analysis": "A \'status: WRONG\' is too strict."}', C, None),
        ('{"status": "CORRECT", "error_analysis": "Not {\\"status\\": \\"WRONG\\"}."}', C, None),
        ('{"steps": [{"status": "CORRECT"}, {"status": "WRONG"}], "status": "WRONG"}', W, None),
        ('{"status": "CORRECT", "steps": [{"status": "CORRECT"}, {"status": "WRONG"}]}', C, None),
        ('{"steps": {"1": {"status": "WRONG", "note": "it\'s {"}}, "status": "CORRECT"}', C, None),
        ('{"steps": [{"status": "CORRECT"}, {"status": "CORRECT"}]}', U, None),
        ('{\n "steps": [\n  {\n   "status": "CORRECT"\n  }\n ]\n}', U, None),
        ('[{"step": 1, "status": "WRONG"}, {"step": 2, "status": "CORRECT"}]', U, None),
        (f"{RIGHT}\nWait, step 2 is wrong:\n{GOOD}", W, STEP),
        (f"{RIGHT}\n{GOOD}", W, STEP),
        (f'{GOOD}\n{{"confidence": 0.9}}', W, STEP),
        (f'The form: {{"status": "CORRECT" or "WRONG", "error_step": a step or null}}\n{GOOD}', W, STEP),
        ('{"status": "CORRECT"} or {"status": "WRONG"}', U, None),
        (f'{GOOD}\nAgain: {{"status": "COR', U, None),  # what it would have been is not known
        (f'{{"status": "CORRECT", "error_analysis": "Step {GOOD}', U, None),  # one breaks off in another
    ],
    "cut off": [
        ('{"status": "WRONG", "error_step": "Step \\"1\\"', W, 'Step "1"'),
        ('{"status": "WRONG", "error_step": "Step 1\\', W, "Step 1\\"),
        ('{"status": "WRONG", "error_st', W, None),
        ('{"status": "CORRECT", "error_step"', C, None),
        ('{"status": "CORRECT", "error_step": "Step 1', U, None),
        ('{"status": "CORRECT', U, None),
        ('{"status": "CORRECT" or "WRONG"', U, None),
        ('{"steps": [{"status": "CORRECT"}, {"status"', U, None),
    ],
    "the step": [
        (wrong("2"), W, "2"),
        (wrong("2.5"), W, "2.5"),
        (wrong('["Step 1", "Step 2"]'), W, "Step 1, Step 2"),
        (wrong("['the triangle's side', 'b']"), W, "the triangle's side, b"),
        (wrong('{"step": 2, "content": "3 + 4 = 8", "next": null}'), W, "2, 3 + 4 = 8"),
        *((wrong(no), W, None) for no in ('""', '"None"', "null", '"null"', '"N/A"', "[]", "{}", "[null]")),
        *((status(f'"CORRECT", "error_step": {no}'), C, None) for no in ('"none"', '" "', "[]", "None")),
        (status('"CORRECT", "error_step": "Step 2"'), U, None),
        (status('"CORRECT", "error_step": 2'), U, None),
        (status('"CORRECT", "error_step": ["Step 2"]'), U, None),
    ],
    "backslashes": [
        (wrong(r'"$3 \times 4 \neq \theta$"'), W, r"$3 \times 4 \neq \theta$"),
        (wrong(r'"$3 \\times 4 \\neq 14$"'), W, r"$3 \times 4 \neq 14$"),
        (wrong(r'"\frac{1}{2} \beta \rho \nu \nabla \not \ne \tan\tau \text{cm} \to \right)"'),
         W, r"\frac{1}{2} \beta \rho \nu \nabla \not \ne \tan\tau \text{cm} \to \right)"),
        (wrong(r'"\sqrt{2}, \alpha_1, \upsilon, 5\%, \(\)"'), W, r"\sqrt{2}, \alpha_1, \upsilon, 5\%, \(\)"),
        (wrong(r'"a\nStep 2\nnot so\n3"'), W, "a\nStep 2\nnot so\n3"),
        (wrong(r'"a\tb\r\nc\/d"'), W, "a\tb\r\nc/d"),
        (wrong(r'"a \"b\" \u00e9 \ud83d\ude00"'), W, 'a "b" \u00e9 \U0001f600'),
        (wrong(r'"half \ud83d"'), W, "half \ufffd"),
    ],
}  # fmt: skip


@pytest.mark.parametrize("group", REPLIES)
def test_parse_verdict(stage, group):
    parse = stage("02_verify").parse_verdict
    for reply, verdict, step in REPLIES[group]:
        parsed = parse(reply)
        assert (parsed["verdict"], parsed["error_step"]) == (verdict, step), reply


def test_parse_verdict_has_the_analysis(stage):
    parse = stage("02_verify").parse_verdict
    assert parse(GOOD)["error_analysis"] == "3 + 4 is not 8." and parse(RIGHT)["error_analysis"] is None
    reply = r'{"status": "WRONG", "error_analysis": ["$\tan\theta = \frac{1}{2}$", "it\'s"]}'
    assert parse(reply)["error_analysis"] == r"$\tan\theta = \frac{1}{2}$, it's"


HOSTILE = [
    "{", "[", "}", '"', "'", "\\", " ", "\n", ",", ":", "<", "```", '{"a":', '{"a":[', '{"status": "', '"}',
    '" ', "it's ", '\\"', "\\ud83d", "\ud83d", "\0", "<think>", "</think>", "status:", "\n- ", "{a", "{   ",
    '{"status": "WRONG"}', '{"status": "WRONG"} or ', ', "a": 1', '"x" ,  ', "<w:",
]  # fmt: skip


@pytest.mark.parametrize("status", ["correct", "wrong"])
@pytest.mark.parametrize("step", ['Step 1: "a" is 5°.', "Step 2: 三角形 \\frac{1}{2}"])
def test_what_an_orm_is_taught_begins_as_02_foresees(stage, status, step):
    row = {
        "judge_prompt": "?",
        "images": [],
        "response": 'Step 1: "a" is 5°.\nStep 2: 三角形 \\frac{1}{2}\nEnd.',
    }
    row |= {"status": status, "error_step": step, "error_analysis": "It is not."}
    made = stage("04_finetune").training_row(row, argparse.Namespace(orm=True, binary=False))
    taught = made["messages"][-1]["content"]
    drafts = stage("02_verify").verdict_drafts(row["response"])
    found = [draft for draft in drafts if taught.startswith(draft)]
    assert len(found) == 1 and (found[0] == taught) == (status == "correct")
    assert stage("02_verify").parse_verdict(taught)["verdict"] == status


def test_parse_verdict_takes_any_text(stage):
    """Also where a text of one sort goes on for long, which takes a time in proportion."""
    parse, random_ = stage("02_verify").parse_verdict, random.Random(0)
    for start in (
        "",
        '{"status": "WRONG", "error_step": ',
        '{"a": ["',
        "{'status': 'WRONG', 'error_step': 'x",
    ):
        for piece in HOSTILE:
            json.dumps(parse(start + piece * (50_000 // len(piece))), ensure_ascii=False)
    for _ in range(3000):
        reply = "".join(random_.choices([*HOSTILE, *GOOD.split(), *RIGHT.split()], k=30))
        parsed = parse(reply)
        assert parsed["verdict"] in (C, W, U)
        (parsed["error_step"] or "").encode()  # no half of a surrogate pair, which no file takes
    began = time.monotonic()
    parse('{"status": "WRONG", "error_step": [' + "[" * 10**6)
    assert time.monotonic() - began < 20  # seconds; about one


REPORTED = ROOT.parent / "shared" / "data" / "reported" / "judge_replies.jsonl"


@pytest.mark.skipif(not REPORTED.exists(), reason="no reported replies here")
def test_reported_replies(stage):
    for row in read_rows(REPORTED):
        parsed = stage("02_verify").parse_verdict(row["reply"])
        if row["expected_verdict"] == "not correct":
            assert parsed["verdict"] != C, row["reply"]
        else:
            expected = row["expected_verdict"], row["expected_step"]
            assert (parsed["verdict"], parsed["error_step"]) == expected, row["reply"]


SOLUTION = """Step 1: The picture shows sides 3 and 4.
Step 2: 3 + 4 = 8.
Step 3: 8 * 2 = 16.
The answer to this problem is 16."""


@pytest.mark.parametrize(
    "error_step, line",
    [
        ("Step 2", 2),
        ("2", 2),
        ("step 2: addition of the sides", 2),
        ("Step 2: 3 + 4 = 8.", 2),
        ("'3 + 4 = 8.'", 2),
        ("The picture shows sides 3 and 4", 1),
        ("The picture shows  side 3 and 4.", 1),  # misquoted
        ("The answer to this problem is 16.", 4),
        ("Step 12", None),
        ("8 + 1 = 9", None),  # a sum, not a step's number
        ("all of it", None),
        ("", None),
        (None, None),
    ],
)
def test_match_step(stage, error_step, line):
    assert stage("02_verify").match_step(error_step, SOLUTION) == line


def test_match_step_without_numbers(stage):
    match_step = stage("02_verify").match_step
    assert match_step("第二步", "第1步 先看图\n3 + 4 = 8") is None
    assert match_step("3 + 4 = 8", "first look\n3 + 4 = 8, so 8") == 2
    assert match_step("x" * 10**6, "\n".join(["y" * 10**5] * 200)) is None  # and soon


def spoken(text, *logprobs, sample=0):
    """A local model's reply, a token each word."""
    words = [word + " " for word in text.split()]
    reply = Reply({}, sample, text)
    reply.token_logprobs = list(zip(words, logprobs or [-0.1] * len(words)))
    return reply


def test_status_probability(stage):
    probability = stage("02_verify").status_probability
    assert probability(spoken('{"status": "WRONG", "error_step": "Step', -3, math.log(0.8), -2, -2)) == 0.8
    assert probability(spoken('{"status": WRONG "error_step": ...', -3, math.log(0.6), -1, -1)) == 0.6
    drafts = spoken('<think>"status": "WRONG"</think> {"status": "CORRECT"} x', -3, -3, -3, math.log(0.7), -1)
    assert probability(drafts) == 0.7
    assert probability(spoken("nothing")) is None and probability(Reply({}, 0, GOOD)) is None


@pytest.mark.parametrize(
    "replies, threshold, verdict, step",
    [
        ([GOOD], 0, "wrong", "Step 2: 3 + 4 = 8"),
        ([GOOD, '{"status": "CORRECT"}', GOOD], 0, "wrong", "Step 2: 3 + 4 = 8"),
        (['{"status": "CORRECT"}', GOOD], 0, "undecided", None),
        (["?", GOOD, "?"], 0, "wrong", "Step 2: 3 + 4 = 8"),
        (["?", "?"], 0, "undecided", None),
        ([], 0, "undecided", None),
        ([GOOD], 0.95, "undecided", "Step 2: 3 + 4 = 8"),  # e ** -0.1 is 0.905
        ([GOOD], 0.9, "wrong", "Step 2: 3 + 4 = 8"),
    ],
)
def test_judged(stage, replies, threshold, verdict, step):
    row = {"answer_check": "wrong", "response": SOLUTION}
    args = argparse.Namespace(orm_threshold=threshold)
    judged = stage("02_verify").judged(row, [spoken(text) for text in replies], args)
    assert (judged["orm_check"], judged["error_step"]) == (verdict, step)
    assert judged["error_line"] == (2 if step else None)


def test_undecided_replies_are_asked_for_again(stage):
    """Other seeds and a temperature; a path that was cut off is not asked about."""
    verify, calls = stage("02_verify"), []
    args = argparse.Namespace(
        model="m",
        accept="orm",
        workers=1,
        orm_samples=1,
        orm_threshold=0.0,
        retry_undecided=2,
        temperature=0.0,
        seed=0,
    )
    rows = [
        {
            "id": name,
            "question": "?",
            "images": [],
            "sample": 0,
            "response": "The answer is 5.",
            "answer": "5",
            "finish": finish,
        }
        for name, finish in (("a", "stop"), ("b", "stop"), ("c", "length"))
    ]

    def generate(requests, temperature=0.0):
        for request in requests:
            calls.append((request.row["id"], temperature, *request.seeds.values()))
            yield Reply(
                request.row,
                0,
                "no idea" if request.row["id"] == "b" and len(calls) < 4 else '{"status": "CORRECT"}',
                tokens=3,
                prompt_tokens=20,
            )

    verified = {row["id"]: row for row in verify.verify(args, iter(rows), generate)}
    assert {name: row["orm_check"] for name, row in verified.items()} == {
        "a": "correct",
        "b": "correct",
        "c": "undecided",
    }
    assert {name: row["judge_tokens"] for name, row in verified.items()} == {
        "a": [20, 3],
        "b": [60, 9],
        "c": [0, 0],
    }  # of all three attempts
    assert [call[:2] for call in calls] == [("a", 0.0), ("b", 0.0), ("b", 0.7), ("b", 0.7)] and len(
        {call[2] for call in calls}
    ) == 4


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
    decide = stage("02_verify").decide
    assert decide(policy, answer, orm) == status
    assert decide(policy, answer, orm, agrees=False) == ("undecided" if status == "correct" else status)


def test_paths_agree_by_value(stage):
    """Without a reference answer: 1/2 and 0.5 are one vote, a path without an answer has none."""

    def path(name: str, sample: int, answer: str | None, finish: str = "stop") -> dict:
        text = f"The answer to this problem is {answer}." if answer else "I do not know"
        return {"id": name, "sample": sample, "response": text, "finish": finish}

    rows = [path("a", 0, "1/2"), path("a", 1, "0.5"), path("a", 2, "3"), path("a", 3, None)]
    rows += [path("b", 0, "7"), path("b", 1, "8"), path("b", 2, "9"), path("c", 0, "1", "length")]
    agreeing = stage("02_verify").agreeing

    def kept(share: float) -> set[tuple]:
        keys = agreeing(iter(rows), share)
        return {(row["id"], row["sample"]) for row in rows if records.row_key(row) in keys}

    assert kept(0.5) == {("a", 0), ("a", 1)} and kept(0.6) == set()
    assert kept(0.3) == {("a", 0), ("a", 1), ("b", 0), ("b", 1), ("b", 2)}


def test_a_share_of_the_problems_is_held_out():
    names = [f"p{index}" for index in range(2000)]
    held = {name for name in names if records.is_held_out(name, 0.1, 0)}
    assert 140 < len(held) < 260
    assert held < {name for name in names if records.is_held_out(name, 0.2, 0)}
    assert held != {name for name in names if records.is_held_out(name, 0.1, 1)}
    assert held_problems(names, 0.1, 0) == held and len(held_problems(names, 7, 0)) == 7
    assert held_problems(names, 0, 0) == set()


def test_a_right_answer_with_a_wrong_step_is_not_right():
    def row(answer: str, teacher: str | None, orm: str | None, held_out: bool | None = None) -> dict:
        return {"answer_check": answer, "teacher_check": teacher, "orm_check": orm, "held_out": held_out}

    rows = [
        row("correct", "correct", "correct", True),
        row("correct", "wrong", "wrong"),  # luck
        row("wrong", "wrong", "wrong"),
        row("wrong", "undecided", "correct", True),
        row("correct", None, "wrong"),  # nobody was asked
        row("undecided", "wrong", "wrong"),
        row("correct", "correct", None),  # no ORM
    ]
    assert audit_truth(rows) == {
        "all": {"correct/correct": 1, "wrong/wrong": 2, "wrong/correct": 1},
        "held_out": {"correct/correct": 1, "wrong/correct": 1},
    }
    assert audit_truth(rows[4:]) == {}


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
    args = argparse.Namespace(workers=1, check_correct=check_correct, seed=0)
    says = {"luck": "WRONG", "wrong": "WRONG"}
    answers = {"right": 5, "luck": 5, "wrong": 6, "praised": 7}
    row = {"question": "?", "images": [], "sample": 0, "answer": "5", "finish": "stop"}
    rows = [row | {"id": name, "response": f"The answer is {said}."} for name, said in answers.items()]
    asked = []

    def generate(requests):
        for request in requests:
            asked.append(request.row["id"])
            step, analysis = ("1", "No.") if asked[-1] in says else (None, None)
            verdict = {
                "status": says.get(asked[-1], "CORRECT"),
                "error_step": step,
                "error_analysis": analysis,
            }
            yield Reply(request.row, 0, json.dumps(verdict))

    found = {row["id"]: row for row in stage("02_verify").annotate(args, iter(rows), generate)}
    assert [found[row["id"]]["status"] for row in rows] == statuses
    assert set(asked) == ({"wrong", "praised"} | ({"right", "luck"} if check_correct else set()))
    assert (
        "contradicts the answer check" in found["praised"]["reason"]
        and found["wrong"]["error_analysis"] == "No."
    )
    assert all(row["judge_prompt"] == stage("02_verify").judge_prompt(row) for row in found.values())
    told = {name: row.get("teacher_check") for name, row in found.items()}
    right = ("correct", "wrong") if check_correct else (None, None)
    assert told == {"right": right[0], "luck": right[1], "wrong": "wrong", "praised": "correct"}


def test_an_orms_training_file_is_made_whole(stage, tmp_path):
    """The correct rows of D0 are added with a judge's prompt, numbered behind the paths of the same
    problem.
    """
    verify = stage("02_verify")
    row = {"question": "?", "images": [], "answer": "5", "response": "The answer is 5.", "status": "correct"}
    rows = [row | {"id": name, "sample": 0} for name in "ab"] + [
        row | {"id": "c", "sample": 0, "status": "wrong"}
    ]
    args = argparse.Namespace(add_correct=[write_rows(tmp_path / "v.jsonl", rows)])
    lengths = {records.row_key({"id": "a", "sample": k}): 1 for k in range(2)}
    added = [(row["id"], row["sample"]) for row in verify.read_correct(args, lengths)]
    assert added == [("a", 2), ("b", 0)]
    assert all("The answer is 5." in row["judge_prompt"] for row in verify.read_correct(args, lengths))


@pytest.mark.parametrize(
    "analysis, response, leaks",
    [
        ("The area is 35.", "It is 34.", True),
        ("7 * 5 is not 34.", "It is 34.", False),
        ("The side is 3.5 long.", "It is 34.", False),
        ("It is 350.", "It is 34.", False),
        ("35 was right there.", "I get 35, no, 34.", False),
    ],
)
def test_gives_away(stage, analysis, response, leaks):
    row = {"answer": "35", "response": response, "question": "What?"}
    assert stage("02_verify").gives_away(row, {"error_step": None, "error_analysis": analysis}) == leaks


@pytest.mark.parametrize(
    "answer, analysis, response, leaks",
    [
        ("B", "The area is 35.", "It is 34. The answer is C.", True),  # the text behind the letter
        ("35", "It must be option B.", "It is 34. The answer is C.", True),  # the letter of the text
        ("B", "The right choice is (B).", "The answer is C.", True),
        ("B", "应选B。", "答案是C。", True),
        ("B", "7 * 5 is not 34.", "It is 34. The answer is C.", False),
        # the response itself says it
        ("B", "This does not follow from 7 * 5 = 35.", "7 * 5 = 35. The answer is C.", False),
        ("B", "The line from B to C is misread.", "AC is 34. The answer is C.", False),  # a point
        # the article
        ("A", "A square has four sides. The answer C is not one of them.", "The answer is C.", False),
        ("C", "C is not what the steps lead to.", "It is 35. The answer is B.", False),
        ("AB", "It is 33.", "The answer is C.", True),
    ],
)
def test_gives_away_a_choice(stage, answer, analysis, response, leaks):
    row = {
        "answer": answer,
        "options": ["(A) 33", "(B) 35", "(C) 34"],
        "response": response,
        "question": "Which?",
    }
    assert stage("02_verify").gives_away(row, {"error_step": None, "error_analysis": analysis}) == leaks


@pytest.mark.parametrize(
    "answer, analysis, leaks",
    [
        ("1/2", "The share is 0.5.", True),
        ("0.5", "It should be $\\frac{1}{2}$.", True),
        ("1/2", "The share is 0.52.", False),
        ("6\\sqrt{2}", "It must be √72.", False),  # no number that is read in running text
        ("6\\sqrt{2}", "It must be $\\sqrt{72}$.", True),
        ("1,200", "That gives 1200.", True),
        ("12 cm", "The side is 12.", True),
    ],
)
def test_gives_away_the_value_in_another_spelling(stage, answer, analysis, leaks):
    row = {"answer": answer, "response": "It is 34.", "question": "What?"}
    assert stage("02_verify").gives_away(row, {"error_step": None, "error_analysis": analysis}) == leaks
    known = row | {"response": f"{analysis} So it is 34."}
    assert not stage("02_verify").gives_away(known, {"error_step": None, "error_analysis": analysis})


def test_gives_away_where_several_answers_are_right(stage):
    row = {"answer": ["35", "35 cm"], "response": "It is 34.", "question": "What?"}
    assert stage("02_verify").gives_away(row, {"error_step": "It is 35.", "error_analysis": None})


def test_drafts_do_not_hang_on_the_order_of_the_rows(stage, tmp_path):
    """Replies arrive in another order each time, and after a kill in yet another one."""
    rows = [
        {
            "id": f"p{k // 4}",
            "sample": k % 4,
            "question": "Q",
            "prompt": "Q",
            "images": [],
            "response": f"r{k % 3} {k}" if k % 5 else "same",
            "status": "wrong",
            "error_step": "s" if k % 3 else None,
        }
        for k in range(48)
    ]
    chosen = []
    for seed in range(3):
        random.Random(seed).shuffle(rows)
        path = write_rows(tmp_path / "v.jsonl", rows)
        chosen.append(stage("03_reflect").choose_drafts(argparse.Namespace(input=[path], drafts=2, limit=0)))
    assert chosen[0] == chosen[1] == chosen[2] and len(chosen[0]) == 24


def test_draws_are_nested_and_by_number_or_share(stage, tmp_path):
    sample = stage("01_sample")
    path = write_rows(tmp_path / "p.jsonl", [{"id": f"p{k}", "question": "Q"} for k in range(50)])

    def drawn(draw: float) -> set[str]:
        return {*sample.choose(argparse.Namespace(input=[path], draw=draw, limit=0, unsolved_in=[], seed=0))}

    assert [len(drawn(draw)) for draw in (0, 7, 0.3, 1, 99)] == [50, 7, 15, 1, 50]
    assert drawn(1) < drawn(7) < drawn(0.3) < drawn(0)


def test_the_first_mistake_of_a_toy_solution():
    right = "Step 1: The picture shows a rectangle with sides 7 and 5.\nStep 2: The area is 7 * 5 = 35.\n"
    right += "The answer to this problem is B."
    assert (
        toy.first_mistake(right, right) is toy.first_mistake(right, right.replace("is B.", "is 35.")) is None
    )
    assert toy.first_mistake(right, right.replace("is B.", "is A."))[0] == "The answer to this problem is A."
    assert toy.first_mistake(right, right.replace("= 35", "= 36")) == (
        "Step 2: The area is 7 * 5 = 36.",
        "7 * 5 is not 36.",
    )
    assert toy.first_mistake(right, right.replace("is B.", "is 36."))[0].endswith("is 36.")


@pytest.mark.parametrize("name", list(toy.FAMILIES))
def test_toy_families(name):
    rng = random.Random(name)
    for _ in range(200):
        record, numbers, canvas = toy.make_problem(name, rng)
        options = record.get("options", [])
        assert toy.parse_numbers(record) == {
            key: value
            for key, value in numbers.items()
            if "{" + key + "}" in toy.FAMILIES[name].facts + toy.FAMILIES[name].question
        }
        assert not options or (record["answer"] in options and len(set(options)) == 4)
        wrong, line = toy.wrong_solution(toy.FAMILIES[name], numbers, options, "The picture shows", rng)
        right_lines, wrong_lines = record["solution"].split("\n"), wrong.split("\n")
        assert (
            wrong_lines[:line] == right_lines[:line]
            and wrong_lines[line] != right_lines[line]
            and wrong_lines[-1] != right_lines[-1]
        )
        assert canvas.image.size == (112, 112)


def test_data_url_keeps_small_files(tmp_path):
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    Image.new("RGB", (900, 900)).save(tmp_path / "b.bmp")
    assert images.data_url(str(tmp_path / "a.png"), 1000).startswith("data:image/png;base64,")
    assert images.data_url(str(tmp_path / "b.bmp"), 1000).startswith("data:image/png;base64,")


def test_a_server_sees_what_a_local_model_does(tmp_path):
    """Pixels that nobody would see are not sent: another decoder would show them as black."""
    Image.new("RGBA", (9, 9), (0, 0, 0, 0)).save(tmp_path / "clear.png")
    Image.new("CMYK", (9, 9), (0, 255, 0, 0)).save(tmp_path / "printed.jpg")
    for name in ("clear.png", "printed.jpg"):
        sent = base64.b64decode(images.data_url(str(tmp_path / name), 1000).partition(",")[2])
        with Image.open(io.BytesIO(sent)) as image:
            assert (
                image.mode == "RGB"
                and image.tobytes() == images.open_image(str(tmp_path / name), 1000).tobytes()
            )


def test_teacher_answers_the_four_prompts(toy_world, stage):
    import teacher

    rows = read_rows(toy_world / "train.jsonl")
    server = teacher.Teacher([toy_world / "train.jsonl"], wrong=0.0, seed=0)
    row = rows[0]
    picture = [(toy_world / row["images"][0]).read_bytes()]
    question = chat.question_text(row)
    assert server.answer(chat.fill(common.SOLVE_PROMPT, question=question), picture, 0) == row["solution"]
    wrong, line = toy.wrong_solution(
        toy.FAMILIES[row["subject"]],
        toy.parse_numbers(row),
        row.get("options", []),
        "The picture shows",
        random.Random(1),
    )
    prompt = chat.fill(
        stage("02_verify").FEEDBACK_PROMPT, question=question, answer=row["answer"], response=wrong
    )
    verdict = json.loads(server.answer(prompt, picture, 0))
    assert verdict["status"] == "WRONG" and verdict["error_step"] == wrong.split("\n")[line]
    prompt = chat.fill(
        stage("03_reflect").REFLECT_PROMPT,
        question=question,
        response=wrong,
        error_step="x",
        error_analysis="y",
    )
    assert server.answer(prompt, picture, 0) == row["solution"]
    assert server.answer("What is this?", picture, 0) is None
    # a picture's number, a sum's result and the operation changed: each is another type of error
    number = re.compile(r"\d+")
    lines = row["solution"].split("\n")
    changed = {
        "vision": (0, number.sub("99", lines[0].removeprefix("Step 1:"), count=1)),
        "calculation": (1, re.sub(r"= \d+", "= 9999", lines[1])),
        "reasoning": (1, "Step 2: It is 1 + 1 = 2."),
    }
    for kind, (place, line) in changed.items():
        response = "\n".join([*lines[:place], line, *lines[place + 1 :]])
        prompt = chat.fill(
            stage("05_evaluate").CLASSIFY_PROMPT, question=question, answer=row["answer"], response=response
        )
        assert json.loads(server.answer(prompt, picture, 0)) == {"error_type": kind}
    prompt = chat.fill(
        stage("05_evaluate").CLASSIFY_PROMPT,
        question=question,
        answer=row["answer"],
        response="I see nothing.",
    )
    assert json.loads(server.answer(prompt, picture, 0)) == {"error_type": None}
    always_wrong = teacher.Teacher([toy_world / "train.jsonl"], wrong=1.0, seed=0)
    assert (
        always_wrong.answer(chat.fill(common.SOLVE_PROMPT, question=question), picture, 0) != row["solution"]
    )
