"""Evaluate a model on test sets, with the same answer check as the training data.

Reads:  problems.jsonl, parquet files, benchmarks (mathvision:FOLDER or hub id), hub data sets (hf:NAME:SPLIT)
Writes: OUTPUT/predictions.jsonl   problem + benchmark, prompt, sample, response, finish, tokens,
                                   answer_check, extracted, rule, official (by MATH-V's own rule)
        OUTPUT/judged.jsonl        --judge: id, sample, benchmark, judge_extracted, judge_check, judge_reply,
                                   judge_tokens
        OUTPUT/errors.jsonl        --classify, of wrong answers: id, sample, benchmark, error_type (null:
                                   unclassified), judge_reply, judge_tokens
        OUTPUT/metrics.json        conditions; for each benchmark n, accuracy, interval, unparsed, truncated,
                                   official, judge, error_types, splits; against

    python 05_evaluate.py --test toy/test.jsonl --output eval --model toy/base
    python 05_evaluate.py --test mathvision:MATH-V/testmini --output eval --samples 8 --temperature 1.0 \\
        --model Qwen/Qwen2-VL-7B-Instruct
    python 05_evaluate.py --output runs/default/final/eval --against runs/default/round_0/eval
"""

import json
import re
import sys
from argparse import Namespace
from collections import Counter, deque
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from common import CLOSING, SOLVE_PROMPT, load, solve_prompt
from mathse import cli
from mathse.answers import check_rows, check_version, votes
from mathse.chat import harmless, user_message
from mathse.generate import Repeats, Reply, Request, open_model
from mathse.images import blank_image
from mathse.jsonl import expected_length, processes, share, stage_end, write_json
from mathse.problems import RULES, SPLITS, load_problems, parse_fields
from mathse.recipe import Recipe, code_digests, digest, fingerprint
from mathse.records import derive_seed, fail, row_key
from mathse.report import judging
from mathse.report.comparison import print_change
from mathse.report.judging import (
    ERRORS,
    JUDGED,
    PREDICTIONS,
    Judging,
    replies_by_benchmark,
    start_predictions,
)
from mathse.report.statistics import (
    by_problem,
    checks_only,
    mean,
    pass_at_k,
    percent,
    predictions,
    right_share,
    share_of,
    split_by,
)  # fmt: skip

# A judge finds the answer in a response, as in MathVista and MathVerse; the answer check compares it.
EXTRACT_PROMPT = """Below are a question and a response to it. Reply with the final answer that the response \
gives and nothing else: of choices the letter, else the value. Do not answer the question yourself and do \
not mend the response. If it gives no final answer, reply NONE.

Question: {question}

Response:
{response}"""

CLASSIFY_PROMPT = """A student's solution of the mathematics problem below ends in a wrong answer.

Problem: {question}

Standard answer: {answer}

The student's solution:
{response}

Find its first mistake, looking at the image too, and say of which type it is:
"vision" (the image is misread), "understanding" (the question is misunderstood), "knowledge" (a theorem or \
formula is wrong or missing), "calculation" (the right thing is calculated wrongly), "reasoning" (a step \
does not follow, or is not what has to be done here).
Reply with JSON only: {"error_type": the type}"""

ERROR_TYPES = ("reasoning", "understanding", "knowledge", "calculation", "vision")  # the paper's Figure 4


def parse_args() -> Namespace:
    parser = cli.Parser(__doc__)
    add, whole = parser.add_argument, cli.whole
    add("--test", "--input", nargs="+", default=[], help="x.jsonl, x.parquet, NAME:FOLDER or hf:NAME:SPLIT")
    add("--output", type=Path, required=True, help="folder to write")
    add("--model", help="model folder, hub id or http://host:port/v1#model-name")
    add("--samples", type=whole(1), default=1, help="answers a problem, for pass@k (default %(default)s)")
    add("--limit", type=whole(0), default=0, help="first N problems a test set (default %(default)s: all)")
    add("--prompt", choices=["solve", "benchmark"], default="solve", help="ours, or the benchmark's own")
    add("--blank-image", action="store_true", help="show white images of the same size instead")
    add("--judge", help="a model that extracts the answers, for a second score (default: none)")
    add("--classify", help="a model that names each wrong answer's error type (default: none)")
    add("--against", type=Path, help="folder of another evaluation: print the change from it")
    add("--fields", default="", help='columns of tables, such as "question=problem images=image"')
    cli.add_generation_flags(parser, max_tokens=2048)
    cli.add_output_flags(parser)
    return parser.parse_args()


# ---------------------------------------------------------------- what a score is


def majority(rows: list[dict], k: int) -> bool:
    """Whether the answer that the first k samples give most often is right, by its value; the earliest wins a
    tie."""
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
        "official": share_of(groups, "official") if rows[0].get("official") is not None else None,
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


def judge_score(rows: list[dict], n: int) -> dict:
    """The score by a judge's extraction. Of the `n` problems, those not judged (failed) are not right."""
    rows = [row for row in rows if row["judge_check"] is not None]  # a problem without an answer
    groups = list(by_problem(rows).values())
    groups += [[{"judge_check": None}]] * (n - len(groups))
    unparsed = mean(row["judge_extracted"] is None for row in rows) if rows else 0.0
    return (
        {"model": rows[0]["judge_model"] if rows else None}
        | share_of(groups, "judge_check")
        | {"unparsed": unparsed}
    )


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
        for row in islice(rows, args.limit or None):
            if args.prompt == "benchmark" and not row.get("query"):
                remedy = "has no prompt of its own (field query); use --prompt solve"
                fail(f"--prompt: benchmark: {spec}: {row['id']}: {remedy}")
            yield row | {"benchmark": name}


def open_tests(args: Namespace) -> dict[str, tuple[str, Iterator[dict]]]:
    """{spec: (name, problems)}; a test set that does not exist ends the command."""
    tests, fields = {}, parse_fields(args.fields)
    for spec in args.test:
        name, rows = load_problems(spec, args.output / "images", fields)
        if any(name == other for other, _ in tests.values()):
            fail(f"--test: {spec}: a second test set called {name}; evaluate it in a call of its own")
        tests[spec] = name, rows
    return tests


def requests(args: Namespace, missing: dict[tuple[str, str], list[int]]) -> Iterator[Request]:
    """A request for each problem of which samples are missing: {(benchmark, id): their numbers}."""
    for row in test_problems(args):
        if numbers := missing.get((row["benchmark"], row["id"])):
            prompt = solve_prompt(row) if args.prompt == "solve" else harmless(row["query"])
            seeds = {k: derive_seed(args.seed, "evaluate", row["id"], k) for k in numbers}
            asked = row | {"prompt": prompt, "own_images": row["images"]}
            if args.blank_image:
                asked["images"] = [blank_image(image, args.output / "images") for image in row["images"]]
            yield Request(asked, user_message(prompt, row["images"]), seeds)


def checked(args: Namespace, replies: Iterator[Reply]) -> Iterator[dict]:
    """Predictions: replies with the verdict of the answer check, and of the benchmark's own rule."""

    def rows() -> Iterator[dict]:
        for reply in replies:
            row = dict(reply.row)
            row["images"] = row.pop("own_images")
            yield row | reply.record(args.model)

    for row in check_rows(rows(), CLOSING):
        if rule := RULES.get(row["benchmark"]):
            row["official"] = row["finish"] != "error" and rule(row)
        yield row


def predict(args: Namespace) -> None:
    """Write predictions.jsonl, a row a problem and sample."""
    constants = {"answer check": check_version()}
    code = (solve_prompt,) if args.prompt == "solve" else ()
    without = {"batch_size", "processes", "judge", "classify", "against"}
    recipe = Recipe(args.output / PREDICTIONS, __file__, args, ("test", "model"), without, constants, code)
    if recipe.is_done():
        return
    problems = cli.watch_references(test_problems(args), "--test")
    lengths = {(row["benchmark"], row["id"]): expected_length(row) for row in problems}
    keys = {place: sample_keys(*place, args.samples) for place in lengths}
    output = start_predictions(recipe)
    missing = {}
    for place in share(lengths):
        missing[place] = [k for k, key in enumerate(keys[place]) if key not in output.done]
    total, spent = sum(map(len, missing.values())), {}
    if total:
        generate = open_model(args.model, args, load)
        rows = checked(args, generate(requests(args, missing)))
        repeats = Repeats(args.temperature)
        for row in tqdm(rows, total=total, desc="evaluate", unit="answer", disable=None):
            output.write(row)
            repeats.see((row["benchmark"], row["id"]), row["response"], row["finish"])
        if warning := repeats.warning():
            print(f"{args.output}{warning}", file=sys.stderr)
        spent = generate.spent()
        generate.close()
    output.finish([key for place in lengths for key in keys[place]], **spent)


def sample_keys(benchmark: str, name: str, samples: int) -> list[str]:
    return [row_key({"benchmark": benchmark, "id": name, "sample": k}) for k in range(samples)]


# ---------------------------------------------------------------- judges


def extractions_of(replies: Iterator[Reply], args: Namespace) -> Iterator[tuple[Reply, dict]]:
    """The answer that the judge finds in each response, and the answer check of it."""
    waiting = deque()

    def extractions() -> Iterator[dict]:
        for reply in replies:
            waiting.append(reply)
            said = (reply.text.strip().splitlines() or [""])[-1].strip().rstrip(".")
            if reply.finish == "error" or said.upper() == "NONE":
                said = ""
            response = f"The answer to this problem is {said}." if said else ""
            yield reply.row | {"response": response, "finish": "stop", "said": said or None}

    for row in check_rows(extractions()):
        yield waiting.popleft(), {"judge_extracted": row["said"], "judge_check": row["answer_check"]}


def types_of(replies: Iterator[Reply], args: Namespace) -> Iterator[tuple[Reply, dict]]:
    """The error type that the model names; None if it names none or several."""
    names = "|".join(ERROR_TYPES)
    named = re.compile(rf"""["']error_type["']\s*:\s*["']({names})["']""", re.IGNORECASE)
    for reply in replies:
        types = {word.lower() for word in named.findall(reply.text)}
        yield reply, {"error_type": types.pop() if len(types) == 1 else None}


# Who extracts an answer is shown no image: the judge must not solve the problem.
JUDGINGS = {  # by flag
    "judge": Judging(JUDGED, EXTRACT_PROMPT, False, lambda row: row["finish"] != "error", extractions_of),
    "classify": Judging(ERRORS, CLASSIFY_PROMPT, True, lambda row: row["answer_check"] == "wrong", types_of),
}


# ---------------------------------------------------------------- figures


def write_metrics(args: Namespace) -> None:
    """metrics.json from the rows and the replies that are about them; nothing if it is made from the same."""
    target = args.output / "metrics.json"
    standing = json.loads(target.read_text(encoding="utf-8")) if target.is_file() else {}
    files = [name for name in (PREDICTIONS, JUDGED, ERRORS) if (args.output / name).is_file()]
    made_from = {name: fingerprint(str(args.output / name)) for name in files}
    made_from |= code_digests((score, judge_score, share_of, right_share))
    if standing.get("made_from") == made_from:
        print(f"skip {args.output}", flush=True)
        return
    conditions, figures = conditions_of(args), collect_figures(args)
    metrics = {"conditions": conditions, "benchmarks": figures, "made_from": made_from}
    if standing:  # the answers are the same: a changed predictions.jsonl has removed it
        metrics["against"] = standing.get("against", {})
    write_json(target, metrics)
    print_figures(conditions, figures)


def collect_figures(args: Namespace) -> dict[str, dict]:
    """{benchmark: its figures}, with the judge's and the error types if they were asked for."""
    fields = ("extracted", "rule", "finish", "official", "options", "subject", "source", "level")
    found = predictions(args.output, lambda row: checks_only(row) | {name: row.get(name) for name in fields})
    figures = {}
    for name, rows in found.items():
        known = [row for row in rows if row["answer_check"] is not None]
        unknown = len({row["id"] for row in rows}) - len({row["id"] for row in known})
        if known:
            figures[name] = score(known, SPLITS.get(name, SPLITS[None])) | {"without_answer": unknown}
        else:
            print(f"{name}: no score, because none of its {unknown} problems has an answer")
    for name, rows in replies_by_benchmark(args.output, JUDGED).items():
        if name not in figures:
            continue
        figures[name]["judge"] = judge_score(rows, figures[name]["n"])
    for name, rows in replies_by_benchmark(args.output, ERRORS).items():  # of wrong answers
        counts = Counter(row["error_type"] or "unclassified" for row in rows)
        figures[name]["error_types"] = {kind: counts[kind] for kind in (*ERROR_TYPES, "unclassified")}
    return figures


def print_figures(conditions: dict, figures: dict[str, dict]) -> None:
    """Every score with its conditions."""
    decoding = "greedy"
    if conditions["temperature"]:
        decoding = "temperature {temperature}, top-p {top_p}, top-k {top_k}".format(**conditions)
    blank = ", blank images" if conditions["blank_image"] else ""
    start = f"conditions: {conditions['model']}{blank}; prompt {conditions['prompt']}; {decoding}"
    limits = "{samples} a problem, at most {max_tokens} new tokens and {max_pixels} pixels; {rule}"
    print(f"{start}, {limits.format(**conditions)}")
    for name, result in figures.items():
        scores = [f"{percent(result)} of {result['n']} right"]
        for key in ("pass_at", "majority_at"):
            for k in list(result.get(key, ()))[-1:]:
                scores.append(f"{key.replace('_at', '')}@{k} {result[key][k]:.1%}")
        if result["official"]:
            scores.append(f"by the benchmark's own rule {percent(result['official'])}")
        rates = "no answer found {unparsed:.1%}, cut off {truncated:.1%}, errors {errors}".format(**result)
        if result["without_answer"]:
            rates += f"; {result['without_answer']} problems without an answer are left out"
        print(f"{name}: {', '.join(scores)}; {rates}")
        if judge := result.get("judge"):
            print(f"  answers extracted by {judge['model']}: {percent(judge)}")
        for split, parts in result["splits"].items():
            if 1 < len(parts) <= 24:
                cells = (f"{value} {part['accuracy']:.1%} of {part['n']}" for value, part in parts.items())
                print(f"  by {split}: {'; '.join(cells)}")
        if types := result.get("error_types"):
            print("  wrong by type: " + ", ".join(f"{kind} {count}" for kind, count in types.items()))


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
    for flag in ("model", "judge", "classify"):
        if spec := getattr(args, flag):
            cli.check_model(args, spec, f"--{flag}")


def print_plan(args: Namespace) -> None:
    """The dry run: the test sets exist; calls of the model and, at most, of the judges."""
    open_tests(args)
    rows = min(args.dry_run, args.limit * len(args.test)) if args.limit else args.dry_run
    cli.print_plan(args, rows * args.samples, args.model)
    short = Namespace(**vars(args) | {"max_tokens": judging.MAX_TOKENS})
    for spec in filter(None, (args.judge, args.classify)):
        cli.print_plan(short, rows * args.samples, spec)


def main() -> None:
    args = parse_args()
    check_args(args)
    if args.dry_run is not None:
        print_plan(args)
        return
    if args.test:
        predict(args)
        for flag, what in JUDGINGS.items():
            if spec := getattr(args, flag):
                judging.ask(what, spec, args, load, __file__)
        if processes()[0] == 0:
            write_metrics(args)
    if args.against and processes()[0] == 0:
        print_change(args.output, args.against, args.seed)


if __name__ == "__main__":
    with stage_end():
        main()
