"""Sample responses: n solutions of each problem, from the student, the teacher or any other model.

Reads:  problems.jsonl   id, question, images, answer, optional options, solution, subject, source
Writes: samples.jsonl    + prompt, sample (0 ... n-1), response, finish (stop, length, error), tokens,
                         prompt_tokens, model, seed, origin, reason (of an error)

    python 01_sample.py --input toy/train.jsonl --output out/samples.jsonl --model toy/base --samples 4 \\
        --temperature 1.0 --limit 8
    OPENAI_API_KEY=... python 01_sample.py --input problems.jsonl --output out/distilled.jsonl \\
        --model https://api.openai.com/v1#gpt-4o --origin teacher
"""

import argparse
import hashlib
import heapq
import math
from collections.abc import Iterable, Iterator
from itertools import islice

from common import CLOSING, load, solve_prompt
from mathse import cli
from mathse.chat import user_message
from mathse.generate import Generator, Reply, Request
from mathse.jsonl import expected_length
from mathse.launch import stage_end
from mathse.records import NO_PROBLEM_S, derive_seed, fail, read_rows, row_key
from mathse.stage import run_stage

SOLUTIONS = "solutions"  # a --model: the problems' own, where there is no teacher


def parse_args() -> argparse.Namespace:
    parser = cli.Parser(__doc__)
    add, whole = parser.add_argument, cli.whole
    add("--input", nargs="+", required=True, help="problems.jsonl files")
    add("--output", required=True, help="samples.jsonl to write")
    spec = f"model folder, hub id or http://host:port/v1#model-name; {SOLUTIONS}: the problems' own"
    add("--model", required=True, help=spec)
    add("--samples", type=whole(1), default=1, help="solutions a problem (default %(default)s)")
    add("--limit", type=whole(0), default=0, help="only the first N problems (default %(default)s: all)")
    drawn = "problems drawn by the seed: a number, a share below 1 such as 0.3, or all (default %(default)s)"
    add("--draw", type=cli.share_or_count, default="all", metavar="N", help=drawn)
    add("--unsolved-in", nargs="*", default=[], help="verified.jsonl files; what they solve is left out")
    add("--origin", default="sample", help="name of these responses, for train.jsonl (default %(default)s)")
    cli.add_generation_flags(parser, max_tokens=2048)
    cli.add_output_flags(parser)
    return parser.parse_args()


def drawn(draw: int | float | str, problems: int) -> int:
    """How many of the problems --draw means."""
    count = problems if draw == "all" else draw if draw >= 1 else math.ceil(round(draw * problems, 9))
    return min(count, problems)


def is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def read_problems(args: argparse.Namespace, check: bool) -> Iterator[dict]:
    """The problems of all files, up to --limit; of their own solutions, those that an answer can confirm."""
    rows = islice((row for path in args.input for row in read_rows(path, check=check)), args.limit or None)
    for row in rows:
        if args.model != SOLUTIONS or (is_text(row.get("solution")) and row.get("answer") is not None):
            yield {name: value for name, value in row.items() if name not in NO_PROBLEM_S}


def choose(args: argparse.Namespace, check: bool) -> dict[str, int]:
    """{row_key() of a problem to sample: its expected length}.

    D0 is a draw (--draw); D_rem is what no file of --unsolved-in solves (Algorithm 1, lines 3 and 8).
    """
    problems = {}
    for row in cli.watch_references(read_problems(args, check), "--input"):
        if row["id"] in problems:
            fail(f"--input: id {row['id']!r} stands there twice; make it unique")
        problems[row["id"]] = expected_length(row)
    if args.model == SOLUTIONS and not problems:
        fail(f"--model: {SOLUTIONS}: no problem has a `solution`; write some, or name a teacher")
    solved = set()
    for path in args.unsolved_in:
        rows = read_rows(path, ("id", "status"), check, may_be_empty=True)
        solved |= {row["id"] for row in rows if row["status"] == "correct"}
    ids = list(problems)
    if args.draw != "all":  # by a hash of the id: one problem more changes no other's luck
        rank = {name: hashlib.sha256(f"{args.seed}:{name}".encode()).digest() for name in ids}
        ids = heapq.nsmallest(drawn(args.draw, len(ids)), ids, key=rank.get)
    return {row_key({"id": name}): problems[name] for name in ids if name not in solved}


def requests(args: argparse.Namespace, missing: dict[str, list[int]]) -> Iterator[Request]:
    """A request for each problem of which samples are missing: {key of the problem: their numbers}."""
    for row in read_problems(args, check=False):
        if numbers := missing.get(row_key(row)):
            prompt = solve_prompt(row)
            seeds = {k: derive_seed(args.seed, args.origin, row["id"], k) for k in numbers}
            yield Request(row | {"prompt": prompt}, user_message(prompt, row["images"]), seeds)


def own_solutions(requests: Iterable[Request]) -> Iterator[Reply]:
    """Each problem's own solution, closed as a model would close it."""
    from mathse.answers import reference_text  # not to start a stage that has nothing to do

    for request in requests:
        text, answer = request.row["solution"].strip(), reference_text(request.row["answer"])
        text = text if CLOSING in text else f"{text}\n{CLOSING} {answer}."
        yield from (Reply(request.row, number, text, seed=None) for number in request.seeds)


def sample(args: argparse.Namespace, generate: Generator | None, missing: dict) -> Iterator[dict]:
    asked = requests(args, missing)
    for reply in generate(asked) if generate else own_solutions(asked):
        yield reply.row | reply.record(args.model) | {"origin": args.origin}


def main() -> None:
    args = parse_args()
    cli.check_sampling(args, "--samples", args.samples)
    if args.model != SOLUTIONS:
        cli.check_model(args, args.model)
    run_stage(
        args,
        __file__,
        load if args.model != SOLUTIONS else None,
        inputs=("input", "unsolved_in", "model"),
        keys=lambda check: choose(args, check),
        rows=lambda generate, missing: sample(args, generate, missing),
        count=lambda problems: drawn(args.draw, problems),
        calls=0 if args.model == SOLUTIONS else 1,
        samples=args.samples,
    )


if __name__ == "__main__":
    with stage_end():
        main()
