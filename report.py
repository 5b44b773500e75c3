"""A run folder -> metrics.json, the table over its stages, and report.html: one page that opens from disk, with no network.

Reads:  RUN/config.json, problems.jsonl, timings.tsv, spent.tsv, {base,round_*,final}/{samples,verified,train,reflected}.jsonl, eval/{metrics.json,*.jsonl},
        blank/ where a stage was evaluated with --blank-image too
Writes: RUN/metrics.json   stages (train_rows, seconds, tokens, benchmarks, changes from the stage before, blank, audit, yield), overall, pool, tokens, cost
        RUN/ledger.jsonl   a row a problem: benchmark, id, subject, checks by stage (test problems); id, subject, first_solved (training problems)
        RUN/report.html    the same with figures and a gallery of problems

    python report.py runs/default
    python report.py --watch runs/default                # a one-screen summary of a run under way
    PRICE_IN=2.5 PRICE_OUT=10 python report.py runs/qwen  # dollars a million tokens of endpoints, for the cost
"""

import argparse
import json
import math
import re
import sys
import time
from array import array
from collections import Counter, defaultdict
from functools import lru_cache
from pathlib import Path

from common import fail
from endpoint import price, read_spent
from output import disk_errors, write_json
from report_page import label, write_page
from scores import audit, compare, differing, predictions, read_json_rows, wilson

REFRESH = 5  # seconds between two looks of --watch
SAMPLED = ("samples.jsonl", "reflected.jsonl", "predictions.jsonl")  # rows with the tokens of a reply
JUDGED = ("verified.jsonl", "reflected_verified.jsonl", "annotated.jsonl", "judged.jsonl", "errors.jsonl")  # rows with those of a judge's reply


def stage_folders(run: Path) -> list[Path]:
    rounds = sorted(run.glob("round_*"), key=lambda folder: int(folder.name.split("_")[1]))
    folders = (run / "base", *rounds, run / "final")  # of a round that is no longer asked for, a folder may stay
    return [folder for folder in folders if (folder / "eval" / "metrics.json").is_file() or (folder / "verified.jsonl").is_file()]


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


# ---------------------------------------------------------------- what a run's files say


def yield_of(folder: Path, subject_of: dict[str, str]) -> dict:
    """From sampled paths to training rows, by subject; lengths and cut-off shares of the sampled paths."""
    subjects, lengths, finish = defaultdict(Counter), array("l"), Counter()
    for row in read_json_rows(folder / "verified.jsonl"):
        counts = subjects[str(row.get("subject"))]
        counts["sampled"] += 1
        counts["correct"] += row["status"] == "correct"
        finish[row["finish"]] += 1
        lengths.append(row.get("tokens") or 0)
    if not lengths:
        return {}
    for row in read_json_rows(folder / "train.jsonl"):
        subjects[str(subject_of.get(row["id"]))]["trained"] += 1
    ordered = sorted(lengths)
    tokens = {name: ordered[min(len(ordered) - 1, int(len(ordered) * share))] for name, share in (("median", 0.5), ("p95", 0.95), ("max", 1.0))}
    rates = {name: round(finish[key] / len(ordered), 4) for name, key in (("truncated", "length"), ("errors", "error"))}
    return {"by_subject": {name: dict(subjects[name]) for name in sorted(subjects)}, "tokens": tokens} | rates


def tokens_used(run: Path, counted: dict | None = None) -> dict[str, dict]:
    """{stage: {"endpoint" or "local": [tokens in, tokens out]}} of all replies kept in the run's files, also those being written.

    `counted`: what an earlier call has counted, by file; only what was written since is read.
    """
    settings, counted, used = read_json(run / "config.json").get("settings", {}), {} if counted is None else counted, {}
    judges = {"annotated.jsonl": settings.get("TEACHER") or "http", "verified.jsonl": settings.get("ORM"), "reflected_verified.jsonl": settings.get("ORM")}
    for path in sorted(run.rglob("*.jsonl*")):
        stage, name = path.relative_to(run).parts[0], path.name.removesuffix(".part")
        if name not in SAMPLED + JUDGED or not re.fullmatch(r"base|orm|round_\d+|final", stage):
            continue
        offset, total = counted.get(path, (0, {"endpoint": [0, 0], "local": [0, 0]}))
        with path.open("rb") as file:
            file.seek(offset)
            for line in file:
                if not line.endswith(b"\n"):  # is being written
                    break
                row, offset = json.loads(line), offset + len(line)
                if name in SAMPLED:
                    model, counts = row.get("model"), (row.get("prompt_tokens"), row.get("tokens"))
                else:
                    model, counts = row.get("judge_model") or judges.get(name), row.get("judge_tokens") or (0, 0)
                place = total["endpoint" if str(model).startswith("http") else "local"]
                place[:] = [before + (count or 0) for before, count in zip(place, counts)]
        counted[path] = offset, total
        stage_total = used.setdefault(stage, {"endpoint": [0, 0], "local": [0, 0]})
        for who, counts in total.items():
            stage_total[who] = [before + count for before, count in zip(stage_total[who], counts)]
    return used


def cost_of(tokens: dict[str, dict], run: Path) -> float | None:
    """Dollars for what endpoints were asked, by PRICE_IN and PRICE_OUT in dollars a million tokens; None without prices.

    By the replies in the run's files or, if that is more, by spent.tsv, which counts failed requests and replies since removed, but no judge asked by hand.
    """
    prices = [price(name) for name in ("PRICE_IN", "PRICE_OUT")]
    kept = [sum(stage["endpoint"][index] for stage in tokens.values()) for index in range(2)]
    spent = read_spent(run / "spent.tsv")[1] if (run / "spent.tsv").is_file() else kept
    return round(max(sum(count * each for count, each in zip(counts, prices)) for counts in (kept, spent)) / 1e6, 4) if any(prices) else None


def seconds_spent(run: Path) -> dict[str, dict[str, int]]:
    """{stage: {step: seconds}} from timings.tsv."""
    spent = defaultdict(Counter)
    if (run / "timings.tsv").is_file():
        for line in (run / "timings.tsv").read_text(encoding="utf-8").splitlines():
            name, _, seconds = line.partition("\t")
            stage, _, step = name.rpartition("/")
            spent[stage.split("/")[0] or "run"][re.sub(r"\.jsonl?$", "", "evaluation" if name.endswith("eval/metrics.json") else step)] += int(seconds)
    return {stage: dict(steps) for stage, steps in spent.items()}


def ledger(run: Path, stages: list[Path]) -> dict:
    """Writes ledger.jsonl; returns the training pool's problems and how many each stage solved first, by subject too."""
    checks, subjects = defaultdict(dict), {}
    for folder in stages:
        for name, rows in predictions(folder / "eval", lambda row: {key: row.get(key) for key in ("id", "sample", "answer_check", "subject")}).items():
            for row in rows:
                if row["sample"] == 0:
                    checks[name, row["id"]][folder.name], subjects[name, row["id"]] = row["answer_check"], row["subject"]
    first = {}
    for folder in stages:
        for file in ("verified.jsonl", "reflected_verified.jsonl"):
            for row in read_json_rows(folder / file):
                if row["status"] == "correct":
                    first.setdefault(row["id"], folder.name)
    solved, totals, part = defaultdict(Counter), Counter(), run / "ledger.jsonl.part"
    with part.open("w", encoding="utf-8") as file:
        for (name, problem), by_stage in checks.items():
            file.write(json.dumps({"benchmark": name, "id": problem, "subject": subjects[name, problem], "checks": by_stage}, ensure_ascii=False) + "\n")
        for row in read_json_rows(run / "problems.jsonl"):
            subject, stage = str(row.get("subject")), first.get(row["id"])
            totals[subject] += 1
            solved[subject][stage] += stage is not None
            file.write(json.dumps({"id": row["id"], "subject": row.get("subject"), "first_solved": stage}, ensure_ascii=False) + "\n")
    part.replace(run / "ledger.jsonl")
    by_stage = {folder.name: sum(counts[folder.name] for counts in solved.values()) for folder in stages if folder.name != "base"}
    return {"problems": totals.total(), "first_solved": by_stage, "by_subject": {name: {"problems": totals[name]} | {k: v for k, v in solved[name].items() if k} for name in sorted(totals)}}


def collect(run: Path) -> dict:
    """A run's metrics from its files, written to metrics.json."""
    folders = [folder for folder in stage_folders(run) if (folder / "eval" / "metrics.json").is_file()]
    if not folders:
        fail(f"{run}: no stage has been evaluated in it yet")
    seconds, tokens = seconds_spent(run), tokens_used(run)
    subject_of = {row["id"]: row.get("subject") for row in read_json_rows(run / "problems.jsonl")}
    stages, before, first = [], {}, {}
    for folder in folders:
        evaluation = read_json(folder / "eval" / "metrics.json")
        now = predictions(folder / "eval", lambda row: {name: row[name] for name in ("id", "sample", "answer_check")})
        changes = {name: compare(before[name], rows) for name, rows in now.items() if name in before}
        blank = predictions(folder / "blank", lambda row: {name: row[name] for name in ("id", "sample", "answer_check")})
        first, before = first or now, now
        stages.append({
            "stage": folder.name, "train_rows": sum(1 for _ in read_json_rows(folder / "train.jsonl")), "seconds": sum(seconds.get(folder.name, {}).values()),
            "steps": seconds.get(folder.name, {}), "tokens": tokens.get(folder.name), "conditions": evaluation.get("conditions", {}), "benchmarks": evaluation["benchmarks"],
            "changes": changes, "blank": {name: compare(rows, now[name]) for name, rows in blank.items() if name in now}, "audit": audit(read_json_rows(folder / "verified.jsonl")), "yield": yield_of(folder, subject_of),
        })  # fmt: skip
        stages[-1]["not_comparable"] = differing(stages[0]["conditions"], stages[-1]["conditions"])
    total = {who: dict(zip(("prompt", "new"), map(sum, zip(*(stage[who] for stage in tokens.values()))))) or {"prompt": 0, "new": 0} for who in ("endpoint", "local")}
    metrics = {
        "stages": stages, "overall": {name: compare(first[name], rows) for name, rows in before.items() if name in first}, "pool": ledger(run, stage_folders(run)),
        "seconds": sum(map(sum, map(dict.values, seconds.values()))), "orm": {"steps": seconds.get("orm", {}), "tokens": tokens.get("orm")}, "tokens": total, "cost": cost_of(tokens, run),
    }  # fmt: skip
    write_json(run / "metrics.json", metrics)
    return metrics


def print_table(metrics: dict) -> None:
    stages = metrics["stages"]
    names = list(dict.fromkeys(name for stage in stages for name in stage["benchmarks"]))
    width = max(22, *(len(name) for name in names))
    print(f"\n{'stage':<14} {'trained on':>10} {'paths':>7} {'accepted':>8} {'seconds':>7} " + " ".join(f"{name:>{width}}" for name in names))
    for stage in stages:
        cells = []
        for name in names:
            figures = stage["benchmarks"].get(name)
            cells.append(f"{figures['accuracy']:.1%} [{figures['interval'][0]:.1%}, {figures['interval'][1]:.1%}]" + "*" * bool(stage["not_comparable"]) if figures else "-")
        counts = [stage["train_rows"] or "-", stage["audit"].get("paths", "-"), stage["audit"].get("status", {}).get("correct", "-"), stage["seconds"]]
        print(f"{label(stage['stage']):<14} {counts[0]:>10} {counts[1]:>7} {counts[2]:>8} {counts[3]:>7} " + " ".join(f"{cell:>{width}}" for cell in cells))
    samples = stages[0]["conditions"].get("samples", 1)
    print(f"(accuracy of {samples} answer{'s' * (samples > 1)} a problem with its 95 % interval)")
    if differ := sorted({name for stage in stages for name in stage["not_comparable"]}):
        print(f"(* not comparable with the first stage: other {', '.join(differ)})")
    for name, change in metrics["overall"].items():
        test = f", McNemar's p {change['p']:.2g}" if change and change["p"] is not None else ""
        print(f"{name}: {change['change']:+.1%} from first to last stage [{change['interval'][0]:+.1%}, {change['interval'][1]:+.1%}] on {change['n']} problems{test}" if change else "")


def print_totals(metrics: dict) -> None:
    cost = f"; endpoints cost ${metrics['cost']:.2f}" if metrics["cost"] is not None else ""
    tokens = ", ".join(f"{who} {count['prompt']:,} in and {count['new']:,} out" for who, count in metrics["tokens"].items())
    print(f"{metrics['seconds'] // 60} min {metrics['seconds'] % 60} s in all; tokens: {tokens}{cost}")


# ---------------------------------------------------------------- a run under way


def count_lines(path: Path) -> int:
    if not path.is_file():
        return 0
    with path.open("rb") as file:
        return sum(chunk.count(b"\n") for chunk in iter(lambda: file.read(1 << 20), b""))


@lru_cache(maxsize=4)
def solved_problems(files: tuple[Path, ...]) -> int:
    """How many problems these finished verified files solve."""
    return len({row["id"] for path in files for row in read_json_rows(path) if row["status"] == "correct"})


def progress(run: Path) -> tuple[Path, int, int | None] | None:
    """(what is being written, done, of how many if that can be told): rows of a .part file, or steps of a fine-tuning."""
    parts = [path for path in run.rglob("*.part") if path.is_file() and path.suffixes[-2:-1] == [".jsonl"]] + list(run.glob("*/model.part/train_log.jsonl"))
    if not parts:
        return None
    path = max(parts, key=lambda part: part.stat().st_mtime)
    name, folder, settings = path.name.removesuffix(".part"), path.parent, read_json(run / "config.json").get("settings", {})
    if name == "train_log.jsonl":
        training = read_json(folder / "training.json")["settings"]
        return folder, count_lines(path), math.ceil(count_lines(folder.parent / "train.jsonl") * training["epochs"] / training["batch_size"])
    total, step = None, (run / ".step").read_text(encoding="utf-8").split("\t") if (run / ".step").is_file() else []
    if name in ("verified.jsonl", "reflected_verified.jsonl"):
        total = count_lines(folder / ("samples.jsonl" if name == "verified.jsonl" and (folder / "samples.jsonl").is_file() else "reflected.jsonl"))
    elif name == "predictions.jsonl":
        total = sum(figures["n"] for figures in read_json(run / "base" / "eval" / "metrics.json").get("benchmarks", {}).values())
    elif name == "reflected.jsonl" or name == "samples.jsonl" and re.fullmatch(r"round_[1-9]\d*", folder.name):
        total = (count_lines(run / "problems.jsonl") - solved_problems(tuple(sorted(run.glob("*/*verified.jsonl"))))) * (int(settings.get("SAMPLES", 1)) if name == "samples.jsonl" else 1)
    elif step and step[0] == str((folder / name).relative_to(run)):
        total = int(step[1])
    return path, count_lines(path), total or None


def screen(run: Path, seen: dict[Path, tuple[float, int]], counted: dict) -> str:
    """The summary of a run under way; `seen`: (time, rows done) of each file when it was first looked at, for the pace; `counted`: as in tokens_used."""
    settings, seconds, tokens = read_json(run / "config.json").get("settings", {}), seconds_spent(run), tokens_used(run, counted)
    steps = sum(map(len, seconds.values()))
    lines = [f"{run}: {settings.get('MODEL', '?')}, {settings.get('ROUNDS', '?')} rounds; {steps} steps done in {sum(map(sum, map(dict.values, seconds.values()))) / 60:.1f} min"]
    now, current = time.time(), progress(run)
    if (run / "report.html").is_file():
        lines.append(f"complete: {run / 'report.html'}")
    elif current is None:
        lines.append("nothing is being written just now")
    else:
        path, done, total = current
        since, before = seen.setdefault(path, (now, done))
        if now - since < 2 * REFRESH and (run / "timings.tsv").is_file():  # not long enough for a pace: from the end of the step before
            since, before = max((run / name).stat().st_mtime for name in ("timings.tsv", ".step", ".lock") if (run / name).exists()), 0
        pace = (done - before) / max(1e-9, now - since)
        left = f", about {(total - done) / pace / 60:.1f} min left" if total and pace > 0 else ""
        newest = max((file.stat().st_mtime for file in [path, *path.glob("*")]), default=now)
        lines.append(f"now: {path.relative_to(run)}: {done}{f' of {total} ({done / total:.0%})' if total else ''}, {pace:.1f} a second{left}; last written {now - newest:.0f} s ago")
        rows = Counter(row.get("status") or row.get("answer_check") for row in read_json_rows(path)) if path.is_file() else Counter()
        if rows.total() and (rows["correct"] or rows["wrong"]):
            low, high = wilson(rows["correct"], rows.total())
            lines.append(f"  so far {rows['correct']} of {rows.total()} correct: {rows['correct'] / rows.total():.1%} [{low:.1%}, {high:.1%}]")
    for folder in stage_folders(run):
        for name, figures in read_json(folder / "eval" / "metrics.json").get("benchmarks", {}).items():
            low, high = wilson(figures["correct"], figures["n"])
            lines.append(f"  {label(folder.name):<14} {name}: {figures['accuracy']:.1%} [{low:.1%}, {high:.1%}] of {figures['n']}")
    lines.append("tokens: " + "; ".join(f"{who} {sum(stage[who][0] for stage in tokens.values()):,} in, {sum(stage[who][1] for stage in tokens.values()):,} out" for who in ("endpoint", "local"))
                 + (f"; cost ${cost:.2f}" if (cost := cost_of(tokens, run)) is not None else ""))  # fmt: skip
    return "\n".join(lines)


def watch(run: Path) -> None:
    """Show the summary until the run is complete; once, if the output is not a terminal."""
    seen: dict[Path, tuple[float, int]] = {}
    counted: dict = {}
    while True:
        try:
            text = screen(run, seen, counted)
        except FileNotFoundError:  # renamed while it was looked for: it is complete
            time.sleep(0.1)
            continue
        print(("\033[H\033[2J" if sys.stdout.isatty() else "") + text, flush=True)
        if not sys.stdout.isatty() or (run / "report.html").is_file():
            return
        time.sleep(REFRESH)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run folder, for example runs/default (no default)")
    parser.add_argument("--watch", action="store_true", help=f"summary of a run under way, every {REFRESH} seconds until it is complete; once if the output is not a terminal")
    args = parser.parse_args()
    if not args.run.is_dir():
        fail(f"{args.run}: no such folder; name a run, for example runs/default")
    if args.watch:
        watch(args.run)
        return
    metrics = collect(args.run)
    page = write_page(args.run, metrics, read_json(args.run / "config.json"), stage_folders(args.run))
    print_table(metrics)
    print_totals(metrics)
    print(f"report: {page}")


if __name__ == "__main__":
    with disk_errors():
        main()
