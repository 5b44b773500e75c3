"""A run folder -> metrics.json and ledger.jsonl. Of large files only the columns that count are read."""

import json
import mmap
from collections import Counter, defaultdict
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

from mathse.cli import price
from mathse.generate.spending import read_spent
from mathse.jsonl import line_of, replace
from mathse.recipe import content_of, digest, read_recipe
from mathse.records import MAX_LINE, fail, is_endpoint, written_rows
from mathse.report.statistics import CHECK, compare, differing, predictions

MOST_ROUNDS = 999  # that are looked for where no settings tell
VERIFIED = ("verified.jsonl", "reflected_verified.jsonl")
RECIPES = ("*recipe.json", "*/*recipe.json")
READ = (
    *VERIFIED,
    "train.jsonl",
    "model/train_log.jsonl",
    "eval/metrics.json",
    "eval/*.jsonl",
    "blank/*.jsonl",
)
NAMES = {"base": "base", "round_0": "+ distilled", "final": "+ reflection", "orm": "ORM", "run": "data"}
STEPS = {
    "01_sample.py": "sampling", "02_verify.py": "verifying", "03_reflect.py": "reflecting",
    "04_finetune.py": "fine-tuning", "05_evaluate.py": "evaluating",
}  # fmt: skip
ERROR_TYPES = ("reasoning", "understanding", "knowledge", "calculation", "vision", "unclassified")
TEXTS = {"id", "status", "answer_check", "orm_check", "finish", "benchmark", "error_type"}  # else numbers


# ---------------------------------------------------------------- what lies in a run folder


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def folders_of(run: Path, settings: dict[str, str]) -> list[Path]:
    """The folders of the stages that the settings ask for, in order, then of the ORMs: a folder that is no
    longer asked for may be left. Without settings, what lies there.
    """
    rounds = range(int(settings.get("ROUNDS", MOST_ROUNDS)) + 1)
    names = ["base", *(f"round_{number}" for number in rounds)]
    if settings.get("REFLECT", "final") == "final":
        names.append("final")
    if not settings.get("ORM"):
        names.append("orm")
        updated = settings.get("ORM_UPDATE", "every") == "every"
        names += [f"orm_{number}" for number in rounds if updated]
    return [run / name for name in names if (run / name).is_dir()]


def label(stage: str) -> str:
    """What the table and the page call a stage."""
    return NAMES.get(stage) or stage.replace("round_", "+ round ").replace("orm_", "ORM after round ")


def made_from(run: Path, folders: Iterable[Path]) -> str:
    """A digest of all that the report is made from: files, prices, this package and what draws the page."""
    paths = [run / "config.json", run / "problems.jsonl", run / "spent.tsv", *recipe_paths(run, folders)]
    paths += [path for folder in folders for pattern in READ for path in sorted(folder.glob(pattern))]
    contents = [(str(path.relative_to(run)), content_of(path)) for path in paths if path.is_file()]
    code = [content_of(path) for path in sorted(Path(__file__).parent.iterdir()) if path.is_file()]
    versions = [version(name) for name in ("jinja2", "matplotlib", "pandas")]
    return digest(json.dumps([contents, code, price("PRICE_IN"), price("PRICE_OUT"), versions]))


def recipe_paths(run: Path, folders: Iterable[Path]) -> list[Path]:
    """The recipes of complete outputs."""
    paths = [path for folder in folders for pattern in RECIPES for path in folder.glob(pattern)]
    return sorted(path for path in [*run.glob(RECIPES[0]), *paths] if path.parent.suffix != ".part")


def what_it_took(run: Path, folders: Iterable[Path]) -> dict[str, dict]:
    """{stage: {"steps": seconds by step, "tokens": {"local" or "endpoint": {"prompt", "new"}}}}, by recipes.

    All ORMs are "orm", the run's own files "run".
    """
    taken = defaultdict(lambda: {"steps": Counter(), "tokens": {"local": Counter(), "endpoint": Counter()}})
    for path in recipe_paths(run, folders):
        recipe, name = read_recipe(path) or {}, path.relative_to(run).parts[0]
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
    """A data frame of columns of a JSONL file that a stage wrote, a row a line, up to a last line that a kill
    has torn. Without rows if there is no such file; a line that is no row ends the command.
    """
    import pyarrow  # takes half a second, not to say `skip`
    from pyarrow.json import ParseOptions, ReadOptions, read_json

    types = {name: pyarrow.string() if name in TEXTS else pyarrow.float64() for name in names}
    options = ParseOptions(explicit_schema=pyarrow.schema(types), unexpected_field_behavior="ignore")
    if not (size := whole_lines(path)):
        return options.explicit_schema.empty_table().to_pandas()
    try:
        with pyarrow.OSFile(str(path)) as file:
            rows = read_json(file.get_stream(0, size), ReadOptions(block_size=2 * MAX_LINE), options)
        return rows.to_pandas()
    except ValueError as error:
        fail(f"{path}: not rows as a stage writes them ({error}); make it anew")


def whole_lines(path: Path) -> int:
    """Bytes of a file up to the end of its last whole line, 0 if there is none."""
    if not path.is_file() or not path.stat().st_size:
        return 0
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.rfind(b"\n") + 1


def audit_of(path: Path) -> dict:
    """Counts of verified responses, {} if there are none: {paths: all; status; "answer/orm": pairs of checks;
    judged: those with an ORM check; tokens: of a response; truncated, errors: shares}.
    """
    rows = read_columns(path, "status", "answer_check", "orm_check", "finish", "tokens")
    if rows.empty:
        return {}
    pairs = rows.answer_check.fillna("None") + "/" + rows.orm_check.fillna("None")
    lengths = rows.tokens.fillna(0).quantile([0.5, 0.95, 1], interpolation="higher")
    return {
        "paths": len(rows),
        "status": rows.status.value_counts().to_dict(),
        "answer/orm": pairs.value_counts().to_dict(),
        "judged": int(rows.orm_check.notna().sum()),
        "tokens": dict(zip(("median", "p95", "max"), map(int, lengths))),
        "truncated": round((rows.finish == "length").mean(), 4),
        "errors": round((rows.finish == "error").mean(), 4),
    }


def error_types(folder: Path) -> dict[str, dict]:
    """{benchmark: {"error_types": {type: wrong answers}}}; {} if no teacher was asked about what stands."""
    recipe = read_recipe(folder / "errors.jsonl.recipe.json") or {}
    asked = [source["content"] for source in recipe.get("inputs", {}).get("input", [])]
    standing = folder / "predictions.jsonl"
    if not standing.is_file() or asked != [content_of(standing)]:
        return {}
    rows = read_columns(folder / "errors.jsonl", "benchmark", "answer_check", "error_type")
    rows = rows[rows.answer_check == "wrong"].fillna({"error_type": "unclassified"})
    found = {name: Counter(part.error_type) for name, part in rows.groupby("benchmark")}
    return {name: {"error_types": dict.fromkeys(ERROR_TYPES, 0) | types} for name, types in found.items()}


# ---------------------------------------------------------------- the whole


def collect(run: Path, folders: list[Path]) -> dict:
    """The metrics of a run from its files; ledger.jsonl is written. No stage evaluated ends the command."""
    evaluations = {folder: read_json(folder / "eval" / "metrics.json") for folder in folders}
    evaluations = {folder: evaluation for folder, evaluation in evaluations.items() if evaluation}
    if not evaluations:
        fail(f"{run}: no stage has been evaluated in it yet")
    answers = {folder.name: predictions(folder / "eval", *CHECK, "subject") for folder in evaluations}
    taken, stages, before = what_it_took(run, folders), [], {}
    for folder, evaluation in evaluations.items():
        after, types = answers[folder.name], error_types(folder / "eval")
        stage = {"stage": folder.name, "conditions": evaluation.get("conditions", {})} | taken[folder.name]
        stage |= {
            "seconds": round(sum(stage["steps"].values()), 1),
            "not_comparable": differing((stages or [stage])[0]["conditions"], stage["conditions"]),
            "train_rows": len(read_columns(folder / "train.jsonl", "id")),
            "benchmarks": {name: one | types.get(name, {}) for name, one in evaluation["benchmarks"].items()},
            "changes": compare_all(before, after),
            "blank": compare_all(predictions(folder / "blank", *CHECK), after),
            "audit": audit_of(folder / VERIFIED[0]),
        }
        stages.append(stage)
        before = after
    tokens = {who: Counter(prompt=0, new=0) for who in ("local", "endpoint")}
    for who, spent in ((who, each["tokens"][who]) for each in taken.values() for who in tokens):
        tokens[who].update(spent)
    recipe = read_recipe(folder / "eval" / "predictions.jsonl.recipe.json") or {}
    return {
        "stages": stages,
        "tests": list(dict.fromkeys(name for stage in stages for name in stage["benchmarks"])),
        "overall": compare_all(answers[stages[0]["stage"]], after),
        "pool": write_ledger(run, folders, answers),
        "seconds": round(sum(sum(each["steps"].values()) for each in taken.values()), 1),
        "orm": taken["orm"],
        "tokens": tokens,
        "cost": cost_of(tokens["endpoint"], run),
        "versions": recipe.get("versions", {}),
        "git_commit": recipe.get("git_commit"),
    }


def compare_all(before: dict[str, list[dict]], after: dict[str, list[dict]]) -> dict[str, dict | None]:
    """{benchmark: the change}, of those that both have."""
    return {name: compare(before[name], rows) for name, rows in after.items() if name in before}


def write_ledger(run: Path, folders: list[Path], answers: dict[str, dict]) -> dict:
    """ledger.jsonl: a row a test problem, with the checks of its first sample by stage, or training problem.

    Returns of the latter {problems, first_solved: {stage: n}, by_subject: {subject: {"problems", stage: n}}}.
    """
    tests, solved, subjects, part = {}, {}, defaultdict(Counter), run / "ledger.jsonl.part"
    for stage, benchmarks in answers.items():
        for row in (row | {"benchmark": name} for name, rows in benchmarks.items() for row in rows):
            if row.pop("sample") == 0:
                check = row.pop("answer_check")
                tests.setdefault((row["benchmark"], row["id"]), row | {"checks": {}})["checks"][stage] = check
    for folder in reversed(folders):  # the first stage has the last word
        for name in VERIFIED:
            rows = read_columns(folder / name, "id", "status")
            solved |= dict.fromkeys(rows.id[rows.status == "correct"], folder.name)
    with part.open("wb") as file:
        file.writelines(map(line_of, tests.values()))
        for row in written_rows(run / "problems.jsonl"):
            stage = solved.get(row["id"])
            subjects[str(row.get("subject"))].update(["problems", stage] if stage else ["problems"])
            file.write(line_of({"id": row["id"], "subject": row.get("subject"), "first_solved": stage}))
    replace(part, run / "ledger.jsonl")
    totals = sum(subjects.values(), Counter())
    by_stage = {folder.name: totals[folder.name] for folder in folders if (folder / VERIFIED[0]).is_file()}
    return {
        "problems": totals["problems"],
        "first_solved": by_stage,
        "by_subject": dict(sorted(subjects.items())),
    }


def cost_of(tokens: dict[str, int], run: Path) -> float | None:
    """What endpoints cost by PRICE_IN and PRICE_OUT, the price of a million tokens; None without prices.

    By the replies in the run's outputs or, if that is more, by spent.tsv: it counts failed requests and
    replies that were replaced, but no model that was asked by hand.
    """
    prices = price("PRICE_IN"), price("PRICE_OUT")
    if not any(prices):
        return None
    spent = read_spent(run / "spent.tsv")[1] if (run / "spent.tsv").is_file() else (0, 0)
    counted = (tokens["prompt"], tokens["new"]), spent
    return round(max(sum(n * each for n, each in zip(pair, prices)) for pair in counted) / 1e6, 4)
