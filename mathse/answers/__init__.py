"""Does a response state the reference answer? The answer check that all stages share.

A verdict is "correct", "wrong" or "undecided": no answer found, cut off, not read as a value. Both sides are
read whole, as values, or not at all: what is not read is right only as the same text. A check's way:

    find.py    which words of a response are its answer    words.txt: what states, denies, takes back
    spell.py   one spelling for LaTeX and number words     spelling.txt, numbers.txt: how each is spelled
    read.py    the answer as a value                       grammar.lark, units.txt: which answers are read
    same.py    are two values the same?                    values.py: values and their arithmetic
    check.py   the check, choices, what else the stages ask of answers

A response is data from a model and may be hostile: nothing is evaluated, and length, nesting, exponents and
factorials are bounded. Imports nothing else of the project.
"""

# ruff: noqa: F401 (what the rest of the project imports from here)
from mathse.answers.check import (
    LETTERS,
    check_answer,
    check_rows,
    check_version,
    is_readable,
    reference_letters,
    reference_text,
    reveals,
    same_value,
    same_vote,
    votes,
)
from mathse.answers.find import find_answer, is_stated
