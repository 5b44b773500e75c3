"""Does a response state the reference answer? correct, wrong, or undecided: not found, not read, cut off."""

import hashlib
import re
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path

from mathse.answers.choice import (
    LETTERS,
    TRUTH,
    calls_choice,
    check_choice,
    letters_of,
    named_letters,
    option_values,
    reference_letters,
)
from mathse.answers.find import SPAN, clean, find_answer, is_stated, value_in
from mathse.answers.read import read
from mathse.answers.same import Rules, same_answer
from mathse.answers.spell import spell

VERDICTS = {True: "correct", False: "wrong", None: "undecided"}
ASKS_PERCENT = re.compile(r"(?i)percentage|what percent|百分(?:之几|数|比|率)")  # 35 is 35%
ASKS_ORDER = re.compile(r"(?i)\brespectively|\border|ascending|descending|分别|从小到大|从大到小|排列")


def check_answer(response: str, problem: dict, finish: str = "stop", closing: str = "") -> dict:
    """{"answer_check": "correct" | "wrong" | "undecided" | None (no reference answer), "extracted", "rule"}.

    `problem` has an `answer`, and may have `options`, `question` and `precision`, the decimals that count;
    `finish` is how the response ended, `closing` what the prompt asks to begin the answer with. The rule says
    how the answer was found: is_stated() tells whether it was stated as such.
    """
    response, answer = str(response or ""), problem.get("answer")
    if answer in (None, "", []):
        return {"answer_check": None, "extracted": None, "rule": "no reference"}
    if finish in ("length", "error"):
        rule = "cut off" if finish == "length" else "error"
        return {"answer_check": "undecided", "extracted": None, "rule": rule}
    span, rule = find_answer(response, closing)
    reference, question = reference_text(answer), str(problem.get("question"))
    percent = bool(ASKS_PERCENT.search(f"{question} {response[-SPAN:]}"))
    rules = Rules(problem.get("precision"), percent, bool(ASKS_ORDER.search(question)))
    truth = None if is_stated(rule) else TRUTH.match(clean(response) + " ")
    if problem.get("options") or re.fullmatch(r"\(?[A-Z]\)?", reference):
        problem = {"answer": reference, "options": problem.get("options") or list(LETTERS)}
        verdict, span, rule = check_choice(response, span, rule, problem, rules)
    elif truth and reference.casefold() in ("yes", "no"):
        verdict, span, rule = truth[1].casefold() == reference.casefold(), truth[1], "conclusion"
    else:
        verdict, span = check_value(span, rule, reference, rules) if span else (None, None)
    return {"answer_check": VERDICTS[verdict], "extracted": span, "rule": rule}


def check_value(span: str, rule: str, reference: str, rules: Rules) -> tuple[bool | None, str]:
    """(verdict, extracted): of a statement, or of what its words conclude with: "Answer: its area is 5"."""
    verdict = same_answer(span, reference, rules)
    if verdict is None and is_stated(rule) and rule != "boxed" and read(spell(span)) is None:
        said = value_in(span, stated=True)
        return (same_answer(said, reference, rules), said) if said else (None, span)
    return verdict, span


def check_rows(rows: Iterable[dict], closing: str = "", stated_only: bool = False) -> Iterator[dict]:
    """Rows with a problem's and a sample's fields, each with its verdict added. `stated_only`: an answer that
    is only concluded from prose is undecided."""
    for row in rows:
        result = check_answer(row["response"], row, row.get("finish", "stop"), closing)
        if stated_only and result["answer_check"] and not is_stated(result["rule"]):
            result["answer_check"] = "undecided"
        yield row | result


def reference_text(answer: object) -> str:
    """A reference answer without its data set's wrapping: <answer>, ####, \\boxed, "The answer is"."""
    text = "; ".join(map(str, answer)) if isinstance(answer, list) else str(answer)
    text = re.sub(r"^\[(['\"])(.*)\1\]$", r"\2", text)
    if "boxed" not in text and read(spell(text)) is not None:
        return text
    span, rule = find_answer(text)
    return span if span and is_stated(rule) else text


def is_readable(problem: dict) -> bool:
    """Whether a problem's reference answer is read: of others only a response with the same text is right."""
    answer = problem.get("answer")
    if problem.get("options") or answer in (None, "", []):
        return True
    return read(spell(reference_text(answer))) is not None


def check_version() -> str:
    """What tells one answer check from another: a digest of this package's files, its libraries' versions."""
    files = sorted(
        file for file in Path(__file__).parent.iterdir() if file.suffix in (".py", ".lark", ".txt")
    )
    code = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:8]
    return f"answers {code}, lark {version('lark')}, mpmath {version('mpmath')}"


# ---------------------------------------------------------------- answers among themselves


def same_value(one: str, other: str, precision: int | None = None) -> bool:
    """Whether two answers are equal as text or as values, numbers to `precision` decimals if it is given."""
    return same_answer(one, other, Rules(precision)) is True


def same_vote(one: str, other: str, options: list | None = None) -> bool:
    """Whether two answers, as extracted, are one vote: the same option or the same value."""
    if options:
        texts = option_values(options)
        letters = [
            letters_of(spell(text), texts) or named_letters(spell(text), texts) for text in (one, other)
        ]
        if all(letters):
            return letters[0] == letters[1]
    return same_value(one, other)


def votes(answers: Iterable[tuple[object, str | None]], options: list | None = None) -> list[list]:
    """[the keys that give one answer], from (key, answer as extracted), in the order in which the answers
    come first. None is no answer and no vote."""
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


VALUE = re.compile(  # a formula, a fraction, a number with what belongs to it
    r"\$[^$\n]{1,80}\$|\\[dt]?frac\{[^{}]{1,20}\}\{[^{}]{1,20}\}"
    r"|-?\d+(?:,\d{3})*(?:\.\d+)?(?: ?/ ?\d+|%|π|√\d+|\\sqrt\{\d+\}|\\pi)?"
)


def states_value(text: str, answer: str) -> bool:
    """Whether a text holds the value of an answer somewhere, in whatever spelling: 0.5 is 1/2."""
    return any(same_value(found, answer) for found in {match[0] for match in VALUE.finditer(text)})


def reveals(explanation: str, row: dict) -> bool:
    """Whether an explanation states the right answer, in any spelling, where question and response do not.
    For a choice: the right option's text, or its letter, called a choice."""
    answers = row["answer"] if isinstance(row["answer"], list) else [row["answer"]]
    values, letters = {str(answer).strip() for answer in answers}, set()
    if row.get("options"):
        letters, texts = reference_letters(row), option_values(row["options"])
        values = {texts[LETTERS.index(letter)] for letter in letters} - {"", *LETTERS}

    def stated(text: str) -> set[str]:
        """The values and letters that a text holds."""
        literal = {value for value in values if re.search(rf"(?<![\w.]){re.escape(value)}(?!\w|\.\d)", text)}
        called = {letter for letter in letters if calls_choice(text, letter)}
        return literal | called | {value for value in values - literal if states_value(text, value)}

    return bool(stated(explanation) - stated(f"{row['response']} {row['question']}"))
