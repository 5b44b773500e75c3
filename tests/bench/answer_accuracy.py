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
    ours, theirs = [], []
    for cells, accepted in (
        (ours, [own == "correct" for _, own, _ in judged]),
        (theirs, [it for *_, it in judged]),
    ):
        pairs = [(expected, accepts) for (expected, *_), accepts in zip(judged, accepted)]
        lucky, right = pairs.count((False, True)), sum(expected == accepts for expected, accepts in pairs)
        cells += [f"{right / len(pairs):.1%}", f"{lucky} ({lucky / len(pairs):.1%})"]
    rejected = sum(expected and own != "correct" for expected, own, _ in judged)
    undecided = sum(own == "undecided" for _, own, _ in judged)
    return "| " + " | ".join(map(str, (name, len(judged), *ours, rejected, undecided, *theirs))) + " |"


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
