"""What predictions and verdicts say: intervals, pass@k, paired comparisons, the answer check beside the ORM.

A prediction is a row of predictions.jsonl (05_evaluate.py). A problem counts as right by the share of its
samples that are right; the accuracy is the mean over problems. An undecided answer is not right.
"""

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

from mathse.records import written_rows

Z = 1.959964  # of a 95 % interval
RESAMPLES = 10_000  # of the bootstrap
REASONS = 3  # that are printed
VERDICTS = ("correct", "wrong", "undecided")  # of the answer check and of the ORM
# The transitions of the paper's Figure 2, from one set of predictions to another.
CHANGES = ("correct to correct", "incorrect to incorrect", "correct to incorrect", "incorrect to correct")
CHECK = ("id", "sample", "answer_check")  # the fields of a prediction that compare() needs
# Conditions that a comparison may be about. If others differ, two scores are not comparable.
MAY_DIFFER = {"model", "test", "limit", "seed", "blank_image"}


def wilson(correct: float, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share: within [0, 1], and accurate for shares near 0 and 1."""
    if not n:
        return 0.0, 1.0
    share, spread = correct / n, Z * Z / n
    half = Z * math.sqrt(share * (1 - share) / n + spread / (4 * n))
    low, high = ((share + spread / 2 + side) / (1 + spread) for side in (-half, half))
    return round(max(0.0, low), 4), round(min(1.0, high), 4)


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Unbiased estimate that one of k samples is right, from n (Chen et al. 2021, arXiv 2107.03374)."""
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def predictions(folder: Path, *fields: str) -> dict[str, list[dict]]:
    """{benchmark: predictions} of an evaluation's folder, if fields are named with these alone."""
    rows = defaultdict(list)
    for row in written_rows(folder / "predictions.jsonl"):
        rows[row["benchmark"]].append({name: row.get(name) for name in fields} if fields else row)
    return dict(rows)


def by_problem(rows: Iterable[dict]) -> dict[str, list[dict]]:
    """{id: its predictions, ordered by sample}"""
    problems = defaultdict(list)
    for row in rows:
        problems[row["id"]].append(row)
    return {name: sorted(group, key=lambda row: row["sample"]) for name, group in problems.items()}


def right_share(group: list[dict], field: str = "answer_check") -> float:
    """Share of a problem's samples that are right by a field: "correct", or true."""
    return sum(row[field] in ("correct", True) for row in group) / len(group)


def share_of(groups: list[list[dict]], field: str = "answer_check") -> dict:
    """{n, accuracy, interval} of some problems."""
    correct, n = sum(right_share(group, field) for group in groups), len(groups)
    return {"n": n, "accuracy": round(correct / n, 4), "interval": wilson(correct, n)}


def split_by(groups: list[list[dict]], field: str) -> dict[str, dict]:
    """{value of the field: {n, accuracy, interval} of its problems}"""
    values = defaultdict(list)
    for group in groups:
        values[str(group[0].get(field))].append(group)
    return {value: share_of(part) for value, part in sorted(values.items())}


def mean(values: Iterable[float]) -> float:
    """The mean of at least one value, to four decimals."""
    values = list(values)
    return round(sum(values) / len(values), 4)


def percent(share: dict) -> str:
    """An accuracy with its interval, as text."""
    low, high = share["interval"]
    return f"{share['accuracy']:.1%} [{low:.1%}, {high:.1%}]"


def bootstrap(differences: list[float], seed: int) -> tuple[float, float]:
    """Paired bootstrap: 95 % interval of the mean difference, problems drawn anew RESAMPLES times."""
    import numpy as np

    # drawing n problems is the same as drawing how often each value comes
    values, counts = np.unique(np.asarray(differences), return_counts=True)
    n = len(differences)
    draws = np.random.default_rng(seed).multinomial(n, counts / n, size=RESAMPLES)
    low, high = np.quantile(draws @ values / n, [0.025, 0.975])
    return round(float(low), 4), round(float(high), 4)


def mcnemar(lost: int, gained: int) -> float:
    """McNemar's exact test: two-sided p, from the problems on which two sets of predictions differ."""
    n = lost + gained
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(min(lost, gained) + 1)) / 2**n)


def compare(before: Iterable[dict], after: Iterable[dict], seed: int = 0) -> dict | None:
    """The change between two sets of predictions of a benchmark, on the problems of both; None without any.

    {n, only_before, only_after: numbers of problems; before, after: accuracy; change, interval: paired
    bootstrap; p: McNemar's exact test; changes: counts of CHANGES}. p and changes are None unless both have
    one sample a problem. Problems without a reference answer are left out.
    """
    one, other = (by_problem(row for row in rows if row["answer_check"]) for rows in (before, after))
    pairs = [(one[name], other[name]) for name in one if name in other]
    if not pairs:
        return None
    shares = [(right_share(early), right_share(late)) for early, late in pairs]
    differences, n = [late - early for early, late in shares], len(pairs)
    result = {"n": n, "only_before": len(one) - n, "only_after": len(other) - n}
    result |= {"before": mean(early for early, _ in shares), "after": mean(late for _, late in shares)}
    result |= {"change": mean(differences), "interval": bootstrap(differences, seed)}
    if any(len(early) > 1 or len(late) > 1 for early, late in pairs):
        return result | {"p": None, "changes": None}
    counts = Counter(shares)
    lost, gained = counts[1, 0], counts[0, 1]
    changes = dict(zip(CHANGES, (counts[1, 1], counts[0, 0], lost, gained)))
    return result | {"p": mcnemar(lost, gained), "changes": changes}


def compare_all(before: dict[str, list], after: dict[str, list], seed: int = 0) -> dict[str, dict]:
    """{benchmark: the change}, of those that have problems in common."""
    changes = {name: compare(before.get(name, []), rows, seed) for name, rows in after.items()}
    return {name: change for name, change in changes.items() if change}


def points(change: dict) -> str:
    """A change with its interval, as text."""
    low, high = change["interval"]
    return f"{change['change']:+.1%} [{low:+.1%}, {high:+.1%}]"


def differing(before: dict, after: dict) -> list[str]:
    """Names of the conditions that make two scores not comparable; also one that only one side has."""
    names = (before.keys() | after.keys()) - MAY_DIFFER
    return sorted(name for name in names if before.get(name) != after.get(name))


def verdict_lines(rows: Iterable[dict]) -> Iterator[str]:
    """Lines about verified rows: their status, why some are undecided, the answer check against the ORM."""
    status, reasons, checks = Counter(), Counter(), Counter()
    for row in rows:
        status[row["status"]] += 1
        reasons[row.get("reason")] += row["status"] == "undecided"
        checks[f"{row['answer_check']}/{row.get('orm_check')}"] += 1
    kinds = ", ".join(f"{name} {count:,}" for name, count in status.most_common())
    yield f"{status.total():,} responses: {kinds or 'nothing to do'}"
    told = (+reasons).most_common(REASONS)
    yield from (f"undecided {count:,}: {reason}" for reason, count in told)
    if others := status["undecided"] - sum(count for _, count in told):
        yield f"undecided {others:,}: other reasons"
    if any(not pair.endswith("/None") for pair in checks):
        yield from crosstab(checks)


def crosstab(pairs: dict[str, int]) -> Iterator[str]:
    """Lines of a table from {"answer check/ORM check": responses}: the answer check down, the ORM across."""
    yield f"{'answer check':>14} | " + " ".join(f"{'ORM ' + orm:>13}" for orm in VERDICTS)
    for check in dict.fromkeys((*VERDICTS, *(pair.partition("/")[0] for pair in pairs))):
        cells = " ".join(f"{pairs.get(f'{check}/{orm}', 0):13,}" for orm in VERDICTS)
        yield f"{check.replace('None', 'no reference'):>14} | {cells}"


def right_rate(pairs: dict[str, int], check: str) -> dict | None:
    """{n, accuracy, interval}: how often the ORM agrees with this answer check; None without any."""
    n, count = sum(pairs.get(f"{check}/{orm}", 0) for orm in VERDICTS), pairs.get(f"{check}/{check}", 0)
    return {"n": n, "accuracy": count / n, "interval": wilson(count, n)} if n else None
