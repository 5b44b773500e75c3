"""What 05_evaluate.py prints: scores, and with --against the change from another evaluation."""

from pathlib import Path

from mathse.jsonl import write_json
from mathse.records import fail, read_json
from mathse.report.statistics import CHECK, compare_all, differing, percent, points, predictions


def print_scores(metrics: dict) -> None:
    """Every score of an evaluation, with its conditions."""
    conditions = metrics["conditions"]
    decoding = "temperature {temperature}, top-p {top_p}, top-k {top_k}".format(**conditions)
    decoding = decoding if conditions["temperature"] else "greedy"
    shown = ", blank images" if conditions["blank_image"] else ""
    limits = "{samples} a problem, at most {max_tokens} new tokens and {max_pixels} pixels; {rule}"
    print(f"conditions: {conditions['model']}{shown}; prompt {conditions['prompt']}; {decoding}, ", end="")
    print(limits.format(**conditions))
    for name, result in metrics["benchmarks"].items():
        print(f"{name}: {'; '.join(scores(result))}")
        for split, parts in result["splits"].items():
            if 1 < len(parts) <= 24:
                cells = (f"{value} {part['accuracy']:.1%} of {part['n']}" for value, part in parts.items())
                print(f"  by {split}: {'; '.join(cells)}")


def scores(result: dict) -> list[str]:
    """The parts of a benchmark's line."""
    found = [f"{percent(result)} of {result['n']} right"]
    for key in ("pass_at", "majority_at"):
        for k in list(result.get(key, ()))[-1:]:
            found.append(f"{key.replace('_at', '')}@{k} {result[key][k]:.1%}")
    if result["official"]:
        found.append(f"by the benchmark's own rule {percent(result['official'])}")
    rates = "no answer found {unparsed:.1%}, cut off {truncated:.1%}, errors {errors}".format(**result)
    left_out = f"{result['without_answer']} problems without an answer are left out"
    return [", ".join(found), rates] + [left_out] * bool(result["without_answer"])


def print_change(folder: Path, against: Path, seed: int) -> None:
    """The change from the evaluation in `against`, printed and kept in the metrics.json of `folder`."""
    metrics, other = (read_json(place / "metrics.json") for place in (folder, against))
    before, after = predictions(against, *CHECK), predictions(folder, *CHECK)
    differ = {"not_comparable": differing(other["conditions"], metrics["conditions"])}
    changes = {name: change | differ for name, change in compare_all(before, after, seed).items()}
    for name, change in changes.items():
        print(f"{name} against {against}: {change_text(change)}")
    if not changes:
        fail(f"--against: {against}: no problem in common with {folder}")
    metrics["against"] = metrics.get("against", {}) | {str(against): changes}
    write_json(folder / "metrics.json", metrics)


def change_text(change: dict) -> str:
    text = "{before:.1%} -> {after:.1%} on {n} common problems ({only_before} and {only_after} only in one)"
    text = f"{text.format(**change)}, change {points(change)}"
    if change["changes"]:
        counts = ", ".join(f"{kind} {count}" for kind, count in change["changes"].items())
        text += f", p {change['p']:.2g}; {counts}"
    if change["not_comparable"]:
        text += f"; NOT COMPARABLE, other conditions: {', '.join(change['not_comparable'])}"
    return text
