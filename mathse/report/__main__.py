"""A run folder -> metrics.json, the table over its stages, and report.html: one page that needs no network.

Reads:  RUN/config.json, problems.jsonl, spent.tsv, {base,round_*,final}/{verified,train}.jsonl,
        eval/{metrics.json,*.jsonl}, recipes; blank/ of a stage evaluated with --blank-image too
Writes: RUN/metrics.json   stages (train_rows, seconds, tokens, benchmarks, changes from the stage before,
                           blank, audit, truth, yield), overall, pool, tokens, cost
        RUN/ledger.jsonl   a row a problem: benchmark, id, subject, checks by stage (test problems); id,
                           subject, first_solved (training problems)
        RUN/report.html    the same with figures, and a gallery of problems

    python -m mathse.report runs/default
    PRICE_IN=2.5 PRICE_OUT=10 python -m mathse.report runs/qwen   # prices of a million tokens, for the cost
"""

from pathlib import Path

from mathse.cli import Parser
from mathse.jsonl import write_json
from mathse.launch import stage_end
from mathse.records import fail
from mathse.report.metrics import (
    collect,
    label,
    orm_folders,
    read_digest,
    read_json,
    read_settings,
    stage_folders,
)
from mathse.report.page import write_page
from mathse.report.statistics import percent, truth_lines

OUTPUTS = ("metrics.json", "ledger.jsonl", "report.html")


def report(run: Path) -> dict:
    """Write the run's metrics, ledger and page, unless they are made from the same; returns the metrics."""
    settings = read_settings(run)
    folders = stage_folders(run, settings)
    made_from = read_digest(run, [*folders, *orm_folders(run, settings)])
    metrics = read_json(run / "metrics.json")
    if metrics.get("made_from") == made_from and all((run / name).is_file() for name in OUTPUTS):
        print(f"skip {run / 'report.html'}")
        return metrics
    metrics = collect(run, settings) | {"made_from": made_from}
    write_page(run, metrics, settings, folders)
    write_json(run / "metrics.json", metrics)
    return metrics


def print_table(metrics: dict) -> None:
    """A line a stage, and the change from the first to the last."""
    stages = metrics["stages"]
    names = list(dict.fromkeys(name for stage in stages for name in stage["benchmarks"]))
    width = max(22, *map(len, names))
    heads = " ".join(f"{name:>{width}}" for name in names)
    print(f"\n{'stage':<14} {'trained on':>10} {'paths':>7} {'accepted':>8} {'seconds':>7} {heads}")
    for stage in stages:
        mark = "*" if stage["not_comparable"] else ""
        found = [stage["benchmarks"].get(name) for name in names]
        cells = " ".join(f"{percent(one) + mark if one else '-':>{width}}" for one in found)
        paths = stage["audit"].get("paths", "-")
        accepted = stage["audit"].get("status", {}).get("correct", "-")
        counts = f"{stage['train_rows'] or '-':>10} {paths:>7} {accepted:>8} {stage['seconds']:>7.0f}"
        print(f"{label(stage['stage']):<14} {counts} {cells}")
    samples = stages[0]["conditions"].get("samples", 1)
    print(f"(accuracy of {samples} answer{'s' * (samples > 1)} a problem, with its 95 % interval)")
    if differ := sorted({name for stage in stages for name in stage["not_comparable"]}):
        print(f"(* not comparable with the first stage: other {', '.join(differ)})")
    for name, change in metrics["overall"].items():
        if change:
            low, high = change["interval"]
            test = f", McNemar's p {change['p']:.2g}" if change["p"] is not None else ""
            text = f"{change['change']:+.1%} from first to last stage [{low:+.1%}, {high:+.1%}]"
            print(f"{name}: {text} on {change['n']} problems{test}")


def print_truth(metrics: dict) -> None:
    """How often the ORM is right by the teacher too, where the run asked it."""
    for stage in metrics["stages"]:
        for line in truth_lines(stage["truth"]):
            print(f"{label(stage['stage']):<14} {line}")


def print_totals(metrics: dict) -> None:
    """Time, tokens and cost of the run."""
    cost = f"; endpoints cost ${metrics['cost']:.2f}" if metrics["cost"] is not None else ""
    minutes, seconds = divmod(round(metrics["seconds"]), 60)
    totals = metrics["tokens"].items()
    tokens = ", ".join(f"{who} {count['prompt']:,} in and {count['new']:,} out" for who, count in totals)
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
    print_truth(metrics)
    print_totals(metrics)
    print(f"report: {run / 'report.html'}")


if __name__ == "__main__":
    with stage_end():
        main()
