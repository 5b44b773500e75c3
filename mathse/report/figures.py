"""The page's figures as SVG, drawn by matplotlib."""

import io
import re
from collections import defaultdict
from collections.abc import Callable
from itertools import cycle

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
    "correct/correct": "right, accepted", "correct/wrong": "right, rejected",
    "wrong/wrong": "wrong, rejected", "wrong/correct": "wrong, accepted",
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
    turned = {"rotation": 30, "ha": "right"} if len(stages) > 6 else {"rotation": 0}
    axes.set_xticks(range(len(stages)), [stage.removeprefix("+ ") for stage in stages], fontsize=8, **turned)
    axes.set_xlim(-0.5, len(stages) - 0.5)
    axes.grid(axis="x", visible=False)
    axes.set_ylim(0, min(109, axes.get_ylim()[1] * 1.08))
    axes.set_ylabel(f"{what}, %")


def draw_shares(axes: Axes, lines: dict[str, list[dict | None]], stages: list[str], what: str) -> None:
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


def draw_pool(axes: Axes, counts: dict[str, int], problems: int) -> None:
    """Training problems that have an accepted response, by stage."""
    new = 100 * Series(counts) / problems
    bars = DataFrame({"solved before": new.cumsum() - new, "solved first here": new})
    bars.plot.bar(ax=axes, stacked=True, color=[f"{GREY}73", GREEN], width=0.62, legend=False)
    axes.bar_label(axes.containers[1], [f"+{n:,}" for n in counts.values()], padding=2, fontsize=8.5)
    by_stage(axes, [*map(label, counts)], "training problems")
    legend_below(axes)


def draw_bars(axes: Axes, bars: DataFrame, unit: str) -> None:
    """Horizontal stacked bars: a row of the table a bar, a column a part."""
    colours = [COLOURS.get(part, GREY) for part in bars]
    bars.plot.barh(ax=axes, stacked=True, color=colours, width=0.62, legend=False)
    for container, part in zip(axes.containers, bars):
        large = bars[part] > 0.06 * bars.sum(axis=1).max()
        texts = bars[part].map("{:.1f}".format if unit == "minutes" else "{:.0f}".format).where(large, "")
        axes.bar_label(container, texts, label_type="center", color="white", fontsize=8.5)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(unit, fontsize=9)
    legend_below(axes)


def draw_loss(axes: Axes, logs: dict[str, DataFrame]) -> None:
    """Running means of the training loss."""
    for (name, steps), colour in zip(logs.items(), cycle(LINES)):
        means = steps.loss.rolling(max(1, len(steps) // 15), min_periods=1).mean()
        progress = 100 * (steps.step + 1) / len(steps)
        axes.plot(progress, means, lw=1.4, color=colour, label=f"{name}, {len(steps)} steps")
    axes.set_yscale("log")
    axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.set(xlabel="progress of the fine-tuning, %", ylabel="loss, nats a token")
    axes.legend(loc="upper right", fontsize=8)


def draw_figures(metrics: dict, logs: dict[str, DataFrame]) -> dict[str, list[str]]:
    """{section of the page: its SVGs}, without figures that have no data. `logs`: of the fine-tunings."""
    stages, tests = {label(stage["stage"]): stage for stage in metrics["stages"]}, metrics["tests"]
    judged = {name: stage["audit"] for name, stage in stages.items() if stage["audit"].get("judged")}
    pairs = {f"{name}, n = {audit['responses']:,}": audit["answer/orm"] for name, audit in judged.items()}
    figures = defaultdict(list)

    def add(section: str, title: str, draw: Callable, data: dict | DataFrame, *more: object) -> None:
        if getattr(data, "size", len(data)):
            figures[section].append(svg(title, draw, data, *more))

    shares = {test: [stage["benchmarks"].get(test) for stage in stages.values()] for test in tests}
    add("results", "Accuracy by stage, 95 % intervals", draw_shares, shares, [*stages], "right answers")
    n = metrics["pool"]["problems"]
    solved = metrics["pool"]["first_solved"] if n else {}
    add("results", f"Training problems solved (n = {n:,})", draw_pool, solved, n)
    for test in tests:  # the paper's Figures 2 and 4
        bars = table({name: stage["changes"].get(test, {}).get("changes") for name, stage in stages.items()})
        add("changes", "From the stage before to each stage", draw_bars, bars, f"problems of {test}")
        found = {name: stage["benchmarks"].get(test, {}) for name, stage in stages.items()}
        bars = table({name: result.get("error_types") for name, result in found.items()})
        add("changes", "Wrong answers by first mistake", draw_bars, bars, f"wrong answers of {test}")
    checks = {"accepts right answers": "correct", "rejects wrong answers": "wrong"} if judged else {}
    shares = {words: [right_rate(each, check) for each in pairs.values()] for words, check in checks.items()}
    add("orm", "ORM against answer check, 95 % intervals", draw_shares, shares, [*judged], "the ORM agrees")
    bars = table(pairs)
    bars = 100 * bars.div(bars.sum(axis=1), axis=0)
    bars = bars[[pair for pair in CELLS if pair in bars]].rename(columns=CELLS)
    add("orm", "Verified responses by both checks", draw_bars, bars, "verified responses, %")
    add("cost", "Training loss (running mean)", draw_loss, logs)
    steps = {name: stage["steps"] for name, stage in (stages | {"ORM": metrics["orm"]}).items()}
    add("cost", "Time by stage", draw_bars, table(steps) / 60, "minutes")
    return figures


def table(rows: dict[str, dict | None]) -> DataFrame:
    """A row a name, of those that have parts, and a column a part, without parts that are 0 in all."""
    parts = DataFrame({name: parts for name, parts in rows.items() if parts}, dtype=float).T.fillna(0)
    return parts.loc[:, parts.any()]
