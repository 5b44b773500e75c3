"""What predictions say: accuracy with its interval, pass@k, majority@k, and whether one set of predictions is better than another; what verdicts say.

A prediction is a row of predictions.jsonl: benchmark, id, sample, answer_check, extracted, rule, finish, the fields of SPLITS. The right share of a
problem is that of its samples; the accuracy is the mean over problems. An answer that is undecided is not right.
"""

import json
import math
from collections import Counter, defaultdict
from pathlib import Path
from typing import Callable, Iterable, Iterator

Z = 1.959964  # of a 95 % interval
RESAMPLES = 10_000  # of the bootstrap
CHANGES = ("correct to correct", "incorrect to incorrect", "correct to incorrect", "incorrect to correct")  # the paper's Figure 2
VERDICTS = ("correct", "wrong", "undecided")  # of the answer check and of the ORM
DISAGREEMENTS = {("wrong", "correct"): "orm_accepts_wrong", ("correct", "wrong"): "orm_rejects_right"}  # (answer check, ORM check)
EXAMPLES = 10  # of each disagreement between answer check and ORM that an audit keeps
MAY_DIFFER = {"model", "test", "limit", "seed", "blank_image"}  # conditions that a comparison is about; others make two scores not comparable


def read_json_rows(path: Path) -> Iterator[dict]:
    """The whole rows of a JSONL file that a stage wrote or is writing; none if there is no such file."""
    if path.is_file():
        with path.open(encoding="utf-8") as file:
            yield from (json.loads(line) for line in file if line.endswith("\n"))


# ---------------------------------------------------------------- one set of predictions


def wilson(correct: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share: it stays within [0, 1] and holds near its ends too, where few are right."""
    if not n:
        return 0.0, 1.0
    share, spread = correct / n, Z * Z / n
    centre, half = share + spread / 2, Z * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    return round(max(0.0, (centre - half) / (1 + spread)), 4), round(min(1.0, (centre + half) / (1 + spread)), 4)


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Chance that one of k of the n samples is right, without bias (Chen et al. 2021, arXiv 2107.03374)."""
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def majority(rows: list[dict], k: int) -> bool:
    """Whether the answer given most often by the first k samples is right; the earliest wins a tie."""
    votes = Counter(row["extracted"] for row in rows[:k] if row["extracted"] is not None)
    return bool(votes) and any(row["answer_check"] == "correct" for row in rows[:k] if row["extracted"] == votes.most_common(1)[0][0])


def by_problem(rows: Iterable[dict]) -> dict[str, list[dict]]:
    """{id: its predictions in the order of their samples}"""
    problems = defaultdict(list)
    for row in rows:
        problems[row["id"]].append(row)
    return {name: sorted(group, key=lambda row: row["sample"]) for name, group in problems.items()}


def right_share(group: list[dict], field: str = "answer_check") -> float:
    return sum(row[field] in ("correct", True) for row in group) / len(group)


def share_of(groups: list[list[dict]], field: str = "answer_check") -> dict:
    """{n, accuracy, interval} of some problems."""
    correct = sum(right_share(group, field) for group in groups)
    return {"n": len(groups), "accuracy": round(correct / len(groups), 4), "interval": wilson(correct, len(groups))}


def score(rows: list[dict], splits: dict[str, str]) -> dict:
    """The figures of one benchmark. `splits`: name of a split -> field of the row, for example {"task": "subject"}."""
    groups = list(by_problem(rows).values())

    def split(field: str) -> dict:
        values = defaultdict(list)
        for group in groups:
            values[str(group[0].get(field))].append(group)
        return {value: share_of(part) for value, part in sorted(values.items())}

    samples, figures = max(map(len, groups)), share_of(groups)
    figures |= {
        "correct": round(sum(map(right_share, groups)), 2),
        "unparsed": round(sum(row["rule"] == "none" for row in rows) / len(rows), 4),
        "truncated": round(sum(row["finish"] == "length" for row in rows) / len(rows), 4),
        "errors": sum(row["finish"] == "error" for row in rows),
        "official": share_of(groups, "official") if rows[0].get("official") is not None else None,
        "splits": {name: split(field) for name, field in splits.items()},
    }
    if samples > 1:
        ks = [k for k in (2**power for power in range(12)) if k <= samples]
        counts = [sum(row["answer_check"] == "correct" for row in group) for group in groups]
        figures["pass_at"] = {k: round(sum(pass_at_k(len(group), count, min(k, len(group))) for group, count in zip(groups, counts)) / len(groups), 4) for k in ks}
        figures["majority_at"] = {k: round(sum(majority(group, k) for group in groups) / len(groups), 4) for k in ks}
    return figures


def percent(share: dict) -> str:
    return f"{share['accuracy']:.1%} [{share['interval'][0]:.1%}, {share['interval'][1]:.1%}]"


def print_figures(conditions: dict, figures: dict[str, dict]) -> None:
    """Every score with its conditions."""
    decoding = f"temperature {conditions['temperature']}, top-p {conditions['top_p']}, top-k {conditions['top_k']}" if conditions["temperature"] else "greedy"
    print(f"conditions: {conditions['model']}{', blank pictures' if conditions['blank_image'] else ''}; prompt {conditions['prompt']}; {decoding}, {conditions['samples']} a problem, "
          f"at most {conditions['max_tokens']} new tokens and {conditions['max_pixels']} pixels; {conditions['rule']}")  # fmt: skip
    for name, result in figures.items():
        extra = "".join(f", {key.replace('_at', '')}@{max(result[key])} {result[key][max(result[key])]:.1%}" for key in ("pass_at", "majority_at") if key in result)
        extra += f", by the benchmark's own rule {percent(result['official'])}" if result["official"] else ""
        print(f"{name}: {percent(result)} of {result['n']} right{extra}; no answer found {result['unparsed']:.1%}, cut off {result['truncated']:.1%}, errors {result['errors']}")
        if judge := result.get("judge"):
            print(f"  answers extracted by {judge['model']}: {percent(judge)}" + (f", by the benchmark's own rule {percent(judge['official'])}" if judge["official"] else ""))
        for split, parts in result["splits"].items():
            if 1 < len(parts) <= 24:
                print(f"  by {split}: " + "; ".join(f"{value} {part['accuracy']:.1%} of {part['n']}" for value, part in parts.items()))
        if "error_types" in result:
            print("  wrong by type: " + ", ".join(f"{kind} {count}" for kind, count in result["error_types"].items()))


# ---------------------------------------------------------------- verdicts


def audit(rows: Iterable[dict]) -> dict:
    """Counts of verified rows: answer check x ORM check in all and by subject, the status, the ORM's replies without a verdict,
    the error steps found in their response, and the first EXAMPLES of each disagreement."""
    pairs, status, subjects, examples = Counter(), Counter(), defaultdict(Counter), defaultdict(list)
    steps, whole, failed = Counter(), 0, 0
    for row in rows:
        checks = row.get("answer_check"), row.get("orm_check")
        pairs["/".join(map(str, checks))] += 1
        subjects[str(row.get("subject"))]["/".join(map(str, checks))] += 1
        status[row["status"]] += 1
        if row.get("orm_check"):
            whole += row["finish"] == "stop"
            failed += row["finish"] == "stop" and row["orm_check"] == "undecided"
            steps[row.get("error_line") is not None] += bool(row["error_step"])
        kind = DISAGREEMENTS.get(checks) or ("no_verdict" if checks[1] == "undecided" and row["finish"] == "stop" else None)
        if kind and len(examples[kind]) < EXAMPLES:
            examples[kind].append({name: row.get(name) for name in ("id", "sample", "answer", "extracted", "response", "judge_reply", "error_line", "orm_confidence")})
    if not status:
        return {}
    counts = {"paths": status.total(), "status": dict(status), "answer/orm": dict(pairs), "by_subject": {name: dict(subjects[name]) for name in sorted(subjects)}}
    return counts | {"judged": whole, "no_verdict": failed, "error_steps": {"given": steps.total(), "found": steps[True]}, "examples": dict(examples)}


def right_rate(pairs: dict, check: str) -> tuple[float, tuple[float, float], int] | None:
    """(share, interval, n) of the paths with this answer check on which the ORM says the same."""
    n = sum(pairs.get(f"{check}/{orm}", 0) for orm in VERDICTS)
    count = pairs.get(f"{check}/{check}", 0)
    return (count / n, wilson(count, n), n) if n else None


# ---------------------------------------------------------------- two sets of predictions


def bootstrap(differences: list[float], seed: int) -> tuple[float, float]:
    """95 % interval of the mean difference, problems drawn anew RESAMPLES times (paired: a problem brings both its results)."""
    import numpy as np

    values, counts = np.unique(np.asarray(differences), return_counts=True)  # drawing problems is drawing how often each value comes
    draws = np.random.default_rng(seed).multinomial(len(differences), counts / len(differences), size=RESAMPLES)
    low, high = np.quantile(draws @ values / len(differences), [0.025, 0.975])
    return round(float(low), 4), round(float(high), 4)


def mcnemar(lost: int, gained: int) -> float:
    """Exact two-sided p of as uneven a division of the problems on which two sets of predictions differ."""
    n = lost + gained
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(min(lost, gained) + 1)) / 2**n)


def compare(before: Iterable[dict], after: Iterable[dict], seed: int = 0) -> dict | None:
    """The change from one set of predictions of a benchmark to another, on the problems that both answer; None if there are none.

    {n, only_before, only_after: problems; before, after: accuracy; change, interval: paired bootstrap; p: McNemar's exact test
    and changes: counts of CHANGES, both with one sample a problem only}
    """
    one, other = by_problem(before), by_problem(after)
    common = [name for name in one if name in other]
    if not common:
        return None
    shares = [(right_share(one[name]), right_share(other[name])) for name in common]
    first, second = (sum(side) / len(common) for side in zip(*shares))
    result = {"n": len(common), "only_before": len(one) - len(common), "only_after": len(other) - len(common), "before": round(first, 4), "after": round(second, 4),
              "change": round(second - first, 4), "interval": bootstrap([b - a for a, b in shares], seed), "p": None, "changes": None}  # fmt: skip
    if all(len(group[name]) == 1 for name in common for group in (one, other)):
        counts = Counter(shares)
        changes = counts[1, 1], counts[0, 0], counts[1, 0], counts[0, 1]
        result |= {"p": mcnemar(*changes[2:]), "changes": dict(zip(CHANGES, changes))}
    return result


def differing(before: dict, after: dict) -> list[str]:
    """The conditions that make two scores not comparable, named; a condition that an older file does not tell is one too."""
    return sorted(name for name in (before.keys() | after.keys()) - MAY_DIFFER if before.get(name) != after.get(name))


def predictions(folder: Path, keep: Callable[[dict], dict] = lambda row: row) -> dict[str, list[dict]]:
    """{benchmark: its predictions} of an evaluation's folder, each row through `keep`: the long fields need not be held in memory."""
    rows = defaultdict(list)
    for row in read_json_rows(folder / "predictions.jsonl"):
        rows[row["benchmark"]].append(keep(row))
    return dict(rows)
