"""Tell right paths from wrong ones: by the reference answer, by an outcome reward model (ORM), or by both.

Reads:  samples.jsonl    id, question, images, answer, optional options, sample, response, finish
Writes: verified.jsonl   + answer_check, orm_check (correct, wrong, undecided; null when not run), status (by --accept),
                         extracted, rule (of the answer check), error_step, error_analysis, judge_reply (raw), judge_tokens

With --annotate the model is the teacher, which is shown the reference answer, and the output is training data for the ORM: as many
correct paths as wrong ones, each wrong one with the step at which it fails and why.

    python 02_verify.py --input samples.jsonl --output verified.jsonl --accept answer
    python 02_verify.py --input samples.jsonl --output verified.jsonl --accept both --model orm/model
"""

import argparse
import json
import random
import re
from collections import Counter, defaultdict
from typing import Iterable, Iterator

from tqdm import tqdm

from answers import check_rows
from common import (
    Output, add_model_flags, check_flags, derive_seed, fail, fill, finished, judge_messages, processes, question_text, read_rows, row_key, user_message,
)  # fmt: skip
from engine import Request, open_model

# The teacher's annotation of a wrong path (the paper's feedback prompt, in our words).
FEEDBACK_PROMPT = """You are evaluating a student's solution of a mathematics problem.

Problem: {question}

Standard answer: {answer}

Predicted solution:
{response}

Compare the predicted with the standard answer and check the key steps of the solution against the image. Another form of \
the same value is right, and if the standard answer lists several right answers, any of them is right. Reply with strict JSON only:
{"status": "CORRECT" or "WRONG", "error_step": the first wrong step as it stands in the solution or null, \
"error_analysis": why that step is wrong or null, "improvement_suggestion": what to look at again or null}
The explanation must not reveal the right final answer."""

NEEDED = ("id", "question", "sample", "response", "finish")
VERDICTS = {"CORRECT": "correct", "WRONG": "wrong", "INCORRECT": "wrong"}


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", nargs="+", required=True, help="samples.jsonl or reflected.jsonl files")
    parser.add_argument("--output", required=True, help="verified.jsonl to write")
    parser.add_argument("--accept", choices=["orm", "answer", "both"], default="both", help="who decides the status (default %(default)s)")
    parser.add_argument("--model", help="the ORM (with --annotate: the teacher); --accept answer works without it, and with it stores its verdicts and analyses")
    parser.add_argument("--annotate", action="store_true", help="write training data for the ORM instead of verdicts")
    parser.add_argument("--show-answer", action="store_true", help="the ORM is shown the reference answer, as it was in its training (ablation)")
    parser.add_argument("--balance-with", nargs="*", default=[], help="with --annotate: verified.jsonl files whose correct paths the ORM is trained on too")
    parser.add_argument("--limit", type=int, default=0, help="only the first N paths (default %(default)s: all)")
    parser.add_argument("--workers", type=int, default=1, help="processes for mathematical comparisons (default %(default)s)")
    add_model_flags(parser, max_tokens=512)
    return parser.parse_args()


# ---------------------------------------------------------------- verdicts


def parse_verdict(reply: str) -> dict:
    """{"verdict", "error_step", "error_analysis"} from a judge's reply.

    Forgiving about what is around the fields (fences, prose, quotes, commas, a cut-off end), strict about the verdict:
    no status, or two different ones, is `undecided`.
    """
    statuses = {match.upper() for match in re.findall(r"""["']?\bstatus["']?\s*:\s*["']?(CORRECT|WRONG|INCORRECT)\b""", reply, re.IGNORECASE)}
    verdicts = {VERDICTS[status] for status in statuses}
    verdict = verdicts.pop() if len(verdicts) == 1 else "undecided"
    fields = {}
    for name in ("error_step", "error_analysis"):
        found = re.search(rf"""["']{name}["']\s*:\s*(?:"((?:[^"\\]|\\.)*)|'((?:[^'\\]|\\.)*)|(\d+))""", reply)
        text = next((group for group in found.groups() if group), None) if found and verdict == "wrong" else None
        fields[name] = re.sub(r"\\(.)", lambda match: {"n": "\n", "t": "\t"}.get(match[1], match[1] if match[1] in "\"'\\/" else match[0]), text) if text else None
    return {"verdict": verdict} | fields


def decide(policy: str, answer_check: str | None, orm_check: str | None) -> str:
    """The status of a path. Without a reference answer the ORM decides; `both` accepts only what neither doubts."""
    if policy == "answer":
        return answer_check or "undecided"
    if policy == "orm" or answer_check is None:
        return orm_check or "undecided"
    checks = {answer_check, orm_check}
    return "wrong" if "wrong" in checks else "correct" if checks == {"correct"} else "undecided"


def verify(args: argparse.Namespace, rows: Iterator[dict], generate) -> Iterator[dict]:
    """Rows with both checks. A path that was cut off or failed is undecided without asking anyone."""

    def requests() -> Iterator[Request]:
        for row in check_rows(rows, args.workers):
            yield Request(row, judge_messages(row, args.show_answer), {0: derive_seed(args.seed, "judge", row["id"], row["sample"])})

    if not args.model:
        for row in check_rows(rows, args.workers):
            yield row | {"orm_check": None, "status": decide("answer", row["answer_check"], None), "error_step": None, "error_analysis": None, "judge_reply": None}
        return
    skipped: list[dict] = []

    def whole_paths() -> Iterator[Request]:
        for request in requests():
            if request.row["finish"] == "stop":
                yield request
            else:
                skipped.append(request.row)

    def judged(row: dict, verdict: dict, reply: str | None, tokens: list[int]) -> dict:
        orm_check = verdict["verdict"]
        status = decide(args.accept, row["answer_check"], orm_check)
        fields = {"error_step": verdict.get("error_step"), "error_analysis": verdict.get("error_analysis")}
        return row | {"orm_check": orm_check, "status": status} | fields | {"judge_reply": reply, "judge_tokens": tokens}

    for reply in generate(whole_paths()):
        while skipped:
            yield judged(skipped.pop(), {"verdict": "undecided"}, None, [0, 0])
        text = reply.text if reply.finish != "error" else f"error: {reply.reason}"
        verdict = parse_verdict(reply.text) if reply.finish != "error" else {"verdict": "undecided"}
        yield judged(reply.row, verdict, text, [reply.prompt_tokens, reply.tokens])
    while skipped:
        yield judged(skipped.pop(), {"verdict": "undecided"}, None, [0, 0])


# ---------------------------------------------------------------- training data for the ORM


def gives_away(row: dict, verdict: dict) -> bool:
    """Whether the explanation holds the right answer where the response does not: the ORM would learn to tell it."""
    words = re.compile(r"(?<![\w.])" + re.escape(str(row["answer"]).strip()) + r"(?![\w]|\.\d)")
    explanation = f"{verdict['error_step'] or ''} {verdict['error_analysis'] or ''}"
    return bool(words.search(explanation)) and not words.search(row["response"] + " " + row["question"])


def balanced_keys(rows: Iterable[dict], seed: int, more_correct: int) -> set[str]:
    """Keys of as many wrong paths as correct ones (with `more_correct` from elsewhere), chosen by the seed, no path twice."""
    keys, seen = defaultdict(list), set()
    for row in rows:
        fingerprint = hash((row["id"], " ".join(row["response"].split())))
        if row["answer_check"] in ("correct", "wrong") and fingerprint not in seen:
            seen.add(fingerprint)
            keys[row["answer_check"]].append(row_key(row))
    if not keys["wrong"] or not len(keys["correct"]) + more_correct:
        fail(f"--input: {len(keys['correct'])} correct and {len(keys['wrong'])} wrong paths: the ORM needs both; sample more problems, or more paths a problem")
    rng = random.Random(seed)
    correct = rng.sample(keys["correct"], min(len(keys["correct"]), len(keys["wrong"])))
    return {*correct, *rng.sample(keys["wrong"], min(len(correct) + more_correct, len(keys["wrong"])))}


def annotate(args: argparse.Namespace, rows: Iterator[dict], generate) -> Iterator[dict]:
    """Correct paths as they are; wrong ones with the teacher's explanation, undecided where it cannot be used."""
    correct: list[dict] = []

    def requests() -> Iterator[Request]:
        for row in check_rows(rows, args.workers):
            if row["answer_check"] == "correct":
                correct.append(row)
                continue
            prompt = fill(FEEDBACK_PROMPT, question=question_text(row), answer=row["answer"], response=row["response"])
            yield Request(row, user_message(prompt, row["images"]), {0: derive_seed(args.seed, "annotate", row["id"], row["sample"])})

    def finish_correct() -> Iterator[dict]:
        while correct:
            yield correct.pop() | {"status": "correct", "error_step": None, "error_analysis": None, "judge_reply": None}

    for reply in generate(requests()):
        yield from finish_correct()
        verdict, reason = parse_verdict(reply.text), None
        if reply.finish == "error":
            reason = reply.reason
        elif verdict["verdict"] != "wrong":
            reason = "the teacher contradicts the answer check" if verdict["verdict"] == "correct" else "no verdict in the reply"
        elif not verdict["error_analysis"]:
            reason = "no analysis"
        elif gives_away(reply.row, verdict):
            reason = "the explanation gives the answer away"
        fields = {"status": "undecided" if reason else "wrong", "error_step": verdict["error_step"], "error_analysis": verdict["error_analysis"]}
        yield reply.row | fields | {"judge_reply": reply.text, "judge_tokens": [reply.prompt_tokens, reply.tokens]} | ({"reason": reason} if reason else {})
    yield from finish_correct()


# ---------------------------------------------------------------- the stage


def agreement(pairs: Counter) -> str:
    """The table answer check x ORM check, and the ORM's accuracy on paths that the answer check calls correct and wrong."""
    names = ["correct", "wrong", "undecided"]
    lines = [f"{'answer check':>14} | " + " ".join(f"{'ORM ' + name:>13}" for name in names)]
    for check in names:
        lines.append(f"{check:>14} | " + " ".join(f"{pairs[check, orm]:13d}" for orm in names))
    for check in ("correct", "wrong"):
        count = sum(pairs[check, orm] for orm in names)
        lines.append(f"ORM right on {check} paths: {pairs[check, check] / count:.1%} of {count}" if count else f"no {check} paths")
    return "\n".join(lines)


def main() -> None:
    args = parse_args()
    check_flags(args)
    if not args.model and (args.annotate or args.accept != "answer"):
        fail(f"--model: needed for {'--annotate' if args.annotate else '--accept ' + args.accept}; --accept answer works without")
    if finished(args.output):
        return
    args.limit = args.limit or None
    total, keys = 0, set()
    for row in all_rows(args, check=True):  # checks every row before a model is loaded
        if (key := row_key(row)) in keys:
            fail(f"--input: id {row['id']!r}, sample {row['sample']} is in more than one of the files")
        keys.add(key)
        total += 1
    chosen = keys
    if args.annotate:
        more_correct = sum(row["status"] == "correct" for path in args.balance_with for row in read_rows(path, ("id", "status"), may_be_empty=True))
        chosen = balanced_keys(check_rows(all_rows(args, check=False), args.workers), args.seed, more_correct)
    output = Output(args.output)
    rank, world = processes()
    todo = len(chosen) - len(output.done)
    generate = open_model(args.model, args) if todo and args.model else None
    rows = (row for index, row in enumerate(row for row in all_rows(args, check=False) if row_key(row) in chosen) if index % world == rank)
    rows = (row for row in rows if row_key(row) not in output.done)
    counts, pairs, reasons = Counter(), Counter(), Counter()
    with tqdm(total=todo, desc="annotate" if args.annotate else "verify", unit="path", disable=None) as bar:
        for row in annotate(args, rows, generate) if args.annotate else verify(args, rows, generate) if todo else ():
            output.write(row)
            counts[row["status"]] += 1
            pairs[row.get("answer_check") or "undecided", row.get("orm_check")] += 1
            reasons[row.get("reason")] += 1
            bar.update()
    output.finish(len(chosen))
    if rank == 0 and args.model and not args.annotate and todo:
        print(agreement(pairs))
    dropped = {reason: count for reason, count in reasons.items() if reason}
    print(f"{args.output}: {dict(counts)} of {len(chosen)} paths" + (f"; undecided because: {json.dumps(dropped)}" if dropped and args.annotate else ""))


def all_rows(args: argparse.Namespace, check: bool) -> Iterator[dict]:
    rows = (row for path in args.input for row in read_rows(path, NEEDED, check, may_be_empty=True))
    yield from (row for index, row in enumerate(rows) if args.limit is None or index < args.limit)


if __name__ == "__main__":
    main()
