"""One check of a response against a problem's reference answer."""

import hashlib
import re
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

from mathse.answers.algebra import approximate
from mathse.answers.choice import LETTERS, check_choice, letters_of, option_values, stated_letters
from mathse.answers.compare import same_answer
from mathse.answers.conclude import SPAN, concluded_value
from mathse.answers.find import clean, find_answer
from mathse.answers.kinds import Group, Relation, Words
from mathse.answers.mathematics import equal_in_mathematics
from mathse.answers.names import YES_OR_NO
from mathse.answers.scalars import Equal, Rules
from mathse.answers.spelling import spell
from mathse.answers.values import readable

ASKS_PERCENT = re.compile(r"percentage|what percent|百分(?:之几|数|比|率)", re.IGNORECASE)  # 35 is 35%
VALUE = re.compile(  # a formula, a fraction, a number with what belongs to it
    r"\$[^$\n]{1,80}\$|\\[dt]?frac\{[^{}]{1,20}\}\{[^{}]{1,20}\}"
    r"|-?\d+(?:,\d{3})*(?:\.\d+)?(?: ?/ ?\d+|%|π|√\d+|\\sqrt\{\d+\}|\\pi)?"
)
ASKS_ORDER = re.compile(
    r"\brespectively|分别|"
    r"\border|ascending|descending|increasing|decreasing|从小到大|从大到小|排列",
    re.IGNORECASE,
)


def check_version() -> str:
    """What tells one answer check from another: a digest of this package's code, math-verify's version."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    code = hashlib.sha256("".join(file.read_text(encoding="utf-8") for file in files).encode())
    return f"answers {code.hexdigest()[:8]}, math-verify {version('math-verify')}"


class NeedsMathematics(Exception):
    """Raised in place of asking math-verify, where only text work is wanted."""


def check(response: str, problem: dict, finish: str, equal: Equal) -> dict:
    """The verdict (see check_answer). `equal` compares values that text work alone cannot.

    Whatever a content raises is a verdict: undecided, with the exception's name as its rule.
    """
    try:
        return judge(response, problem, finish, equal)
    except NeedsMathematics:
        raise
    except Exception as error:  # of sympy too, on strange input: RecursionError, MemoryError, TypeError ...
        return {"answer_check": "undecided", "extracted": None, "rule": type(error).__name__}


def judge(response: str, problem: dict, finish: str, equal: Equal) -> dict:
    response, answer = str(response or ""), problem.get("answer")
    if answer is None or answer == "" or answer == []:
        return {"answer_check": None, "extracted": None, "rule": "no reference"}
    if finish in ("length", "error"):
        rule = "cut off" if finish == "length" else "error"
        return {"answer_check": "undecided", "extracted": None, "rule": rule}
    span, rule = find_answer(response)
    reference = reference_text(answer)
    question = str(problem.get("question"))
    percent = bool(ASKS_PERCENT.search(f"{question} {response[-SPAN:]}"))
    rules = Rules(equal, problem.get("precision"), percent, ordered=bool(ASKS_ORDER.search(question)))
    if problem.get("options") or re.fullmatch(r"\(?[A-Z]\)?", reference):
        problem = problem | {"answer": reference, "options": problem.get("options") or list(LETTERS)}
        verdict, span, rule = check_choice(response, span, rule, problem, rules)
    elif span is None:
        verdict = None
    else:
        verdict, span = check_value(response, span, rule, reference, rules)
    verdict = {True: "correct", False: "wrong", None: "undecided"}[verdict]
    return {"answer_check": verdict, "extracted": span, "rule": rule}


def check_value(response: str, span: str, rule: str, reference: str, rules: Rules) -> tuple[bool | None, str]:
    """(verdict, extracted): of the span, or of what its sentence concludes with."""
    verdict = same_answer(span, reference, rules)
    if verdict:
        return verdict, span
    stated = rule not in ("bare", "conclusion")
    truth = YES_OR_NO.match(clean(response) + " ")
    if truth and not stated and reference.casefold() in ("yes", "no"):
        return truth[1].casefold() == reference.casefold(), truth[1]
    value = readable(spell(span))
    prose = value is None and rule in ("sentence", "answer-line", "choice")  # "Answer: its area is 5"
    several = rule == "bare" and isinstance(value, Group | Words)  # "The perimeter is 24 and the area is 36"
    said = concluded_value(span, whole=False) if prose or several else None
    return (same_answer(said, reference, rules), said) if said else (verdict, span)


def reference_text(answer: object) -> str:
    """A reference answer without its data set's wrapping: <answer>, ####, \\boxed, "The answer is"."""
    text = "; ".join(map(str, answer)) if isinstance(answer, list) else str(answer)
    text = re.sub(r"^\[(['\"])(.*)\1\]$", r"\2", text)
    if "boxed" in text or readable(spell(text)) is None:
        span, rule = find_answer(text)
        return span if span and rule not in ("bare", "conclusion") else text
    return text


def check_failed(rule: str) -> bool:
    """Whether a check ended without a look at the answer: out of time, with its worker, by an exception."""
    return rule in ("timeout", "crash") or rule[:1].isupper()


def is_readable(problem: dict) -> bool:
    """Whether the check reads a problem's reference answer: where it does not, all paths stay undecided."""
    answer = problem.get("answer")
    if problem.get("options") or answer in (None, "", []):
        return True
    return readable(spell(reference_text(answer))) is not None


def same_vote(one: str, other: str, options: list | None = None) -> bool:
    """Whether two answers, as extracted, are one vote: the same option or the same value, as far as text work
    tells."""
    if options:
        values = option_values(options)
        letters = [
            letters_of(spell(text), values) or stated_letters(spell(text), values) for text in (one, other)
        ]
        if all(letters):
            return letters[0] == letters[1]
    return same_answer(one, other, Rules(equal_if_rounded)) is True


def votes(answers: Iterable[tuple[object, str | None]], options: list | None = None) -> list[list]:
    """[the keys that give one answer], from (key, answer as extracted), in the order in which the answers
    come first. None is no answer and no vote.
    """
    found: list[tuple[str, list]] = []
    for key, answer in answers:
        if answer is None:
            continue
        same = next((keys for other, keys in found if same_vote(other, answer, options)), None)
        if same is None:
            found.append((answer, [key]))
        else:
            same.append(key)
    return [keys for _, keys in found]


def states_value(text: str, answer: str) -> bool:
    """Whether a text holds the value of an answer somewhere, in whatever spelling: 0.5 is 1/2."""
    return any(same_vote(found, answer) for found in {match[0] for match in VALUE.finditer(text)})


def equal_if_rounded(one: object, other: object, precision: int | None) -> bool | None:
    """Whether two numbers agree to nine digits; None for expressions with variables."""
    if isinstance(one, Relation) or isinstance(other, Relation):
        return None
    values = approximate(one), approximate(other)
    return None if None in values else abs(values[0] - values[1]) <= 1e-9 * abs(values[1])


def check_answer(response: str, problem: dict, finish: str = "stop") -> dict:
    """{"answer_check": "correct" | "wrong" | "undecided" | None (no reference answer), "extracted", "rule"}.

    Works in this process without limits: for a response from a model use AnswerChecker.
    """
    return check(response, problem, finish, equal_in_mathematics)
