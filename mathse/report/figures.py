"""The page's figures as SVG, drawn by matplotlib."""

import io
import re
from collections.abc import Callable

import matplotlib
import numpy
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from pandas import DataFrame, Series

from mathse.report.metrics import label
from mathse.report.statistics import right_rate

INK, FAINT = "#010203", "#040506"  # replaced by the page's colours of text and lines (light or dark theme)
BLUE, ORANGE, GREEN = "#3b82d0", "#d97a1e", "#1f9d78"  # all can be told apart on white and on black
RED, PURPLE, GREY = "#d1495b", "#9467bd", "#8c93a1"
LINES = (BLUE, ORANGE, GREEN, PURPLE, RED, GREY)
COLOURS = {  # of the parts of bars
    "correct to correct": BLUE, "incorrect to incorrect": GREY,
    "correct to incorrect": RED, "incorrect to correct": GREEN,
    "right, accepted": BLUE, "right, rejected": GREY, "wrong, rejected": GREEN, "wrong, accepted": RED,
    "reasoning": BLUE, "understanding": PURPLE, "knowledge": GREEN, "calculation": ORANGE, "vision": RED,
    "sampling": BLUE, "reflecting": PURPLE, "verifying": ORANGE, "fine-tuning": GREEN, "evaluating": RED,
}  # fmt: skip
CELLS = {  # of the answer check beside the ORM
    "right, accepted": "correct/correct", "right, rejected": "correct/wrong",
    "wrong, rejected": "wrong/wrong", "wrong, accepted": "wrong/correct",
}  # fmt: skip
STYLE = {
    "svg.fonttype": "none", "text.parse_math": False,  # text stays text
    "axes.spines.top": False, "axes.spines.right": False, "figure.constrained_layout.use": True,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": FAINT, "grid.linewidth": 0.6,
    "legend.frameon": False, "font.size": 9.5, "legend.fontsize": 8.5,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "xtick.color": INK, "ytick.color": INK,
}  # fmt: skip


def svg(title: str, draw: Callable, *data: object) -> str:
    """What draw(axes, *data) draws, as SVG in the page's colours."""
    with matplotlib.rc_context(STYLE | {"svg.hashsalt": title}):
        figure, file = Figure(figsize=(4.7, 3.2)), io.StringIO()
        figure.suptitle(title, x=0.02, ha="left", fontsize=10.5, fontweight="bold")
        draw(figure.subplots(), *data)
        figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = re.sub(r"[\x00-\x08\x0b\x0c\x0e-\x1f]", " ", file.getvalue())
    text = text[text.index("<svg") :].replace(INK, "var(--ink)").replace(FAINT, "var(--line)")
    return re.sub(r'(<svg[^>]*?) width="[^"]*"|(?<=pt") height="[^"]*"', r"\1", text, count=1)


def legend_below(axes: Axes) -> None:
    axes.figure.legend(loc="outside lower center", ncols=2, handlelength=1.2, columnspacing=1.2)


def by_stage(axes: Axes, stages: list[str], what: str) -> None:
    """The stages on the horizontal axis, per cent on the other."""
    style = {"rotation": 30, "ha": "right"} if len(stages) > 6 else {"rotation": 0}
    axes.set_xticks(
        range(len(stages)), [label(stage).removeprefix("+ ") for stage in stages], fontsize=8, **style
    )
    axes.grid(axis="x", visible=False)
    axes.set_ylim(0, min(109, axes.get_ylim()[1] * 1.08))
    axes.set_ylabel(f"{what}, %")


def draw_shares(axes: Axes, stages: list[str], lines: dict[str, list[dict | None]], what: str) -> None:
    """Shares with their intervals by stage, a line a name."""
    for number, (name, shares) in enumerate(lines.items()):
        places = [place + 0.06 * number for place, share in enumerate(shares) if share]
        heights = 100 * numpy.array([share["accuracy"] for share in shares if share])
        bounds = 100 * numpy.array([share["interval"] for share in shares if share]).T
        style = {"marker": "o", "ms": 5, "lw": 1.8, "capsize": 3, "color": LINES[number % len(LINES)]}
        axes.errorbar(places, heights, yerr=abs(bounds - heights), label=name, **style)
        for place, height, high in zip(places, heights, bounds[1]) if len(lines) == 1 else ():
            axes.annotate(f"{height:.1f}", (place, high + 1.5), ha="center", fontsize=8.5)
    by_stage(axes, stages, what)
    if len(lines) > 1:
        legend_below(axes)


def draw_pool(axes: Axes, pool: dict) -> None:
    """Training problems that have an accepted response, by stage."""
    new = Series(pool["first_solved"])
    shares = 100 * new / pool["problems"]
    bars = DataFrame({"solved before": shares.cumsum() - shares, "solved first here": shares})
    bars.plot.bar(ax=axes, stacked=True, color=[f"{GREY}73", GREEN], width=0.62, legend=False)
    axes.bar_label(axes.containers[1], [f"+{count:,}" for count in new], padding=2, fontsize=8.5)
    by_stage(axes, [*new.index], "training problems")
    legend_below(axes)


def draw_bars(axes: Axes, bars: DataFrame, unit: str) -> None:
    """Horizontal stacked bars: a row of the table a bar, a column a part, without parts that are 0 in all."""
    bars = bars.loc[:, bars.sum() > 0]
    colours = [COLOURS.get(part, GREY) for part in bars]
    bars.plot.barh(ax=axes, stacked=True, color=colours, width=0.62, legend=False)
    for container, part in zip(axes.containers, bars):
        large = bars[part] > 0.06 * bars.sum(axis=1).max()
        texts = bars[part].map(("{:.1f}" if unit == "minutes" else "{:.0f}").format).where(large, "")
        axes.bar_label(container, texts, label_type="center", color="white", fontsize=8.5)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(unit, fontsize=9)
    legend_below(axes)


def draw_loss(axes: Axes, logs: dict[str, DataFrame]) -> None:
    """Running means of the training loss."""
    for number, (name, steps) in enumerate(logs.items()):
        means = steps.loss.rolling(max(1, len(steps) // 15), min_periods=1).mean()
        progress = 100 * (steps.step + 1) / len(steps)
        axes.plot(
            progress, means, lw=1.4, color=LINES[number % len(LINES)], label=f"{name}, {len(steps)} steps"
        )
    axes.set_yscale("log")
    axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.set(xlabel="progress of the fine-tuning, %", ylabel="loss, nats a token")
    axes.legend(loc="upper right", fontsize=8)


# ---------------------------------------------------------------- which figures a run has


def draw_figures(metrics: dict, logs: dict[str, DataFrame]) -> dict[str, list[str]]:
    """{section of the page: its SVGs}. `logs`: of the fine-tunings."""
    stages, names, pool = metrics["stages"], metrics["tests"], metrics["pool"]
    shares = {name: [stage["benchmarks"].get(name) for stage in stages] for name in names}
    places = [stage["stage"] for stage in stages]
    results = [svg("Accuracy by stage, 95 % intervals", draw_shares, places, shares, "right answers")]
    if pool["problems"] and pool["first_solved"]:
        results.append(svg(f"Training problems solved (n = {pool['problems']:,})", draw_pool, pool))
    losses = [svg("Training loss (running mean)", draw_loss, logs)] if logs else []
    changes = [figure for name in names for figure in change_figures(stages, name)]
    orm = orm_figures([stage for stage in stages if stage["audit"].get("judged")])
    figures = {"results": results, "changes": changes, "orm": orm, "cost": losses + time_figures(metrics)}
    return {section: drawn for section, drawn in figures.items() if drawn}


def change_figures(stages: list[dict], name: str) -> list[str]:
    """A benchmark's transitions from stage to stage (the paper's Figure 2) and error types (its Figure 4)."""
    changes = {f"to {label(stage['stage'])}": stage["changes"].get(name) or {} for stage in stages}
    changes = {bar: change["changes"] for bar, change in changes.items() if change.get("changes")}
    types = {label(stage["stage"]): stage["benchmarks"].get(name, {}).get("error_types") for stage in stages}
    types = {bar: counts for bar, counts in types.items() if counts}
    titles = "From each stage to the next", "Wrong answers by type of the first mistake"
    units = f"problems of {name}", f"wrong answers of {name}"
    drawn = zip(titles, (DataFrame(changes).T, DataFrame(types).T), units)
    return [svg(title, draw_bars, bars, unit) for title, bars, unit in drawn if not bars.empty]


def orm_figures(stages: list[dict]) -> list[str]:
    """How often the ORM agrees with the answer check, and the responses by both. `stages`: with an ORM."""
    if not stages:
        return []
    audits = {stage["stage"]: stage["audit"] for stage in stages}
    pairs = [audit["answer/orm"] for audit in audits.values()]
    checks = {"accepts right answers": "correct", "rejects wrong answers": "wrong"}
    rates = {text: [right_rate(each, check) for each in pairs] for text, check in checks.items()}
    cells = {text: [each.get(pair, 0) for each in pairs] for text, pair in CELLS.items()}
    sizes = [audit["paths"] for audit in audits.values()]
    bars = [f"{label(name)}, n = {size:,}" for name, size in zip(audits, sizes)]
    shares = 100 * DataFrame(cells, index=bars).div(sizes, axis=0)
    return [
        svg("ORM against answer check, 95 % intervals", draw_shares, [*audits], rates, "the ORM agrees"),
        svg("Verified responses by both checks", draw_bars, shares, "verified responses, %"),
    ]


def time_figures(metrics: dict) -> list[str]:
    steps = {
        label(stage["stage"]): stage["steps"]
        for stage in [*metrics["stages"], metrics["orm"] | {"stage": "orm"}]
    }
    minutes = DataFrame({name: taken for name, taken in steps.items() if taken}).T.fillna(0) / 60
    return [svg("Time by stage", draw_bars, minutes.sort_index(axis=1), "minutes")] if minutes.size else []
