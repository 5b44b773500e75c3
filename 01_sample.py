"""Sample reasoning paths: n solutions of each problem, from the student, the teacher or any other model.

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
from collections import Counter
from collections.abc import Iterator
from itertools import islice

from tqdm import tqdm

from common import load, solve_prompt
from mathse.chat import user_message
from mathse.cli import (
    Parser,
    add_generation_flags,
    add_output_flags,
    check_model,
    check_sampling,
    print_plan,
    real,
    watch_references,
    whole,
)
from mathse.generate import Repeats, Request, open_model
from mathse.jsonl import Output, expected_length, processes, share, stage_end
from mathse.recipe import Recipe
from mathse.records import derive_seed, fail, listed, read_rows, row_key


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--input", nargs="+", required=True, help="problems.jsonl files")
    add("--output", required=True, help="samples.jsonl to write")
    add("--model", required=True, help="model folder, hub id or http://host:port/v1#model-name")
    add("--samples", type=whole(1), default=1, help="solutions a problem (default %(default)s)")
    add("--limit", type=whole(0), default=0, help="only the first N problems (default %(default)s: all)")
    add(
        "--draw",
        type=real(),
        default=0,
        help="N problems drawn by the seed, or a share below 1 (0: all)",
    )
    add("--unsolved-in", nargs="*", default=[], help="verified.jsonl files; what they solve is left out")
    add("--origin", default="sample", help="name of these paths, for train.jsonl (default %(default)s)")
    add_generation_flags(parser, max_tokens=2048)
    add_output_flags(parser)
    return parser.parse_args()


def read_problems(args: argparse.Namespace, check: bool) -> Iterator[dict]:
    """The problems of all files, up to --limit."""
    return islice((row for path in args.input for row in read_rows(path, check=check)), args.limit or None)


def choose(args: argparse.Namespace) -> dict[str, int]:
    """{id of a problem to sample: its expected length}. One pass, which also checks every row.

    D0 is a draw (--draw); D_rem is what no file of --unsolved-in solves (Algorithm 1, lines 3 and 8).
    """
    lengths = {}
    for row in watch_references(read_problems(args, check=True), "--input"):
        if row["id"] in lengths:
            fail(f"--input: id {row['id']!r} is in more than one of the files; make it unique")
        lengths[row["id"]] = expected_length(row)
    solved = set()
    for path in args.unsolved_in:
        rows = read_rows(path, ("id", "status"), may_be_empty=True)
        solved |= {row["id"] for row in rows if row["status"] == "correct"}
    ids = list(lengths)
    if args.draw:  # by a hash of the id: one problem more changes no other's luck
        rank = {name: hashlib.sha256(f"{args.seed}:{name}".encode()).digest() for name in ids}
        ids = heapq.nsmallest(drawn(args.draw, len(ids)), ids, key=rank.get)
    return {name: lengths[name] for name in ids if name not in solved}


def drawn(draw: float, problems: int) -> int:
    """How many problems --draw means: all, a share or a number."""
    count = math.ceil(draw * problems) if draw < 1 else int(draw)
    return min(count, problems) if draw else problems


def requests(args: argparse.Namespace, missing: dict[str, list[int]]) -> Iterator[Request]:
    """A request for each problem of which samples are missing: {id: numbers of the samples}."""
    for row in read_problems(args, check=False):
        if row["id"] in missing:
            prompt = solve_prompt(row)
            seeds = {k: derive_seed(args.seed, args.origin, row["id"], k) for k in missing[row["id"]]}
            yield Request(row | {"prompt": prompt}, user_message(prompt, row["images"]), seeds)


def write_samples(
    args: argparse.Namespace, output: Output, generate, missing: dict[str, list[int]]
) -> tuple[Counter, str]:
    """Write a row for each reply; returns the number of replies by how they finished and of new tokens, and a
    warning of texts that are all the same."""
    counts, repeats = Counter(), Repeats(args.temperature)
    replies = generate(requests(args, missing))
    total = sum(map(len, missing.values()))
    for reply in tqdm(replies, total=total, desc="sample", unit="path", disable=None):
        output.write(reply.row | reply.record(args.model) | {"origin": args.origin})
        counts.update({reply.finish: 1, "tokens": reply.tokens})
        repeats.see((reply.row["id"],), reply.text, reply.finish)
        if reply.reason and not counts["first error"]:
            counts["first error"] = reply.reason
    return counts, repeats.warning()


def main() -> None:
    args = parse_args()
    check_sampling(args, "--samples", args.samples)
    check_model(args, args.model)
    if args.dry_run is not None:
        print_plan(args, drawn(args.draw, args.dry_run) * args.samples)
        return
    recipe = Recipe(
        args.output,
        __file__,
        args,
        inputs=("input", "unsolved_in", "model"),
        without={"batch_size", "processes"},
        code=(choose, requests),
    )
    if recipe.is_done():
        return
    chosen = choose(args)
    output = Output(recipe)
    keys = {name: [row_key({"id": name, "sample": k}) for k in range(args.samples)] for name in chosen}
    missing = {
        name: [k for k, key in enumerate(keys[name]) if key not in output.done] for name in share(chosen)
    }
    missing = {name: samples for name, samples in missing.items() if samples}
    counts, warning, spent = Counter(), "", {}
    if missing:
        generate = open_model(args.model, args, load)
        counts, warning = write_samples(args, output, generate, missing)
        spent = generate.spent()
    output.finish([key for name in chosen for key in keys[name]], **spent)
    if processes()[0] == 0:
        said = f"{len(chosen)} problems x {args.samples}; this process: {listed(counts)}{warning}"
        print(f"{args.output}: {said}")


if __name__ == "__main__":
    with stage_end():
        main()
