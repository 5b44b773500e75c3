"""The change from one evaluation to another: 05_evaluate.py --against."""

import json
from pathlib import Path

from mathse.jsonl import write_json
from mathse.records import fail
from mathse.report.statistics import checks_only, compare, differing, predictions


def print_change(folder: Path, against: Path, seed: int) -> None:
    """The change from the evaluation in `against`, printed and kept in the metrics.json of `folder`."""
    metrics, other = read_metrics(folder), read_metrics(against)
    before, after = predictions(against, checks_only), predictions(folder, checks_only)
    differ, changes = differing(other["conditions"], metrics["conditions"]), {}
    for name in after.keys() & before.keys():
        if change := compare(before[name], after[name], seed):
            changes[name] = change | {"not_comparable": differ}
            print(f"{name} against {against}: {change_text(changes[name])}")
    if not changes:
        fail(f"--against: {against}: no problem in common with {folder}")
    metrics["against"] = metrics.get("against", {}) | {str(against): changes}
    write_json(folder / "metrics.json", metrics)


def read_metrics(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text(encoding="utf-8"))


def change_text(change: dict) -> str:
    low, high = change["interval"]
    only = f"{change['only_before']} and {change['only_after']} only in one"
    text = f"{change['before']:.1%} -> {change['after']:.1%} on {change['n']} common problems ({only})"
    text += f", change {change['change']:+.1%} [{low:+.1%}, {high:+.1%}]"
    if change["changes"]:
        counts = ", ".join(f"{kind} {count}" for kind, count in change["changes"].items())
        text += f", p {change['p']:.2g}; {counts}"
    if change["not_comparable"]:
        text += f"; NOT COMPARABLE, other conditions: {', '.join(change['not_comparable'])}"
    return text
