"""report.html from a run's metrics and rows.

The template engine escapes everything that comes from models or data. By its content security policy the
page allows no network, no foreign style or image, and no script but the one in page.html, named by its hash.
"""

import base64
import hashlib
import re
from collections import Counter
from pathlib import Path

from mathse.jsonl import replace
from mathse.report.figures import draw_figures, training_logs
from mathse.report.gallery import CARDS, KINDS, test_cards, training_cards
from mathse.report.metrics import label, orm_folders
from mathse.report.statistics import VERDICTS, right_rate

TEMPLATE = Path(__file__).parent / "page.html"
SUBJECTS = 24  # in a table, the largest
FILTERS = {
    "percent": lambda share: "–" if share is None else f"{100 * share:.1f}",
    "points": lambda share: f"{100 * share:+.1f}",
    "count": lambda number: "–" if number is None else f"{round(number):,}".replace(",", "\u202f"),
    "label": label,
    "minutes": lambda seconds: "{}:{:02d}".format(*divmod(round(seconds), 60)),
    "p_value": lambda p: "< 0.001" if p < 0.001 else f"{p:.3f}",
}


def write_page(run: Path, metrics: dict, settings: dict[str, str], folders: list[Path]) -> None:
    """Write RUN/report.html. `folders`: of the run's stages."""
    from jinja2 import Environment, StrictUndefined

    source = TEMPLATE.read_text(encoding="utf-8")
    script = re.search(r"<script>(.*?)</script>", source, re.DOTALL)[1].encode()
    options = {"autoescape": True, "trim_blocks": True, "lstrip_blocks": True}
    environment = Environment(undefined=StrictUndefined, **options)
    environment.filters |= FILTERS
    values = values_of(run, metrics, settings, folders)
    values["script_hash"] = base64.b64encode(hashlib.sha256(script).digest()).decode()
    part = run / "report.html.part"
    part.write_text(environment.from_string(source).render(values), encoding="utf-8")
    replace(part, run / "report.html")


def values_of(run: Path, metrics: dict, settings: dict[str, str], folders: list[Path]) -> dict:
    """What the template shows."""
    from markupsafe import Markup

    stages = metrics["stages"]
    names = list(dict.fromkeys(name for stage in stages for name in stage["benchmarks"]))
    logs = training_logs([*folders, *orm_folders(run, settings)])
    figures = draw_figures(metrics, names, logs)
    cards = [*test_cards(folders), *training_cards(folders)]
    results = [result for stage in stages for result in stage["benchmarks"].values()]
    return {
        "run": run.resolve().name,
        "settings": settings,
        "metrics": metrics,
        "stages": stages,
        "names": names,
        "figures": {section: [Markup(text) for text in drawn] for section, drawn in figures.items()},
        "subjects": {name: subject_table(stages, name) for name in names},
        "classified": any("error_types" in result for result in results),
        "times": time_table(metrics),
        "trainings": [training_row(*log) for log in logs.items()],
        "right_rate": right_rate,
        "verdicts": VERDICTS,
        "cards": cards,
        "kinds": KINDS,
        "kind_counts": Counter(card["kind"] for card in cards),
        "most_cards": CARDS,
    }


def subject_table(stages: list[dict], name: str) -> list[dict]:
    """Rows {value, n, shares by stage} of a benchmark's first split of several values, the largest first."""
    splits = stages[-1]["benchmarks"].get(name, {}).get("splits", {})
    split = next((split for split, parts in splits.items() if len(parts) > 1), None)
    if split is None:
        return []
    sizes = {value: part["n"] for value, part in splits[split].items()}
    by_stage = [stage["benchmarks"].get(name, {}).get("splits", {}).get(split, {}) for stage in stages]
    rows = []
    for value in sorted(sizes, key=lambda value: (-sizes[value], value))[:SUBJECTS]:
        shares = [found.get(value, {}).get("accuracy") for found in by_stage]
        rows.append({"value": value, "n": sizes[value], "shares": shares})
    return rows


def time_table(metrics: dict) -> list[tuple[str, dict, dict | None]]:
    """(name, seconds of the steps, tokens) of each stage and of the ORM."""
    rows = [(label(stage["stage"]), stage["steps"], stage["tokens"]) for stage in metrics["stages"]]
    orm = metrics["orm"]
    return rows + ([("ORM", orm["steps"], orm["tokens"])] if orm["steps"] or orm["tokens"] else [])


def training_row(name: str, steps: list[dict]) -> dict:
    """A fine-tuning: loss of the last tenth of its steps, tokens a second and mfu of the median step."""
    last = steps[-max(1, len(steps) // 10) :]
    held = [step["validation_loss"] for step in steps if "validation_loss" in step]
    row = {"name": name, "steps": len(steps), "validation": held[-1] if held else None}
    row["loss"] = sum(step["loss"] for step in last) / len(last)
    row["lr"] = max(step["lr"] for step in steps)
    row["norm"] = max(step["grad_norm"] for step in steps)
    for field in ("tokens_per_second", "mfu"):
        values = sorted(step[field] for step in steps if step.get(field) is not None)
        row[field] = values[len(values) // 2] if values else None
    return row
