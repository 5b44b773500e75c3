"""Rows, pictures and replies, which are hostile, by tables."""

import json
import random

import json_repair
import pytest

from mathse import replies

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
        (status('"CORRECT, except for step 2"'), U, None),
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
        ('[{"status": "CORRECT"}, {"status": "CORRECT"}]', C, None),
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
        ('{"status": "CORRECT}', U, None),
        ('{"status": CORRECT', U, None),
        (f'{RIGHT[:-1]}\nWait, step 2 is wrong:\n{GOOD}', U, None),  # json-repair takes GOOD for a field
        (f'{GOOD}\nWait, [2 is right: {RIGHT}', U, None),  # and here RIGHT for a text
        ('{"status": "WRONG", "error_analysis": "Not {"status": "CORRECT"}', U, None),
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


@pytest.mark.parametrize(
    "start", ["", '{"status": "WRONG", "error_step": ', '{"a": ["', "{'status': 'WRONG', 'error_step': 'x"]
)
def test_parse_verdict_takes_any_text(stage, start):
    parse = stage("02_verify").parse_verdict
    for piece in HOSTILE:
        for length in (1000, 200_000):
            json.dumps(parse(start + piece * (length // len(piece))), ensure_ascii=False)


def test_parse_verdict_takes_any_mixture(stage):
    parse, random_ = stage("02_verify").parse_verdict, random.Random(0)
    for _ in range(3000):
        parsed = parse("".join(random_.choices([*HOSTILE, *GOOD.split(), *RIGHT.split()], k=30)))
        assert parsed["verdict"] in (C, W, U)
        (parsed["error_step"] or "").encode()  # no half of a surrogate pair, which no file takes


def test_json_repair_is_given_short_texts_alone(stage, monkeypatch):
    """Its time grows with the square of a text."""
    given, parse = [], stage("02_verify").parse_verdict
    monkeypatch.setattr(json_repair, "loads", lambda text: given.append(len(text)))
    for reply in (" " * 10**6 + GOOD, GOOD + " " * 10**6, '{"a": ' * 10**6, "{" * 10**6, GOOD * 10**4):
        parse(reply)
    assert len(given) == 1 and max(given) < 2 * replies.MAX_OBJECT


def test_the_type_of_an_error(stage):
    parse = stage("02_verify").parse_verdict
    assert parse('{"status": "WRONG", "error_type": "vision"}')["error_type"] == "vision"
    assert parse('{"status": "CORRECT", "error_type": "vision"}')["error_type"] is None


def test_drafts_are_how_a_verdict_begins():
    drafts = replies.drafts_of_verdict('Step 1: "a" is 5.\nStep 2: \\frac{1}{2}')
    wrong = replies.verdict_text("WRONG", "Step 2: \\frac{1}{2}", "It is not.")
    assert drafts[0] == replies.verdict_text("CORRECT") and len(drafts) == 3
    assert [wrong.startswith(draft) for draft in drafts] == [False, False, True]
