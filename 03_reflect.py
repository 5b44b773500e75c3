"""Think again: wrong paths, with the step at which they fail and why, become reconsidered paths.

Reads:  verified.jsonl    id, question, images, answer, sample, response, status, error_step, error_analysis
Writes: reflected.jsonl   the problem, sample (0 ... drafts-1), response (the new one), draft (the wrong one), draft_of (its verified_in, a
                          path relative to this file, origin and sample), finish, tokens, prompt_tokens, model, seed, origin ("reflection");
                          goes through 02_verify.py again

    python 03_reflect.py --input verified.jsonl --output reflected.jsonl --model runs/default/round_1/model
    python 03_reflect.py --input round_*/verified.jsonl --output reflected.jsonl --model https://api.openai.com/v1#gpt-4o --drafts 2
"""

import argparse
import os
from collections import Counter, defaultdict
from typing import Iterator

from tqdm import tqdm

from checks import check_flags, read_rows
from common import add_model_flags, derive_seed, fill, question_text, row_key, user_message
from engine import Request, open_model
from output import Output, disk_errors, expected_length, finished, share

REFLECT_PROMPT = """You are an expert mathematics teacher. A student's solution of the problem below ends in a wrong answer.

Problem: {question}

The student's solution:
{response}

A reviewer says that this step is wrong: {error_step}
The reviewer's analysis: {error_analysis}

The reviewer may be mistaken about the step and the analysis, but the final answer of the solution is certainly wrong. \
Look at the image again, think it all through once more, step by step, and give only the reconsidered solution, without a word \
about the earlier one. End with the sentence "The answer to this problem is" and the final result (for a multiple-choice \
problem, the letter of the choice)."""

VERIFIED_FIELDS = ("answer_check", "orm_check", "status", "extracted", "rule", "error_step", "error_line", "error_analysis", "judge_reply", "judge_tokens",
                   "orm_confidence", "judge_error")  # fmt: skip
NEEDED = ("id", "question", "sample", "response", "status")


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", nargs="+", required=True, help="verified.jsonl files; a problem solved in any of them is left out")
    parser.add_argument("--output", required=True, help="reflected.jsonl to write")
    parser.add_argument("--model", required=True, help="who reflects: teacher, another model or the student itself")
    parser.add_argument("--drafts", type=int, default=1, help="wrong paths a problem to reflect on, at most (default %(default)s)")
    parser.add_argument("--limit", type=int, default=0, help="only the first N unsolved problems (default %(default)s: all)")
    add_model_flags(parser, max_tokens=2048)
    return parser.parse_args()


def choose_drafts(args: argparse.Namespace) -> dict[tuple[int, str], tuple[int, int, str]]:
    """{(file number, key of a wrong path): (its number among the problem's drafts, its expected length, the key of the
    reconsidered path)}, for the problems that no file solves.

    Different texts only; paths with a diagnosis first, later rounds before earlier ones. A right answer which the ORM
    rejected is left alone: the prompt says that the answer is certainly wrong.
    """
    solved, wrong = set(), defaultdict(list)
    for number, path in enumerate(args.input):
        for row in read_rows(path, NEEDED, may_be_empty=True):
            if row["status"] == "correct":
                solved.add(row["id"])
            elif row["status"] == "wrong" and row.get("answer_check") != "correct":
                text = hash(" ".join(row["response"].split()))
                wrong[row["id"]].append((not row.get("error_step"), -number, row["sample"], row_key(row), expected_length(row), text))
    drafts = {}
    for name in [name for name in wrong if name not in solved][: args.limit or None]:
        best = {draft[-1]: draft for draft in sorted(wrong[name], reverse=True)}.values()  # the best of each text
        for index, (_, number, _, key, length, _) in enumerate(sorted(best)[: args.drafts]):
            drafts[-number, key] = index, length, row_key({"id": name, "sample": index})
    return drafts


def main() -> None:
    args = parse_args()
    check_flags(args)
    if finished(args.output, args.retry_errors):
        return
    drafts = choose_drafts(args)
    output = Output(args.output, args)
    mine = share({place: length for place, (_, length, key) in drafts.items() if key not in output.done})

    def requests() -> Iterator[Request]:
        rows = (((number, row_key(row)), path, row) for number, path in enumerate(args.input) for row in read_rows(path, NEEDED, check=False, may_be_empty=True))
        for place, path, row in rows:
            if place in mine:
                draft = drafts[place][0]
                prompt = fill(
                    REFLECT_PROMPT, question=question_text(row), response=row["response"],
                    error_step=row.get("error_step") or "not known", error_analysis=row.get("error_analysis") or "none",
                )  # fmt: skip
                row["draft_of"] = {"verified_in": os.path.relpath(path, os.path.dirname(args.output) or "."), "origin": row.get("origin"), "sample": row["sample"]}
                yield Request(row, user_message(prompt, row["images"]), {draft: derive_seed(args.seed, "reflection", row["id"], draft)})

    generate = open_model(args.model, args) if mine else lambda requests: iter(())
    counts, tokens = Counter(), 0
    with tqdm(total=len(mine), desc="reflect", unit="path", disable=None) as bar:
        for reply in generate(requests()):
            row = {name: value for name, value in reply.row.items() if name not in VERIFIED_FIELDS}
            output.write(row | {
                "sample": reply.sample, "response": reply.text, "draft": reply.row["response"], "finish": reply.finish,
                "tokens": reply.tokens, "prompt_tokens": reply.prompt_tokens, "model": args.model, "seed": reply.seed, "origin": "reflection",
            } | ({"reason": reply.reason} if reply.reason else {}))  # fmt: skip
            counts[reply.finish] += 1
            tokens += reply.tokens
            bar.update()
    output.finish(len(drafts))
    print(f"{args.output}: {len(drafts)} drafts of unsolved problems reflected upon: {dict(counts)}, {tokens} new tokens")


if __name__ == "__main__":
    with disk_errors():
        main()
