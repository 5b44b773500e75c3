"""Evaluate a model on test sets, with the same answer check as the training data.

Reads:  problems.jsonl, parquet files, benchmarks (mathvision:FOLDER or hub id), hub data sets (hf:NAME:SPLIT)
Writes: OUTPUT/predictions.jsonl   problem + benchmark, prompt, sample, response, finish, tokens,
                                   answer_check, extracted, rule, official (by MATH-V's own rule)
        OUTPUT/metrics.json        conditions; for each benchmark n, accuracy, interval, unparsed, truncated,
                                   official, splits; against

Why answers are wrong, a teacher tells: 02_verify.py --annotate --input OUTPUT/predictions.jsonl.

    python 05_evaluate.py --test toy/test.jsonl --output eval --model toy/base
    python 05_evaluate.py --test mathvision:MATH-V/testmini --output eval --samples 8 --temperature 1.0 \\
        --model Qwen/Qwen2-VL-7B-Instruct
    python 05_evaluate.py --output runs/default/final/eval --against runs/default/round_0/eval
"""

from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path

from common import CLOSING, SOLVE_PROMPT, load, solve_prompt
from mathse import cli
from mathse.answers import check_rows, check_version, votes
from mathse.chat import harmless, user_message
from mathse.generate import Generator, Request
from mathse.images import blank_image
from mathse.jsonl import expected_length, write_json
from mathse.launch import processes, stage_end
from mathse.problems import RULES, SPLITS, open_source, parse_fields
from mathse.recipe import digest, fingerprint
from mathse.records import derive_seed, fail, read_json, row_key
from mathse.report.comparison import print_change, print_scores
from mathse.report.statistics import (
    by_problem,
    mean,
    pass_at_k,
    predictions,
    right_share,
    share_of,
    split_by,
)  # fmt: skip
from mathse.stage import run_stage

PREDICTIONS = "predictions.jsonl"


def parse_args() -> Namespace:
    parser = cli.Parser(__doc__)
    add, whole = parser.add_argument, cli.whole
    add("--test", nargs="+", default=[], help="x.jsonl, x.parquet, NAME:FOLDER or hf:NAME:SPLIT")
    add("--output", type=Path, required=True, help="folder to write")
    add("--model", help="model folder, hub id or http://host:port/v1#model-name")
    add("--samples", type=whole(1), default=1, help="answers a problem, for pass@k (default %(default)s)")
    add("--limit", type=whole(0), default=0, help="first N problems a test set (default %(default)s: all)")
    add("--prompt", choices=["solve", "benchmark"], default="solve", help="ours, or the benchmark's own")
    add("--blank-image", action="store_true", help="show white images of the same size instead")
    add("--against", type=Path, help="folder of another evaluation: print the change from it")
    add("--fields", default="", help='columns of tables, such as "question=problem images=image"')
    cli.add_generation_flags(parser, max_tokens=2048)
    cli.add_output_flags(parser)
    return parser.parse_args()


# ---------------------------------------------------------------- what a score is


def majority(rows: list[dict], k: int) -> bool:
    """Whether the answer that most of the first k samples give, by its value, is right; the earliest wins."""
    right = [row["answer_check"] == "correct" for row in rows[:k]]
    answers = enumerate(row["extracted"] for row in rows[:k])
    groups = votes(answers, rows[0].get("options"))
    return any(right[number] for number in max(groups, key=len, default=[]))


def score(rows: list[dict], splits: dict[str, str]) -> dict:
    """The figures of a benchmark. `splits`: {name: field of the row}, such as {"task": "subject"}."""
    groups = list(by_problem(rows).values())
    figures = share_of(groups) | {
        "correct": round(sum(map(right_share, groups)), 2),
        "unparsed": mean(row["rule"] == "none" for row in rows),
        "truncated": mean(row["finish"] == "length" for row in rows),
        "errors": sum(row["finish"] == "error" for row in rows),
        "official": share_of(groups, "official") if rows[0].get("benchmark") in RULES else None,
        "splits": {name: split_by(groups, field) for name, field in splits.items()},
    }
    if (samples := max(map(len, groups))) > 1:
        ks = [2**power for power in range(12) if 2**power <= samples]
        figures["pass_at"] = {k: mean(pass_at(group, k) for group in groups) for k in ks}
        figures["majority_at"] = {k: mean(majority(group, k) for group in groups) for k in ks}
    return figures


def pass_at(group: list[dict], k: int) -> float:
    correct = sum(row["answer_check"] == "correct" for row in group)
    return pass_at_k(len(group), correct, min(k, len(group)))


def conditions_of(args: Namespace) -> dict:
    """What a score depends on beside the test set. Scores under other conditions are not comparable."""
    names = ("model", "test", "limit", "samples", "temperature", "top_p", "top_k", "max_tokens", "max_pixels")
    conditions = {name: getattr(args, name) for name in (*names, "blank_image", "seed")}
    prompt = f"solve {digest(SOLVE_PROMPT)[:8]}" if args.prompt == "solve" else "benchmark"
    return conditions | {"prompt": prompt, "rule": check_version()}


# ---------------------------------------------------------------- answers


def test_problems(args: Namespace) -> Iterator[dict]:
    """The problems of all test sets, each with the name of its benchmark."""
    for spec, (name, rows) in open_tests(args).items():
        for _, row in rows:
            if args.prompt == "benchmark" and not row.get("query"):
                remedy = "has no prompt of its own (field query); use --prompt solve"
                fail(f"--prompt: benchmark: {spec}: {row['id']}: {remedy}")
            yield row | {"benchmark": name}


def open_tests(args: Namespace) -> dict[str, tuple[str, Iterator[tuple[str, dict]]]]:
    """{spec: (name, its problems with their places)}; a test set that does not exist ends the command."""
    tests, fields = {}, parse_fields(args.fields)
    for spec in args.test:
        name, rows = open_source(spec, args.output / "images", fields, args.limit)
        if any(name == other for other, _ in tests.values()):
            remedy = "rename it, or evaluate it in a call of its own"
            fail(f"--test: {spec}: a second test set called {name}; {remedy}")
        tests[spec] = name, rows
    return tests


def requests(args: Namespace, missing: dict[str, list[int]]) -> Iterator[Request]:
    """A request for each problem of which samples are missing: {key of the problem: their numbers}."""
    for row in test_problems(args):
        if numbers := missing.get(row_key(row)):
            prompt = solve_prompt(row) if args.prompt == "solve" else harmless(str(row["query"]))
            seeds = {k: derive_seed(args.seed, "evaluate", row["id"], k) for k in numbers}
            asked = row | {"prompt": prompt, "own_images": row["images"]}
            if args.blank_image:
                asked["images"] = [blank_image(image, args.output / "images") for image in row["images"]]
            yield Request(asked, user_message(prompt, row["images"]), seeds)


def predict(args: Namespace, generate: Generator, missing: dict[str, list[int]]) -> Iterator[dict]:
    """Predictions: replies with the verdict of the answer check, and of the benchmark's own rule."""
    replies = generate(requests(args, missing))
    rows = (reply.row | reply.record(args.model) | {"images": reply.row["own_images"]} for reply in replies)
    for row in check_rows(rows, CLOSING):
        del row["own_images"]
        if rule := RULES.get(row["benchmark"]):
            row["official"] = row["finish"] != "error" and rule(row)
        yield row


# ---------------------------------------------------------------- figures


def write_metrics(args: Namespace) -> None:
    """metrics.json from the predictions; nothing if it is made from the same, by the same recipe."""
    target, made = args.output / "metrics.json", (PREDICTIONS, f"{PREDICTIONS}.recipe.json")
    made_from = [fingerprint(str(args.output / name)) for name in made]
    if read_json(target).get("made_from") == made_from:
        return
    figures = {}
    for name, rows in predictions(args.output).items():
        known = [row for row in rows if row["answer_check"] is not None]
        unknown = len({row["id"] for row in rows}) - len({row["id"] for row in known})
        if known:
            figures[name] = score(known, SPLITS.get(name, SPLITS[None])) | {"without_answer": unknown}
        else:
            print(f"{name}: no score, because none of its {unknown} problems has an answer")
    metrics = {"conditions": conditions_of(args), "benchmarks": figures, "made_from": made_from}
    write_json(target, metrics)
    print_scores(metrics)


# ---------------------------------------------------------------- the stage


def check_args(args: Namespace) -> None:
    """End the command on flags that do not go together, before anything is read."""
    compare_only = args.against and not args.test and (args.output / "metrics.json").is_file()
    if not compare_only and not (args.test and args.model):
        needed = "both are needed; to compare two evaluations with --against, --output must be one"
        fail(f"--test and --model: {needed}")
    if args.against and not (args.against / "metrics.json").is_file():
        fail(f"--against: {args.against}: no metrics.json in it; name the --output of another evaluation")
    cli.check_sampling(args, "--samples", args.samples)
    open_tests(args)
    if args.model:
        cli.check_model(args, args.model)


def lengths(args: Namespace) -> dict[str, int]:
    problems = cli.watch_references(test_problems(args), "--test")
    return {row_key(row): expected_length(row) for row in problems}


def main() -> None:
    args = parse_args()
    check_args(args)
    if args.test:
        run_stage(
            args,
            __file__,
            load,
            output=args.output / PREDICTIONS,
            inputs=("test", "model"),
            without=("against",),
            constants={"answer check": check_version()},
            keys=lambda check: lengths(args),
            samples=args.samples,
            rows=lambda generate, missing: predict(args, generate, missing),
        )
    if args.dry_run is not None or processes()[0]:
        return
    if args.test:
        write_metrics(args)
    if args.against:
        print_change(args.output, args.against, args.seed)


if __name__ == "__main__":
    with stage_end():
        main()
