"""The answer check: what is found, what is not stated, hostile strings, labelled pairs."""

import pytest
from answer_sets import OWN, read_pairs, sets
from conftest import finish

from mathse.answers import check_answer, check_rows, find_answer, is_stated, reveals

CLOSING = "The answer to this problem is"
C, W, U = "correct", "wrong", "undecided"
# Responses that do not state 5: it is denied, supposed, taken back, another's, or a part of something.
NOT_FIVE = """
-\\boxed{5} ; $x \\neq \\boxed{5}$ ; not \\boxed{5} ; $\\sqrt{\\boxed{5}}$ ; $\\boxed{5}\\pi$
$\\boxed{5}\\times10^3$ ; \\boxed{5} million ; \\boxed{5} or 6 ; \\boxed{6}, not \\boxed{5}
A common mistake gives \\boxed{5} ; $\\boxed{5}x$ ; The answer is 5, as well as 7.
The answer is 5, which is wrong. ; I don't think the answer is 5. ; $\\boxed{5}.5$
It is false that the answer is 5. ; Wrong answer: 5 ; This is not the final answer: 5 ; Bob's answer: 5
Twice the answer is 5. ; Number of answers: 5 ; 我不认为答案是5 ; 错误答案是5
The answer is 5. Correction: 6. ; The answer is 5. Sorry, 6. ; \\boxed{5} cannot be the answer.
So we exclude 5. ; So 5 does not work. ; So x is anything other than 5. ; We divide by 5.
The area is 5 at most. ; See figure 5. ; Wrong: 5 ; half of it is 5
The answer is 5 (which is not possible). ; The answer is 5 — no it is 6 ; The answer is not (1) 5 (2) 6
The answer is 5 fewer. ; The answer is one less than 5. ; The answer is 5 (6). ; The answer is xy = 5x
"""
NOT_THE_SAME = [  # pairs of values that were confused once
    ("x = 5 cm", "x = 5 m"), ("x > 5 m", "x > 5 cm"), ("5 m (5)", "5 cm"), ("xy = 6", "x = 6"),
    ("women: 3, men: 5", "men: 3, women: 5"), ("f(x) = 2x", "g(x) = 2x"), ("4:20", "2:10"),
    ("1/5", "4:20"), ("0.3", "0.\\bar{3}"), ("\\vec{AB}", "\\vec{BA}"), ("1, 234", "1,234"), ("R", "2r"),
    ("2^{3}5", "2^{35}"), ("2**3 * 3**2", "736"), ("5+-3", "5±3"), ("x < 0, x > 7", "x < -1, x > 3"),
    ("三亿八千万", "3000080000000"), ("二百五", "205"), ("7/2 ≈ 3", "3"), ("0.000001", "10^{-7}"),
    ("12 red marbles", "12 blue marbles"), ("twenty-fifth", "4"), ("△DBC ≅ △AEF", "△ABC ≅ △DEF"),
    ("segment A'B", "AB"), ("5 MW", "5 mW"),
]  # fmt: skip
CHOICE = {"options": ["3", "5", "7", "9"], "answer": "B"}
NOT_B = """
\\boxed{not option B} ; The answer is all except option B ; Answer: (B) cannot be right
Answer: neither (A) nor (B) ; Answer: (B) or possibly (A) ; Answer: B (or C) ; Answer: B, no, C
The incorrect option is B. ; We can eliminate option B. ; 错误的是B ; 所以选B是错误的
"""

HOSTILE = [
    "\\boxed{" + "x = (y = " * 14 + "}", "A " + "not (x = 1, " * 12 + ".",
    "a " + "rather than (x = 1, " * 10, "\\log_{1.00000001} 2", "is " * 260 + " z9#", "is a " * 150 + " 5",
    "的" * 780 + " z9#", "9^9^9^9", "9^{9^{9^{9^{9}}}}", "\\boxed{10^{10^{10^{10}}}}",
    "\\boxed{(((((2^{100})^{100})^{100})^{100})^{100})}", "9" * 300, "9" * 1_000_000, "\\boxed{" * 10_000,
    "{" * 100_000 + "}" * 7, "The answer is " + "(" * 10_000 + "1" + ")" * 10_000,
    "(" * 150 + "1" + ")" * 150, "\\frac{" * 60 + "1" + "}{2}" * 60, "\\sqrt{" * 50 + "2" + "}" * 50,
    "The answer is " * 20_000, "answer " + " " * 100_000, "\\boxed{\x00\x1b[2J\ud800\x0c}",
    "\\boxed{" + "x+" * 500_000 + "1}", "1" + ",000" * 90, "\\boxed{factorial(99999999)}", "99999999!",
    "\\boxed{99999999!!!!}", "__import__('os').system('kill 0')",
    "\\boxed{\\sum_{n=1}^{10^{12}} \\frac{\\sin n}{n^n}}", "\\boxed{x^{99999}-1=(x-1)^{88888}}",
    "\\boxed{\\int_0^{\\infty} e^{x^{x^{x}}} dx}", "a" * 399, "≈" * 300, "1 or " * 79, "(1)" * 130,
    "\\text{" * 60, "\\pm" * 100, "#" * 8000, "answer to " * 800, "; ".join("\\sqrt{2}" for _ in range(40)),
    "\n" * 50_000, "_" * 390, "0:0:0:0:0", "亿" * 9000, "百", "【答案】" * 3000, "√" * 290 + "2",
    "sin " * 80 + "x", "\\binom{4000}{2000}^{4000}", "(2^4000)^4000^(4000)",
]  # fmt: skip


# What is revealed of an answer: reference, options, explanation, response, whether it is.
ABC = ["(A) 33", "(B) 35", "(C) 34"]
REVEALED = [
    ("35", None, "The area is 35.", "It is 34.", True),
    ("35", None, "7 * 5 is not 34.", "It is 34.", False),
    ("35", None, "The side is 3.5 long.", "It is 34.", False),
    ("35", None, "It is 350.", "It is 34.", False),
    ("35", None, "35 was right there.", "I get 35, no, 34.", False),
    (["35", "35 cm"], None, "It is 35.", "It is 34.", True),
    ("1/2", None, "The share is 0.5.", "It is 34.", True),
    ("0.5", None, "It should be $\\frac{1}{2}$.", "It is 34.", True),
    ("1/2", None, "The share is 0.52.", "It is 34.", False),
    ("6\\sqrt{2}", None, "It must be √72.", "It is 34.", False),  # no number that is read in running text
    ("6\\sqrt{2}", None, "It must be $\\sqrt{72}$.", "It is 34.", True),
    ("1,200", None, "That gives 1200.", "It is 34.", True),
    ("12 cm", None, "The side is 12.", "It is 34. No, 12 or so.", False),
    ("B", ABC, "The area is 35.", "It is 34. The answer is C.", True),  # the text behind the letter
    ("35", ABC, "It must be option B.", "It is 34. The answer is C.", True),  # the letter of the text
    ("B", ABC, "The right choice is (B).", "The answer is C.", True),
    ("B", ABC, "应选B。", "答案是C。", True),
    ("B", ABC, "7 * 5 is not 34.", "It is 34. The answer is C.", False),
    ("B", ABC, "This does not follow from 7 * 5 = 35.", "7 * 5 = 35. The answer is C.", False),
    ("B", ABC, "The line from B to C is misread.", "AC is 34. The answer is C.", False),  # a point
    ("A", ABC, "A square has four sides. The answer C is not one of them.", "The answer is C.", False),
    ("C", ABC, "C is not what the steps lead to.", "It is 35. The answer is B.", False),
    ("AB", ABC, "It is 33.", "The answer is C.", True),
]
# How an answer was found: response, what is found, its rule, and the closing form where it is not CLOSING.
FOUND = [
    ("The answer to this problem is 7.", "7", "sentence"),
    ("First \\boxed{4}. No, that is wrong: we forgot a side. So it is \\boxed{6}.", "6", "boxed"),
    (f"The answer is 3.\nChecking again, a corner is missing.\n{CLOSING} 4.", "4", "sentence"),
    ("The answer to this problem is 4. Wait, that is wrong.", None, "none"),
    ("So \\boxed{\\frac{1}{\\sqrt{2}}} follows.", "\\frac{1}{\\sqrt{2}}", "boxed"),
    ("So \\boxed{\\frac{1}{\\sqrt{2}", None, "none"),
    ("The answer to this problem is", None, "none"),
    ("**Answer:** $12$", "$12$", "answer-line"),
    ("The answer is:\n\n$$\n\\frac{3}{4}\n$$", "\\frac{3}{4}", "answer-line"),
    ("解：面积为 6。故答案为：6。", "6", "answer-line"),
    ("综上，故选：C．", "C", "choice"),
    ("The answer is not 5. The answer is 6 because two sides are equal.", "6", "answer-line"),
    ("", None, "none"),
    ("I can not see the picture", None, "none"),
    ("If x is 3, then <answer>9</answer>", "9", "tag"),
    ("<ANSWER>7</ANSWER>", "7", "tag"),
    ("The answer to this problem is 3.\n<answer>9</answer>", "9", "tag"),
    ("<answer>9</answer>\nThe answer to this problem is 3.", "3", "sentence"),
    ('{"answer": "7"}', "7", "field"),
    ("Final result: 12 cm", "12 cm", "sentence", "Final result:"),
    ("We add.\n=> 12", "12", "sentence", "=>"),
    ("The answer is 5. Final result: 12", "5", "answer-line", ""),
    ("The image of the gold coin shows 5.", "5", "conclusion"),
    ("So there are 24 apples in total.", "24 apples in total", "conclusion"),
    ("42", "42", "bare"),
    ("**Answers:**\n- x = 2\n- y = 3", "x = 2, y = 3", "answer-line"),
]


def check(response: str, problem: object, finish: str = "stop") -> str | None:
    problem = problem if isinstance(problem, dict) else {"answer": problem}
    return check_answer(response, problem, finish)["answer_check"]


@pytest.mark.parametrize("case", FOUND, ids=lambda case: case[0][-20:])
def test_an_answer_is_found_and_stated_or_concluded(case):
    response, found, rule, *closing = case
    assert find_answer(response, *(closing or [CLOSING])) == (found, rule)
    assert is_stated(rule) == (rule not in ("none", "conclusion", "bare"))


def test_tables():
    """Pairs with their exact verdicts: wrong is not undecided."""
    pairs = read_pairs(OWN, "tables")
    verdicts = [check_answer(pair["response"], pair["problem"])["answer_check"] for pair in pairs]
    wrong = [(pair, verdict) for pair, verdict in zip(pairs, verdicts) if verdict != pair["verdict"]]
    assert wrong == [] and len(pairs) >= 190


@pytest.mark.parametrize("text, problem", [(NOT_FIVE, {"answer": "5"}), (NOT_B, CHOICE)], ids=["5", "B"])
def test_an_answer_is_not_stated(text, problem):
    responses = [part.strip() for line in text.strip().splitlines() for part in line.split(" ; ")]
    assert [response for response in responses if check(response, problem) == C] == []


@pytest.mark.parametrize("given, reference", NOT_THE_SAME)
def test_other_values(given, reference):
    for response in (given, f"The answer to this problem is {given}.", f"\\boxed{{{given}}}"):
        assert check(response, reference) != C


def test_unfinished_and_unasked():
    for end in ("length", "error"):
        assert check("The answer to this problem is 4.", "4", end) == U
    assert check("The answer to this problem is 4.", {}) is None


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_hostile(number):
    for reference in ("\\sqrt{2}", "5; 7"):
        assert check(HOSTILE[number], reference) in (W, U)
    for options in (None, ["1", HOSTILE[number]]):
        assert check("The answer is 5.", {"answer": HOSTILE[number], "options": options}) in (W, U)


def test_check_rows():
    """Rows keep their order and fields; of what is only concluded from prose 02 knows nothing."""
    says = ["\\boxed{0}", "In total she has 1 left.", "2"]
    rows = [{"id": n, "answer": f"{n}", "response": said, "finish": "stop"} for n, said in enumerate(says)]
    found = [(row["id"], row["answer_check"], row["extracted"], row["rule"]) for row in check_rows(rows)]
    assert found == [(0, C, "0", "boxed"), (1, C, "1 left", "conclusion"), (2, C, "2", "bare")]
    assert [row["answer_check"] for row in check_rows(rows, stated_only=True)] == [C, U, U]


def test_options_that_are_alike_keep_their_letters():
    for options in (["<image>"] * 3, ["A", "B", "C"], ["the image"] * 3):
        row = {"options": options, "answer": "B"}
        assert [check(f"The answer is {said}.", row) for said in "ABC"] == [W, C, W]


@pytest.mark.parametrize("answer, options, explanation, response, revealed", REVEALED)
def test_reveals(answer, options, explanation, response, revealed):
    row = {"answer": answer, "options": options, "response": response, "question": "Which?"}
    assert reveals(explanation, row) == revealed
    assert not reveals(explanation, row | {"response": f"{explanation} {response}"})


def test_import_is_cheap():
    """No sympy, and nothing else of this project."""
    loaded = finish("-c", "import sys; import mathse.answers; print(*sys.modules)").stdout.split()
    assert not {"sympy", "math_verify", "numpy", "PIL"} & set(loaded) and "mathse.answers" in loaded
    assert {name for name in loaded if name.startswith("mathse.") and "answers" not in name} == set()


# set: the least share of right verdicts, the most false accepts
BARS = {
    "own a": (0.95, 0), "own b": (0.90, 1), "own c": (0.98, 1), "own d": (0.98, 0), "own e": (0.99, 1),
    "own f": (0.99, 0), "own g": (0.99, 1), "own h": (0.965, 0), "own i": (0.965, 2), "own j": (0.98, 0),
    "own k": (0.945, 1), "own l": (0.91, 0), "development": (0.99, 0), "reported": (1.0, 0),
}  # fmt: skip


@pytest.mark.parametrize("name", BARS)
def test_labelled_pairs(name):
    pairs = sets().get(name)
    if pairs is None:
        pytest.skip("not at hand")
    wrong = {True: [], False: []}  # pairs that are accepted wrongly, rejected wrongly
    for pair in pairs:
        result = check_answer(pair["response"], pair["problem"])
        accepted = result["answer_check"] == C
        if accepted != pair["expected"]:
            wrong[accepted].append((pair["response"][-80:], pair["problem"]["answer"], result["extracted"]))
    share, accepts = BARS[name]
    assert len(wrong[True]) <= accepts, wrong[True]
    assert len(wrong[True]) + len(wrong[False]) <= (1 - share) * len(pairs), wrong[False]
