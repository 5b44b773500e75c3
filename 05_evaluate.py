"""Evaluate a model on test sets, with the same answer check as the training data; or collect a run's evaluations.

Reads:  problems.jsonl files, benchmarks (mathvision:PATH) or hub data sets (hf:NAME:SPLIT)
Writes: OUTPUT/predictions.jsonl   problem + benchmark, sample, response, finish, tokens, answer_check, extracted, rule, official (by the benchmark's own rule)
        OUTPUT/metrics.json        conditions; for each benchmark n, correct, accuracy, unparsed, truncated, by subject and source
        RUN/metrics.json           with --run: every stage's metrics, data sizes, seconds, tokens, the ORM's audit

    python 05_evaluate.py --test toy/test.jsonl --output eval --model toy/base
    python 05_evaluate.py --test mathvision:MATH-V/testmini --output eval --model Qwen/Qwen2-VL-7B-Instruct --samples 8 --temperature 1.0
    python 05_evaluate.py --run runs/default
"""

import argparse
import json
import math
import os
from collections import Counter, defaultdict
from pathlib import Path
from typing import Iterator

from tqdm import tqdm

from answers import AnswerChecker, check_rows
from benchmarks import RULES, load_problems, parse_columns
from common import add_model_flags, check_flags, derive_seed, fail, processes, row_key, solve_messages
from engine import Request, open_model
from output import Output, disk_errors, expected_length, finished, share

EXAMPLES = 10  # of each disagreement between answer check and ORM, kept in a run's metrics.json


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--test", "--input", nargs="+", default=[], help="problems.jsonl, NAME:PATH or hf:NAME:SPLIT")
    parser.add_argument("--output", type=Path, help="folder to write")
    parser.add_argument("--model", help="model folder, hub id or http://host:port/v1#model-name")
    parser.add_argument("--samples", type=int, default=1, help="answers a problem; more than one gives pass@k and majority@k (default %(default)s)")
    parser.add_argument("--limit", type=int, default=0, help="only the first N problems of each test set (default %(default)s: all)")
    parser.add_argument("--workers", type=int, default=1, help="processes for mathematical comparisons (default %(default)s)")
    parser.add_argument("--columns", default="", help='columns of hub data sets, for example "question=problem images=image"')
    parser.add_argument("--run", type=Path, help="a run folder: collect its stages into metrics.json and print the table")
    add_model_flags(parser, max_tokens=2048)
    return parser.parse_args()


# ---------------------------------------------------------------- answers


def test_problems(args: argparse.Namespace) -> Iterator[dict]:
    names = set()
    for spec in args.test:
        name, rows = load_problems(spec, args.output / "images", parse_columns(args.columns))
        if name in names:
            fail(f"--test: {spec}: a second test set called {name}; evaluate it in a call of its own")
        names.add(name)
        for index, row in enumerate(rows):
            if args.limit and index >= args.limit:
                break
            yield row | {"benchmark": name}


def predict(args: argparse.Namespace, lengths: dict[tuple[str, str], int]) -> None:
    """Write predictions.jsonl: one row a problem and sample. `lengths`: of each (benchmark, id)."""
    output = Output(args.output / "predictions.jsonl", args)
    missing = {name: [k for k in range(args.samples) if row_key({"benchmark": name[0], "id": name[1], "sample": k}) not in output.done] for name in lengths}
    mine = share({name: lengths[name] * len(samples) for name, samples in missing.items() if samples})
    if mine:
        generate = open_model(args.model, args)

        def requests() -> Iterator[Request]:
            for row in test_problems(args):
                if (name := (row["benchmark"], row["id"])) in mine:
                    yield Request(row, solve_messages(row), {k: derive_seed(args.seed, "evaluate", row["id"], k) for k in missing[name]})

        def rows() -> Iterator[dict]:
            for reply in generate(requests()):
                yield reply.row | {"sample": reply.sample, "response": reply.text, "finish": reply.finish, "tokens": reply.tokens,
                                   "prompt_tokens": reply.prompt_tokens, "model": args.model, "seed": reply.seed} | ({"reason": reply.reason} if reply.reason else {})  # fmt: skip

        with AnswerChecker() as checker:
            for row in tqdm(check_rows(rows(), args.workers), total=sum(len(missing[name]) for name in mine), desc="evaluate", unit="answer", disable=None):
                if row["benchmark"] in RULES:
                    row["official"] = row["finish"] != "error" and RULES[row["benchmark"]](row, checker.same)
                output.write(row)
    output.finish(len(lengths) * args.samples)
    if processes()[0] == 0:
        output.wait()


# ---------------------------------------------------------------- figures


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Chance that one of k of the n samples is right, without bias (Chen et al. 2021, arXiv 2107.03374)."""
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def majority(rows: list[dict], k: int) -> bool:
    """Whether the answer given most often by the first k samples is right; the earliest wins a tie."""
    votes = Counter(row["extracted"] for row in rows[:k] if row["extracted"] is not None)
    return bool(votes) and any(row["answer_check"] == "correct" for row in rows[:k] if row["extracted"] == votes.most_common(1)[0][0])


def score(rows: list[dict]) -> dict:
    """The figures of one benchmark from its predictions (id, sample, extracted, answer_check, rule, finish, subject, source)."""
    problems = defaultdict(list)
    for row in sorted(rows, key=lambda row: row["sample"]):
        problems[row["id"]].append(row)
    groups, samples = list(problems.values()), max(map(len, problems.values()))

    def accuracy(part: list[list[dict]]) -> float:
        return sum(sum(row["answer_check"] == "correct" for row in group) / len(group) for group in part) / len(part)

    def split(field: str) -> dict:
        values = defaultdict(list)
        for group in groups:
            values[str(group[0].get(field))].append(group)
        return {value: {"n": len(part), "accuracy": round(accuracy(part), 4)} for value, part in sorted(values.items())}

    rate = accuracy(groups)
    figures = {
        "n": len(groups),
        "correct": sum(row["answer_check"] == "correct" for row in rows) if samples == 1 else round(rate * len(groups), 2),
        "accuracy": round(rate, 4),
        "standard_error": round(math.sqrt(rate * (1 - rate) / len(groups)), 4),
        "unparsed": round(sum(row["rule"] == "none" for row in rows) / len(rows), 4),
        "truncated": round(sum(row["finish"] == "length" for row in rows) / len(rows), 4),
        "errors": sum(row["finish"] == "error" for row in rows),
        "official": round(sum(bool(row["official"]) for row in rows) / len(rows), 4) if rows[0].get("official") is not None else None,
        "by_subject": split("subject"),
        "by_source": split("source"),
    }
    if samples > 1:
        ks = [k for k in (2**power for power in range(12)) if k <= samples]
        counts = [sum(row["answer_check"] == "correct" for row in group) for group in groups]
        figures["pass_at"] = {k: round(sum(pass_at_k(len(group), count, min(k, len(group))) for group, count in zip(groups, counts)) / len(groups), 4) for k in ks}
        figures["majority_at"] = {k: round(sum(majority(group, k) for group in groups) / len(groups), 4) for k in ks}
    return figures


def write_json(path: Path, content: dict) -> None:
    part = Path(f"{path}.part")
    part.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    part.replace(path)


def read_json_rows(path: Path) -> Iterator[dict]:
    if path.is_file():
        with path.open(encoding="utf-8") as file:
            yield from map(json.loads, file)


def evaluate(args: argparse.Namespace) -> None:
    target = args.output / "metrics.json"
    if args.retry_errors and (args.output / "predictions.jsonl").exists() and not finished(args.output / "predictions.jsonl", retry_errors=True):
        target.unlink(missing_ok=True)
    if finished(target):
        return
    lengths = {(row["benchmark"], row["id"]): expected_length(row) for row in test_problems(args)}  # checks every row before a model is loaded
    args.output.mkdir(parents=True, exist_ok=True)
    if not (args.output / "predictions.jsonl").exists():
        predict(args, lengths)
    if processes()[0]:
        return
    needed = ("id", "sample", "benchmark", "extracted", "answer_check", "rule", "finish", "subject", "source", "official")
    by_name = defaultdict(list)
    for row in read_json_rows(args.output / "predictions.jsonl"):
        by_name[row["benchmark"]].append({name: row.get(name) for name in needed})
    conditions = {name: getattr(args, name) for name in ("model", "test", "samples", "temperature", "top_p", "top_k", "max_tokens", "max_pixels", "seed", "limit")}
    figures = {name: score(rows) for name, rows in by_name.items()}
    write_json(target, {"conditions": conditions, "benchmarks": figures})
    for name, result in figures.items():
        extra = "".join(f", {key.replace('_at', '')}@{k} {value:.1%}" for key in ("pass_at", "majority_at") for k, value in result.get(key, {}).items() if k == max(result[key]))
        extra += f", by the benchmark's own rule {result['official']:.1%}" if result["official"] is not None else ""
        print(f"{name}: {result['accuracy']:.1%} of {result['n']} right{extra}; no answer found {result['unparsed']:.1%}, cut off {result['truncated']:.1%}, errors {result['errors']}")


# ---------------------------------------------------------------- a run's stages


DISAGREEMENTS = {("wrong", "correct"): "orm_accepts_wrong", ("correct", "wrong"): "orm_rejects_right"}  # (answer check, ORM check)


def audit(path: Path) -> dict:
    """Counts of a verified file: answer check x ORM check in all and by subject, the status, the ORM's replies without a verdict,
    the error steps found in their response, and the first EXAMPLES of each disagreement."""
    pairs, status, subjects, examples = Counter(), Counter(), defaultdict(Counter), defaultdict(list)
    steps, whole, failed = Counter(), 0, 0
    for row in read_json_rows(path):
        checks = row.get("answer_check"), row.get("orm_check")
        pairs["/".join(map(str, checks))] += 1
        subjects[str(row.get("subject"))]["/".join(map(str, checks))] += 1
        status[row["status"]] += 1
        if row.get("orm_check"):
            whole += row["finish"] == "stop"
            failed += row["finish"] == "stop" and row["orm_check"] == "undecided"
            steps[row.get("error_line") is not None] += bool(row["error_step"])
        kind = DISAGREEMENTS.get(checks) or ("no_verdict" if checks[1] == "undecided" and row["finish"] == "stop" else None)
        if kind and len(examples[kind]) < EXAMPLES:
            examples[kind].append({name: row.get(name) for name in ("id", "sample", "answer", "extracted", "response", "judge_reply", "error_line", "orm_confidence")})
    if not status:
        return {}
    counts = {"paths": sum(status.values()), "status": dict(status), "answer/orm": dict(pairs), "by_subject": {name: dict(subjects[name]) for name in sorted(subjects)}}
    return counts | {"judged": whole, "no_verdict": failed, "error_steps": {"given": steps.total(), "found": steps[True]}, "examples": dict(examples)}


def tokens_used(run: Path) -> dict:
    """Tokens of replies kept in the run's files, by who gave them."""
    used = {kind: {"prompt": 0, "new": 0} for kind in ("endpoint", "local")}
    for path in sorted(run.glob("*/*.jsonl")) + sorted(run.glob("*/eval/predictions.jsonl")):
        if path.name not in ("samples.jsonl", "annotated.jsonl", "reflected.jsonl", "predictions.jsonl"):
            continue
        for row in read_json_rows(path):
            if path.name == "annotated.jsonl":  # its samples are counted in samples.jsonl
                prompt, new, kind = *(row.get("judge_tokens") or (0, 0)), "endpoint"
            else:
                prompt, new, kind = row.get("prompt_tokens", 0), row.get("tokens", 0), "endpoint" if str(row.get("model")).startswith("http") else "local"
            used[kind]["prompt"] += prompt
            used[kind]["new"] += new
    return used


def collect(run: Path) -> None:
    """RUN/metrics.json and the table over the run's stages."""
    if not run.is_dir():
        fail(f"--run: {run}: no such folder")
    seconds = Counter()
    if (run / "timings.tsv").exists():
        for line in (run / "timings.tsv").read_text().splitlines():
            name, _, spent = line.partition("\t")
            seconds[name.split("/")[0]] += int(spent)
    rounds = sorted(run.glob("round_*"), key=lambda folder: int(folder.name.split("_")[1]))
    stages = []
    for folder in [run / "base", *rounds, run / "final"]:
        metrics = folder / "eval" / "metrics.json"
        if metrics.is_file():
            rows = sum(1 for _ in read_json_rows(folder / "train.jsonl"))
            stage = {"stage": folder.name, "train_rows": rows, "seconds": seconds[folder.name], "audit": audit(folder / "verified.jsonl")}
            stages.append(stage | {"benchmarks": json.loads(metrics.read_text(encoding="utf-8"))["benchmarks"]})
    if not stages:
        fail(f"--run: {run}: no stage has been evaluated in it yet")
    tokens, prices = tokens_used(run), [float(os.environ.get(name, 0)) for name in ("PRICE_IN", "PRICE_OUT")]
    cost = round((tokens["endpoint"]["prompt"] * prices[0] + tokens["endpoint"]["new"] * prices[1]) / 1e6, 4) if any(prices) else None
    write_json(run / "metrics.json", {"stages": stages, "seconds": sum(seconds.values()), "orm_seconds": seconds["orm"], "tokens": tokens, "cost": cost})
    print_table(stages)
    print(f"{sum(seconds.values()) // 60} min {sum(seconds.values()) % 60} s in all; tokens: {json.dumps(tokens)}; {run / 'metrics.json'}")


def print_table(stages: list[dict]) -> None:
    names = list(dict.fromkeys(name for stage in stages for name in stage["benchmarks"]))
    labels = {"base": "base", "round_0": "+ distilled", "final": "+ reflection"}
    width = max(16, *(len(name) for name in names))
    print(f"\n{'stage':<14} {'trained on':>10} {'paths':>7} {'accepted':>8} {'seconds':>7} " + " ".join(f"{name:>{width}}" for name in names))
    for stage in stages:
        label = labels.get(stage["stage"], f"+ {stage['stage'].replace('_', ' ')}")
        status = stage["audit"].get("status", {})
        cells = []
        for name in names:
            figures = stage["benchmarks"].get(name)
            cells.append(f"{figures['accuracy']:.1%} ± {1.96 * figures['standard_error']:.1%}" if figures else "-")
        counts = [stage["train_rows"] or "-", stage["audit"].get("paths", "-"), status.get("correct", "-"), stage["seconds"]]
        print(f"{label:<14} {counts[0]:>10} {counts[1]:>7} {counts[2]:>8} {counts[3]:>7} " + " ".join(f"{cell:>{width}}" for cell in cells))
    print("(accuracy: greedy pass@1 with its 95 % interval)\n")


def main() -> None:
    args = parse_args()
    check_flags(args)
    if not args.run and not (args.test and args.output and args.model):
        fail("--test, --output and --model: all three are needed (or --run alone)")
    if args.samples > 1 and args.temperature == 0:
        fail("--samples: more than one sample at --temperature 0 would be the same text; set --temperature 1.0")
    if args.test:
        evaluate(args)
    if args.run:
        collect(args.run)


if __name__ == "__main__":
    with disk_errors():
        main()
