"""A run folder -> metrics.json and ledger.jsonl.

Seconds, tokens and versions come from the recipes that stand beside the outputs (mathse/recipe.py).
"""

import json
import os
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

from mathse.cli import price
from mathse.generate.endpoint import read_spent
from mathse.jsonl import replace
from mathse.recipe import content_of, digest, read_recipe
from mathse.records import fail, is_endpoint, written_rows
from mathse.report.statistics import audit, audit_truth, checks_only, compare, differing, predictions

VERIFIED = ("verified.jsonl", "reflected_verified.jsonl")
READ = (  # files of a stage's folder that the report reads
    *VERIFIED, "annotated.jsonl", "train.jsonl", "model/train_log.jsonl", "eval/metrics.json",
    "eval/predictions.jsonl", "eval/errors.jsonl", "blank/predictions.jsonl",
)  # fmt: skip


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def read_settings(run: Path) -> dict[str, str]:
    """The settings of run_rounds.sh, {} for a folder that was made by hand."""
    return read_json(run / "config.json").get("settings", {})


def stage_folders(run: Path, settings: dict[str, str]) -> list[Path]:
    """The folders of the stages that the settings ask for, as far as anything was verified or evaluated.

    Without settings, what lies there. A folder of a stage that is no longer asked for may be left.
    """
    names = [path.name for path in run.glob("round_*") if path.name[6:].isdigit()]
    names = ["base", *sorted(names, key=lambda name: int(name[6:])), "final"]
    if settings.get("ROUNDS", "").isdigit():
        names = ["base", *(f"round_{number}" for number in range(int(settings["ROUNDS"]) + 1))]
        names += ["final"] if settings.get("REFLECT") == "final" else []
    folders = [run / name for name in names]
    return [path for path in folders if is_evaluated(path) or (path / "verified.jsonl").is_file()]


def label(stage: str) -> str:
    """What the table and the page call a stage."""
    names = {"base": "base", "round_0": "+ distilled", "final": "+ reflection", "orm": "ORM"}
    if stage.startswith("orm_"):
        return f"ORM after round {stage[4:]}"
    return names.get(stage, f"+ {stage.replace('_', ' ')}")


def is_evaluated(folder: Path) -> bool:
    return (folder / "eval" / "metrics.json").is_file()


def orm_folders(run: Path, settings: dict[str, str]) -> list[Path]:
    """The folders of the ORM and of those that follow it, if the run trains one."""
    if settings.get("ORM"):
        return []
    rounds = int(settings.get("ROUNDS", "999")) if settings.get("ORM_UPDATE", "every") == "every" else 0
    numbers = sorted(int(path.name[4:]) for path in run.glob("orm_*") if path.name[4:].isdigit())
    later = [run / f"orm_{number}" for number in numbers if number <= rounds]
    return [path for path in (run / "orm", *later) if path.is_dir()]


# ---------------------------------------------------------------- recipes


def recipes(run: Path, folders: list[Path]) -> Iterator[tuple[str, str, dict]]:
    """(stage, step, recipe) of each complete output in these folders, and of the run's own files ("run")."""
    for path in recipe_paths(run, folders):
        stage, *inner = path.relative_to(run).parts if path.parent != run else ("run", path.name)
        step = {"eval": "evaluation"}.get(inner[0], inner[0].removesuffix(".recipe.json"))
        if recipe := read_recipe(path):
            yield stage, step.removesuffix(".jsonl"), recipe


def recipe_paths(run: Path, folders: list[Path]) -> list[Path]:
    paths = [*run.glob("*.recipe.json")]
    for folder in folders:
        for pattern in ("*.recipe.json", "*/*.recipe.json", "*/recipe.json"):
            paths += folder.glob(pattern)
    return sorted(path for path in paths if not path.parent.name.endswith(".part"))


def seconds_spent(run: Path, folders: list[Path]) -> dict[str, dict[str, float]]:
    """{stage: {step: seconds}}"""
    spent = defaultdict(Counter)
    for stage, step, recipe in recipes(run, folders):
        spent[stage][step] += recipe.get("seconds", 0)
    return {stage: {step: round(s, 1) for step, s in steps.items()} for stage, steps in spent.items()}


def tokens_used(run: Path, folders: list[Path]) -> dict[str, dict[str, list[int]]]:
    """{stage: {"endpoint" or "local": [tokens read, tokens written]}} of the replies in the outputs."""
    used = {}
    for stage, _, recipe in recipes(run, folders):
        models = recipe.get("inputs", {}).get("model")
        if models and isinstance(recipe.get("tokens"), list):
            totals = used.setdefault(stage, {"endpoint": [0, 0], "local": [0, 0]})
            who = "endpoint" if is_endpoint(models[0]["name"]) else "local"
            totals[who] = [total + new for total, new in zip(totals[who], recipe["tokens"])]
    return used


def cost_of(tokens: dict[str, dict], run: Path) -> float | None:
    """What endpoints cost by PRICE_IN and PRICE_OUT, the price of a million tokens; None without prices.

    By the replies in the run's outputs or, if that is more, by spent.tsv: it counts failed requests and
    replies that were replaced, but no judge that was asked by hand.
    """
    prices = [price("PRICE_IN"), price("PRICE_OUT")]
    if not any(prices):
        return None
    counts = [[sum(stage["endpoint"][index] for stage in tokens.values()) for index in range(2)]]
    if (run / "spent.tsv").is_file():
        counts.append(read_spent(run / "spent.tsv")[1])
    return round(max(sum(count * each for count, each in zip(pair, prices)) for pair in counts) / 1e6, 4)


def read_digest(run: Path, folders: list[Path]) -> str:
    """A digest of all that the report is made from: files, prices, this package and what draws the page."""
    paths = [run / name for name in ("config.json", "problems.jsonl", "spent.tsv")]
    paths += [folder / name for folder in folders for name in READ] + recipe_paths(run, folders)
    contents = [(str(path.relative_to(run)), content_of(path)) for path in paths if path.is_file()]
    code = [content_of(path) for path in sorted(Path(__file__).parent.iterdir()) if path.is_file()]
    prices = [os.environ.get(name) for name in ("PRICE_IN", "PRICE_OUT")]
    versions = [version(name) for name in ("jinja2", "matplotlib")]
    return digest(json.dumps([contents, code, prices, versions]))


# ---------------------------------------------------------------- rows


def yield_of(folder: Path, subject_of: dict[str, str]) -> dict:
    """From sampled paths to training rows, by subject; lengths and finish of the paths. {} without paths."""
    subjects, lengths, finish = defaultdict(Counter), array("l"), Counter()
    for row in written_rows(folder / "verified.jsonl"):
        counts = subjects[str(row.get("subject"))]
        counts["sampled"] += 1
        counts["correct"] += row["status"] == "correct"
        finish[row["finish"]] += 1
        lengths.append(row.get("tokens") or 0)
    if not lengths:
        return {}
    for row in written_rows(folder / "train.jsonl"):
        subjects[str(subject_of.get(row["id"]))]["trained"] += 1
    ordered, n = sorted(lengths), len(lengths)
    tokens = {"median": ordered[n // 2], "p95": ordered[int(n * 0.95)], "max": ordered[-1]}
    return {
        "by_subject": {name: dict(subjects[name]) for name in sorted(subjects)},
        "tokens": tokens,
        "truncated": round(finish["length"] / n, 4),
        "errors": round(finish["error"] / n, 4),
    }


def first_solved(folders: list[Path]) -> dict[str, str]:
    """{id of a training problem: the stage that solved it first}"""
    first = {}
    for folder in folders:
        for name in VERIFIED:
            for row in written_rows(folder / name):
                if row["status"] == "correct":
                    first.setdefault(row["id"], folder.name)
    return first


def write_ledger(run: Path, folders: list[Path]) -> dict:
    """Write ledger.jsonl; returns {problems, first_solved: {stage: n}, by_subject} of training problems."""
    first, solved, totals = first_solved(folders), defaultdict(Counter), Counter()
    part = run / "ledger.jsonl.part"
    with part.open("w", encoding="utf-8") as file:

        def write(row: dict) -> None:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")

        for row in tested(folders):
            write(row)
        for row in written_rows(run / "problems.jsonl"):
            subject, stage = str(row.get("subject")), first.get(row["id"])
            totals[subject] += 1
            if stage:
                solved[subject][stage] += 1
            write({"id": row["id"], "subject": row.get("subject"), "first_solved": stage})
    replace(part, run / "ledger.jsonl")
    stages = [folder.name for folder in folders if folder.name != "base"]
    by_stage = {name: sum(counts[name] for counts in solved.values()) for name in stages}
    by_subject = {name: {"problems": totals[name]} | solved[name] for name in sorted(totals)}
    return {"problems": totals.total(), "first_solved": by_stage, "by_subject": by_subject}


def tested(folders: list[Path]) -> list[dict]:
    """A row a test problem: benchmark, id, subject, checks of its first sample by stage."""
    rows = {}
    for folder in folders:
        for row in written_rows(folder / "eval" / "predictions.jsonl"):
            if row["sample"] == 0:
                names = {"benchmark": row["benchmark"], "id": row["id"], "subject": row.get("subject")}
                known = rows.setdefault((row["benchmark"], row["id"]), names | {"checks": {}})
                known["checks"][folder.name] = row["answer_check"]
    return list(rows.values())


# ---------------------------------------------------------------- the whole


def collect(run: Path, settings: dict[str, str]) -> dict:
    """The metrics of a run from its files; ledger.jsonl is written. No stage evaluated ends the command."""
    folders = stage_folders(run, settings)
    evaluated = [folder for folder in folders if is_evaluated(folder)]
    if not evaluated:
        fail(f"{run}: no stage has been evaluated in it yet")
    with_orm = [*folders, *orm_folders(run, settings)]
    seconds, tokens = seconds_spent(run, with_orm), tokens_used(run, with_orm)
    subject_of = {row["id"]: row.get("subject") for row in written_rows(run / "problems.jsonl")}
    stages, results = [], []
    for folder in evaluated:
        results.append(predictions(folder / "eval", checks_only))
        stages.append(stage_metrics(folder, subject_of, *results[-2:]))
        steps = seconds.get(folder.name, {})
        stages[-1] |= {"seconds": round(sum(steps.values()), 1), "steps": steps}
        stages[-1]["tokens"] = tokens.get(folder.name)
        stages[-1]["not_comparable"] = differing(stages[0]["conditions"], stages[-1]["conditions"])
    return {
        "stages": stages,
        "overall": compare_all(results[0], results[-1]),
        "pool": write_ledger(run, folders),
        "seconds": round(sum(sum(steps.values()) for steps in seconds.values()), 1),
        "orm": orm_metrics([folder.name for folder in orm_folders(run, settings)], seconds, tokens),
        "tokens": total_tokens(tokens),
        "cost": cost_of(tokens, run),
    } | provenance_of(evaluated[-1])


def orm_metrics(names: list[str], seconds: dict[str, dict], tokens: dict[str, dict]) -> dict:
    """{steps: seconds by step, tokens} of the ORM and of those that follow it, together."""
    if not names:
        return {"steps": {}, "tokens": None}
    steps, totals = Counter(), {"endpoint": [0, 0], "local": [0, 0]}
    for name in names:
        steps.update(seconds.get(name, {}))
        for who, pair in tokens.get(name, {}).items():
            totals[who] = [total + new for total, new in zip(totals[who], pair)]
    return {"steps": {step: round(s, 1) for step, s in steps.items()}, "tokens": totals}


def stage_metrics(folder: Path, subject_of: dict[str, str], *results: dict[str, list[dict]]) -> dict:
    """`results`: the predictions of the stage before, where there is one, and of this one."""
    evaluation = read_json(folder / "eval" / "metrics.json")
    blank = predictions(folder / "blank", checks_only)
    return {
        "stage": folder.name,
        "train_rows": sum(1 for _ in written_rows(folder / "train.jsonl")),
        "conditions": evaluation.get("conditions", {}),
        "benchmarks": evaluation["benchmarks"],
        "changes": compare_all(*results) if len(results) > 1 else {},
        "blank": compare_all(blank, results[-1]),
        "audit": audit(written_rows(folder / "verified.jsonl")),
        "truth": audit_truth(written_rows(folder / "annotated.jsonl")),
        "yield": yield_of(folder, subject_of),
    }


def compare_all(before: dict[str, list[dict]], after: dict[str, list[dict]]) -> dict[str, dict | None]:
    """{benchmark: the change}, of those that both have."""
    return {name: compare(before[name], rows) for name, rows in after.items() if name in before}


def total_tokens(tokens: dict[str, dict]) -> dict[str, dict[str, int]]:
    """{"endpoint" or "local": {"prompt", "new"}} of all stages."""
    totals = {}
    for who in ("endpoint", "local"):
        read, written = (sum(stage[who][index] for stage in tokens.values()) for index in range(2))
        totals[who] = {"prompt": read, "new": written}
    return totals


def provenance_of(folder: Path) -> dict:
    """Versions and commit, as the recipe of this stage's evaluation has them."""
    recipe = read_recipe(folder / "eval" / "predictions.jsonl.recipe.json") or {}
    return {"versions": recipe.get("versions", {}), "git_commit": recipe.get("git_commit")}
