"""One check of a response against a problem's reference answer."""

import hashlib
import re
from importlib.metadata import version
from pathlib import Path

from mathse.answers.compare import LETTERS, check_choice, same_answer
from mathse.answers.find import SPAN, concluded_answer, find_answer
from mathse.answers.values import Equal, simplify


def check_version() -> str:
    """What tells one answer check from another: a digest of this package's code, math-verify's version."""
    files = sorted(Path(__file__).parent.glob("*.py"))
    code = hashlib.sha256("".join(file.read_text(encoding="utf-8") for file in files).encode())
    return f"answers {code.hexdigest()[:8]}, math-verify {version('math-verify')}"


def check(response: str, problem: dict, finish: str, equal: Equal) -> dict:
    """The verdict (see check_answer). `equal` compares values that text work alone cannot."""
    response, answer = str(response or ""), problem.get("answer")
    if answer is None or answer == "" or answer == []:
        return {"answer_check": None, "extracted": None, "rule": "no reference"}
    if finish in ("length", "error"):
        rule = "cut off" if finish == "length" else "error"
        return {"answer_check": "undecided", "extracted": None, "rule": rule}
    span, rule = find_answer(response)
    if problem.get("options") or re.fullmatch(r"\(?[A-J]\)?", str(answer)):
        problem = problem if problem.get("options") else problem | {"options": list(LETTERS)}
        verdict, span, rule = check_choice(response, span, rule, problem, equal)
    elif span is None:
        verdict = None
    else:
        reference = "; ".join(map(str, answer)) if isinstance(answer, list) else str(answer)
        reference = find_answer(reference)[0] if "boxed" in reference else reference
        given, reference = simplify(span), simplify(reference or "")
        verdict = same_answer(given, reference, problem.get("precision"), equal)
        about = f"{problem.get('question')} {response[-SPAN:]}"
        if verdict is False and "%" in given and re.search(r"percentage|what percent|百分", about):
            verdict = same_answer(given.replace("%", ""), reference, problem.get("precision"), equal)
        if verdict is None and rule not in ("bare", "conclusion"):  # "Answer: its area is 5"
            said = concluded_answer(span + ".")[0] or span
            if said != span:
                verdict, span = same_answer(simplify(said), reference, problem.get("precision"), equal), said
    verdict = {True: "correct", False: "wrong", None: "undecided"}[verdict]
    return {"answer_check": verdict, "extracted": span, "rule": rule}


def check_answer(response: str, problem: dict, finish: str = "stop") -> dict:
    """{"answer_check": "correct" | "wrong" | "undecided" | None (no reference answer), "extracted", "rule"}.

    Works in this process without limits: for a response from a model use AnswerChecker.
    """
    return check(response, problem, finish, equal_in_mathematics)


def equal_in_mathematics(given: str, reference: str, precision: int | None) -> bool | None:
    """math-verify's verdict on two values; None if one side cannot be read as mathematics."""
    import logging

    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its time limit is off
    given, reference = (parse(f"${side}$", parsing_timeout=None) for side in (given, reference))
    if not given or not reference or isinstance(given[0], str) or isinstance(reference[0], str):
        return None
    numbers = all(getattr(side[0], "is_number", False) for side in (given, reference))
    if numbers and precision is not None:
        return bool(abs(given[0].evalf() - reference[0].evalf()) <= 0.5 * 10.0**-precision + 1e-12)
    same = verify(reference, given, allow_set_relation_comp=True, timeout_seconds=None)
    if same and numbers:  # it rounds to six decimals, where 2^-98 and 2^-99 are both 0
        one, other = given[0].evalf(), reference[0].evalf()
        return bool(abs(one - other) <= 1e-6 * abs(other))
    return same
