"""Evaluate a model on test sets, with the same answer check as the training data.

Reads:  problems.jsonl files, benchmarks (mathvision:PATH or hub id, see benchmarks.py) or hub data sets (hf:NAME:SPLIT)
Writes: OUTPUT/predictions.jsonl   problem + benchmark, sample, response, finish, tokens, answer_check, extracted, rule, official (by the benchmark's own rule)
        OUTPUT/judged.jsonl        with --judge: id, sample, benchmark, judge_extracted, judge_check, judge_official, judge_reply, judge_tokens
        OUTPUT/errors.jsonl        with --classify: id, sample, benchmark, error_type (null: unclassified), judge_reply, judge_tokens; wrong answers only
        OUTPUT/metrics.json        conditions; for each benchmark n, accuracy, interval, unparsed, truncated, official, judge, error_types, splits; against

    python 05_evaluate.py --test toy/test.jsonl --output eval --model toy/base
    python 05_evaluate.py --test mathvision:MATH-V/testmini --output eval --model Qwen/Qwen2-VL-7B-Instruct --samples 8 --temperature 1.0
    python 05_evaluate.py --output runs/default/final/eval --against runs/default/round_0/eval
"""

import argparse
import hashlib
import json
import os
import re
import time
from collections import Counter
from importlib.metadata import version
from pathlib import Path
from typing import Callable, Iterator

from PIL import Image
from tqdm import tqdm

import answers
from answers import AnswerChecker, check_rows
from benchmarks import RULES, SPLITS, load_problems, parse_columns
from checks import check_flags, check_model, read_rows
from common import (
    IMAGE, SOLVE_PROMPT, add_model_flags, derive_seed, fail, fill, harmless, is_endpoint, processes, question_text, row_key, solve_messages, user_message,
)  # fmt: skip
from engine import Reply, Request, open_model
from output import Output, disk_errors, expected_length, failed_rows, finished, reopen, share, write_json
from scores import by_problem, compare, differing, predictions, print_figures, read_json_rows, score, share_of

# The judge reads an answer out of a response, as MathVista and MathVerse have GPT-4 do; the comparison is ours and the benchmark's.
EXTRACT_PROMPT = """Below are a question and a response to it. Reply with the final answer that the response gives and nothing else: of choices \
the letter, else the value. Do not answer the question yourself and do not mend the response. If it gives no final answer, reply NONE.

Question: {question}

Response:
{response}"""

CLASSIFY_PROMPT = """A student's solution of the mathematics problem below ends in a wrong answer.

Problem: {question}

Standard answer: {answer}

The student's solution:
{response}

Find its first mistake, looking at the image too, and say of which type it is:
"vision" (the image is misread), "understanding" (the question is misunderstood), "knowledge" (a theorem or formula is wrong or missing), \
"calculation" (the right thing is calculated wrongly), "reasoning" (a step does not follow, or is not what has to be done here).
Reply with JSON only: {"error_type": the type}"""

ERROR_TYPES = ("reasoning", "understanding", "knowledge", "calculation", "vision")  # the paper's Figure 4
JUDGE_TOKENS = 256  # new tokens of a judge's reply, at most
FIGURES = ("id", "sample", "benchmark", "extracted", "answer_check", "rule", "finish", "official", "subject", "source", "level")  # fields that figures need


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--test", "--input", nargs="+", default=[], help="problems.jsonl, NAME:PATH-or-hub-id or hf:NAME:SPLIT")
    parser.add_argument("--output", type=Path, help="folder to write")
    parser.add_argument("--model", help="model folder, hub id or http://host:port/v1#model-name")
    parser.add_argument("--samples", type=int, default=1, help="answers a problem; more than one gives pass@k and majority@k (default %(default)s)")
    parser.add_argument("--limit", type=int, default=0, help="only the first N problems of each test set (default %(default)s: all)")
    parser.add_argument("--prompt", choices=["solve", "benchmark"], default="solve", help="ours, or the benchmark's own as published figures use it (default %(default)s)")
    parser.add_argument("--blank-image", action="store_true", help="show a white picture of the same size: what is right without seeing anything")
    parser.add_argument("--judge", help="a model that extracts the answers; its score stands beside the rules' (default: none)")
    parser.add_argument("--classify", help="a model that names the type of each wrong answer's first mistake (default: none)")
    parser.add_argument("--against", type=Path, help="the folder of another evaluation: the change from it, on the problems that both have")
    parser.add_argument("--workers", type=int, default=1, help="processes for mathematical comparisons (default %(default)s)")
    parser.add_argument("--columns", default="", help='columns of hub data sets, for example "question=problem images=image"')
    add_model_flags(parser, max_tokens=2048)
    return parser.parse_args()


def conditions_of(args: argparse.Namespace) -> dict:
    """What a score depends on beside the test set; scores under other conditions are not comparable."""

    def digest(text: str) -> str:
        return hashlib.sha256(text.encode()).hexdigest()[:8]

    names = ("model", "test", "limit", "samples", "temperature", "top_p", "top_k", "max_tokens", "max_pixels", "blank_image", "seed")
    rule = f"answers.py {digest(Path(answers.__file__).read_text(encoding='utf-8'))}, math-verify {version('math-verify')}"
    return {name: getattr(args, name) for name in names} | {"prompt": f"solve {digest(SOLVE_PROMPT)}" if args.prompt == "solve" else "benchmark", "rule": rule}


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
            if args.prompt == "benchmark" and not row.get("query"):
                fail(f"--prompt: benchmark: {spec}: {row['id']}: has no prompt of its own (field query); use --prompt solve")
            yield row | {"benchmark": name}


def blank_picture(path: str, folder: Path) -> str:
    """A white picture as large as this one, written once."""
    with Image.open(path) as image:
        blank = folder / f"blank_{image.width}x{image.height}.png"
        if not blank.exists():
            folder.mkdir(parents=True, exist_ok=True)
            part = blank.with_suffix(f".{os.getpid()}.part")
            Image.new("1", image.size, 1).save(part, "PNG")
            part.replace(blank)
    return str(blank.absolute())


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
                    messages = solve_messages(row) if args.prompt == "solve" else user_message(harmless(row["query"]), row["images"])
                    shown = {"images": [blank_picture(image, args.output / "images") for image in row["images"]], "seen": row["images"]} if args.blank_image else {}
                    yield Request(row | shown, messages, {k: derive_seed(args.seed, "evaluate", row["id"], k) for k in missing[name]})

        def rows() -> Iterator[dict]:
            for reply in generate(requests()):
                row = {name: value for name, value in reply.row.items() if name != "seen"} | {"images": reply.row.get("seen", reply.row["images"])}
                yield row | {"sample": reply.sample, "response": reply.text, "finish": reply.finish, "tokens": reply.tokens, "prompt_tokens": reply.prompt_tokens,
                             "model": args.model, "seed": reply.seed} | ({"reason": reply.reason} if reply.reason else {})  # fmt: skip

        with AnswerChecker() as checker:
            for row in tqdm(check_rows(rows(), args.workers), total=sum(len(missing[name]) for name in mine), desc="evaluate", unit="answer", disable=None):
                if row["benchmark"] in RULES:
                    row["official"] = row["finish"] != "error" and RULES[row["benchmark"]](row, checker.same)
                output.write(row)
    output.finish(len(lengths) * args.samples)
    if processes()[0] == 0:
        output.wait()


def ask_about(args: argparse.Namespace, spec: str, path: Path, wanted: Callable[[dict], bool], messages: Callable[[dict], list], fields: Callable) -> None:
    """Ask a model about each wanted prediction and write `path`; `fields(replies)` yields (reply, what to store of it)."""
    if path.exists() or (rank := processes()[0]) and is_endpoint(spec):
        return
    rank, world = (rank, 1) if is_endpoint(spec) else processes()
    output, source = Output(path, argparse.Namespace(model=spec)), args.output / "predictions.jsonl"
    chosen = {row_key(row) for row in read_json_rows(source) if wanted(row)}
    todo = len(chosen) - len(output.done)

    def requests() -> Iterator[Request]:
        for index, row in enumerate(row for row in read_rows(source, check=False) if row_key(row) in chosen):
            if index % world == rank and row_key(row) not in output.done:
                asked = messages(row)
                shown = row["images"] if IMAGE in asked[0]["content"] else []
                yield Request(row | {"images": shown}, asked, {row["sample"]: derive_seed(args.seed, path.stem, row["id"], row["sample"])})

    if todo:
        generate = open_model(spec, argparse.Namespace(**vars(args) | {"temperature": 0.0, "max_tokens": JUDGE_TOKENS}))
        for reply, stored in tqdm(fields(generate(requests())), total=todo, desc=path.stem, unit="answer", disable=None):
            judged = {"judge_model": spec, "judge_reply": reply.text or reply.reason, "judge_tokens": [reply.prompt_tokens, reply.tokens], "finish": reply.finish}
            output.write({name: reply.row[name] for name in ("id", "sample", "benchmark")} | stored | judged)
    output.finish(len(chosen), alone=is_endpoint(spec))  # the other processes wait: this one must not wait for itself


def judge_answers(args: argparse.Namespace) -> None:
    """judged.jsonl: the answer that the judge finds in each response, compared by our rules and by the benchmark's."""

    def fields(replies: Iterator[Reply]) -> Iterator[tuple[Reply, dict]]:
        waiting: list[Reply] = []

        def extractions() -> Iterator[dict]:
            for reply in replies:
                waiting.append(reply)
                said = (reply.text.strip().splitlines() or [""])[-1].strip().rstrip(".")
                said = None if reply.finish == "error" or said.upper() in ("", "NONE") else said
                yield reply.row | {"response": f"The answer to this problem is {said}." if said else "", "finish": "stop", "said": said}

        with AnswerChecker() as checker:
            for row in check_rows(extractions(), args.workers):
                stored = {"judge_extracted": row["said"], "judge_check": row["answer_check"]}
                if row["benchmark"] in RULES:
                    rule_row = row | {"extracted": row["said"], "response": waiting[0].row["response"]}  # MATH-V's own rule reads the response itself
                    stored["judge_official"] = RULES[row["benchmark"]](rule_row, checker.same)
                yield waiting.pop(0), stored

    def messages(row: dict) -> list[dict]:
        return user_message(fill(EXTRACT_PROMPT, question=question_text(row), response=row["response"]), [])

    ask_about(args, args.judge, args.output / "judged.jsonl", lambda row: row["finish"] != "error", messages, fields)


def classify_errors(args: argparse.Namespace) -> None:
    """errors.jsonl: the type of each wrong answer's first mistake."""

    def fields(replies: Iterator[Reply]) -> Iterator[tuple[Reply, dict]]:
        for reply in replies:
            named = {word.lower() for word in re.findall(rf"""["']error_type["']\s*:\s*["']({"|".join(ERROR_TYPES)})["']""", reply.text, re.IGNORECASE)}
            yield reply, {"error_type": named.pop() if len(named) == 1 else None}

    def messages(row: dict) -> list[dict]:
        return user_message(fill(CLASSIFY_PROMPT, question=question_text(row), answer=row["answer"], response=row["response"]), row["images"])

    ask_about(args, args.classify, args.output / "errors.jsonl", lambda row: row["answer_check"] == "wrong", messages, fields)


# ---------------------------------------------------------------- figures


def collect_figures(args: argparse.Namespace) -> dict[str, dict]:
    """{benchmark: its figures}, with the judge's and the types of errors where they have been asked for."""
    keep = lambda row: {name: row.get(name) for name in FIGURES}  # noqa: E731
    figures = {name: score(rows, SPLITS.get(name, SPLITS[None])) for name, rows in predictions(args.output, keep).items()}
    judged, errors = list(read_json_rows(args.output / "judged.jsonl")), list(read_json_rows(args.output / "errors.jsonl"))
    for name, result in figures.items():
        if rows := [row for row in judged if row["benchmark"] == name]:
            groups = list(by_problem(rows).values())
            groups += [[{"judge_check": None, "judge_official": False}]] * (result["n"] - len(groups))  # failed requests were not judged and stay in the denominator
            official = share_of(groups, "judge_official") if "judge_official" in rows[0] else None
            unparsed = round(sum(row["judge_extracted"] is None for row in rows) / len(rows), 4)
            result["judge"] = {"model": rows[0]["judge_model"]} | share_of(groups, "judge_check") | {"official": official, "unparsed": unparsed}
        if kinds := Counter(row["error_type"] or "unclassified" for row in errors if row["benchmark"] == name):
            result["error_types"] = {kind: kinds[kind] for kind in (*ERROR_TYPES, "unclassified")}
    return figures


def print_against(args: argparse.Namespace) -> None:
    """The change from the evaluation in --against, printed and kept in metrics.json."""
    metrics, other = (json.loads((folder / "metrics.json").read_text(encoding="utf-8")) for folder in (args.output, args.against))
    differ, changes = differing(other["conditions"], metrics["conditions"]), {}
    mine, theirs = (predictions(folder, lambda row: {name: row[name] for name in ("id", "sample", "answer_check")}) for folder in (args.output, args.against))
    for name in mine.keys() & theirs.keys():
        if (change := compare(theirs[name], mine[name], args.seed)) is None:
            continue
        changes[name] = change | {"not_comparable": differ}
        counts = ", ".join(f"{kind} {count}" for kind, count in (change["changes"] or {}).items())
        print(f"{name} against {args.against}: {change['before']:.1%} -> {change['after']:.1%} on {change['n']} common problems ({change['only_before']} and {change['only_after']} only in one), "
              f"change {change['change']:+.1%} [{change['interval'][0]:+.1%}, {change['interval'][1]:+.1%}]" + (f", p {change['p']:.2g}; {counts}" if counts else "")
              + (f"; NOT COMPARABLE, other conditions: {', '.join(differ)}" if differ else ""))  # fmt: skip
    if not changes:
        fail(f"--against: {args.against}: no problem in common with {args.output}")
    write_json(args.output / "metrics.json", metrics | {"against": metrics.get("against", {}) | {str(args.against): changes}})


# ---------------------------------------------------------------- the stage


def wait_for(path: Path) -> None:
    while not path.exists():  # other processes are not done; the launcher ends all if one fails
        time.sleep(1)


def evaluate(args: argparse.Namespace) -> None:
    passes = {"judged.jsonl": args.judge and judge_answers, "errors.jsonl": args.classify and classify_errors}
    passes = {args.output / name: ask for name, ask in passes.items() if ask}
    target, conditions = args.output / "metrics.json", conditions_of(args)
    answers_failed = args.retry_errors and failed_rows(args.output / "predictions.jsonl")
    if answers_failed or args.retry_errors and any(map(failed_rows, passes)):
        print(f"{args.output}: tries again the rows that failed", flush=True)
        target.unlink(missing_ok=True)
        reopen([args.output / name for name in ("errors.jsonl", "judged.jsonl", "predictions.jsonl")] if answers_failed else passes)  # new answers are to be asked about, old replies are kept
    if all(path.exists() for path in passes) and finished(target):
        return
    standing = json.loads(target.read_text(encoding="utf-8")) if target.exists() else {}  # a judge is asked about an evaluation that stands already
    before = standing.get("conditions", {})
    if changed := [name for name, value in conditions.items() if before.get(name, value) != value]:
        fail(f"{target}: {changed[0]} was {before[changed[0]]!r}, is {conditions[changed[0]]!r}; call with the same settings, or choose another --output")
    lengths = {(row["benchmark"], row["id"]): expected_length(row) for row in test_problems(args)}  # checks every row before a model is loaded
    args.output.mkdir(parents=True, exist_ok=True)
    if not (args.output / "predictions.jsonl").exists():
        predict(args, lengths)
    for path, ask in passes.items():
        wait_for(args.output / "predictions.jsonl")
        ask(args)
    if processes()[0]:
        return
    for path in (args.output / "predictions.jsonl", *passes):
        wait_for(path)
    figures = collect_figures(args)
    write_json(target, standing | {"conditions": conditions, "benchmarks": figures})
    print_figures(conditions, figures)


def main() -> None:
    args = parse_args()
    check_flags(args)
    compare_only = args.against and args.output and not args.test and (args.output / "metrics.json").is_file()
    if not compare_only and not (args.test and args.output and args.model):
        fail("--test, --output and --model: all three are needed (--output and --against alone compare two evaluations)")
    if args.against and not (args.against / "metrics.json").is_file():
        fail(f"--against: {args.against}: no metrics.json in it; name the --output of another evaluation")
    if args.samples > 1 and args.temperature == 0:
        fail("--samples: more than one sample at --temperature 0 would be the same text; set --temperature 1.0")
    for flag in ("judge", "classify"):  # they are asked when the answers are there
        if spec := getattr(args, flag):
            check_model(spec, f"--{flag}")
    if args.test:
        evaluate(args)
    if args.against and processes()[0] == 0:
        print_against(args)


if __name__ == "__main__":
    with disk_errors():
        main()
