"""Labelled pairs for the answer check: a response, a reference, and whether the one states the other.

answer_pairs.jsonl has twelve sets, each written before the code of its time was run on it: "a" to "c" before
an older answer check, "d", "f", "h" and "j" as models of today write plain answers, "e", "g", "i" and "k" as
attacks, "l" as both; and "tables", with exact verdicts. Two more are read if they lie beside the project;
nothing needs them.
"""

import json
import os
from pathlib import Path

OWN = Path(__file__).with_name("answer_pairs.jsonl")
SHARED = Path(os.environ.get("ANSWER_SETS", Path(__file__).resolve().parents[2] / "shared/data"))
FILES = {
    "development": SHARED / "verifier_pairs_dev.jsonl",
    "reported": SHARED / "reported/answer_pairs.jsonl",
}


def read_pairs(path: Path, name: str | None = None) -> list[dict]:
    """Pairs of a file, of one of its sets if a name is given: kind, response, problem, expected."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    return [
        {"expected": row.get("correct")} | row | {"problem": {"options": row.get("choices")} | row}
        for row in rows
        if name is None or row["set"] == name
    ]


def sets() -> dict[str, list[dict]]:
    """All sets at hand, by name."""
    found = {f"own {name}": read_pairs(OWN, name) for name in "abcdefghijkl"}
    found |= {name: read_pairs(path) for name, path in FILES.items() if path.exists()}
    return found
