"""A run folder -> metrics.json, the table over its stages, and report.html: one page that needs no network.

Reads:  RUN/config.json, problems.jsonl, spent.tsv, and of each stage verified.jsonl, train.jsonl, eval/, the
        log of its fine-tuning, recipes
Writes: RUN/metrics.json   stages (train_rows, seconds, steps, tokens, benchmarks, changes, audit), overall,
                           pool, tokens, cost
        RUN/report.html    the same with figures, and a gallery of responses

    python -m mathse.report runs/default
    PRICE_IN=2.5 PRICE_OUT=10 python -m mathse.report runs/qwen   # prices of a million tokens, for the cost
"""

from pathlib import Path

from mathse.cli import Parser
from mathse.jsonl import write_json
from mathse.launch import stage_end
from mathse.records import fail, read_json
from mathse.report.metrics import collect, folders_of, label
from mathse.report.statistics import percent, points


def report(run: Path) -> dict:
    """Write the run's metrics and page; returns the metrics."""
    settings = read_json(run / "config.json").get("settings", {})  # none of a folder that was made by hand
    folders = folders_of(run, settings)
    from mathse.report.page import write_page  # matplotlib, which looks for a home when it is imported

    metrics = collect(run, folders, settings)
    write_page(run, metrics, settings, folders)
    write_json(run / "metrics.json", metrics)
    return metrics


def print_table(metrics: dict) -> None:
    """A line a stage, and what the columns mean."""
    stages = metrics["stages"]
    lines = [["stage", "trained on", "responses", "accepted", "seconds", *metrics["tests"]]]
    for stage in stages:
        audit, mark = stage["audit"], "*" if stage["not_comparable"] else ""
        accepted = audit.get("status", {"correct": "-"}).get("correct", 0)
        counts = [stage["train_rows"] or "-", audit.get("responses", "-"), accepted, round(stage["seconds"])]
        found = (stage["benchmarks"].get(name) for name in metrics["tests"])
        shares = [percent(share) + mark if share else "-" for share in found]
        lines.append([label(stage["stage"]), *map(str, counts), *shares])
    widths = [max(map(len, column)) for column in zip(*lines)]
    print()
    for name, *cells in lines:
        print(f"{name:{widths[0]}}", *(f"{cell:>{width}}" for cell, width in zip(cells, widths[1:])))
    print("trained on: rows, of all stages so far; responses: verified solutions of training problems")
    for name in metrics["tests"]:
        print(f"{name}: share of its test problems that are answered right, with the 95 % interval")
        if change := metrics["overall"].get(name):
            until = f"from the first to the last stage, on {change['n']} problems"
            print(f"{' ' * len(name)}  {points(change)} {until}")
    if differ := sorted({name for stage in stages for name in stage["not_comparable"]}):
        print(f"* not comparable with the first stage: other {', '.join(differ)}")


def print_totals(metrics: dict) -> None:
    """Time, tokens and cost of the run."""
    minutes, seconds = divmod(round(metrics["seconds"]), 60)
    counts = ((who, count.get("prompt", 0), count.get("new", 0)) for who, count in metrics["tokens"].items())
    tokens = ", ".join(f"{who} {read:,} in and {written:,} out" for who, read, written in counts)
    cost = f"; endpoints cost ${metrics['cost']:.2f}" if metrics["cost"] is not None else ""
    print(f"{minutes} min {seconds} s in all; tokens: {tokens}{cost}")


def main() -> None:
    parser = Parser(__doc__)
    parser.prog = "python -m mathse.report"
    parser.add_argument("run", type=Path, help="a run folder, for example runs/default (no default)")
    run = parser.parse_args().run
    if not run.is_dir():
        fail(f"{run}: no such folder; bash run_rounds.sh makes runs/default")
    metrics = report(run)
    print_table(metrics)
    print_totals(metrics)
    print(f"report: {run / 'report.html'}")


if __name__ == "__main__":
    with stage_end():
        main()
