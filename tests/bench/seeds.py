"""A run of seeds.sh in a few lines: accuracy by stage, and both ORMs on held-out paths.

python tests/bench/seeds.py runs/seed-0
"""

import json
import random
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT / "toy")]
import problems as toy


def truths(row: dict) -> dict[str, str]:
    """By the answer alone, and by the steps too: the toy world knows which right answers are luck."""
    lucky = row["answer_check"] == "correct" and toy.first_mistake(row["solution"], row["response"])
    return {
        "by the answer": row["answer_check"],
        "by answer and steps": "wrong" if lucky else row["answer_check"],
    }


def print_orm(name: str, rows: list[dict]) -> None:
    rows = [row for row in rows if row["answer_check"] in ("correct", "wrong")]
    for truth in ("by the answer", "by answer and steps"):
        said = {check: [] for check in ("correct", "wrong")}
        for row in rows:
            check = truths(row)[truth]
            said[check].append(row["orm_check"] == check)
        count = min(map(len, said.values()))
        rates = {check: sum(random.Random(0).sample(right, count)) / count for check, right in said.items()}
        overall = sum(rates.values()) / 2
        print(
            f"  {name}, {truth}: positive {rates['correct']:.1%}, negative {rates['wrong']:.1%}, "
            f"overall {overall:.1%} of {2 * count}",
            flush=True,
        )


def main() -> None:
    run = Path(sys.argv[1])
    metrics = json.loads((run / "metrics.json").read_text())
    stages = [
        f"{stage['stage']} {stage['benchmarks']['toy_test']['accuracy']:.1%} ({stage['train_rows']} rows)"
        for stage in metrics["stages"]
    ]
    print(run.name, f"{metrics['seconds'] / 60:.1f} min;", *stages)
    for orm in ("orm", "binary"):
        print_orm(orm, list(map(json.loads, (run / "heldout" / f"{orm}.jsonl").open())))


if __name__ == "__main__":
    main()
