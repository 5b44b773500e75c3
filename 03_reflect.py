"""Think again: wrong paths, with the step at which they fail and why, become reconsidered paths.

Reads:  verified.jsonl    id, question, images, answer, prompt, sample, response, status, error_step,
                          error_analysis
Writes: reflected.jsonl   the problem with its solve prompt, sample (0 ... drafts-1), response (the new
                          one), draft (the wrong one), draft_of (its verified_in, a path relative to this
                          file, its origin and sample), finish, tokens, prompt_tokens, model, seed, origin
                          ("reflection"); goes through 02_verify.py again

    python 03_reflect.py --input runs/default/round_1/verified.jsonl --output out/reflected.jsonl \\
        --model runs/default/round_1/model --limit 8
    python 03_reflect.py --input runs/qwen/round_*/verified.jsonl --output out/reflected.jsonl \\
        --model https://api.openai.com/v1#gpt-4o --drafts 2
"""

import argparse
import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from tqdm import tqdm

from common import load
from mathse.chat import fill, question_text, user_message
from mathse.cli import Parser, add_generation_flags, add_output_flags, check_model, print_plan, whole
from mathse.generate import Request, open_model
from mathse.jsonl import Output, expected_length, processes, share, stage_end
from mathse.recipe import Recipe
from mathse.records import VERDICT_FIELDS, derive_seed, listed, read_rows, row_key, same_text

REFLECT_PROMPT = """You are an expert mathematics teacher. A student's solution of the problem below \
ends in a wrong answer.

Problem: {question}

The student's solution:
{response}

A reviewer says that this step is wrong: {error_step}
The reviewer's analysis: {error_analysis}

The reviewer may be mistaken about the step and the analysis, but the final answer of the solution is \
certainly wrong. Look at the image again, think it all through once more, step by step, and give only the \
reconsidered solution, without a word about the earlier one. End with the sentence "The answer to this \
problem is" and the final result (for a multiple-choice problem, the letter of the choice)."""

NEEDED = ("id", "question", "prompt", "sample", "response", "status")


class Draft(NamedTuple):
    """A wrong path; the smallest is reflected on first. `path`: number of its file, negative so that
    late rounds lead.
    """

    unexplained: bool
    path: int
    sample: int
    key: str
    length: int
    text: str


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--input", nargs="+", required=True, help="verified.jsonl files; what they solve is left out")
    add("--output", required=True, help="reflected.jsonl to write")
    add("--model", required=True, help="who reflects: the teacher, another model or the student itself")
    add("--drafts", type=whole(1), default=1, help="wrong paths a problem, at most (default %(default)s)")
    add("--limit", type=whole(0), default=0, help="only N unsolved problems (default %(default)s: all)")
    add_generation_flags(parser, max_tokens=2048)
    add_output_flags(parser)
    return parser.parse_args()


def choose_drafts(args: argparse.Namespace) -> dict[tuple[int, str], tuple[dict, int]]:
    """{(file number, key of a wrong path): ({id, sample} of its reflection, expected length)} of unsolved
    problems.

    Different texts only; explained paths first, later rounds before earlier ones. A right answer that the
    ORM rejected is left alone, because the prompt says that the answer is certainly wrong.
    """
    solved, wrong = set(), defaultdict(list)
    for number, path in enumerate(args.input):
        for row in read_rows(path, NEEDED, may_be_empty=True):
            if row["status"] == "correct":
                solved.add(row["id"])
            elif row["status"] == "wrong" and row.get("answer_check") != "correct":
                unexplained, text = not row.get("error_step"), same_text(row["response"])
                draft = Draft(unexplained, -number, row["sample"], row_key(row), expected_length(row), text)
                wrong[row["id"]].append(draft)
    chosen = {}
    unsolved = [name for name in wrong if name not in solved]
    for name in unsolved[: args.limit or None]:
        best_of_text = {draft.text: draft for draft in sorted(wrong[name], reverse=True)}
        for index, draft in enumerate(sorted(best_of_text.values())[: args.drafts]):
            chosen[-draft.path, draft.key] = {"id": name, "sample": index}, draft.length
    return chosen


def requests(args: argparse.Namespace, mine: dict[tuple[int, str], dict]) -> Iterator[Request]:
    """A request for each wrong path in `mine`: {its place: {id, sample} of the reflection}."""
    for number, path in enumerate(args.input):
        for row in read_rows(path, NEEDED, check=False, may_be_empty=True):
            if (number, row_key(row)) not in mine:
                continue
            sample = mine[number, row_key(row)]["sample"]
            prompt = fill(
                REFLECT_PROMPT,
                question=question_text(row),
                response=row["response"],
                error_step=row.get("error_step") or "not known",
                error_analysis=row.get("error_analysis") or "none",
            )
            verified_in = os.path.relpath(path, os.path.dirname(args.output) or ".")
            row["draft_of"] = {
                "verified_in": verified_in,
                "origin": row.get("origin"),
                "sample": row["sample"],
            }
            seed = derive_seed(args.seed, "reflection", row["id"], sample)
            yield Request(row, user_message(prompt, row["images"]), {sample: seed})


def write_reflections(args: argparse.Namespace, output: Output, generate, mine: dict) -> Counter:
    """Write a row for each reply; returns the number of replies by how they finished, and of new tokens."""
    counts = Counter()
    replies = generate(requests(args, mine))
    for reply in tqdm(replies, total=len(mine), desc="reflect", unit="path", disable=None):
        row = {name: value for name, value in reply.row.items() if name not in VERDICT_FIELDS | {"reason"}}
        row |= {"draft": reply.row["response"], "origin": "reflection"}
        output.write(row | reply.record(args.model))
        counts.update({reply.finish: 1, "tokens": reply.tokens})
    return counts


def main() -> None:
    args = parse_args()
    check_model(args, args.model)
    if args.dry_run is not None:
        print_plan(args, args.dry_run * args.drafts)
        return
    recipe = Recipe(
        args.output,
        __file__,
        args,
        inputs=("input", "model"),
        without={"batch_size", "processes"},
        code=(choose_drafts, requests),
    )
    if recipe.is_done():
        return
    drafts = choose_drafts(args)
    output = Output(recipe)
    keys = {row_key(reflection): place for place, (reflection, _) in drafts.items()}
    todo = share({key: drafts[place][1] for key, place in keys.items()}) - output.done
    counts, spent = Counter(), {}
    if todo:
        generate = open_model(args.model, args, load)
        counts = write_reflections(args, output, generate, {keys[key]: drafts[keys[key]][0] for key in todo})
        spent = generate.spent()
    output.finish(keys, **spent)
    if processes()[0] == 0:
        print(f"{args.output}: {len(drafts)} drafts of unsolved problems; this process: {listed(counts)}")


if __name__ == "__main__":
    with stage_end():
        main()
