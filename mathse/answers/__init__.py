"""Does a response state the reference answer? The answer check that all stages share.

A verdict is "correct", "wrong" or "undecided": no answer found, cut off, not to be read as mathematics, or a
check out of time or memory. math-verify (https://github.com/huggingface/Math-Verify) decides whether two
mathematical values are equal; the rest is here: find.py, values.py, compare.py, check.py.

A response is data from a model and may be hostile. Bounded text work in the calling process decides plain
answers. What needs math-verify goes to worker processes (workers.py) with a memory limit, killed when their
time is up: math-verify's own time limits are signals, of no use in threads or against C code.

Imports nothing else of the package: a worker must start fast.
"""

from mathse.answers.check import check_answer, check_version
from mathse.answers.compare import LETTERS, option_values, reference_letters
from mathse.answers.find import find_answer
from mathse.answers.workers import AnswerChecker, check_rows

__all__ = [
    "LETTERS",
    "AnswerChecker",
    "check_answer",
    "check_rows",
    "check_version",
    "find_answer",
    "option_values",
    "reference_letters",
]
