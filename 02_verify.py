"""Tell right paths from wrong ones: by the reference answer, by an outcome reward model (ORM), or by both.

Reads:  samples.jsonl    id, question, images, answer, optional options, sample, response, finish
Writes: verified.jsonl   + answer_check, orm_check (correct, wrong, undecided; null when not run), status (by
                         --accept), extracted, rule (of the answer check), error_step, error_line (the
                         response's line that it means, from 1), error_analysis, judge_reply (raw; a list of
                         several), judge_tokens, orm_confidence (where known), judge_error (why no reply),
                         held_out (true: the ORM was not trained on this problem; null: not known)

With --annotate the model is the teacher, which is shown the reference answer, and the output is the training
data of an ORM: + judge_prompt, teacher_check, and each wrong path with the step at which it fails and why.
Of verified.jsonl the ORM's checks are kept, so that the output tells how often it was right.

    python 02_verify.py --input out/samples.jsonl --output out/verified.jsonl --accept answer
    python 02_verify.py --input out/samples.jsonl --output out/judged.jsonl --model runs/default/orm/model
"""

import argparse
import difflib
import math
import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from tqdm import tqdm

from common import judge_prompt, load
from mathse.answers import (
    LETTERS,
    check_failed,
    check_rows,
    check_version,
    find_answer,
    option_values,
    reference_letters,
    states_value,
    votes,
)
from mathse.chat import fill, question_text, user_message
from mathse.cli import (
    Parser,
    add_generation_flags,
    add_output_flags,
    check_model,
    check_sampling,
    print_plan,
    real,
    whole,
)
from mathse.generate import Reply, Request, open_model
from mathse.jsonl import Output, expected_length, processes, share, stage_end
from mathse.recipe import Recipe, read_recipe
from mathse.records import (
    VERDICT_FIELDS,
    derive_seed,
    fail,
    is_held_out,
    listed,
    read_rows,
    row_key,
    written_rows,
)
from mathse.replies import Field, Found, find_lines, find_objects, thought_end, verdict_text
from mathse.report.statistics import VERDICTS, audit, audit_truth, right_rate, truth_lines

# The teacher's annotation of a wrong path (the paper's feedback prompt, in our words).
FEEDBACK_PROMPT = """You are evaluating a student's solution of a mathematics problem.

Problem: {question}

Standard answer: {answer}

Predicted solution:
{response}

Compare the predicted with the standard answer and check the key steps of the solution against the image. \
Another form of the same value is right, and if the standard answer lists several right answers, any of them \
is right. Reply with strict JSON only:
{"status": "CORRECT" or "WRONG", "error_step": the first wrong step as it stands in the solution or null, \
"error_analysis": why that step is wrong or null, "improvement_suggestion": what to look at again or null}
The explanation must not reveal the right final answer."""

NEEDED = ("id", "question", "sample", "response", "finish")
WORDS = {"CORRECT": "correct", "WRONG": "wrong", "INCORRECT": "wrong"}
NO_STEP = {"", "-", "-1", "n/a", "na", "nil", "none", "null", "no error", "no errors", "[]", "{}", "false"}
REPLY_SCHEMA = {  # of replies to JUDGE_PROMPT, which a server that takes one keeps them to
    "type": "object",
    "properties": {
        "status": {"type": "string", "enum": ["CORRECT", "WRONG"]},
        "error_step": {"type": ["string", "null"]},
        "error_analysis": {"type": ["string", "null"]},
    },
    "required": ["status", "error_step", "error_analysis"],
    "additionalProperties": False,
}
ALTERNATIVES = re.compile(r"\s*(?:or|[,/|])\s*")  # between two objects, of which then neither is the last
CHOICE = (  # LETTER is named as a choice
    r"\(LETTER\)|(?:\b(?i:option|choice|answer)(?i: is| should be| must be)?|选项?|答案[为是]?)"
    r"[\s:：(*\"']*LETTER(?![\w'])"
)
RETRY_TEMPERATURE = 0.7  # at least, when a reply gave no verdict: greedily it would be the same again
DRAFTED_LINES = 100  # of a response
AUDIT_SUBJECTS = 12  # printed, at most
ORM_FIELDS = {"orm_check", "orm_confidence", "held_out"}  # what an ORM said of a path that is annotated
NO_VERDICT = {"error_step": None, "error_analysis": None, "judge_reply": None}


def parse_args() -> argparse.Namespace:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--input", nargs="+", required=True, help="samples.jsonl or reflected.jsonl files")
    add("--output", required=True, help="verified.jsonl to write")
    add("--accept", choices=["orm", "answer", "both"], default="both", help="decides (default %(default)s)")
    add("--model", help="the ORM, or with --annotate the teacher; --accept answer works without")
    add("--annotate", action="store_true", help="write training data for an ORM instead of verdicts")
    add("--orm-samples", type=whole(1), default=1, help="verdicts a path, by majority (default %(default)s)")
    add("--orm-threshold", type=real(0, 1), default=0.0, help="verdicts of a lower probability are undecided")
    add(
        "--retry-undecided", type=whole(0), default=0, help="more tries without verdict (default %(default)s)"
    )
    agreement = "accept only answers of at least this share of the problem's paths (default 0: any)"
    add("--agree", type=real(0, 1), default=0.0, metavar="SHARE", help=agreement)
    add("--check-correct", action="store_true", help="--annotate: drop correct paths with a wrong step")
    add("--add-correct", nargs="*", default=[], help="--annotate: verified.jsonl files, their correct rows")
    add("--limit", type=whole(0), default=0, help="only the first N paths (default %(default)s: all)")
    add("--workers", type=whole(1), default=1, help="processes that compare answers (default %(default)s)")
    add_generation_flags(parser, max_tokens=512)
    add_output_flags(parser)
    return parser.parse_args()


# ---------------------------------------------------------------- who accepts


def decide(policy: str, answer_check: str | None, orm_check: str | None, agrees: bool = True) -> str:
    """The status of a path.

    Without a reference answer the ORM decides; `both` accepts what neither doubts. Nothing is accepted that
    does not agree with enough of the problem's paths (--agree).
    """
    if policy == "answer":
        checks = {answer_check}
    elif policy == "orm" or answer_check is None:
        checks = {orm_check}
    else:
        checks = {answer_check, orm_check}
    if "wrong" in checks:
        return "wrong"
    return "correct" if checks == {"correct"} and agrees else "undecided"


def agreeing(rows: Iterable[dict], share: float) -> set[str]:
    """Keys of the paths whose answer is, by its value, that of at least this share of their problem's paths.

    Needs no reference answer. A path without an answer agrees with nobody.
    """
    problems, options = defaultdict(list), {}
    for row in rows:
        answer = find_answer(row["response"])[0] if row["finish"] == "stop" else None
        problems[row["id"]].append((row_key(row), answer))
        options[row["id"]] = row.get("options")
    kept = set()
    for name, paths in problems.items():
        groups = votes(paths, options[name])
        kept |= {key for keys in groups if len(keys) >= share * len(paths) for key in keys}
    return kept


# ---------------------------------------------------------------- how a judge's reply is read


def verdict_drafts(response: str) -> tuple[str, ...]:
    """How the verdict of an ORM that 04 has trained may begin: CORRECT, or WRONG with a line of the response.
    What is fixed in it, or copied, need not be decoded token by token. The analysis stays open.
    """
    lines = response.split("\n")[:DRAFTED_LINES]
    return verdict_text("CORRECT"), *(verdict_text("WRONG", line, "")[: -len('"}')] for line in lines)


def parse_verdict(reply: str) -> dict:
    """{"verdict", "error_step", "error_analysis"} from a judge's reply.

    Forgiving about what is around the fields (fences, prose, quotes, commas, a cut-off end), strict about the
    verdict: no plain status, two different ones, or CORRECT with an error step is `undecided`.
    """
    fields = read_fields(reply)
    verdict = status_of(fields)
    step, analysis = (field_text(fields, name) for name in ("errorstep", "erroranalysis"))
    if verdict == "correct" and step:
        verdict = "undecided"
    if verdict != "wrong":
        step = analysis = None
    return {"verdict": verdict, "error_step": step, "error_analysis": analysis}


def read_fields(reply: str) -> list[Field]:
    """The fields of the last object that has a status, behind all thinking. A status inside another object,
    or quoted in a text, is not the reply's."""
    place = thought_end(reply)
    if place is None:
        return []
    objects = find_objects(reply, place)
    if not objects:
        return find_lines(reply, place, "status|error step|error analysis")
    stated = [found for found in objects if "status" in found.names()]
    if not stated:
        return []
    last = stated.pop()
    fields = list(last.fields)
    while stated and is_one_statement(stated[-1], last, reply):
        last = stated.pop()
        fields += last.fields
    return fields


def is_one_statement(first: Found, second: Found, reply: str) -> bool:
    """Whether neither of two objects has the last word: alternatives, or a first that breaks off."""
    between = reply[first.end : second.start]
    return bool(ALTERNATIVES.fullmatch(between)) or not (first.whole or between.strip())


def status_of(fields: list[Field]) -> str:
    """The verdict that every field `status` gives in one word."""
    values = [field.value if field.whole else None for field in fields if field.name == "status"]
    words = [value.strip(" \t\r\n.!*") if isinstance(value, str) else "" for value in values]
    verdicts = {WORDS.get(word.upper(), "undecided") for word in words}
    return verdicts.pop() if len(verdicts) == 1 else "undecided"


def field_text(fields: list[Field], name: str) -> str | None:
    """The text of the first field of this name that has one; what a list or an object holds is joined."""
    for field in fields:
        if field.name == name and field.value is not None:
            text = ", ".join(field.value) if isinstance(field.value, list) else field.value.strip()
            if text.strip(" .").lower() not in NO_STEP:
                return text
    return None


def status_probability(reply: Reply) -> float | None:
    """The model's own probability of the status it gives: the geometric mean over the word's tokens."""
    told = getattr(reply, "token_logprobs", [])
    fields = read_fields("".join(text for text, _ in told))
    status = next((field for field in fields if field.name == "status"), None)
    logprobs, place = [], 0
    for text, logprob in told if status else ():
        if place < status.end and place + len(text) > status.start:
            logprobs.append(logprob)
        place += len(text)
    return round(math.exp(sum(logprobs) / len(logprobs)), 4) if logprobs else None


def match_step(error_step: str | None, response: str) -> int | None:
    """The response's line, from 1, that an error step means: by its words, by its number, or the most
    alike.
    """
    lines = [" ".join(line.split())[:500].lower() for line in response.split("\n")]
    wanted = " ".join((error_step or "").split())[:500].lower().strip("\"'`.: ")
    if len(wanted) > 8:
        for number, line in enumerate(lines, 1):
            if wanted in line or (len(line) > 8 and line in wanted):
                return number
    numbered = re.compile(r"\W*(?:step|步骤|第)?\s*(\d+)(?!\d|\s*[-+*/=×÷.]\s*\d)")
    if found := numbered.match(wanted):
        for number, line in enumerate(lines, 1):
            if (other := numbered.match(line)) and other[1] == found[1]:
                return number
    alike = [difflib.SequenceMatcher(None, wanted, line, autojunk=False).ratio() for line in lines[:100]]
    return alike.index(max(alike)) + 1 if wanted and max(alike) >= 0.7 else None


def judged(row: dict, replies: list[Reply], args: argparse.Namespace) -> dict:
    """The row with the ORM's verdict, the majority of its replies. Its status is decided later.

    A tie and no verdict at all are undecided.
    """
    verdicts = [parse_verdict("" if reply.finish == "error" else reply.text) for reply in replies]
    votes = Counter(
        verdict["verdict"] for verdict in verdicts if verdict["verdict"] != "undecided"
    ).most_common(2)
    decided = votes and (len(votes) == 1 or votes[0][1] > votes[1][1])
    orm_check = votes[0][0] if decided else "undecided"
    voters = [
        (verdict, reply) for verdict, reply in zip(verdicts, replies) if verdict["verdict"] == orm_check
    ]
    voters = voters if decided else []
    probabilities = [value for _, reply in voters if (value := status_probability(reply)) is not None]
    confidence = round(sum(probabilities) / len(probabilities), 4) if probabilities else None
    if args.orm_threshold and (confidence is None or confidence < args.orm_threshold):
        orm_check = "undecided"
    error_step = voters[0][0]["error_step"] if voters else None
    texts = [f"error: {reply.reason}" if reply.finish == "error" else reply.text for reply in replies]
    fields = {
        "orm_check": orm_check,
        "error_step": error_step,
        "error_line": match_step(error_step, row["response"]),
        "error_analysis": voters[0][0]["error_analysis"] if voters else None,
        "judge_reply": texts[0] if len(texts) == 1 else texts or None,
        "orm_confidence": confidence,
    }
    return row | fields | judge_tokens(replies)


def drain(rows: list[dict]) -> Iterator[dict]:
    """Rows that need no reply: they are collected while requests are made, and taken out here."""
    while rows:
        yield rows.pop()


def judge_tokens(replies: list[Reply]) -> dict:
    """What the judge read and wrote, and why a reply could not be had, if one could not."""
    fields = {
        "judge_tokens": [
            sum(reply.prompt_tokens for reply in replies),
            sum(reply.tokens for reply in replies),
        ]
    }
    reasons = [reply.reason for reply in replies if reply.finish == "error"]
    return fields | ({"judge_error": reasons[0]} if reasons else {})


# ---------------------------------------------------------------- verify


def verify(args: argparse.Namespace, rows: Iterator[dict], generate) -> Iterator[dict]:
    """Rows with both checks. A path that was cut off or failed is undecided without asking anyone."""
    rows = check_rows(rows, args.workers)
    if generate is None:
        for row in rows:
            yield row | NO_VERDICT | {"orm_check": None}
        return
    unfit: list[dict] = []
    tokens: dict[str, list[int]] = {}  # of earlier tries, which are paid for too

    def requests(rows: Iterator[dict], attempt: int) -> Iterator[Request]:
        for row in rows:
            if row["finish"] != "stop":
                unfit.append(judged(row, [], args))
                continue
            names = [
                (args.seed, "judge", row["id"], row["sample"], attempt, k) for k in range(args.orm_samples)
            ]
            seeds = {k: derive_seed(*name) for k, name in enumerate(names)}
            messages = user_message(judge_prompt(row), row["images"])
            yield Request(row, messages, seeds)

    for attempt in range(args.retry_undecided + 1):
        replies, undecided = defaultdict(list), []
        temperature = max(args.temperature, RETRY_TEMPERATURE) if attempt else args.temperature
        for reply in generate(requests(rows, attempt), *([temperature] if attempt else [])):
            key = row_key(reply.row)
            replies[key].append(reply)
            if len(replies[key]) == args.orm_samples:
                in_order = sorted(replies.pop(key), key=lambda reply: reply.sample)
                row = judged(reply.row, in_order, args)
                row["judge_tokens"] = [a + b for a, b in zip(row["judge_tokens"], tokens.pop(key, (0, 0)))]
                no_verdict = row["orm_check"] == "undecided" and row["orm_confidence"] is None
                if no_verdict and attempt < args.retry_undecided:
                    tokens[key] = row["judge_tokens"]
                    undecided.append(reply.row)
                else:
                    yield row
            yield from drain(unfit)
        yield from drain(unfit)
        rows = undecided


def decided(args: argparse.Namespace, rows: Iterable[dict]) -> Iterator[dict]:
    """Rows with their status, and whether the ORM was trained on their problem."""
    agree = agreeing(read_paths(args, check=False), args.agree) if args.agree else None
    policy = args.accept if args.model else "answer"
    training = (read_recipe(Path(args.model or "") / "recipe.json") or {}).get("flags", {})
    share = training.get("hold_out") or 0
    for row in rows:
        agrees = agree is None or row_key(row) in agree
        row["status"] = decide(policy, row["answer_check"], row["orm_check"], agrees)
        row["held_out"] = is_held_out(row["id"], share, training["seed"]) if 0 < share < 1 else None
        yield row


# ---------------------------------------------------------------- training data of an ORM


def annotate(args: argparse.Namespace, rows: Iterator[dict], generate) -> Iterator[dict]:
    """Wrong paths with the teacher's explanation; correct ones as they are or, with --check-correct, if the
    teacher agrees. What cannot be used is undecided, with the reason."""
    unasked: list[dict] = []

    def requests() -> Iterator[Request]:
        for row in check_rows(rows, args.workers):
            row["judge_prompt"] = judge_prompt(row)
            if row["answer_check"] not in ("correct", "wrong"):
                unasked.append(
                    row | NO_VERDICT | {"status": "undecided", "reason": "the answer check is undecided"}
                )
            elif row["answer_check"] == "correct" and not args.check_correct:
                unasked.append(row | NO_VERDICT | {"status": "correct"})
            else:
                question, answer = question_text(row), row["answer"]
                prompt = fill(FEEDBACK_PROMPT, question=question, answer=answer, response=row["response"])
                seed = derive_seed(args.seed, "annotate", row["id"], row["sample"])
                yield Request(row, user_message(prompt, row["images"]), {0: seed})

    for reply in generate(requests()):
        yield from drain(unasked)
        yield annotated(reply)
    yield from drain(unasked)


def annotated(reply: Reply) -> dict:
    """The row with the teacher's verdict, undecided if it cannot be used."""
    row, verdict = reply.row, parse_verdict(reply.text)
    reason = None
    if reply.finish == "error":
        reason = reply.reason
    elif verdict["verdict"] == "undecided":
        reason = "no verdict in the reply"
    elif verdict["verdict"] != row["answer_check"]:
        reason = f"the teacher contradicts the answer check, which says {row['answer_check']}"
    elif row["answer_check"] == "wrong" and not verdict["error_analysis"]:
        reason = "no analysis"
    elif row["answer_check"] == "wrong" and gives_away(row, verdict):
        reason = "the explanation gives the answer away"
    row |= {
        "status": "undecided" if reason else row["answer_check"],
        "error_step": verdict["error_step"],
        "error_analysis": verdict["error_analysis"],
        "judge_reply": reply.text,
        "teacher_check": verdict["verdict"],
    }
    return row | judge_tokens([reply]) | ({"reason": reason} if reason else {})


def gives_away(row: dict, verdict: dict) -> bool:
    """Whether the explanation states the right answer, in any spelling, where question and response do not:
    the ORM would learn to tell it. For a choice: the right option's text, or its letter, called a choice."""
    answers = row["answer"] if isinstance(row["answer"], list) else [row["answer"]]
    values, letters = {str(answer).strip() for answer in answers}, set()
    if row.get("options"):
        letters, texts = reference_letters(row), option_values(row["options"])
        values = {texts[LETTERS.index(letter)] for letter in letters} - {"", *LETTERS}
    stated = [r"(?<![\w.])" + re.escape(value) + r"(?![\w]|\.\d)" for value in values]
    stated += [CHOICE.replace("LETTER", letter) for letter in letters]
    explanation = f"{verdict['error_step'] or ''} {verdict['error_analysis'] or ''}"
    known = row["response"] + " " + row["question"]
    if any(states_value(explanation, value) and not states_value(known, value) for value in values):
        return True
    return any(re.search(pattern, explanation) and not re.search(pattern, known) for pattern in stated)


# ---------------------------------------------------------------- the stage


def read_paths(args: argparse.Namespace, check: bool) -> Iterator[dict]:
    """The paths of all --input files, up to --limit, each telling from the output's folder where its
    draft stands.
    """
    rows = ((path, row) for path in args.input for row in read_rows(path, NEEDED, check, may_be_empty=True))
    for path, row in islice(rows, args.limit or None):
        for name in (VERDICT_FIELDS - (ORM_FIELDS if args.annotate else set())) & row.keys():
            del row[name]  # of an earlier verification
        match row.get("draft_of"):
            case {"verified_in": str(place)} as draft:
                place = os.path.join(os.path.dirname(path), place)
                row["draft_of"] = draft | {
                    "verified_in": os.path.relpath(place, os.path.dirname(args.output) or ".")
                }
        yield row


def read_correct(args: argparse.Namespace, lengths: dict[str, int]) -> Iterator[dict]:
    """The correct rows of --add-correct as training rows; their samples are numbered behind those of
    --input.
    """
    numbers = {}
    for path in args.add_correct:
        for row in read_rows(path, ("id", "status", "response"), may_be_empty=True):
            if row["status"] != "correct":
                continue
            number = numbers.get(row["id"], 0)
            while row_key(row | {"sample": number}) in lengths:
                number += 1
            numbers[row["id"]] = number + 1
            yield row | {"sample": number, "judge_prompt": judge_prompt(row)}


def check_input(args: argparse.Namespace) -> dict[str, int]:
    """{key of a path: its expected length}. One pass, which checks every row before a model is loaded."""
    lengths = {}
    for row in read_paths(args, check=True):
        if (key := row_key(row)) in lengths:
            fail(f"--input: id {row['id']!r}, sample {row['sample']} is in more than one of the files")
        lengths[key] = expected_length(row)
    return lengths


def write_rows(args: argparse.Namespace, output: Output, generate, mine: set[str]) -> Counter:
    """Check the paths in `mine`; returns the number of rows by their status, and by the reason of a drop."""
    rows = (row for row in read_paths(args, check=False) if row_key(row) in mine)
    checked = annotate(args, rows, generate) if args.annotate else decided(args, verify(args, rows, generate))
    counts, what = Counter(), "annotate" if args.annotate else "verify"
    for row in tqdm(checked, total=len(mine), desc=what, unit="path", disable=None):
        output.write(row)
        counts[row["status"]] += 1
        if check_failed(row.get("rule") or ""):
            counts[f"(answer check: {row['rule']})"] += 1
        if args.annotate and "reason" in row:
            counts[f"({row['reason']})"] += 1
    return counts


def print_audit(counts: dict) -> None:
    """Answer check against ORM check, and how often the ORM is right, by subject too."""

    def right(pairs: dict, check: str) -> str:
        rate = right_rate(pairs, check)
        return f"{rate[0]:6.1%} of {rate[2]:<6}" if rate else "     - of 0     "

    pairs = counts["answer/orm"]
    print(f"{'answer check':>14} | " + " ".join(f"{'ORM ' + name:>13}" for name in VERDICTS))
    for check in dict.fromkeys((*VERDICTS, *(pair.partition("/")[0] for pair in pairs))):
        cells = " ".join(f"{pairs.get(f'{check}/{orm}', 0):13d}" for orm in VERDICTS)
        print(f"{check.replace('None', 'no reference'):>14} | {cells}")
    largest = sorted(counts["by_subject"].items(), key=lambda item: -sum(item[1].values()))[:AUDIT_SUBJECTS]
    for subject, found in (("all", pairs), *largest):
        accepts, rejects = right(found, "correct"), right(found, "wrong")
        print(f"ORM right on paths with a right answer {accepts} with a wrong one {rejects} {subject}")
    steps = counts["error_steps"]
    found = f"{steps['found']} of {steps['given']} error steps found in the response"
    print(f"no verdict on {counts['no_verdict']} of {counts['judged']} whole paths; {found}")


def check_args(args: argparse.Namespace) -> None:
    """End the command on flags that do not go together, before anything is read."""
    if not args.model and (args.annotate or args.accept != "answer"):
        needed = "--annotate" if args.annotate else "--accept " + args.accept
        fail(f"--model: needed for {needed}; --accept answer works without")
    check_sampling(args, "--orm-samples", args.orm_samples)
    if args.orm_threshold and not args.model:
        fail("--orm-threshold: needs an ORM as --model")
    if args.model:
        check_model(args, args.model)


def main() -> None:
    args = parse_args()
    check_args(args)
    if args.dry_run is not None:
        print_plan(args, args.dry_run * args.orm_samples if args.model else 0)
        return
    constants = {"answer check": check_version()}
    code = (annotate, read_correct) if args.annotate else (verify, decided) if args.model else (decided,)
    inputs = ("input", "add_correct", "model")
    unused = set() if args.model else {*vars(args)} - {"input", "accept", "limit", "agree"}
    recipe = Recipe(
        args.output, __file__, args, inputs, {"batch_size", "processes"} | unused, constants, code
    )
    if recipe.is_done():
        return
    lengths = check_input(args)
    output = Output(recipe)
    mine = share(lengths) - output.done
    counts, spent = Counter(), {}
    if mine:
        wanted = {"schema": None if args.annotate else REPLY_SCHEMA}
        generate = open_model(args.model, args, load, **wanted) if args.model else None
        counts = write_rows(args, output, generate, mine)
        spent = generate.spent() if generate else {}
    keys = list(lengths)
    if args.annotate:
        for row in read_correct(args, lengths):
            keys.append(row_key(row))
            if processes()[0] == 0 and keys[-1] not in output.done:
                output.write(row)
    output.finish(keys, **spent)
    if processes()[0] == 0:
        rows = written_rows(Path(args.output))
        if args.annotate:
            for line in truth_lines(audit_truth(rows)):
                print(line)
        elif args.model and (figures := audit(rows)):
            print_audit(figures)
        print(f"{args.output}: {len(keys)} paths; this process: {listed(counts)}")


if __name__ == "__main__":
    with stage_end():
        main()
