"""The figures, the gallery and the page of report.html, from a run's metrics and rows (report.py calls write_page).

Everything that comes from models or data is escaped by the template engine; the page forbids itself, by its content security policy,
any network, any foreign style or picture, and any script but the one in report_page.html, which is named by its hash.
"""

import base64
import hashlib
import io
import re
from collections import Counter
from pathlib import Path
from typing import Callable, Iterator

from common import open_image, question_text
from scores import CHANGES, DISAGREEMENTS, VERDICTS, predictions, read_json_rows, right_rate

TEMPLATE = Path(__file__).parent / "report_page.html"
CARDS = 12  # of each kind in the gallery
CARD_PIXELS = 300_000  # of a picture in the gallery; larger ones are scaled down
SUBJECTS = 24  # in a table, the largest
INK, FAINT = "#010203", "#040506"  # stand for the page's colours of text and lines, which follow its light or dark theme
BLUE, ORANGE, GREEN, RED, PURPLE, GREY = "#3b82d0", "#d97a1e", "#1f9d78", "#d1495b", "#9467bd", "#8c93a1"  # tell apart on white and on black
ERROR_COLOURS = {"reasoning": BLUE, "understanding": PURPLE, "knowledge": GREEN, "calculation": ORANGE, "vision": RED, "unclassified": GREY}
STEPS = {"samples": "sampling", "reflected": "reflecting", "verified": "verifying", "reflected_verified": "verifying", "annotated": "annotating", "model": "fine-tuning", "evaluation": "evaluating"}
KINDS = {  # of cards, as the filters name them
    "gained": "got right", "lost": "got lost", "never": "never right", "orm_accepts_wrong": "ORM accepts a wrong answer",
    "orm_rejects_right": "ORM rejects a right answer", "reflected": "reflected",
}  # fmt: skip


def label(stage: str) -> str:
    return {"base": "base", "round_0": "+ distilled", "final": "+ reflection"}.get(stage, f"+ {stage.replace('_', ' ')}")


# ---------------------------------------------------------------- figures


def svg(draw: Callable, title: str, height: float = 3.2) -> str:
    """What `draw(axes)` draws, as SVG whose text is text and whose ink is the page's."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    settings = {
        "svg.fonttype": "none", "svg.hashsalt": title, "text.parse_math": False, "font.size": 9.5, "axes.spines.top": False, "axes.spines.right": False,
        "axes.grid": True, "axes.axisbelow": True, "grid.color": FAINT, "grid.linewidth": 0.6, "legend.frameon": False,
        "legend.fontsize": 8.5, "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK, "figure.constrained_layout.use": True,
    }  # fmt: skip
    with matplotlib.rc_context(settings):
        figure, axes = pyplot.subplots(figsize=(4.7, height))
        figure.suptitle(title, x=0.02, ha="left", fontsize=10.5, fontweight="bold")
        draw(axes)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        pyplot.close(figure)
    text = re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", " ", file.getvalue())
    text = text[text.index("<svg") :].replace(INK, "var(--ink)").replace(FAINT, "var(--line)")
    return re.sub(r'(<svg[^>]*?) width="[^"]*"|(?<=pt") height="[^"]*"', r"\1", text, count=1)


def legend_below(axes, columns: int) -> None:
    axes.figure.legend(loc="outside lower center", ncols=columns, handlelength=1.2, columnspacing=1.2)


def draw_accuracy(stages: list[dict], names: list[str]) -> Callable:
    def draw(axes) -> None:
        for index, name in enumerate(names):
            places = [place for place, stage in enumerate(stages) if name in stage["benchmarks"]]
            figures = [stages[place]["benchmarks"][name] for place in places]
            heights = [100 * one["accuracy"] for one in figures]
            errors = [[height - 100 * one["interval"][0] for height, one in zip(heights, figures)], [100 * one["interval"][1] - height for height, one in zip(heights, figures)]]
            colour = (BLUE, ORANGE, GREEN, PURPLE, RED, GREY)[index % 6]
            axes.errorbar(places, heights, yerr=[[max(0, error) for error in side] for side in errors], marker="o", ms=5, lw=1.8, capsize=3, color=colour, label=f"{name}, n = {figures[0]['n']}")
            if len(names) == 1:
                for place, height, one in zip(places, heights, figures):
                    axes.annotate(f"{height:.1f}", (place, 100 * one["interval"][1]), xytext=(0, 4), textcoords="offset points", ha="center", fontsize=8.5)
        stage_axis(axes, stages)
        axes.set_ylim(0, min(109, axes.get_ylim()[1] * 1.08))
        axes.set_ylabel("right answers, %")
        if len(names) > 1:
            legend_below(axes, 2)

    return draw


def stage_axis(axes, stages: list[dict]) -> None:
    names, many = [label(stage["stage"]).removeprefix("+ ") for stage in stages], len(stages) > 6
    axes.set_xticks(range(len(stages)), names, rotation=30 if many else 0, ha="right" if many else "center", fontsize=8)
    axes.grid(axis="x", visible=False)


def draw_stacks(names: list[str], parts: dict[str, list[float]], colours: list[str], unit: str, counts: str = "{:.0f}") -> Callable:
    """Horizontal stacked bars: `parts[kind][i]` of bar names[i]."""

    def draw(axes) -> None:
        left, whole = [0.0] * len(names), max((sum(values) for values in zip(*parts.values())), default=1) or 1
        for (kind, values), colour in zip(parts.items(), colours):
            axes.barh(range(len(names)), values, left=left, color=colour, label=kind, height=0.62)
            for place, value in enumerate(values):
                if value > 0.06 * whole:
                    axes.text(left[place] + value / 2, place, counts.format(value), ha="center", va="center", color="white", fontsize=8.5)
            left = [start + value for start, value in zip(left, values)]
        axes.set_yticks(range(len(names)), names, fontsize=8.5)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(unit, fontsize=9)
        legend_below(axes, 2)

    return draw


def draw_pool(pool: dict) -> Callable:
    def draw(axes) -> None:
        names, new = list(pool["first_solved"]), list(pool["first_solved"].values())
        total = pool["problems"] or 1
        before = [sum(new[:index]) for index in range(len(new))]
        axes.bar(range(len(new)), [100 * count / total for count in before], color=GREY, alpha=0.45, label="solved before", width=0.62)
        axes.bar(range(len(new)), [100 * count / total for count in new], bottom=[100 * count / total for count in before], color=GREEN, label="solved first here", width=0.62)
        for place, (count, start) in enumerate(zip(new, before)):
            axes.annotate(f"+{count:,}", (place, 100 * (start + count) / total), xytext=(0, 3), textcoords="offset points", ha="center", fontsize=8.5)
        stage_axis(axes, [{"stage": name} for name in names])
        axes.set_ylim(0, 109)
        axes.set_ylabel("training problems, %")
        legend_below(axes, 2)

    return draw


def draw_audit(stages: list[dict]) -> Callable:
    def draw(axes) -> None:
        for check, colour, shift, words in (("correct", BLUE, -0.06, "accepts of right answers"), ("wrong", ORANGE, 0.06, "rejects of wrong answers")):
            rates = [(place, right_rate(stage["audit"]["answer/orm"], check)) for place, stage in enumerate(stages)]
            rates = [(place, *rate) for place, rate in rates if rate]
            axes.errorbar([place + shift for place, *_ in rates], [100 * share for _, share, _, _ in rates], color=colour, marker="o", ms=5, lw=1.8, capsize=3, label=words,
                          yerr=[[max(0, 100 * (share - low)) for _, share, (low, _), _ in rates], [max(0, 100 * (high - share)) for _, share, (_, high), _ in rates]])  # fmt: skip
        stage_axis(axes, stages)
        axes.set_xlim(-0.5, len(stages) - 0.5)
        axes.set_ylim(0, 104)
        axes.set_ylabel("the ORM agrees, %")
        legend_below(axes, 2)

    return draw


def draw_loss(logs: dict[str, list[dict]]) -> Callable:
    """Running means; points are losses on problems held out."""

    def draw(axes) -> None:
        for index, (name, steps) in enumerate(logs.items()):
            window, colour, losses = max(1, len(steps) // 15), (GREY, BLUE, GREEN, PURPLE, RED, ORANGE)[index % 6], [step["loss"] for step in steps]
            smooth = [sum(losses[max(0, end - window) : end]) / min(window, end) for end in range(1, len(steps) + 1)]
            axes.plot([100 * (step["step"] + 1) / len(steps) for step in steps], smooth, lw=1.4, color=colour, label=f"{name}, {len(steps)} steps")
            held = [(100 * (step["step"] + 1) / len(steps), step["validation_loss"]) for step in steps if "validation_loss" in step]
            if held:
                axes.plot(*zip(*held), ls="", marker="o", ms=4, color=colour)
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.set_xlabel("progress of the fine-tuning, %")
        axes.set_ylabel("loss, nats a token")
        axes.legend(loc="upper right", fontsize=8)

    return draw


# ---------------------------------------------------------------- numbers for the tables


def subject_table(stages: list[dict], name: str) -> list[dict]:
    """Rows {value, n, shares by stage} of a benchmark's first split that has several values, the largest first."""
    splits = stages[-1]["benchmarks"].get(name, {}).get("splits", {})
    split = next((split for split, parts in splits.items() if len(parts) > 1), None)
    if split is None:
        return []
    largest = sorted(splits[split], key=lambda value: (-splits[split][value]["n"], value))[:SUBJECTS]
    shares = [stage["benchmarks"].get(name, {}).get("splits", {}).get(split, {}) for stage in stages]
    return [{"value": value, "n": splits[split][value]["n"], "shares": [part.get(value, {}).get("accuracy") for part in shares]} for value in largest]


def training_logs(run: Path) -> dict[str, list[dict]]:
    """The steps of each fine-tuning, by what the page calls it."""
    folders = [run / "round_0", run / "orm", *sorted(run.glob("round_[1-9]*"), key=lambda path: int(path.name[6:])), run / "final"]
    logs = {folder.name: [*read_json_rows(folder / "model" / "train_log.jsonl")] for folder in folders}
    return {"ORM" if name == "orm" else label(name).removeprefix("+ "): steps for name, steps in logs.items() if steps}


def training_row(name: str, steps: list[dict]) -> dict:
    """What the page tells of a fine-tuning; the loss is that of its last tenth, tokens a second and mfu those of the median step."""
    last = steps[-max(1, len(steps) // 10) :]
    speeds = {key: sorted(step[key] for step in steps if step.get(key) is not None) for key in ("tokens_per_second", "mfu")}
    held = [step["validation_loss"] for step in steps if "validation_loss" in step]
    return {"name": name, "steps": len(steps), "loss": sum(step["loss"] for step in last) / len(last), "validation": held[-1] if held else None,
            "lr": max(step["lr"] for step in steps), "norm": max(step["grad_norm"] for step in steps)} | {key: values[len(values) // 2] if values else None for key, values in speeds.items()}  # fmt: skip


# ---------------------------------------------------------------- gallery


def rank(key: object) -> bytes:
    """Puts keys in an order that is random, but the same at every call."""
    return hashlib.sha256(str(key).encode()).digest()


def picture(path: Path) -> str | None:
    """A data URL of the picture, scaled down to CARD_PIXELS; None if it cannot be read."""
    try:
        image, file = open_image(str(path), CARD_PIXELS), io.BytesIO()
        kind = "PNG" if image.getcolors(4096) else "JPEG"  # drawings stay sharp, photographs small
        image.save(file, kind, **({"optimize": True} if kind == "PNG" else {"quality": 80}))
    except (OSError, ValueError, SyntaxError):
        return None
    return f"data:image/{kind.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"


def card(row: dict, folder: Path, kinds: list[str], answers: list[dict], **more: object) -> dict:
    pictures = [picture(folder / image) for image in row.get("images") or []]
    return {"kinds": kinds, "id": row["id"], "question": question_text(row), "answer": row.get("answer"), "subject": str(row.get("subject") or "none"), "pictures": pictures,
            "answers": answers} | more  # fmt: skip


def test_cards(stages: list[Path]) -> Iterator[dict]:
    """Test problems that the evolution got right, lost, or never solved, with each stage's answer."""
    stages = [folder for folder in stages if (folder / "eval" / "metrics.json").is_file()]
    checks: dict[tuple, dict[str, str]] = {}
    for folder in stages:
        for name, rows in predictions(folder / "eval", lambda row: {key: row[key] for key in ("id", "sample", "answer_check")}).items():
            for row in rows:
                if row["sample"] == 0:
                    checks.setdefault((name, row["id"]), {})[folder.name] = row["answer_check"]
    last = stages[-1].name
    kinds: dict[str, list] = {"gained": [], "lost": [], "never": []}
    for key, by_stage in checks.items():
        if last in by_stage and len(by_stage) > 1:
            right = [by_stage[folder.name] == "correct" for folder in stages if folder.name in by_stage]
            kind = ("gained" if not right[0] else None) if right[-1] else "lost" if any(right) else "never"
            if kind:
                kinds[kind].append(key)
    chosen = {key: kind for kind, keys in kinds.items() for key in sorted(keys, key=rank)[: CARDS if kind != "never" else CARDS // 2]}
    answers: dict[tuple, list[dict]] = {key: [] for key in chosen}
    rows: dict[tuple, dict] = {}
    for folder in stages:
        types = {(row["benchmark"], row["id"], row["sample"]): row["error_type"] for row in read_json_rows(folder / "eval" / "errors.jsonl")}
        for row in read_json_rows(folder / "eval" / "predictions.jsonl"):
            key = row["benchmark"], row["id"]
            if key in chosen and row["sample"] == 0:
                rows[key] = row
                answers[key].append(shown(row, label(folder.name), "cut off" if row["finish"] == "length" else types.get((*key, 0))))
    for key, kind in chosen.items():
        yield card(rows[key], stages[-1] / "eval", [kind], answers[key], set="test problem" if len({name for name, _ in chosen}) == 1 else f"test problem of {key[0]}")


def keep(chosen: dict, key: str, value: object, count: int) -> None:
    """Put into `chosen`, which holds at most `count` keys: those that come first by their hash, each with its last value."""
    chosen[key] = value
    if len(chosen) > count:
        del chosen[max(chosen, key=rank)]


def training_cards(stages: list[Path]) -> Iterator[dict]:
    """Paths on which answer check and ORM disagree, and reflections with what they reflect on; two passes over the verified files."""
    disagreements: dict[str, dict] = {"orm_accepts_wrong": {}, "orm_rejects_right": {}}
    right: dict[str, tuple] = {}
    other: dict[str, tuple] = {}

    def verified() -> Iterator[tuple[Path, dict]]:
        return ((folder, row) for folder in stages for name in ("verified.jsonl", "reflected_verified.jsonl") for row in read_json_rows(folder / name))

    for folder, row in verified():
        if kind := DISAGREEMENTS.get((row["answer_check"], row.get("orm_check"))):
            keep(disagreements[kind], row["id"], (folder, row), CARDS)
        if "draft" in row:
            keep(right if row["status"] == "correct" else other, row["id"], (folder, row), CARDS * 2 // 3 if row["status"] == "correct" else CARDS // 3)
    for kind, paths in disagreements.items():
        for folder, row in paths.values():
            yield card(row, folder, [kind], [shown(row, label(folder.name))], set="training problem")
    reflections = [*right.values(), *other.values()]
    wanted = {(row["id"], row["draft"]) for _, row in reflections}  # by its text: with REFLECT=every several rounds have a reflection 0
    drafts = {key: row for _, row in verified() if (key := (row["id"], row["response"])) in wanted} if wanted else {}
    for folder, row in reflections:
        draft = drafts.get((row["id"], row["draft"])) or {"response": row["draft"]}
        yield card(row, folder, ["reflected"], [shown(draft, "before reflection"), shown(row, "after reflection")], set="training problem")


def shown(row: dict, name: str, note: str | None = None) -> dict:
    """An answer as the gallery shows it: what was found in it, both checks, and the ORM's error step and analysis."""
    fields = {field: row.get(field) for field in ("answer_check", "extracted", "response", "orm_check", "orm_confidence", "error_step", "error_line", "error_analysis")}
    return {"name": name, "note": note} | fields


# ---------------------------------------------------------------- the page


def figures_of(run: Path, metrics: dict, names: list[str]) -> dict[str, list[str]]:
    """{section: SVGs} of the figures that the run has data for; per test set where they are about one."""
    stages, figures = metrics["stages"], {}
    title = "Accuracy by stage, 95 % intervals" if len(names) > 1 else f"{names[0]} (n = {stages[-1]['benchmarks'][names[0]]['n']}), 95 % intervals"
    figures["results"] = [svg(draw_accuracy(stages, names), title)]
    if metrics["pool"]["problems"]:
        figures["results"].append(svg(draw_pool(metrics["pool"]), f"Training problems solved (n = {metrics['pool']['problems']:,})"))
    figures["changes"] = []
    for name in names:
        changed = [stage for stage in stages if (stage["changes"].get(name) or {}).get("changes")]
        if changed:
            parts = {kind: [stage["changes"][name]["changes"][kind] for stage in changed] for kind in CHANGES}
            places, n = [f"to {label(stage['stage'])}" for stage in changed], changed[-1]["changes"][name]["n"]
            figures["changes"].append(svg(draw_stacks(places, parts, [BLUE, GREY, RED, GREEN], f"problems of {name} (n = {n})"), "From each stage to the next"))
        typed = [stage for stage in stages if "error_types" in stage["benchmarks"].get(name, {})]
        kinds = {kind: [stage["benchmarks"][name]["error_types"].get(kind, 0) for stage in typed] for kind in ERROR_COLOURS}
        kinds = {kind: counts for kind, counts in kinds.items() if sum(counts)}
        if kinds:
            places, colours = [label(stage["stage"]) for stage in typed], [ERROR_COLOURS[kind] for kind in kinds]
            figures["changes"].append(svg(draw_stacks(places, kinds, colours, f"wrong answers of {name}"), "Wrong answers by type of the first mistake"))
    if audited := [stage for stage in stages if stage["audit"].get("judged")]:
        cells = {"right, accepted": "correct/correct", "right, rejected": "correct/wrong", "wrong, rejected": "wrong/wrong", "wrong, accepted": "wrong/correct"}
        parts = {words: [100 * stage["audit"]["answer/orm"].get(pair, 0) / stage["audit"]["paths"] for stage in audited] for words, pair in cells.items()}
        places = [f"{label(stage['stage'])}, n = {stage['audit']['paths']:,}" for stage in audited]
        figures["orm"] = [svg(draw_audit(audited), "ORM against answer check, 95 % intervals"),
                          svg(draw_stacks(places, parts, [BLUE, GREY, GREEN, RED], "verified paths, %"), "Verified paths by both checks")]  # fmt: skip
    figures["yield"] = [svg(draw_loss(curves), "Training loss (running mean)")] if (curves := training_logs(run)) else []
    timed = [(label(stage["stage"]), stage["steps"]) for stage in stages] + ([("ORM", metrics["orm"]["steps"])] if metrics["orm"]["steps"] else [])
    times = {kind: [sum(spent for step, spent in steps.items() if STEPS.get(step, step) == kind) / 60 for _, steps in timed] for kind in dict.fromkeys(STEPS.values())}
    times = {kind: values for kind, values in times.items() if sum(values)}
    if times:
        figures["yield"].append(svg(draw_stacks([name for name, _ in timed], times, [BLUE, PURPLE, ORANGE, GREY, GREEN, RED], "minutes", "{:.1f}"), "Time by stage"))
    return {section: drawn for section, drawn in figures.items() if drawn}


def write_page(run: Path, metrics: dict, config: dict, stages: list[Path]) -> Path:
    """RUN/report.html"""
    from jinja2 import Environment, StrictUndefined
    from markupsafe import Markup

    source = TEMPLATE.read_text(encoding="utf-8")
    script = re.search(r"<script>(.*?)</script>", source, re.DOTALL)[1]
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters |= {
        "percent": lambda share: "–" if share is None else f"{100 * share:.1f}",
        "points": lambda share: f"{100 * share:+.1f}",
        "count": lambda number: "–" if number is None else f"{number:,}".replace(",", "\u202f"),
        "label": label,
        "minutes": lambda seconds: f"{seconds // 60}:{seconds % 60:02d}",
    }
    names = list(dict.fromkeys(name for stage in metrics["stages"] for name in stage["benchmarks"]))
    cards = [*test_cards(stages), *training_cards(stages)]
    rows_of_time = [(label(stage["stage"]), stage["steps"], stage["tokens"]) for stage in metrics["stages"]]
    rows_of_time += [("ORM", metrics["orm"]["steps"], metrics["orm"]["tokens"])] if metrics["orm"]["steps"] or metrics["orm"]["tokens"] else []
    page = environment.from_string(source).render(
        run=run.resolve().name, metrics=metrics, stages=metrics["stages"], names=names, cards=cards, kinds=KINDS, kind_counts=Counter(kind for card in cards for kind in card["kinds"]),
        figures={section: [Markup(text) for text in drawn] for section, drawn in figures_of(run, metrics, names).items()}, subjects={name: subject_table(metrics["stages"], name) for name in names},
        right_rate=right_rate, verdicts=VERDICTS, classified=any("error_types" in figures for stage in metrics["stages"] for figures in stage["benchmarks"].values()), config=config, rows_of_time=rows_of_time, trainings=[training_row(*log) for log in training_logs(run).items()], most_cards=CARDS, script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )  # fmt: skip
    part = run / "report.html.part"
    part.write_text(page, encoding="utf-8")
    part.replace(run / "report.html")
    return run / "report.html"
