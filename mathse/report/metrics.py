"""A run folder -> its metrics. Of large files only the columns that count are read."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

import pyarrow.json
from pandas import concat

from mathse.cli import price
from mathse.generate.endpoint import read_spent
from mathse.recipe import content_of
from mathse.records import ERROR_TYPES, MAX_LINE, fail, is_endpoint, read_json
from mathse.report.statistics import CHECK, compare_all, differing, predictions

MOST_ROUNDS = 999  # that are looked for where no settings tell
VERIFIED = ("verified.jsonl", "reflected_verified.jsonl")
NAMES = {"base": "base", "round_0": "+ distilled", "final": "+ reflection", "orm": "ORM"}
STEPS = {
    "01_sample.py": "sampling", "02_verify.py": "verifying", "03_reflect.py": "reflecting",
    "04_finetune.py": "fine-tuning", "05_evaluate.py": "evaluating",
}  # fmt: skip
TEXTS = {"id", "status", "answer_check", "orm_check", "finish", "benchmark", "error_type"}  # else numbers


# ---------------------------------------------------------------- what lies in a run folder


def folders_of(run: Path, settings: dict[str, str]) -> list[Path]:
    """The folders of the stages that the settings ask for, in order, then of the ORMs: a folder that is no
    longer asked for may be left. Without settings, what lies there.
    """
    rounds = range(int(settings.get("ROUNDS") or MOST_ROUNDS) + 1)
    names = ["base", *(f"round_{number}" for number in rounds)]
    if settings.get("REFLECT", "final") == "final":
        names.append("final")
    if not settings.get("ORM"):
        names.append("orm")
        updated = settings.get("ORM_UPDATE", "every") == "every"
        names += [f"orm_{number}" for number in rounds if updated]
    return [run / name for name in names if (run / name).is_dir()]


def verified_files(folders: list[Path], settings: dict[str, str]) -> list[Path]:
    """Of these folders, the reflections of a round only if the settings ask for them."""
    names = VERIFIED if settings.get("REFLECT", "every") == "every" else VERIFIED[:1]
    return [folder / name for folder in folders for name in names]


def label(stage: str) -> str:
    """What the table and the page call a stage."""
    return NAMES.get(stage) or stage.replace("round_", "+ round ").replace("orm_", "ORM after round ")


def what_it_took(run: Path, folders: Iterable[Path]) -> dict[str, dict]:
    """{stage: {"steps": seconds by step, "tokens": {"local" or "endpoint": {"prompt", "new"}}}}, by recipes.

    All ORMs are "orm", the run's own files "run".
    """
    taken = defaultdict(lambda: {"steps": Counter(), "tokens": {"local": Counter(), "endpoint": Counter()}})
    places = [run, *folders, *(place for folder in folders for place in folder.iterdir())]
    complete = [place for place in places if place.suffix != ".part"]
    for path in sorted(path for place in complete for path in place.glob("*recipe.json")):
        recipe, name = read_json(path), path.relative_to(run).parts[0]
        spent = taken["run" if path.parent == run else "orm" if name.startswith("orm") else name]
        script = recipe.get("stage", "")
        step = "annotating" if recipe.get("flags", {}).get("annotate") else STEPS.get(script, script)
        spent["steps"][step] += recipe.get("seconds", 0)
        models = recipe.get("inputs", {}).get("model")
        if models and isinstance(recipe.get("tokens"), list):
            who = "endpoint" if is_endpoint(models[0]["name"]) else "local"
            spent["tokens"][who].update(dict(zip(("prompt", "new"), recipe["tokens"])))
    return taken


# ---------------------------------------------------------------- rows


def read_columns(path: Path, *names: str):
    """A data frame of columns of a JSONL file that a stage wrote, a row a line. Without rows if there is no
    such file; a line that is no row ends the command.
    """
    schema = pyarrow.schema([(name, "string" if name in TEXTS else "double") for name in names])
    if not path.is_file() or not path.stat().st_size:
        return schema.empty_table().to_pandas()
    # threads would hold more blocks in memory
    reading = pyarrow.json.ReadOptions(use_threads=False, block_size=MAX_LINE)
    options = pyarrow.json.ParseOptions(explicit_schema=schema, unexpected_field_behavior="ignore")
    try:
        return pyarrow.json.read_json(str(path), reading, options).to_pandas()
    except ValueError as error:
        fail(f"{path}: not rows as a stage writes them ({error}); make it anew")


def audit_of(paths: list[Path]) -> dict:
    """Counts of verified responses, {} if there are none: {responses: all; status; finish; "answer/orm":
    pairs of checks; judged: those with an ORM check; tokens: the median}.
    """
    names = "status", "answer_check", "orm_check", "finish", "tokens"
    rows = concat([read_columns(path, *names) for path in paths], ignore_index=True)
    if rows.empty:
        return {}
    rows["answer/orm"] = rows.answer_check.fillna("None") + "/" + rows.orm_check.fillna("None")
    counts = {name: rows[name].value_counts().to_dict() for name in ("status", "finish", "answer/orm")}
    tokens = None if rows.tokens.isna().all() else rows.tokens.median()
    return {"responses": len(rows), "judged": int(rows.orm_check.count()), "tokens": tokens} | counts


def error_types(folder: Path) -> dict[str, dict]:
    """{benchmark: {"error_types": {type: wrong answers}}}; {} if no teacher was asked about what stands."""
    recipe, standing = read_json(folder / "errors.jsonl.recipe.json"), folder / "predictions.jsonl"
    asked = [source["content"] for source in recipe.get("inputs", {}).get("input", [])]
    if not standing.is_file() or asked != [content_of(standing)]:
        return {}
    found = {}
    rows = read_columns(folder / "errors.jsonl", "benchmark", "answer_check", "error_type")
    for name, part in rows.groupby("benchmark"):
        types = part.error_type[part.answer_check == "wrong"].fillna("unclassified")
        none = dict.fromkeys((*ERROR_TYPES, "unclassified"), 0)
        found[name] = {"error_types": none | types.value_counts().to_dict()}
    return found


# ---------------------------------------------------------------- the whole


def collect(run: Path, folders: list[Path], settings: dict[str, str]) -> dict:
    """The metrics of a run. No stage evaluated ends the command."""
    evaluated = [folder for folder in folders if (folder / "eval" / "metrics.json").is_file()]
    if not evaluated:
        fail(f"{run}: no stage has been evaluated in it yet")
    answers = [predictions(folder / "eval", *CHECK) for folder in evaluated]
    taken = what_it_took(run, folders)
    stages = [
        stage_of(folder, settings, before, after) | taken[folder.name]
        for folder, before, after in zip(evaluated, [{}, *answers], answers)
    ]
    for stage in stages:
        stage["seconds"] = round(sum(stage["steps"].values()), 1)
        stage["not_comparable"] = differing(stages[0]["conditions"], stage["conditions"])
    used = [each["tokens"] for each in taken.values()]
    tokens = {who: sum((each[who] for each in used), Counter()) for who in ("local", "endpoint")}
    recipe = read_json(evaluated[-1] / "eval" / "predictions.jsonl.recipe.json")
    return {
        "stages": stages,
        "tests": list(dict.fromkeys(name for stage in stages for name in stage["benchmarks"])),
        "overall": compare_all(answers[0], answers[-1]),
        "pool": solved_first(run, folders, settings),
        "seconds": round(sum(sum(each["steps"].values()) for each in taken.values()), 1),
        "orm": taken["orm"],
        "tokens": tokens,
        "cost": cost_of(tokens["endpoint"], run),
        "versions": recipe.get("versions", {}),
        "git_commit": recipe.get("git_commit"),
    }


def stage_of(folder: Path, settings: dict[str, str], before: dict, after: dict) -> dict:
    """`before`, `after`: the predictions of the stage before, {} without one, and of this one."""
    evaluation, types = read_json(folder / "eval" / "metrics.json"), error_types(folder / "eval")
    return {
        "stage": folder.name,
        "train_rows": len(read_columns(folder / "train.jsonl", "id")),
        "conditions": evaluation.get("conditions", {}),
        "benchmarks": {name: one | types.get(name, {}) for name, one in evaluation["benchmarks"].items()},
        "changes": compare_all(before, after),
        "audit": audit_of(verified_files([folder], settings)),
    }


def solved_first(run: Path, folders: list[Path], settings: dict[str, str]) -> dict:
    """{problems: training problems; first_solved: {stage: those whose first accepted response it gave}}"""
    solved, problems = {}, read_columns(run / "problems.jsonl", "id").id
    for path in reversed(verified_files(folders, settings)):
        checked = read_columns(path, "id", "status")  # the first stage has the last word
        solved |= dict.fromkeys(checked.id[checked.status == "correct"], path.parent.name)
    counts = Counter(problems.map(solved))
    stages = {folder.name: counts[folder.name] for folder in folders if (folder / VERIFIED[0]).is_file()}
    return {"problems": len(problems), "first_solved": stages}


def cost_of(tokens: dict[str, int], run: Path) -> float | None:
    """What endpoints cost by PRICE_IN and PRICE_OUT, the price of a million tokens; None without prices.

    By the replies in the run's outputs or, if that is more, by spent.tsv: it counts failed requests and
    replies that were replaced, but no model that was asked by hand.
    """
    prices, counted = (price("PRICE_IN"), price("PRICE_OUT")), [(tokens["prompt"], tokens["new"])]
    if (run / "spent.tsv").is_file():
        counted.append(read_spent(run / "spent.tsv")[1])
    costs = [(read * prices[0] + written * prices[1]) / 1e6 for read, written in counted]
    return round(max(costs), 4) if any(prices) else None
