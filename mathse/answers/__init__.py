"""Does a response state the reference answer? The answer check that all stages share.

A verdict is "correct", "wrong" or "undecided": no answer found, cut off, not read as a value. Both sides are
read whole, as values, or not at all: what is not read is right only as the same text, and trains nobody.
A check's way:

    find.py                which words of a response are its answer
    spell.py               one spelling for LaTeX, Unicode and number words
    grammar.lark, read.py  the answer as a value: which forms are read, and what they stand for
    values.py              values and their arithmetic
    same.py                are two values the same?
    choice.py              multiple choice: letters and options
    check.py               a check, and what the stages ask of answers
    words.py               words that deny, suppose, take back: a language a line

A response is data from a model and may be hostile. Nothing is evaluated but numbers of 100 digits; the length
of what is read, its nesting, exponents and factorials are bounded. Imports nothing else of the project.
"""

# ruff: noqa: F401 (what the rest of the project imports from here)
from mathse.answers.check import (
    LETTERS,
    check_answer,
    check_rows,
    check_version,
    is_readable,
    option_values,
    reference_letters,
    reveals,
    same_value,
    same_vote,
    states_value,
    votes,
)
from mathse.answers.find import find_answer, is_stated
