"""Checks a second of mathse.answers, by the processor's time of one core: plain answers, and expressions.

python tests/bench/bench_answers.py
"""

import statistics
import sys
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[2])]
from mathse.answers import check_answer

COUNT, REPEATS = 1000, 3
STEPS = "Step {}: the figure shows a triangle with sides 3 and {}, so we multiply $3 \\times {}$ and go on.\n"
PLAIN = ["{}", "{} cm", "\\boxed{{{}}}", "B", "(B) {} cm"]  # number, unit, box, letter, letter and value
SURDS = ["{}\\sqrt{{3}}", "\\frac{{{}\\sqrt{{3}}}}{{2}}", "x^2 + {}", "{}π"]


def response(number: int, endings: list[str]) -> tuple[str, dict]:
    """A response of about 800 characters and its problem; each number gives another one."""
    ending = endings[number % len(endings)].format(number)
    problem = {"answer": ending.removesuffix(" cm")}
    if "B" in ending:
        problem = {"answer": "B", "options": ["1 cm", f"{number} cm", "y"]}
    if endings is SURDS:
        problem = {"answer": f"0+{ending}"}  # the same value, written otherwise
    steps = "".join(STEPS.format(step, number, step) for step in range(8))
    return f"{steps}The answer to this problem is {ending}.", problem


for name, endings in (("plain answers", PLAIN), ("expressions", SURDS)):
    rates = []
    for turn in range(REPEATS):
        items = [response(turn * COUNT + index, endings) for index in range(COUNT)]  # nothing is read twice
        start = time.process_time()
        accepted = sum(check_answer(*item)["answer_check"] == "correct" for item in items)
        rates.append(COUNT / (time.process_time() - start))
    print(f"{name}: {statistics.median(rates):.0f} checks/s ({accepted / COUNT:.0%} accepted)")
