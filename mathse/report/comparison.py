"""What 05_evaluate.py prints: scores, and with --against the change from another evaluation."""

import json
from pathlib import Path

from mathse.jsonl import write_json
from mathse.records import fail
from mathse.report.statistics import checks_only, compare, differing, percent, predictions


def print_scores(metrics: dict) -> None:
    """Every score of an evaluation, with its conditions."""
    conditions = metrics["conditions"]
    decoding = "greedy"
    if conditions["temperature"]:
        decoding = "temperature {temperature}, top-p {top_p}, top-k {top_k}".format(**conditions)
    blank = ", blank images" if conditions["blank_image"] else ""
    start = f"conditions: {conditions['model']}{blank}; prompt {conditions['prompt']}; {decoding}"
    limits = "{samples} a problem, at most {max_tokens} new tokens and {max_pixels} pixels; {rule}"
    print(f"{start}, {limits.format(**conditions)}")
    for name, result in metrics["benchmarks"].items():
        scores = [f"{percent(result)} of {result['n']} right"]
        for key in ("pass_at", "majority_at"):
            for k in list(result.get(key, ()))[-1:]:
                scores.append(f"{key.replace('_at', '')}@{k} {result[key][k]:.1%}")
        if result["official"]:
            scores.append(f"by the benchmark's own rule {percent(result['official'])}")
        rates = "no answer found {unparsed:.1%}, cut off {truncated:.1%}, errors {errors}".format(**result)
        if result["without_answer"]:
            rates += f"; {result['without_answer']} problems without an answer are left out"
        print(f"{name}: {', '.join(scores)}; {rates}")
        for split, parts in result["splits"].items():
            if 1 < len(parts) <= 24:
                cells = (f"{value} {part['accuracy']:.1%} of {part['n']}" for value, part in parts.items())
                print(f"  by {split}: {'; '.join(cells)}")
        if types := result.get("error_types"):
            print("  wrong by type: " + ", ".join(f"{kind} {count}" for kind, count in types.items()))


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
