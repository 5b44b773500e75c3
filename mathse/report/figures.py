"""The page's figures as SVG, drawn by matplotlib."""

import io
import math
import re
from collections.abc import Callable
from pathlib import Path

from mathse.records import written_rows
from mathse.report.metrics import label
from mathse.report.statistics import CHANGES, right_rate

INK, FAINT = "#010203", "#040506"  # replaced by the page's colours of text and lines (light or dark theme)
BLUE, ORANGE, GREEN = "#3b82d0", "#d97a1e", "#1f9d78"  # all can be told apart on white and on black
RED, PURPLE, GREY = "#d1495b", "#9467bd", "#8c93a1"
LINES = (BLUE, ORANGE, GREEN, PURPLE, RED, GREY)
ERROR_COLOURS = {
    "reasoning": BLUE, "understanding": PURPLE, "knowledge": GREEN, "calculation": ORANGE, "vision": RED,
    "unclassified": GREY,
}  # fmt: skip
STEPS = {  # what the figure calls a step
    "samples": "sampling", "reflected": "reflecting", "verified": "verifying",
    "reflected_verified": "verifying", "annotated": "annotating", "model": "fine-tuning",
    "evaluation": "evaluating",
}  # fmt: skip
AUDIT_CELLS = {
    "right, accepted": "correct/correct",
    "right, rejected": "correct/wrong",
    "wrong, rejected": "wrong/wrong",
    "wrong, accepted": "wrong/correct",
}
STYLE = {
    "svg.fonttype": "none", "text.parse_math": False,  # text stays text
    "axes.spines.top": False, "axes.spines.right": False, "figure.constrained_layout.use": True,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": FAINT, "grid.linewidth": 0.6,
    "legend.frameon": False, "font.size": 9.5, "legend.fontsize": 8.5,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK,
}  # fmt: skip


def svg(draw: Callable, title: str) -> str:
    """What `draw(axes)` draws, as SVG in the page's colours."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot

    with matplotlib.rc_context(STYLE | {"svg.hashsalt": title}):
        figure, axes = pyplot.subplots(figsize=(4.7, 3.2))
        figure.suptitle(title, x=0.02, ha="left", fontsize=10.5, fontweight="bold")
        draw(axes)
        file = io.StringIO()
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        pyplot.close(figure)
    text = re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", " ", file.getvalue())
    text = text[text.index("<svg") :].replace(INK, "var(--ink)").replace(FAINT, "var(--line)")
    return re.sub(r'(<svg[^>]*?) width="[^"]*"|(?<=pt") height="[^"]*"', r"\1", text, count=1)


def legend_below(axes) -> None:
    axes.figure.legend(loc="outside lower center", ncols=2, handlelength=1.2, columnspacing=1.2)


def stage_axis(axes, names: list[str]) -> None:
    """The stages on the horizontal axis."""
    texts = [label(name).removeprefix("+ ") for name in names]
    style = {"rotation": 30, "ha": "right"} if len(names) > 6 else {}
    axes.set_xticks(range(len(texts)), texts, fontsize=8, **style)
    axes.grid(axis="x", visible=False)


def error_bars(axes, places: list[float], shares: list[float], intervals: list, **style: object) -> None:
    """Shares with their intervals, in percent."""
    low = [100 * max(0, share - interval[0]) for share, interval in zip(shares, intervals)]
    high = [100 * max(0, interval[1] - share) for share, interval in zip(shares, intervals)]
    heights = [100 * share for share in shares]
    axes.errorbar(places, heights, yerr=[low, high], marker="o", ms=5, lw=1.8, capsize=3, **style)


def note(axes, text: str, x: float, y: float) -> None:
    """A text right above a point."""
    axes.annotate(text, (x, y), xytext=(0, 4), textcoords="offset points", ha="center", fontsize=8.5)


# ---------------------------------------------------------------- one figure each


def draw_accuracy(stages: list[dict], names: list[str]) -> Callable:
    """Accuracy by stage, a line a benchmark."""

    def draw(axes) -> None:
        for index, name in enumerate(names):
            places = [place for place, stage in enumerate(stages) if name in stage["benchmarks"]]
            found = [stages[place]["benchmarks"][name] for place in places]
            shares = [one["accuracy"] for one in found]
            intervals = [one["interval"] for one in found]
            text = f"{name}, n = {found[0]['n']}"
            error_bars(axes, places, shares, intervals, color=LINES[index % len(LINES)], label=text)
            if len(names) == 1:
                for place, share, (_, high) in zip(places, shares, intervals):
                    note(axes, f"{100 * share:.1f}", place, 100 * high)
        stage_axis(axes, [stage["stage"] for stage in stages])
        axes.set_ylim(0, min(109, axes.get_ylim()[1] * 1.08))
        axes.set_ylabel("right answers, %")
        if len(names) > 1:
            legend_below(axes)

    return draw


def draw_stacks(bars: list[str], parts: dict[str, list[float]], colours: list[str], unit: str) -> Callable:
    """Horizontal stacked bars: `parts[kind][i]` of bars[i]."""

    def draw(axes) -> None:
        left = [0.0] * len(bars)
        longest = max((sum(values) for values in zip(*parts.values())), default=1) or 1
        inside = {"ha": "center", "va": "center", "color": "white", "fontsize": 8.5}
        for (kind, values), colour in zip(parts.items(), colours):
            axes.barh(range(len(bars)), values, left=left, color=colour, label=kind, height=0.62)
            for place, value in enumerate(values):
                if value > 0.06 * longest:
                    text = f"{value:.1f}" if unit == "minutes" else f"{value:.0f}"
                    axes.text(left[place] + value / 2, place, text, **inside)
            left = [start + value for start, value in zip(left, values)]
        axes.set_yticks(range(len(bars)), bars, fontsize=8.5)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(unit, fontsize=9)
        legend_below(axes)

    return draw


def draw_pool(pool: dict) -> Callable:
    """Training problems that have an accepted path, by stage."""

    def draw(axes) -> None:
        counts = list(pool["first_solved"].values())
        new = [100 * count / pool["problems"] for count in counts]
        before = [sum(new[:index]) for index in range(len(new))]
        places = range(len(new))
        axes.bar(places, before, color=GREY, alpha=0.45, label="solved before", width=0.62)
        axes.bar(places, new, bottom=before, color=GREEN, label="solved first here", width=0.62)
        for place, count in enumerate(counts):
            note(axes, f"+{count:,}", place, before[place] + new[place])
        stage_axis(axes, list(pool["first_solved"]))
        axes.set_ylim(0, 109)
        axes.set_ylabel("training problems, %")
        legend_below(axes)

    return draw


def draw_audit(stages: list[dict]) -> Callable:
    """How often the ORM agrees with the answer check."""
    right = "correct", BLUE, -0.06, "accepts right answers"
    wrong = "wrong", ORANGE, 0.06, "rejects wrong answers"

    def draw(axes) -> None:
        for check, colour, shift, text in (right, wrong):
            rates = {}
            for place, stage in enumerate(stages):
                if rate := right_rate(stage["audit"]["answer/orm"], check):
                    rates[place + shift] = rate
            shares = [share for share, _, _ in rates.values()]
            intervals = [interval for _, interval, _ in rates.values()]
            error_bars(axes, list(rates), shares, intervals, color=colour, label=text)
        stage_axis(axes, [stage["stage"] for stage in stages])
        axes.set_xlim(-0.5, len(stages) - 0.5)
        axes.set_ylim(0, 104)
        axes.set_ylabel("the ORM agrees, %")
        legend_below(axes)

    return draw


def draw_loss(logs: dict[str, list[dict]]) -> Callable:
    """Running means of the training loss; points are losses on held-out problems."""
    from matplotlib.ticker import LogLocator

    def draw(axes) -> None:
        for index, (name, steps) in enumerate(logs.items()):
            n, colour = len(steps), LINES[index % len(LINES)]
            window, losses = max(1, n // 15), [step["loss"] for step in steps]
            recent = [losses[max(0, end - window) : end] for end in range(1, n + 1)]
            progress = [100 * (step["step"] + 1) / n for step in steps]
            means = [sum(part) / len(part) for part in recent]
            axes.plot(progress, means, lw=1.4, color=colour, label=f"{name}, {n} steps")
            held_out = [step.get("validation_loss", math.nan) for step in steps]
            axes.plot(progress, held_out, ls="", marker="o", ms=4, color=colour)
        axes.set_yscale("log")
        axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}")
        axes.set_xlabel("progress of the fine-tuning, %")
        axes.set_ylabel("loss, nats a token")
        axes.legend(loc="upper right", fontsize=8)

    return draw


# ---------------------------------------------------------------- which figures a run has


def training_logs(folders: list[Path]) -> dict[str, list[dict]]:
    """The logged steps of each fine-tuning, by what the page calls it."""
    logs = {}
    for folder in folders:
        name = label(folder.name).removeprefix("+ ")
        logs[name] = list(written_rows(folder / "model" / "train_log.jsonl"))
    return {name: steps for name, steps in logs.items() if steps}


def draw_figures(metrics: dict, names: list[str], logs: dict[str, list[dict]]) -> dict[str, list[str]]:
    """{section of the page: its SVGs}. `names`: the benchmarks; `logs`: of the fine-tunings."""
    figures = {
        "results": result_figures(metrics, names),
        "changes": [figure for name in names for figure in change_figures(metrics["stages"], name)],
        "orm": audit_figures(metrics["stages"]),
        "yield": [svg(draw_loss(logs), "Training loss (running mean)")] if logs else [],
    }
    figures["yield"] += time_figures(metrics)
    return {section: drawn for section, drawn in figures.items() if drawn}


def result_figures(metrics: dict, names: list[str]) -> list[str]:
    stages, pool = metrics["stages"], metrics["pool"]
    title = "Accuracy by stage"
    if len(names) == 1:
        counts = [stage["benchmarks"][name]["n"] for stage in stages for name in stage["benchmarks"]]
        title = f"{names[0]} (n = {counts[-1]})"
    figures = [svg(draw_accuracy(stages, names), f"{title}, 95 % intervals")]
    if pool["problems"] and pool["first_solved"]:
        figures.append(svg(draw_pool(pool), f"Training problems solved (n = {pool['problems']:,})"))
    return figures


def change_figures(stages: list[dict], name: str) -> list[str]:
    """A benchmark's transitions from stage to stage (the paper's Figure 2) and error types (its Figure 4)."""
    figures = []
    changed = [stage for stage in stages if (stage["changes"].get(name) or {}).get("changes")]
    if changed:
        changes = [stage["changes"][name] for stage in changed]
        parts = {kind: [change["changes"][kind] for change in changes] for kind in CHANGES}
        bars = [f"to {label(stage['stage'])}" for stage in changed]
        unit = f"problems of {name} (n = {changes[-1]['n']})"
        figures.append(
            svg(draw_stacks(bars, parts, [BLUE, GREY, RED, GREEN], unit), "From each stage to the next")
        )
    typed = [stage for stage in stages if "error_types" in stage["benchmarks"].get(name, {})]
    types = [stage["benchmarks"][name]["error_types"] for stage in typed]
    parts = {kind: [one.get(kind, 0) for one in types] for kind in ERROR_COLOURS}
    parts = {kind: counts for kind, counts in parts.items() if sum(counts)}
    if parts:
        bars = [label(stage["stage"]) for stage in typed]
        colours = [ERROR_COLOURS[kind] for kind in parts]
        drawing = draw_stacks(bars, parts, colours, f"wrong answers of {name}")
        figures.append(svg(drawing, "Wrong answers by type of the first mistake"))
    return figures


def audit_figures(stages: list[dict]) -> list[str]:
    audited = [stage for stage in stages if stage["audit"].get("judged")]
    if not audited:
        return []
    parts = {words: [] for words in AUDIT_CELLS}
    for stage in audited:
        paths, pairs = stage["audit"]["paths"], stage["audit"]["answer/orm"]
        for words, pair in AUDIT_CELLS.items():
            parts[words].append(100 * pairs.get(pair, 0) / paths)
    bars = [f"{label(stage['stage'])}, n = {stage['audit']['paths']:,}" for stage in audited]
    stacks = draw_stacks(bars, parts, [BLUE, GREY, GREEN, RED], "verified paths, %")
    agreement = svg(draw_audit(audited), "ORM against answer check, 95 % intervals")
    return [agreement, svg(stacks, "Verified paths by both checks")]


def time_figures(metrics: dict) -> list[str]:
    timed = {label(stage["stage"]): stage["steps"] for stage in metrics["stages"]}
    if metrics["orm"]["steps"]:
        timed["ORM"] = metrics["orm"]["steps"]
    parts = {kind: [0.0] * len(timed) for kind in STEPS.values()}
    for place, steps in enumerate(timed.values()):
        for step in steps.keys() & STEPS.keys():
            parts[STEPS[step]][place] += steps[step] / 60
    parts = {kind: minutes for kind, minutes in parts.items() if sum(minutes)}
    drawing = draw_stacks(list(timed), parts, [BLUE, PURPLE, ORANGE, GREY, GREEN, RED], "minutes")
    return [svg(drawing, "Time by stage")] if parts else []
