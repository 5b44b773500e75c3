"""Tell right responses from wrong ones: by the reference answer, an outcome reward model (ORM), or both.

Reads:  samples.jsonl    id, question, images, answer, optional options, sample, response, finish
Writes: verified.jsonl   + answer_check, orm_check (correct, wrong, undecided; null when not run), status (by
                         --accept), reason (of one that is undecided), extracted, rule (of the answer check),
                         error_step, error_analysis, judge_reply (raw; a list of several), judge_tokens,
                         judge_error (why there is no reply)

With --annotate the model is the teacher, which is shown the reference answer. The output is the training data
of an ORM: + teacher_check, error_type, and each wrong response with the step at which it fails and why. Of
predictions.jsonl (05) it tells which types of errors a model makes.

    python 02_verify.py --input out/samples.jsonl --output out/verified.jsonl --accept answer
    python 02_verify.py --input out/samples.jsonl --output out/judged.jsonl --model runs/default/orm/model
"""

import argparse
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import islice

from common import CLOSING, judge_prompt, load
from mathse import cli
from mathse.answers import check_rows, check_version, find_answer, reference_text, reveals, votes
from mathse.chat import fill, question_text, user_message
from mathse.generate import Generator, Reply, Request
from mathse.jsonl import expected_length
from mathse.launch import stage_end
from mathse.records import ERROR_TYPES, VERDICT_FIELDS, derive_seed, fail, read_rows, row_key
from mathse.replies import REPLY_SCHEMA, ended, last_object
from mathse.report.statistics import verdict_lines
from mathse.stage import ask, run_stage

# The teacher's annotation of a wrong response (the paper's feedback prompt, in our words). The ORM's is in
# common.py, because 04 teaches it.
FEEDBACK_PROMPT = """You are evaluating a student's solution of a mathematics problem.

Problem: {question}

Standard answer: {answer}

Predicted solution:
{response}

Compare the predicted with the standard answer and check the key steps of the solution against the image. \
Another form of the same value is right, and if the standard answer lists several right answers, any of them \
is right. Reply with strict JSON only:
{"status": "CORRECT" or "WRONG", "error_step": the first wrong step as it stands in the solution or null, \
"error_analysis": why that step is wrong or null, "error_type": "vision" (the image is misread), \
"understanding" (of the question), "knowledge" (a theorem or formula), "calculation", "reasoning" or null, \
"improvement_suggestion": what to look at again or null}
The explanation must not reveal the right final answer."""

# An edit of these concerns the other half of this stage alone: no teacher is asked again because of decide().
# A function of yours that one half alone calls is one more of its names.
VERIFYING = ("decide", "agreeing", "decided", "judged", "verify", "judge_prompt")
ANNOTATING = ("FEEDBACK_PROMPT", "annotated", "annotate")
NEEDED = ("id", "question", "sample", "response", "finish")
WORDS = {"CORRECT": "correct", "WRONG": "wrong", "INCORRECT": "wrong"}


def parse_args() -> argparse.Namespace:
    parser = cli.Parser(__doc__)
    add, whole, real = parser.add_argument, cli.whole, cli.real
    add("--input", nargs="+", required=True, help="samples.jsonl, reflected.jsonl or predictions.jsonl files")
    add("--output", required=True, help="verified.jsonl to write")
    add("--accept", choices=["orm", "answer", "both"], default="both", help="decides (default %(default)s)")
    add("--model", help="the ORM, or with --annotate the teacher; --accept answer works without")
    add("--annotate", action="store_true", help="write training data for an ORM instead of verdicts")
    add("--check-correct", action="store_true", help="--annotate: drop correct responses with a wrong step")
    add("--orm-samples", type=whole(1), default=1, help="verdicts each, by majority (default %(default)s)")
    agreement = "accept only answers of at least this share of the problem's responses (default 0: any)"
    add("--agree", type=real(0, 1), default=0.0, metavar="SHARE", help=agreement)
    add("--limit", type=whole(0), default=0, help="only the first N responses (default %(default)s: all)")
    cli.add_generation_flags(parser, max_tokens=512)
    cli.add_output_flags(parser)
    return parser.parse_args()


# ---------------------------------------------------------------- who accepts


def decide(row: dict, responses: list[dict], args: argparse.Namespace) -> tuple[str, str | None]:
    """(status, reason) of a response, given all of its problem, each with answer_check and orm_check; of D0
    and reflections, too, of which a problem mostly has one: row["origin"] tells.

    Without a reference answer the ORM decides; `both` accepts what neither doubts. Nothing is accepted that
    does not agree with enough of the problem's responses (--agree).
    """
    answer_check, orm_check = row["answer_check"], row["orm_check"]
    checks = {"answer": {answer_check}, "orm": {orm_check}}
    checks = checks.get(args.accept, {answer_check, orm_check} - {None})
    if "wrong" in checks:
        return "wrong", None
    if checks == {"correct"}:
        agrees = not args.agree or row_key(row) in agreeing(responses, args.agree)
        return ("correct", None) if agrees else ("undecided", "too few of the problem's responses agree")
    if row["finish"] != "stop":
        return "undecided", row.get("reason") or "cut off"
    if args.accept != "answer" and orm_check != "correct":
        return "undecided", row.get("judge_error") or "the ORM gives no verdict"
    return "undecided", f"no answer is stated that can be compared ({row['rule']})"


def agreeing(responses: list[dict], share: float) -> set[str]:
    """Keys of a problem's responses whose answer is, by its value, that of at least this share of them.

    Needs no reference answer. A response without an answer agrees with nobody.
    """
    whole_ones = (row["response"] if row["finish"] == "stop" else "" for row in responses)
    said = (find_answer(response, CLOSING)[0] for response in whole_ones)
    groups = votes(zip(map(row_key, responses), said), responses[0].get("options"))
    return {key for keys in groups if len(keys) / len(responses) >= share for key in keys}


def decided(responses: list[dict], args: argparse.Namespace) -> Iterator[dict]:
    """The responses of a problem with their status."""
    for row in responses:
        status, reason = decide(row, responses, args)
        if row["finish"] != "error":  # it is the verdict's, perhaps an earlier one's
            row.pop("reason", None)
        yield row | {"status": status} | ({"reason": reason} if reason else {})


# ---------------------------------------------------------------- what a judge replies


def parse_verdict(reply: str) -> dict:
    """{"verdict", "error_step", "error_analysis", "error_type"} from a judge's reply.

    Forgiving about what is around the fields (fences, prose, quotes, commas, a cut-off end), strict about the
    verdict: no plain status, two different ones, or CORRECT with an error step is `undecided`.
    """
    found = last_object(reply, "status")
    words = {WORDS.get(word.strip(" \t\r\n.!*").upper(), "undecided") for word in found.words}
    verdict = words.pop() if len(words) == 1 else "undecided"
    step, analysis, kind = (found.text(name) for name in ("errorstep", "erroranalysis", "errortype"))
    if verdict == "correct" and step:
        verdict = "undecided"
    if verdict != "wrong":
        step = analysis = kind = None
    kind = next((name for name in ERROR_TYPES if re.search(rf"\b{name}\b", (kind or "").lower())), None)
    return {"verdict": verdict, "error_step": step, "error_analysis": analysis, "error_type": kind}


def verdict_of(reply: Reply) -> dict:
    """parse_verdict() of a reply. One that was cut off counts if its object stands first: behind other words
    it may be a draft in a thought, which not every server marks as one.
    """
    counts = reply.finish != "length" or re.match(r"\s*(```\w*\s*)?\{", reply.text)
    return parse_verdict(reply.text if counts else "")


def judged(row: dict, replies: list[Reply]) -> dict:
    """The row with the ORM's verdict, the majority of its replies; a tie and no verdict are undecided."""
    verdicts = [*map(verdict_of, replies)]
    counts = Counter(verdict["verdict"] for verdict in verdicts if verdict["verdict"] != "undecided")
    leading = [name for name, count in counts.items() if count == max(counts.values())]
    orm_check = leading[0] if len(leading) == 1 else "undecided"
    voter = next((verdict for verdict in verdicts if orm_check == verdict["verdict"] != "undecided"), {})
    texts = [reply.text for reply in replies]
    fields = {"orm_check": orm_check}
    fields |= {name: voter.get(name) for name in ("error_step", "error_analysis")}
    return row | fields | {"judge_reply": texts[0] if len(texts) == 1 else texts or None} | told(replies)


def told(replies: list[Reply]) -> dict:
    """What a judge read and wrote, and why a reply could not be had, if one could not."""
    tokens = [sum(reply.prompt_tokens for reply in replies), sum(reply.tokens for reply in replies)]
    reasons = [reply.reason for reply in replies if reply.finish == "error"]
    return {"judge_tokens": tokens} | ({"judge_error": reasons[0]} if reasons else {})


def annotated(row: dict, replies: list[Reply]) -> dict:
    """The row with the teacher's verdict, undecided if it cannot be used. Unasked, the answer check holds."""
    check = row["answer_check"]
    verdict = verdict_of(replies[0]) if replies else parse_verdict("")
    explanation = f"{verdict['error_step'] or ''} {verdict['error_analysis'] or ''}"
    reason = None
    if check not in ("correct", "wrong"):
        reason = "the answer check is undecided"
    elif replies and replies[0].finish == "error":
        reason = replies[0].reason
    elif replies and verdict["verdict"] == "undecided":
        reason = "no verdict in the reply"
    elif replies and verdict["verdict"] != check:
        reason = f"the teacher contradicts the answer check, which says {check}"
    elif check == "wrong" and not verdict["error_analysis"]:
        reason = "no analysis"
    elif check == "wrong" and reveals(explanation, row):  # the ORM would learn to tell it
        reason = "the explanation gives the answer away"
    fields = {"status": "undecided" if reason else check}
    fields["teacher_check"] = verdict.pop("verdict") if replies else None
    fields |= verdict | told(replies) | ({"reason": reason} if reason else {})
    return row | fields | {"judge_reply": replies[0].text if replies else None}


# ---------------------------------------------------------------- the stage


def verify(args: argparse.Namespace, rows: Iterable[dict], generate: Generator | None) -> Iterator[dict]:
    """Rows with both checks; a response that was cut off or failed is shown to nobody."""

    def request_of(row: dict) -> Request | None:
        if row["finish"] != "stop":
            return None
        name = args.seed, "judge", row["id"], row["sample"]
        seeds = {k: derive_seed(*name, k) for k in range(args.orm_samples)}
        return Request(row, user_message(judge_prompt(row), row["images"]), seeds)

    for row, replies in ask(check_rows(rows, CLOSING, stated_only=True), request_of, generate):
        yield judged(row, replies) if generate else row | {"orm_check": None, "judge_reply": None}


def annotate(args: argparse.Namespace, rows: Iterable[dict], generate: Generator) -> Iterator[dict]:
    """Wrong responses with the teacher's explanation; correct ones as they are or, with --check-correct, if
    the teacher agrees.
    """

    def request_of(row: dict) -> Request | None:
        if row["answer_check"] != "wrong" and not (args.check_correct and row["answer_check"] == "correct"):
            return None
        texts = {"question": question_text(row), "response": row["response"]}
        texts["answer"] = reference_text(row["answer"])
        seeds = {0: derive_seed(args.seed, "annotate", row["id"], row["sample"])}
        return Request(row, user_message(fill(FEEDBACK_PROMPT, **texts), row["images"]), seeds)

    for row, replies in ask(check_rows(rows, CLOSING, stated_only=True), request_of, generate):
        yield annotated(row, replies)


def read_input(args: argparse.Namespace, check: bool, keys: Iterable[str] | None = None) -> Iterator[dict]:
    """The responses of all --input files, up to --limit, without an earlier verdict; if `keys`, those."""
    reading = {"required": NEEDED, "check": check, "may_be_empty": True, "base": args.output}
    rows = (row for path in args.input for row in read_rows(path, **reading))
    for row in islice(rows, args.limit or None):
        if keys is None or row_key(row) in keys:
            row["response"], row["finish"] = ended(row["response"], row["finish"])
            forgotten = VERDICT_FIELDS | (set() if row["finish"] == "error" else {"reason"})
            yield {name: value for name, value in row.items() if name not in forgotten}


def expected_lengths(args: argparse.Namespace, check: bool) -> dict[str, int]:
    """{key of a response: its expected length}, the responses of a problem together."""
    problems = defaultdict(dict)
    for row in read_input(args, check):
        lengths, key = problems[row["id"]], row_key(row)
        if key in lengths:
            fail(f"--input: id {row['id']!r}, sample {row['sample']} is in more than one of the files")
        lengths[key] = expected_length(row)
    return {key: length for lengths in problems.values() for key, length in lengths.items()}


def check_args(args: argparse.Namespace) -> None:
    """End the command on flags that do not go together, before anything is read."""
    if not args.model and (args.annotate or args.accept != "answer"):
        needed = "--annotate" if args.annotate else "--accept " + args.accept
        fail(f"--model: needed for {needed}; --accept answer works without")
    cli.check_sampling(args, "--orm-samples", args.orm_samples)
    if args.model:
        cli.check_model(args, args.model)


def main() -> None:
    args = parse_args()
    check_args(args)
    work, unused = (annotate, VERIFYING) if args.annotate else (verify, ANNOTATING)
    run_stage(
        args,
        __file__,
        load,
        inputs=("input", "model"),
        without=() if args.model else {*vars(args)} - {"input", "accept", "agree", "limit"},
        unused=unused,
        constants={"answer check": check_version()},
        keys=lambda check: expected_lengths(args, check),
        rows=lambda generate, missing: work(args, read_input(args, False, missing), generate),
        calls=1 if args.annotate else args.orm_samples if args.model else 0,
        responses=1,
        settle=iter if args.annotate else lambda responses: decided(responses, args),
        schema=None if args.annotate else REPLY_SCHEMA,
        summary=verdict_lines,
    )


if __name__ == "__main__":
    with stage_end():
        main()
