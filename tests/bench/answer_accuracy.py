"""How often the answer check is right on labelled pairs, by set and kind, and math-verify alone beside it.

python tests/bench/answer_accuracy.py            a line a set
python tests/bench/answer_accuracy.py --kinds    and a line a kind
"""

import argparse
import logging
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
from answer_sets import sets

from mathse.answers import check_answer

COLUMNS = (
    "| set | pairs | right | false accepts | rejected | undecided | math-verify: right | false accepts |"
)


def own_verdicts(pairs: list[dict]) -> Iterator[str]:
    for pair in pairs:
        yield check_answer(pair["response"], pair["problem"])["answer_check"]


def verdicts_of_math_verify(pairs: list[dict]) -> Iterator[str]:
    """Its defaults, with the reference in $ as it wants it."""
    from math_verify import parse, verify

    logging.disable(logging.CRITICAL)
    for pair in pairs:
        try:
            same = verify(parse(f"${pair['problem']['answer']}$"), parse(pair["response"]))
        except Exception:  # its own
            same = False
        yield "correct" if same else "wrong"


def count(pairs: list[dict], verdicts: Iterable[str]) -> dict[str, list[int]]:
    """{kind: [pairs, right, false accepts, right ones rejected, undecided]}; "all" is the sum."""
    counts = defaultdict(lambda: [0] * 5)
    for pair, verdict in zip(pairs, verdicts, strict=True):
        accepted = verdict == "correct"
        found = [
            1,
            accepted == pair["expected"],
            accepted and not pair["expected"],
            pair["expected"] and not accepted,
            verdict == "undecided",
        ]
        for kind in ("all", pair["kind"]):
            counts[kind] = [one + more for one, more in zip(counts[kind], found)]
    return counts


def line(name: str, own: list[int], other: list[int]) -> str:
    number, right, accepts, rejects, undecided = own
    shares = f"{right / number:.1%} | {accepts} ({accepts / number:.1%}) | {rejects} | {undecided}"
    return (
        f"| {name} | {number} | {shares} | {other[1] / number:.1%} | {other[2]} ({other[2] / number:.1%}) |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kinds", action="store_true", help="also a line a kind")
    args = parser.parse_args()
    print(COLUMNS, "|---" * (COLUMNS.count("|") - 1) + "|", sep="\n")
    for name, pairs in sets().items():
        own, other = count(pairs, own_verdicts(pairs)), count(pairs, verdicts_of_math_verify(pairs))
        print(line(name, own["all"], other["all"]), flush=True)
        for kind in sorted(own.keys() - {"all"}) if args.kinds else ():
            print(line(f"{name}: {kind}", own[kind], other[kind]))


if __name__ == "__main__":
    main()
