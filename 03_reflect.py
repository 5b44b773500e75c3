"""Think again: wrong responses, with the step at which they fail and why, become reconsidered ones.

Reads:  verified.jsonl    id, question, images, answer, prompt, sample, response, status, error_step,
                          error_analysis
Writes: reflected.jsonl   the problem with its solve prompt, sample (0 ... drafts-1), response (the new
                          one), draft (the wrong one), draft_of (its verified_in, a path relative to this
                          file, its origin and sample), finish, tokens, prompt_tokens, model, seed, origin;
                          goes through 02_verify.py again

    python 03_reflect.py --input runs/default/round_1/verified.jsonl --output out/reflected.jsonl \\
        --model runs/default/round_1/model --limit 8
    python 03_reflect.py --input runs/qwen/round_*/verified.jsonl --output out/reflected.jsonl \\
        --model https://api.openai.com/v1#gpt-4o --drafts 2
"""

import argparse
import os
from collections import defaultdict
from collections.abc import Iterator
from typing import NamedTuple

from common import CLOSING, load
from mathse import cli
from mathse.chat import fill, question_text, user_message
from mathse.generate import Generator, Request
from mathse.jsonl import expected_length
from mathse.launch import stage_end
from mathse.records import NO_PROBLEM_S, derive_seed, read_rows, relative, row_key
from mathse.stage import run_stage

REFLECT_PROMPT = f"""You are an expert mathematics teacher. A student's solution of the problem below \
ends in a wrong answer.

Problem: {{question}}

The student's solution:
{{response}}

A reviewer says that this step is wrong: {{error_step}}
The reviewer's analysis: {{error_analysis}}

The reviewer may be mistaken about the step and the analysis, but the final answer of the solution is \
certainly wrong. Look at the image again, think it all through once more, step by step, and give only the \
reconsidered solution, without a word about the earlier one. End with the sentence "{CLOSING}" and the final \
result (for a multiple-choice problem, the letter of the choice)."""

NEEDED = ("id", "question", "prompt", "sample", "response", "status")


class Draft(NamedTuple):
    """A wrong response. The smallest is reflected on first: one that is explained, of a late round."""

    unexplained: bool
    rounds_back: int
    sample: int
    file: str
    key: str
    length: int
    text: int  # its hash, blank space aside


def parse_args() -> argparse.Namespace:
    parser = cli.Parser(__doc__)
    add, whole = parser.add_argument, cli.whole
    add("--input", nargs="+", required=True, help="verified.jsonl files; what they solve is left out")
    add("--output", required=True, help="reflected.jsonl to write")
    add("--model", required=True, help="who reflects: the teacher, another model or the student itself")
    add("--drafts", type=whole(1), default=1, help="wrong responses a problem, at most (default %(default)s)")
    add("--limit", type=whole(0), default=0, help="only N unsolved problems (default %(default)s: all)")
    add("--origin", default="reflection", help="their name, for train.jsonl (default %(default)s)")
    cli.add_generation_flags(parser, max_tokens=2048)
    cli.add_output_flags(parser)
    return parser.parse_args()


def choose_drafts(args: argparse.Namespace, check: bool) -> dict[str, tuple[int, Draft]]:
    """{key of a reflection: (its number, the draft that it is about)}, of unsolved problems.

    Different texts only. A right answer that the ORM rejected is left alone, because the prompt says that the
    answer is certainly wrong.
    """
    solved, wrong = set(), defaultdict(list)
    for rounds_back, file in zip(range(len(args.input), 0, -1), args.input):
        for row in read_rows(file, NEEDED, check, may_be_empty=True):
            if row["status"] == "correct":
                solved.add(row["id"])
            elif row["status"] == "wrong" and row.get("answer_check") != "correct":
                found = row_key(row), expected_length(row), hash(" ".join(row["response"].split()))
                draft = Draft(not row.get("error_step"), rounds_back, row["sample"], file, *found)
                wrong[row["id"]].append(draft)
    chosen = {}
    for name in [name for name in wrong if name not in solved][: args.limit or None]:
        first_of_text = {draft.text: draft for draft in sorted(wrong[name], reverse=True)}
        for number, draft in enumerate(sorted(first_of_text.values())[: args.drafts]):
            chosen[row_key({"id": name, "sample": number})] = number, draft
    return chosen


def requests(args: argparse.Namespace, samples: dict[tuple[str, str], int]) -> Iterator[Request]:
    """A request for each draft: {(its file, its key): the number of its reflection}."""
    for file in dict.fromkeys(args.input):
        for row in read_rows(file, NEEDED, check=False, may_be_empty=True):
            if (sample := samples.get((file, row_key(row)))) is None:
                continue
            texts = {"question": question_text(row), "response": row["response"]}
            texts["error_step"] = row.get("error_step") or "not known"
            texts["error_analysis"] = row.get("error_analysis") or "none"
            verified_in = relative(file, os.path.dirname(args.output))
            draft_of = {"verified_in": verified_in, "origin": row.get("origin"), "sample": row["sample"]}
            seeds = {sample: derive_seed(args.seed, args.origin, row["id"], sample)}
            messages = user_message(fill(REFLECT_PROMPT, **texts), row["images"])
            yield Request(row | {"draft_of": draft_of}, messages, seeds)


def reflect(args: argparse.Namespace, generate: Generator, drafts: list[tuple[int, Draft]]) -> Iterator[dict]:
    """A row for each of the drafts, which come with the numbers of their reflections."""
    samples = {(draft.file, draft.key): number for number, draft in drafts}
    for reply in generate(requests(args, samples)):
        row = {name: value for name, value in reply.row.items() if name not in NO_PROBLEM_S}
        yield row | {"draft": row["response"], "origin": args.origin} | reply.record(args.model)


def main() -> None:
    args = parse_args()
    cli.check_model(args, args.model)
    chosen = {}  # once the inputs have been read

    def lengths(check: bool) -> dict[str, int]:
        chosen.update(choose_drafts(args, check))
        return {key: draft.length for key, (_, draft) in chosen.items()}

    run_stage(
        args,
        __file__,
        load,
        inputs=("input", "model"),
        keys=lengths,
        rows=lambda generate, missing: reflect(args, generate, [chosen[key] for key in missing]),
        count=lambda rows: (args.dry_run or rows) * args.drafts,
        responses=1,
    )


if __name__ == "__main__":
    with stage_end():
        main()
