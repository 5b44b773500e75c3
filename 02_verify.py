"""Tell right paths from wrong ones: by the reference answer, by an outcome reward model (ORM), or by both.

Reads:  samples.jsonl    id, question, images, answer, optional options, sample, response, finish
Writes: verified.jsonl   + answer_check, orm_check (correct, wrong, undecided; null when not run), status (by --accept),
                         extracted, rule (of the answer check), error_step, error_line (the response's line it was matched to, from 1),
                         error_analysis, judge_reply (raw; a list of several), judge_tokens, orm_confidence (local models),
                         judge_error (why a reply could not be had)

With --annotate the model is the teacher, which is shown the reference answer, and the output is training data for the ORM: as many
correct paths as wrong ones, each wrong one with the step at which it fails and why.

    python 02_verify.py --input samples.jsonl --output verified.jsonl --accept answer
    python 02_verify.py --input samples.jsonl --output verified.jsonl --accept both --model orm/model
"""

import argparse
import difflib
import json
import math
import os
import re
from collections import Counter, defaultdict
from itertools import islice
from pathlib import Path
from typing import Iterable, Iterator

from tqdm import tqdm

from answers import LETTERS, check_rows, option_values, reference_letters
from checks import check_flags, read_rows
from common import add_model_flags, balanced, derive_seed, fail, fill, is_endpoint, judge_messages, question_text, row_key, user_message
from engine import Reply, Request, open_model
from output import Output, disk_errors, expected_length, finished, share
from scores import VERDICTS, audit, read_json_rows, right_rate

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
WORDS = {"CORRECT": "correct", "WRONG": "wrong", "INCORRECT": "wrong"}
STATUS = re.compile(r"""["']?\bstatus["']?\s*:\s*["']?(CORRECT|WRONG|INCORRECT)\b(?!["']?\s*(?:or\b|[/|]))""", re.IGNORECASE)  # not the form itself
CHOICE = r"\(LETTER\)|(?:\b(?i:option|choice|answer)(?i: is| should be| must be)?|选项?|答案[为是]?)[\s:：(*\"']*LETTER(?![\w'])"  # that a letter is named as a choice
SUBJECTS = 12  # the audit prints, at most
RETRY_TEMPERATURE = 0.7  # at least, when a reply without a verdict is asked for again: greedily it would be the same


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", nargs="+", required=True, help="samples.jsonl or reflected.jsonl files")
    parser.add_argument("--output", required=True, help="verified.jsonl to write")
    parser.add_argument("--accept", choices=["orm", "answer", "both"], default="both", help="who decides the status (default %(default)s)")
    parser.add_argument("--model", help="the ORM (with --annotate: the teacher); --accept answer works without it, and with it stores its verdicts and analyses")
    parser.add_argument("--annotate", action="store_true", help="write training data for the ORM instead of verdicts")
    parser.add_argument("--show-answer", action="store_true", help="the ORM is shown the reference answer, as it was in its training (ablation)")
    parser.add_argument("--orm-samples", type=int, default=1, help="ask the ORM k times and take the majority; needs a temperature (default %(default)s)")
    parser.add_argument("--orm-threshold", type=float, default=0.0, help="verdicts of a local ORM below this probability are undecided (default %(default)s)")
    parser.add_argument("--retry-undecided", type=int, default=0, help="ask again, with other seeds, up to N times where no verdict was given (default %(default)s)")
    parser.add_argument("--check-correct", action="store_true", help="with --annotate: ask about correct paths too and drop those in which the teacher finds a wrong step")
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
    statuses = {match.upper() for match in STATUS.findall(reply)}
    verdicts = {WORDS[status] for status in statuses}
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


def status_probability(reply: Reply) -> float | None:
    """The probability, by the model itself, of the status that it gives: of the word's tokens, their geometric mean."""
    found = STATUS.search("".join(text for text, _ in reply.pieces))
    logprobs, place = [], 0
    for text, logprob in reply.pieces if found else ():
        if place < found.end(1) and place + len(text) > found.start(1):
            logprobs.append(logprob)
        place += len(text)
    return round(math.exp(sum(logprobs) / len(logprobs)), 4) if logprobs else None


def match_step(error_step: str | None, response: str) -> int | None:
    """The number, from 1, of the response's line that the error step means: by its words, by its number, or the most alike."""
    lines = [" ".join(line.split())[:500].lower() for line in response.split("\n")]
    wanted = " ".join((error_step or "").split())[:500].lower().strip("\"'`.: ")
    if len(wanted) > 8 and (holding := [index for index, line in enumerate(lines, 1) if wanted in line or len(line) > 8 and line in wanted]):
        return holding[0]
    number = re.compile(r"\W*(?:step|步骤|第)?\s*(\d+)(?!\d|\s*[-+*/=×÷.]\s*\d)")
    if found := number.match(wanted):
        numbered = [index for index, line in enumerate(lines, 1) if (other := number.match(line)) and other[1] == found[1]]
        if numbered:
            return numbered[0]
    alike = [difflib.SequenceMatcher(None, wanted, line, autojunk=False).ratio() for line in lines[:100]] if wanted else [0.0]
    return alike.index(max(alike)) + 1 if max(alike) >= 0.7 else None


def judged(row: dict, replies: list[Reply], policy: str, threshold: float) -> dict:
    """The row with the ORM's verdict: that of the majority of its replies; a tie, or no reply with a verdict, is undecided."""
    verdicts = [parse_verdict(reply.text) if reply.finish != "error" else {"verdict": "undecided"} for reply in replies]
    votes = Counter(verdict["verdict"] for verdict in verdicts if verdict["verdict"] != "undecided").most_common(2)
    orm_check = votes[0][0] if votes and (len(votes) == 1 or votes[0][1] > votes[1][1]) else "undecided"
    voters = [(verdict, reply) for verdict, reply in zip(verdicts, replies) if verdict["verdict"] == orm_check != "undecided"]
    chances = [chance for _, reply in voters if (chance := status_probability(reply)) is not None]
    confidence = round(sum(chances) / len(chances), 4) if chances else None
    if confidence is not None and confidence < threshold:
        orm_check = "undecided"
    steps = voters[0][0] if voters else {}
    texts = [reply.text if reply.finish != "error" else f"error: {reply.reason}" for reply in replies]
    return row | {
        "orm_check": orm_check, "status": decide(policy, row["answer_check"], orm_check),
        "error_step": steps.get("error_step"), "error_line": match_step(steps.get("error_step"), row["response"]), "error_analysis": steps.get("error_analysis"),
        "judge_reply": texts[0] if len(texts) == 1 else texts or None, "orm_confidence": confidence,
        "judge_tokens": [sum(reply.prompt_tokens for reply in replies), sum(reply.tokens for reply in replies)],
    } | judge_error(replies)  # fmt: skip


def judge_error(replies: list[Reply]) -> dict:
    """The field that says why a reply could not be had, if one could not."""
    reasons = [reply.reason for reply in replies if reply.finish == "error"]
    return {"judge_error": reasons[0]} if reasons else {}


def verify(args: argparse.Namespace, rows: Iterator[dict], generate) -> Iterator[dict]:
    """Rows with both checks. A path that was cut off or failed is undecided without asking anyone."""
    asked = check_rows(rows, args.workers)
    if not args.model:
        for row in asked:
            yield row | {"orm_check": None, "status": decide("answer", row["answer_check"], None), "error_step": None, "error_analysis": None, "judge_reply": None}
        return
    unfit: list[dict] = []
    spent: dict[str, list[int]] = {}  # by key: tokens of earlier attempts, which are paid for too

    def requests(attempt: int) -> Iterator[Request]:
        for row in asked:
            if row["finish"] != "stop":
                unfit.append(row)
                continue
            seeds = {k: derive_seed(args.seed, "judge", row["id"], row["sample"], attempt, k) for k in range(args.orm_samples)}
            yield Request(row, judge_messages(row, args.show_answer), seeds)

    for attempt in range(args.retry_undecided + 1):
        replies, open_rows = defaultdict(list), []
        temperature = max(args.temperature, RETRY_TEMPERATURE) if attempt else args.temperature
        for reply in generate(requests(attempt), temperature):
            key = row_key(reply.row)
            replies[key].append(reply)
            if len(replies[key]) == args.orm_samples:
                row = judged(reply.row, sorted(replies.pop(key), key=lambda reply: reply.sample), args.accept, args.orm_threshold)
                row["judge_tokens"] = [now + before for now, before in zip(row["judge_tokens"], spent.pop(key, (0, 0)))]
                if row["orm_check"] == "undecided" and row["orm_confidence"] is None and attempt < args.retry_undecided:
                    spent[key] = row["judge_tokens"]
                    open_rows.append(reply.row)
                else:
                    yield row
            while unfit:
                yield judged(unfit.pop(), [], args.accept, args.orm_threshold)
        while unfit:
            yield judged(unfit.pop(), [], args.accept, args.orm_threshold)
        asked = open_rows


# ---------------------------------------------------------------- training data for the ORM


def gives_away(row: dict, verdict: dict) -> bool:
    """Whether the explanation states the right answer where question and response do not: the ORM would learn to tell it.

    Of a choice that is the text of the right option, or its letter where the words call it a choice (not the article, not a point A).
    """
    answers = row["answer"] if isinstance(row["answer"], list) else [row["answer"]]
    values, letters = {str(answer).strip() for answer in answers}, set()
    if row.get("options"):
        letters, texts = reference_letters(row), option_values(row["options"])
        values = {texts[LETTERS.index(letter)] for letter in letters} - {"", *LETTERS}
    stated = [r"(?<![\w.])" + re.escape(value) + r"(?![\w]|\.\d)" for value in values] + [CHOICE.replace("LETTER", letter) for letter in letters]
    explanation, known = f"{verdict['error_step'] or ''} {verdict['error_analysis'] or ''}", row["response"] + " " + row["question"]
    return any(re.search(pattern, explanation) and not re.search(pattern, known) for pattern in stated)


def balanced_keys(rows: Iterable[dict], seed: int, more_correct: Counter) -> set[str]:
    """Keys of as many wrong paths as correct ones (with `more_correct` from elsewhere, counted by subject), no path twice.

    By keys, not by their order in the file: a rerun's rows come in another one.
    """
    paths, keys = {}, defaultdict(list)
    for row in rows:
        if row["answer_check"] in ("correct", "wrong"):
            fingerprint = hash((row["id"], " ".join(row["response"].split())))
            paths[fingerprint] = min(paths.get(fingerprint, ("~",)), (row_key(row), row["answer_check"], str(row.get("subject"))))
    for key, check, subject in sorted(paths.values()):
        keys[check, subject].append(key)
    for subject, count in more_correct.items():
        keys["correct", subject] += [None] * count
    chosen = balanced(keys, seed)
    if not chosen:
        counts = Counter(check for check, subject in keys for _ in keys[check, subject])
        fail(f"--input: {counts['correct']} correct and {counts['wrong']} wrong paths: the ORM needs both; sample more problems, or more paths a problem")
    return {*chosen} - {None}


def annotate(args: argparse.Namespace, rows: Iterator[dict], generate) -> Iterator[dict]:
    """Correct paths as they are, or (--check-correct) if the teacher agrees: some are right by luck. Wrong ones with the teacher's
    explanation. What cannot be used is undecided, with the reason."""
    correct: list[dict] = []

    def requests() -> Iterator[Request]:
        for row in check_rows(rows, args.workers):
            if row["answer_check"] == "correct" and not args.check_correct:
                correct.append(row)
                continue
            prompt = fill(FEEDBACK_PROMPT, question=question_text(row), answer=row["answer"], response=row["response"])
            yield Request(row, user_message(prompt, row["images"]), {0: derive_seed(args.seed, "annotate", row["id"], row["sample"])})

    def finish_correct() -> Iterator[dict]:
        while correct:
            yield correct.pop() | {"status": "correct", "error_step": None, "error_analysis": None, "judge_reply": None}

    for reply in generate(requests()):
        yield from finish_correct()
        verdict, answer_check, reason = parse_verdict(reply.text), reply.row["answer_check"], None
        if reply.finish == "error":
            reason = reply.reason
        elif verdict["verdict"] == "undecided":
            reason = "no verdict in the reply"
        elif verdict["verdict"] != answer_check:
            reason = f"the teacher contradicts the answer check, which says {answer_check}"
        elif answer_check == "wrong" and not verdict["error_analysis"]:
            reason = "no analysis"
        elif answer_check == "wrong" and gives_away(reply.row, verdict):
            reason = "the explanation gives the answer away"
        fields = {"status": "undecided" if reason else answer_check, "error_step": verdict["error_step"], "error_analysis": verdict["error_analysis"]}
        yield reply.row | fields | {"judge_reply": reply.text, "judge_tokens": [reply.prompt_tokens, reply.tokens]} | judge_error([reply]) | ({"reason": reason} if reason else {})
    yield from finish_correct()


# ---------------------------------------------------------------- the stage


def print_audit(counts: dict) -> None:
    """The table answer check x ORM check, the ORM's accuracy on paths that the answer check calls correct and wrong, by subject too."""

    def right(pairs: dict, check: str) -> str:
        rate = right_rate(pairs, check)
        return f"{rate[0]:6.1%} of {rate[2]:<6}" if rate else "     - of 0     "

    print(f"{'answer check':>14} | " + " ".join(f"{'ORM ' + name:>13}" for name in VERDICTS))
    for check in dict.fromkeys((*VERDICTS, *(pair.partition("/")[0] for pair in counts["answer/orm"]))):
        print(f"{check.replace('None', 'no reference'):>14} | " + " ".join(f"{counts['answer/orm'].get(f'{check}/{orm}', 0):13d}" for orm in VERDICTS))
    largest = sorted(counts["by_subject"].items(), key=lambda item: -sum(item[1].values()))[:SUBJECTS]
    for subject, pairs in (("all", counts["answer/orm"]), *largest):
        print(f"ORM right on paths with a right answer {right(pairs, 'correct')} with a wrong one {right(pairs, 'wrong')} {subject}")
    steps = counts["error_steps"]
    print(f"no verdict on {counts['no_verdict']} of {counts['judged']} whole paths; {steps['found']} of {steps['given']} error steps found in the response")


def main() -> None:
    args = parse_args()
    check_flags(args)
    if not args.model and (args.annotate or args.accept != "answer"):
        fail(f"--model: needed for {'--annotate' if args.annotate else '--accept ' + args.accept}; --accept answer works without")
    if args.orm_samples > 1 and args.temperature == 0:
        fail("--orm-samples: more than one at --temperature 0 would be the same reply; set --temperature 1.0")
    if args.orm_threshold and (not args.model or is_endpoint(args.model)):
        fail("--orm-threshold: needs a local ORM as --model; an endpoint tells no probabilities")
    if finished(args.output, args.retry_errors):
        return
    args.limit = args.limit or None
    lengths = {}
    for row in all_rows(args, check=True):  # checks every row before a model is loaded
        if (key := row_key(row)) in lengths:
            fail(f"--input: id {row['id']!r}, sample {row['sample']} is in more than one of the files")
        lengths[key] = expected_length(row)
    chosen = lengths.keys()
    if args.annotate:
        solved = (row for path in args.balance_with for row in read_rows(path, ("id", "status"), may_be_empty=True) if row["status"] == "correct")
        more_correct = Counter(str(row.get("subject")) for row in solved)
        chosen = balanced_keys(check_rows(all_rows(args, check=False), args.workers), args.seed, more_correct)
    output = Output(args.output, args)
    mine = share({key: lengths[key] for key in chosen if key not in output.done})
    generate = open_model(args.model, args, pieces=not args.annotate) if mine and args.model else None
    rows = (row for row in all_rows(args, check=False) if row_key(row) in mine)
    counts, reasons = Counter(), Counter()
    with tqdm(total=len(mine), desc="annotate" if args.annotate else "verify", unit="path", disable=None) as bar:
        for row in () if not mine else annotate(args, rows, generate) if args.annotate else verify(args, rows, generate):
            output.write(row)
            counts[row["status"]] += 1
            reasons[row.get("reason")] += 1
            bar.update()
    complete = output.finish(len(chosen))
    if complete and args.model and not args.annotate and (figures := audit(read_json_rows(Path(args.output)))):
        print_audit(figures)
    dropped = {reason: count for reason, count in reasons.items() if reason}
    print(f"{args.output}: {dict(counts)} of {len(chosen)} paths" + (f"; undecided because: {json.dumps(dropped)}" if dropped and args.annotate else ""))


def all_rows(args: argparse.Namespace, check: bool) -> Iterator[dict]:
    """The paths of all files, up to --limit; where a reflection's draft stands is told from the folder of the output."""
    rows = ((path, row) for path in args.input for row in read_rows(path, NEEDED, check, may_be_empty=True))
    for path, row in islice(rows, args.limit):
        match row.get("draft_of"):
            case {"verified_in": str(place)} as draft:
                row["draft_of"] = draft | {"verified_in": os.path.relpath(os.path.join(os.path.dirname(path), place), os.path.dirname(args.output) or ".")}
        yield row


if __name__ == "__main__":
    with disk_errors():
        main()
