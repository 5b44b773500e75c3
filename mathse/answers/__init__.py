"""Does a response state the reference answer? The answer check that all stages share.

A verdict is "correct", "wrong" or "undecided": no answer found, cut off, not read as a value, out of time or
memory. Both sides are read whole, as values, or not at all: what is not read trains nobody. A check's way:

    find.py, conclude.py    which words of a response are its answer
    spelling.py             one spelling for LaTeX, ASCII and Unicode
    values.py               the answer as a value (kinds.py): which forms are read
        expression.py, numerals.py, units.py, quantities.py, regions.py, names.py    parts of values
    compare.py              are two values the same?
        scalars.py, relations.py    numbers and quantities; intervals and equations
        mathematics.py      what is no rational number, by math-verify
    choice.py               multiple choice
    check.py, workers.py    one check; many, in processes that can be killed

A response is data from a model and may be hostile. Bounded text work in the calling process decides plain
answers. What needs math-verify goes to worker processes (workers.py) with a memory limit, killed when their
time is up: math-verify's own time limits are signals, of no use in threads or against C code.

Imports nothing else of the package: a worker must start fast.
"""

import re

from mathse.answers.check import (
    check_answer,
    check_failed,
    check_version,
    is_readable,
    same_vote,
    states_value,
    votes,
)
from mathse.answers.choice import LETTERS, option_values, reference_letters
from mathse.answers.find import find_answer
from mathse.answers.workers import AnswerChecker, check_rows

__all__ = [
    "LETTERS",
    "AnswerChecker",
    "check_answer",
    "check_rows",
    "check_version",
    "find_answer",
    "check_failed",
    "is_readable",
    "option_values",
    "reference_letters",
    "same_vote",
    "states_value",
    "votes",
]


CHOICE = (  # LETTER is named as a choice
    r"\(LETTER\)|(?:\b(?i:option|choice|answer)(?i: is| should be| must be)?|选项?|答案[为是]?)"
    r"[\s:：(*\"']*LETTER(?![\w'])"
)


def reveals(explanation: str, row: dict) -> bool:
    """Whether the explanation states the right answer, in any spelling, where question and response do not:
    the ORM would learn to tell it. For a choice: the right option's text, or its letter, called a choice."""
    answers = row["answer"] if isinstance(row["answer"], list) else [row["answer"]]
    values, letters = {str(answer).strip() for answer in answers}, set()
    if row.get("options"):
        letters, texts = reference_letters(row), option_values(row["options"])
        values = {texts[LETTERS.index(letter)] for letter in letters} - {"", *LETTERS}
    stated = [r"(?<![\w.])" + re.escape(value) + r"(?![\w]|\.\d)" for value in values]
    stated += [CHOICE.replace("LETTER", letter) for letter in letters]
    known = row["response"] + " " + row["question"]
    if any(states_value(explanation, value) and not states_value(known, value) for value in values):
        return True
    return any(re.search(pattern, explanation) and not re.search(pattern, known) for pattern in stated)
