"""How often the answer check is right on labelled pairs, by set and kind, and math-verify alone beside it.

pip install math-verify==0.9.0                   which nothing else needs
python tests/bench/answer_accuracy.py            a line a set
python tests/bench/answer_accuracy.py --kinds    and a line a kind
"""

import logging
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from answer_sets import sets

from mathse.answers import check_answer
from mathse.cli import Parser

COLUMNS = "set | pairs | right | false accepts | rejected | undecided | math-verify: right | false accepts"


def by_math_verify(pair: dict) -> bool:
    """Whether it accepts, by its defaults, with the reference in $ as it wants it."""
    from math_verify import parse, verify

    try:
        return verify(parse(f"${pair['problem']['answer']}$"), parse(pair["response"]))
    except Exception:  # its own
        return False


def line(name: str, judged: list[tuple[bool, str, bool]]) -> str:
    """Of (whether a pair's answer is right, our verdict, whether math-verify accepts)."""
    ours = [(expected, own == "correct") for expected, own, _ in judged]
    theirs = [(expected, accepts) for expected, _, accepts in judged]
    undecided = sum(own == "undecided" for _, own, _ in judged)
    right, accepts = [], []
    for pairs in (ours, theirs):
        right.append(f"{sum(expected == accepted for expected, accepted in pairs) / len(pairs):.1%}")
        accepts.append(f"{pairs.count((False, True))} ({pairs.count((False, True)) / len(pairs):.1%})")
    cells = [
        name,
        len(ours),
        right[0],
        accepts[0],
        ours.count((True, False)),
        undecided,
        right[1],
        accepts[1],
    ]
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--kinds", action="store_true", help="also a line a kind")
    args = parser.parse_args()
    logging.disable(logging.CRITICAL)  # math-verify's
    print(f"| {COLUMNS} |", "|---" * (COLUMNS.count("|") + 1) + "|", sep="\n")
    for name, pairs in sets().items():
        judged, kinds = [], {}
        for pair in pairs:
            own = check_answer(pair["response"], pair["problem"])["answer_check"]
            judged.append((pair["expected"], own, by_math_verify(pair)))
            kinds.setdefault(pair["kind"], []).append(judged[-1])
        print(line(name, judged), flush=True)
        for kind in sorted(kinds) if args.kinds else ():
            print(line(f"{name}: {kind}", kinds[kind]))


if __name__ == "__main__":
    main()
