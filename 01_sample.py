"""Sample reasoning paths: n solutions of each problem, from the student, the teacher or any model.

Reads:  problems.jsonl   id, question, images, answer, optional options, solution, subject, source
Writes: samples.jsonl    + sample (0 ... n-1), response, finish (stop, length, error), tokens, prompt_tokens, model, seed, origin, reason

    python 01_sample.py --input toy/train.jsonl --output samples.jsonl --model toy/base --samples 4 --temperature 1.0 --limit 8
    OPENAI_API_KEY=... python 01_sample.py --input problems.jsonl --output distilled.jsonl --model https://api.openai.com/v1#gpt-4o
"""

import argparse
import hashlib
import heapq
from collections import Counter
from itertools import islice
from typing import Iterator

from tqdm import tqdm

from checks import check_flags, read_rows
from common import add_model_flags, derive_seed, fail, row_key, solve_messages
from engine import Request, open_model
from output import Output, disk_errors, expected_length, finished, share


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", nargs="+", required=True, help="problems.jsonl files")
    parser.add_argument("--output", required=True, help="samples.jsonl to write")
    parser.add_argument("--model", required=True, help="model folder, hub id or http://host:port/v1#model-name")
    parser.add_argument("--samples", type=int, default=1, help="solutions a problem (default %(default)s)")
    parser.add_argument("--limit", type=int, default=0, help="only the first N problems (default %(default)s: all)")
    parser.add_argument("--draw", type=int, default=0, help="only N problems drawn at random by the seed (default %(default)s: all)")
    parser.add_argument("--unsolved-in", nargs="*", default=[], help="verified.jsonl files; problems with a correct path in them are left out")
    parser.add_argument("--origin", default="sample", help="where the paths come from, for the training file (default %(default)s)")
    add_model_flags(parser, max_tokens=2048)
    return parser.parse_args()


def read_problems(args: argparse.Namespace, check: bool) -> Iterator[dict]:
    """The problems of all files, up to --limit."""
    return islice((row for path in args.input for row in read_rows(path, check=check)), args.limit or None)


def choose(args: argparse.Namespace) -> dict[str, int]:
    """{id to sample: its expected length}: one pass that also checks every row."""
    lengths = {}
    for row in read_problems(args, check=True):
        if row["id"] in lengths:
            fail(f"--input: id {row['id']!r} is in more than one of the files; make it unique")
        lengths[row["id"]] = expected_length(row)
    solved = {row["id"] for path in args.unsolved_in for row in read_rows(path, ("id", "status"), may_be_empty=True) if row["status"] == "correct"}
    ids = list(lengths)
    if args.draw:
        ids = heapq.nsmallest(args.draw, ids, key=lambda name: hashlib.sha256(f"{args.seed}:{name}".encode()).digest())
    return {name: lengths[name] for name in ids if name not in solved}


def main() -> None:
    args = parse_args()
    check_flags(args)
    if args.samples > 1 and args.temperature == 0:
        fail("--samples: more than one sample at --temperature 0 would be the same text; set --temperature 1.0")
    if finished(args.output, args.retry_errors):
        return
    chosen = choose(args)
    output = Output(args.output, args)
    missing = {name: [k for k in range(args.samples) if row_key({"id": name, "sample": k}) not in output.done] for name in chosen}
    mine = share({name: chosen[name] * len(samples) for name, samples in missing.items() if samples})
    generate = open_model(args.model, args) if mine else lambda requests: iter(())

    def requests() -> Iterator[Request]:
        for row in read_problems(args, check=False):
            if row["id"] in mine:
                yield Request(row, solve_messages(row), {k: derive_seed(args.seed, args.origin, row["id"], k) for k in missing[row["id"]]})

    counts, tokens, reasons = Counter(), 0, Counter()
    with tqdm(total=sum(len(missing[name]) for name in mine), desc="sample", unit="path", disable=None) as bar:
        for reply in generate(requests()):
            record = {
                "sample": reply.sample, "response": reply.text, "finish": reply.finish, "tokens": reply.tokens,
                "prompt_tokens": reply.prompt_tokens, "model": args.model, "seed": reply.seed, "origin": args.origin,
            }  # fmt: skip
            output.write(reply.row | record | ({"reason": reply.reason} if reply.reason else {}))
            counts[reply.finish] += 1
            tokens += reply.tokens
            reasons[reply.reason] += reply.finish == "error"
            bar.update()
    output.finish(len(chosen) * args.samples)
    problem = f"; first error: {max(reasons, key=reasons.get)}" if counts["error"] else ""
    print(f"{args.output}: {len(chosen)} problems x {args.samples}: {dict(counts)}, {tokens} new tokens{problem}")


if __name__ == "__main__":
    with disk_errors():
        main()
