"""The answer check: tables of (response, reference answer, verdict), hostile strings, labelled pairs."""

import subprocess
import sys

import pytest
from answer_sets import sets
from conftest import ROOT

from mathse.answers import check_answer, check_rows, find_answer

CLOSING = "The answer to this problem is"
C, W, U = "correct", "wrong", "undecided"
AREAS = {"options": ["6 cm", "12 cm", "18 cm", "24 cm"], "answer": "B"}
SHAPES = {"options": ["a square", "a rhombus", "It cannot be determined"], "answer": "a rhombus"}
LETTERS = {"options": ["A", "B", "C", "D"], "answer": "C"}
SURDS = {"options": ["(A) $\\sqrt{5}$", "(B) $2\\sqrt{5}$", "(C) $5$"], "answer": "B"}
YES_NO = {"options": ["Yes", "No"], "answer": "No"}

SPANS = {
    "The answer to this problem is 7.": ("7", "sentence"),
    "First \\boxed{4}. No, that is wrong: we forgot a side. So it is \\boxed{6}.": ("6", "boxed"),
    "The answer is 3.\nChecking again, a corner is missing.\nThe answer to this problem is 4.": (
        "4",
        "sentence",
    ),
    "The answer to this problem is 4. Wait, that is wrong.": (None, "none"),
    "So \\boxed{\\frac{1}{\\sqrt{2}}} follows.": ("\\frac{1}{\\sqrt{2}}", "boxed"),
    "So \\boxed{\\frac{1}{\\sqrt{2}": (None, "none"),
    "The answer to this problem is": (None, "none"),
    "**Answer:** $12$": ("$12$", "answer-line"),
    "The answer is:\n\n$$\n\\frac{3}{4}\n$$": ("\\frac{3}{4}", "answer-line"),
    "解：面积为 6。故答案为：6。": ("6", "answer-line"),
    "综上，故选：C．": ("C", "choice"),
    "The answer is not 5. The answer is 6 because two sides are equal.": ("6", "answer-line"),
    "": (None, "none"),
    "I can not see the picture": (None, "none"),
}

TABLES = {
    "numbers": [
        ("The answer to this problem is 12.", "12", C),
        ("The answer to this problem is 12.0", 12, C),
        ("The answer to this problem is 13.", "12", W),
        ("\\boxed{-\\frac{7}{4}}", "-1.75", C),
        ("Answer: 3/8", "0.375", C),
        ("Answer: 3/8", "8/3", W),
        ("The answer is $1\\frac{3}{4}$.", "7/4", C),
        ("The answer is 1 3/4", "\\frac74", C),
        ("The answer is 13/4", "1 3/4", W),
        ("The answer is $\\frac{1}{23}$", "\\frac{12}{3}", W),
        ("The answer is $\\frac{1}{2^{90}}$", "\\frac{1}{2^{91}}", W),
        ("The answer is 2,048.", "2048", C),
        ("\\boxed{12\\,500}", "12500", C),
        ("\\boxed{7{,}200}", "7200", C),
        ("The answer is 7,200", "72", W),
        ("The answer is $3 \\times 10^{4}$.", "30000", C),
        ("The answer is −8", "-8", C),
        ("The answer is twelve.", "12", C),
        ("the answer is 1/2^40", "1/2^41", W),
        ("So it equals \\boxed{2^{10}}", "1024", C),
        ("The answer is 0.333333333", "1/3", C),
        ("The answer is 0.33", "1/3", W),
        ("Answer: 3 + 4 = 7", "7", C),
        ("The answer is approximately 31", "31", C),
    ],
    "roots and pi": [
        ("The answer is 6√2.", "6\\sqrt{2}", C),
        ("The answer is √72", "$6\\sqrt{2}$", C),
        ("The answer is 6.", "6\\sqrt{2}", W),
        ("The answer is 3*sqrt(5)", "3\\sqrt{5}", C),
        ("Area = \\boxed{18π}", "18\\pi", C),
        ("The answer is 18 pi", "18\\pi", C),
        ("The answer is 18", "18\\pi", W),
        ("The answer is $\\sqrt{23}$", "\\sqrt{2}3", U),
        ("The answer is 2√3 − π", "2\\sqrt{3}-\\pi", C),
        ("The answer is π/6", "\\frac{\\pi}{6}", C),
        ("The answer is $\\frac{\\sqrt 3}{3}$", "\\frac{1}{\\sqrt{3}}", C),
        ("The answer is 9π ≈ 28.27", "9\\pi", C),
    ],
    "units": [
        ("The answer is 5 cm.", "5", C),
        ("The answer is 5", "5 cm", C),
        ("The answer is 5 cm", "5 m", W),
        ("The answer is 50 cm", "0.5 m", C),
        ("The answer is 5 cm^2", "5 cm", W),
        ("\\boxed{5 \\text{ cm}^2}", "5\\mathrm{~cm}^{2}", C),
        ("The answer is 5平方厘米。", "5 cm^2", C),
        ("The answer is 5 square centimeters", "5 cm²", C),
        ("The answer is 3 hours", "3 minutes", W),
        ("The answer is 60 km/h", "60", C),
        ("The answer is 60 km/h", "60 m/s", W),
        ("The answer is $14.50", "14.5", C),
        ("The answer is 14 apples.", "14", C),
        ("The answer is 14 apples", "15 apples", W),
        ("The answer is 4√3 m", "4\\sqrt{3}", C),
        ("The answer is 3x", "3", W),
        ("The answer is 8 inches", "8{inches}", C),
    ],
    "percent and degrees": [
        ("The answer is 45%", "45\\%", C),
        ("The answer is 45 percent.", "45%", C),
        ("The answer is 45%", "0.45", C),
        ("The answer is 45%", "45", W),
        ("The answer is 45%", {"answer": "45", "question": "What percentage is shaded?"}, C),
        ("The answer is 54%", "45%", W),
        ("The answer is 35°", "35", C),
        ("The answer is 35", "35^\\circ", C),
        ("∠A = \\boxed{35^{\\circ}}", "35°", C),
        ("The answer is 35 degrees", "35{degrees}", C),
        ("The answer is 35度", "$35^{\\circ}$", C),
        ("The answer is 145°", "35°", W),
    ],
    "several blanks": [
        ("The answer to this problem is 8; 0.25; 3.", "8; 1/4; 3", C),
        ("The answer to this problem is 8, 0.25, 3.", "8; 0.25; 3", C),
        ("The answer to this problem is (1) 8 (2) 0.25 (3) 3.", "8; 0.25; 3", C),
        ("Answer:\n(1) 8\n(2) 0.25\n(3) 3", "8; 0.25; 3", C),
        ("The answer to this problem is 3; 0.25; 8.", "8; 0.25; 3", W),
        ("The answer to this problem is 8; 0.25.", "8; 0.25; 3", W),
        ("答案：①8；②3", "8; 3", C),
        ("答案：8；3", "（1）8；（2）3", C),
        ("The answer is 100,200", "100; 200", C),
        ("The answer is 8; 3", ["8", "3"], C),
        ("The answer is 3; 8", [8, 3], W),
        ("The answer is 9; 60", "9; 60°", C),
        ("The answer is (1,2); (3,4)", "(1, 2); (3, 4)", C),
        ("The answer is [3, 0, 5]", "[3, 0, 5]", C),
        ("The answer is [3, 5, 0]", "[3, 0, 5]", W),
    ],
    "sets": [
        ("The answer is x = 5 or x = -2", "x=-2 or x=5", C),
        ("The answer is 5 or -2", "x=-2 or x=5", C),
        ("The answer is 5.", "5 or -2", W),
        ("The answer is 5, -2 and 1", "-2 or 5", W),
        ("The answer is ±3", "3 or -3", C),
        ("The answer is \\{2, 7\\}", "7 and 2", C),
        ("答案：3或5", "5或3", C),
        ("The answer is 7 or 8", "7", W),
        ("\\boxed{4} and \\boxed{9}", "9, 4", C),
        ("\\boxed{4} or \\boxed{9}", "4", W),
        ("The answer is $n=1, 3$", "1 or 3", C),
    ],
    "intervals, tuples and relations": [
        ("The answer is (-3, 4]", "(-3,4]", C),
        ("The answer is [-3, 4]", "(-3,4]", W),
        ("The answer is $-3 < x \\le 4$", "(-3,4]", C),
        ("The answer is x≤7", "(-\\infty,7]", C),
        ("The answer is x<7", "(-\\infty,7]", W),
        ("The answer is (5, -1)", "(5,-1)", C),
        ("The answer is x = 5, y = -1", "(5,-1)", C),
        ("The answer is $[0,1) \\cup (2,3]$", "(2,3]\\cup[0,1)", C),
        ("The answer is (-1, 5)", "(5,-1)", W),
        ("The answer is (1/2, 3)", "(0.5,3)", C),
        ("The answer is (-∞, 0) ∪ (2, +∞)", "(-\\infty,0)\\cup(2,\\infty)", C),
        ("The answer is 2x - 5 < y", "y > 2x-5", C),
        ("The answer is 3:5", "6:10", C),
        ("The answer is 5:3", "3:5", W),
        ("The answer is 11:30", "9:30", W),
    ],
    "expressions and words": [
        ("The answer is y = 2(x - 3)", "y=2x-6", C),
        ("The answer is 2x - 6", "y=2x-6", C),
        ("The answer is 2x + 6", "y=2x-6", W),
        ("The answer is x(x+1)", "x^2+x", C),
        ("The answer is volume = 24 cm^3", "Volume $=24 \\mathrm{~cm}^{3}$", C),
        ("The answer is Parallel.", "parallel", C),
        ("The answer is perpendicular", "parallel", W),
        ("The lines are parallel.", "parallel", C),
        ("The answer is that nobody can tell from this long story", "4", U),
        ("Final Answer: The area of the region is 14 cm.", "14", C),
        ("The triangle has 3 sides, each of length 4", "7", U),
        ("The answer is 204_6", "204_5", W),
    ],
    "precision": [
        ("The answer is 2.8284", {"answer": "2.83", "precision": 2}, C),
        ("The answer is 2.84", {"answer": "2.83", "precision": 2}, W),
        ("The answer is $2\\sqrt{2}$", {"answer": "2.83", "precision": 2}, C),
        ("The answer is 2.8284", "2.83", W),
        ("The answer is 0.7", {"answer": 0.7, "precision": 1}, C),
    ],
    "chinese": [
        ("因此，答案是１２。", "12", C),
        ("故答案为：$\\frac{3}{5}$．", "0.6", C),
        ("答案：等腰三角形", "等腰三角形", C),
        ("答案：等边三角形", "等腰三角形", W),
        ("答案：二十五", "25", C),
        ("答案：十二", "11", W),
        ("答案是5厘米。", "5 cm", C),
        ("答案为15个", "15", C),
        ("答案：（３，４）", "(3,4)", C),
        ("答案：“和”", "和", C),
    ],
    "choice by letter": [
        ("The answer to this problem is B.", AREAS, C),
        ("The answer to this problem is (B).", AREAS, C),
        ("The answer is B. 12 cm", AREAS, C),
        ("\\boxed{\\text{(B)}}", AREAS, C),
        ("\\boxed{\\textbf{(B) }12}", AREAS, C),
        ("The correct option is **B**.", AREAS, C),
        ("Answer: (C)", AREAS, W),
        ("The answer is B because a side is 4.", AREAS, C),
        ("因此选B。", AREAS, C),
        ("故选项B正确。", AREAS, C),
        ("The answer is A or B", AREAS, W),
        ("The answer is A, B, C, D.", AREAS, W),
        ("The answer is (A) 12 cm", AREAS, W),
        ("The answer is option B: 12 cm.", AREAS, C),
        ("Therefore, option (B) is correct.", AREAS, C),
        ("Option A fails.\nThe answer to this problem is B.", AREAS, C),
        ("The answer is b", AREAS, C),
        ("The answer is E.", AREAS, W),
        ("The answer is C", LETTERS, C),
        ("\\boxed{D}", LETTERS, W),
        ("I think it is picture (C).", LETTERS, C),
        ("The answer is 17", LETTERS, U),
        ("The answer is (B)", "B", C),
        ("The answer is C. 5", "B", W),
        ("The answer is 5", "B", U),
        ("The bars are A 7, B 12 cm and C 6.", AREAS, U),
        ("Its sides are A 6 cm and B 12 cm.", AREAS, U),
        ("The answer is ACD", {"options": list("ABCD"), "answer": "ACD"}, C),
        ("The answer is A, C", {"options": list("ABCD"), "answer": "ACD"}, W),
    ],
    "choice by value": [
        ("The answer to this problem is 12 cm.", AREAS, C),
        ("The answer to this problem is 12.", AREAS, C),
        ("The answer is 18 cm", AREAS, W),
        ("The answer is 12 m", AREAS, W),
        ("The answer is 7", AREAS, W),
        ("The answer is a rhombus.", SHAPES, C),
        ("The answer is B", SHAPES, C),
        ("The answer is a square", SHAPES, W),
        ("It is \\boxed{\\text{rhombus}}", SHAPES, C),
        ("The answer is √20", SURDS, C),
        ("The answer is (B) 2√5", SURDS, C),
        ("The answer is 5", SURDS, W),
        ("No, the lines do not meet.", YES_NO, C),
        ("Yes, they meet.", YES_NO, W),
        ("The answer is no.", YES_NO, C),
        ("The answer is 2, 1, 3", {"options": ["$1,2,3$", "$2,1,3$"], "answer": "B"}, C),
        ("The answer is 1, 2, 3", {"options": ["1,2,3", "2,1,3"], "answer": "B"}, W),
        ("The answer is A", {"options": ["33", "30", "36"], "answer": "33"}, C),
        ("The answer is d", {"options": list("abcde"), "answer": "D"}, C),
    ],
    "short and conversational": [
        ("In total, the percentage of red cards is 40%.", "40", C),
        ("42", "42", C),
        ("x = 42", "42", C),
        ("7/2 cm", "3.5", C),
        ("The perimeter of the square is 16 cm.", "16", C),
        ("There are 6 dots in each group.", "6", C),
        ("Thus, the line is about 3 inches long.", "3", C),
        ("So she pays $2.75.", "2.75", C),
        ("There are 2 bars above 5.", "5", U),
        ("First we note that 24 is", "24", U),
        ("We get $x = 4$ and then", "4", U),
        ("The total is **9**. I hope this helps.", "9", C),
    ],
}
ROWS = [(kind, *row) for kind, table in TABLES.items() for row in table]

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
NOT_B = """
\\boxed{not option B} ; The answer is all except option B ; Answer: (B) cannot be right
Answer: neither (A) nor (B) ; Answer: (B) or possibly (A) ; Answer: B (or C) ; Answer: B, no, C
The incorrect option is B. ; We can eliminate option B. ; 错误的是B ; 所以选B是错误的
"""

HOSTILE = [
    "\\boxed{" + "x = (y = " * 14 + "}",
    "A " + "not (x = 1, " * 12 + ".",
    "a " + "rather than (x = 1, " * 10,
    "\\log_{1.00000001} 2",
    "is " * 260 + " z9#",
    "is a " * 150 + " 5",
    "的" * 780 + " z9#",
    "9^9^9^9",
    "9^{9^{9^{9^{9}}}}",
    "\\boxed{10^{10^{10^{10}}}}",
    "\\boxed{(((((2^{100})^{100})^{100})^{100})^{100})}",
    "9" * 300,
    "9" * 1_000_000,
    "\\boxed{" * 10_000,
    "{" * 100_000 + "}" * 7,
    "The answer is " + "(" * 10_000 + "1" + ")" * 10_000,
    "(" * 150 + "1" + ")" * 150,
    "\\frac{" * 60 + "1" + "}{2}" * 60,
    "\\sqrt{" * 50 + "2" + "}" * 50,
    "The answer is " * 20_000,
    "answer " + " " * 100_000,
    "\\boxed{\x00\x1b[2J\ud800\x0c}",
    "\\boxed{" + "x+" * 500_000 + "1}",
    "1" + ",000" * 90,
    "\\boxed{factorial(99999999)}",
    "99999999!",
    "\\boxed{99999999!!!!}",
    "__import__('os').system('kill 0')",
    "\\boxed{\\sum_{n=1}^{10^{12}} \\frac{\\sin n}{n^n}}",
    "\\boxed{x^{99999}-1=(x-1)^{88888}}",
    "\\boxed{\\int_0^{\\infty} e^{x^{x^{x}}} dx}",
    "a" * 399,
    "≈" * 300,
    "1 or " * 79,
    "(1)" * 130,
    "\\text{" * 60,
    "\\pm" * 100,
    "#" * 8000,
    "answer to " * 800,
    "; ".join("\\sqrt{2}" for _ in range(40)),
    "\n" * 50_000,
    "_" * 390,
    "0:0:0:0:0",
]


def check(response: str, problem: object, finish: str = "stop") -> str | None:
    problem = problem if isinstance(problem, dict) else {"answer": problem}
    return check_answer(response, problem, finish)["answer_check"]


@pytest.mark.parametrize("response", SPANS)
def test_find_answer(response):
    assert find_answer(response, CLOSING) == SPANS[response]


@pytest.mark.parametrize("kind, response, problem, verdict", ROWS)
def test_table(kind, response, problem, verdict):
    assert check(response, problem) == verdict


def lines_of(text: str) -> list[str]:
    return [part.strip() for line in text.strip().splitlines() for part in line.split(" ; ")]


@pytest.mark.parametrize("response", lines_of(NOT_FIVE))
def test_five_is_not_stated(response):
    assert check(response, "5") != C


@pytest.mark.parametrize("given, reference", NOT_THE_SAME)
def test_other_values(given, reference):
    for response in (given, f"The answer to this problem is {given}.", f"\\boxed{{{given}}}"):
        assert check(response, reference) != C


@pytest.mark.parametrize("response", lines_of(NOT_B))
def test_the_option_is_not_stated(response):
    assert check(response, {"options": ["3", "5", "7", "9"], "answer": "B"}) != C


def test_unfinished_and_unasked():
    for finish in ("length", "error"):
        assert check("The answer to this problem is 4.", "4", finish) == U
    assert check("The answer to this problem is 4.", {}) is None


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_hostile(number):
    for reference in ("\\sqrt{2}", "5; 7"):
        assert check(HOSTILE[number], reference) in (W, U)


def test_check_rows():
    """Rows keep their order and fields; of what is only concluded from prose 02 knows nothing."""
    says = ["\\boxed{0}", "In total she has 1 left.", "2"]
    rows = [{"id": n, "answer": f"{n}", "response": said, "finish": "stop"} for n, said in enumerate(says)]
    found = [(row["id"], row["answer_check"], row["extracted"], row["rule"]) for row in check_rows(rows)]
    assert found == [(0, C, "0", "boxed"), (1, C, "1 left", "conclusion"), (2, C, "2", "bare")]
    assert [row["answer_check"] for row in check_rows(rows, stated_only=True)] == [C, U, U]


def test_import_is_cheap():
    """No sympy, and nothing else of this project."""
    code = "import sys; import mathse.answers as answers; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=20)
    loaded = done.stdout.split()
    assert not {"sympy", "math_verify", "numpy", "PIL"} & set(loaded) and "mathse.answers" in loaded
    assert {name for name in loaded if name.startswith("mathse.") and "answers" not in name} == set()


# set: the least share of right verdicts, the most false accepts
BARS = {
    "own a": (0.93, 0),
    "own b": (0.86, 2),
    "own c": (0.97, 1),
    "development": (0.985, 0),
    "reported": (0.99, 0),
}


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
