"""Checks a second of mathse.answers, on one core: the cheap path and the path through math-verify.

python tests/bench/bench_answers.py
"""

import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from mathse.answers import AnswerChecker

REPEATS = 5
STEPS = "Step {}: the figure shows a triangle with sides 3 and {}, so we multiply $3 \\times {}$ and go on.\n"
PLAIN = ["{}", "{} cm", "\\boxed{{{}}}", "B", "(B) {} cm"]  # number, unit, box, letter, letter and value
SURDS = ["{}\\sqrt{{3}}", "\\frac{{{}\\sqrt{{3}}}}{{2}}", "x^2 + {}", "{}π"]


def responses(endings: list[str], count: int) -> list[tuple[str, dict, str]]:
    """Responses of about 800 characters, each with another number."""
    items = []
    for number in range(count):
        ending = endings[number % len(endings)].format(number)
        problem = {"answer": ending.removesuffix(" cm")}
        if "B" in ending:
            problem = {"answer": "B", "options": ["1 cm", f"{number} cm", "y"]}
        if endings is SURDS:
            problem = {"answer": f"0+{ending}"}  # the same value, written otherwise
        steps = "".join(STEPS.format(step, number, step) for step in range(8))
        items.append((f"{steps}The answer to this problem is {ending}.", problem, "stop"))
    return items


for name, endings, count in (("plain answers", PLAIN, 4000), ("answers for math-verify", SURDS, 400)):
    rates = []
    with AnswerChecker(workers=1) as checker:
        next(checker.check_many([("$\\sqrt{8}$", {"answer": "2\\sqrt{2}"}, "stop")]))  # starts the worker
        for _ in range(REPEATS):
            items = responses(endings, count)
            start = time.perf_counter()
            accepted = sum(result["answer_check"] == "correct" for result in checker.check_many(items))
            rates.append(count / (time.perf_counter() - start))
    print(f"{name}: {statistics.median(rates):.0f} checks/s ({accepted / count:.0%} accepted)")
