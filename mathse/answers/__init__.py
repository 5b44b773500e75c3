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
