"""Rows of a training file -> optimizer steps -> micro-batches of tensors, packed or padded; packing.py says what packing is.

Nothing here needs a model: it runs in the processes that prepare batches ahead of it. torch is imported where tensors are made.
"""

import argparse
import itertools
import json
import math
import os
import random
from array import array
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from common import IMAGE, chat_parts, derive_seed, encode_prompts, fail, open_image, other_prompts

if TYPE_CHECKING:
    import torch

IGNORE = -100
PER_TOKEN = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")  # of a processor's outputs; the others are about pictures


# ---------------------------------------------------------------- rows and steps


class TrainingRows:
    """Random access to the rows of a training file: only byte offsets are kept in memory.

    Rows are numbered by their keys, not by their place in the file: an endpoint's replies arrive in any order. questions[n]: rows with the
    same number have the same pictures, and prompts that begin alike. held: rows of the problems that are not trained on.
    """

    def __init__(self, path: Path, hold_out: int = 0, seed: int = 0):
        rows, offset = [], 0
        with path.open("rb") as file:
            for line in file:
                row = json.loads(line)
                question = json.dumps([row["id"], row.get("images"), beginning(row)])
                rows.append((derive_seed(row["id"], row.get("sample"), row.get("origin"), row.get("status")), offset, len(line), question, row["id"]))
                offset += len(line)
        rows.sort()
        names = sorted({row[4] for row in rows})
        if hold_out >= len(names):
            fail(f"--hold-out: {hold_out}: there are {len(names)} problems to train on; leave some")
        held, known = {*random.Random(f"{seed} held").sample(names, hold_out)}, {}
        self.path, self.offsets, self.sizes = path, array("q", (row[1] for row in rows)), array("l", (row[2] for row in rows))
        self.questions = array("l", (known.setdefault(row[3], len(known)) for row in rows))
        self.held = [number for number, row in enumerate(rows) if row[4] in held]

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, index: int) -> dict:
        with self.path.open("rb") as file:
            file.seek(self.offsets[index])
            row = json.loads(file.readline())
        return row | {"images": [str(self.path.parent / image) for image in row["images"]]}


def beginning(row: dict) -> list[str]:
    """A prompt's messages, the last one up to its last picture."""
    *earlier, last = [message["content"] for message in row.get("messages", [])][:-1] or [""]
    return [*earlier, last[: last.rfind(IMAGE) + 1]]


def plan_steps(rows: TrainingRows, args: argparse.Namespace, world: int, packed: bool = True) -> list[list[list[list[int]]]]:
    """steps[s][r]: the micro-batches (lists of row numbers) of process r in step s. The same on every process and on a rerun.

    Every epoch is a permutation of the questions by the seed; the rows of one stand together, so that it is read once for them.
    """
    held, questions, order = {*rows.held}, defaultdict(list), []
    for number, question in enumerate(rows.questions):
        if number not in held:
            questions[question].append(number)
    groups = list(questions.values())
    count = sum(map(len, groups))
    for epoch in range(math.ceil(args.epochs)):
        turn = list(range(len(groups)))
        random.Random(f"{args.seed} {epoch}").shuffle(turn)
        order += [number for group in turn for number in groups[group]][: max(1, round(count * min(1.0, args.epochs - epoch)))]
    return [deal(rows, order[start : start + args.batch_size], args.micro_batch, world, packed) for start in range(0, len(order), args.batch_size)]


def deal(rows: TrainingRows, numbers: list[int], most: int, world: int, packed: bool = True) -> list[list[list[int]]]:
    """Micro-batches of `most` rows at most, by process. Packed: a question's rows stay together where they fit; padded: rows of like length.

    All processes get as many micro-batches, of nearly equal length (empty ones fill up).
    """
    longest = defaultdict(int)
    owner = {number: rows.questions[number] if packed else number for number in numbers}
    for number in numbers:
        longest[owner[number]] = max(longest[owner[number]], rows.sizes[number])
    numbers = sorted(numbers, key=lambda number: (longest[owner[number]], owner[number], rows.sizes[number], number))
    most, micro = min(most, math.ceil(len(numbers) / world)), [[]]
    for _, group in itertools.groupby(numbers, owner.get):
        group = list(group)
        if len(micro[-1]) + len(group) > most and len(group) <= most:
            micro.append([])
        for number in group:
            if len(micro[-1]) == most:
                micro.append([])
            micro[-1].append(number)
    micro = [numbers for numbers in micro if numbers]
    micro += [[] for _ in range(-len(micro) % world)]
    return [micro[rank::world] for rank in range(world)]


class MicroBatches:
    """Dataset of prepared micro-batches: (Batch or None if no row is usable, number of rows left out)."""

    def __init__(self, rows: TrainingRows, micro_batches: list[list[int]], processor, args: argparse.Namespace, packed: bool, world: int = 1):
        self.rows, self.micro_batches, self.processor, self.args, self.packed, self.world = rows, micro_batches, processor, args, packed, world

    def __len__(self) -> int:
        return len(self.micro_batches)

    def __getitem__(self, index: int):
        groups = [[self.rows[number] for number in group] for _, group in itertools.groupby(self.micro_batches[index], lambda number: self.rows.questions[number])]
        return encode(self.processor, groups, self.args.max_pixels, self.args.max_length, self.packed, self.world > 1)


# ---------------------------------------------------------------- micro-batches


@dataclass
class Layout:
    """How a packed row attends: sequence i has lengths_q[i] of the row's tokens in turn, and the next lengths_k[i] of those that `keys` names."""

    lengths_q: list[int]
    lengths_k: list[int]
    keys: "torch.Tensor | None"  # token numbers (sum of lengths_k); None: the row itself, no question is shared
    cumulated: tuple = ()  # both lengths summed up from 0, int32: what kernels ask for

    def to(self, device) -> "Layout":
        import torch
        import torch.nn.functional as F

        cumulated = [F.pad(torch.tensor(lengths).cumsum(0), (1, 0)).to(device, torch.int32) for lengths in (self.lengths_q, self.lengths_k)]
        return Layout(self.lengths_q, self.lengths_k, None if self.keys is None else self.keys.to(device), tuple(cumulated))

    def pairs(self) -> int:
        """Of a query with a key: what attention computes."""
        return sum(q * (k - q) + q * (q + 1) // 2 for q, k in zip(self.lengths_q, self.lengths_k))


@dataclass
class Batch:
    """A micro-batch: what the model reads, and `targets` (B, C), the token that follows each hidden state which is kept, or IGNORE.

    Packed: B is 1; `prompts` are the questions' prompts (left-padded, (Q, P)) that positions are computed from, `shared[q]` of them are read
    once, `answers[q]` are the lengths of what follows. tokens: without padding; pictures[q]: the paths of a question's pictures.
    """

    inputs: dict
    targets: "torch.Tensor"
    tokens: int
    pictures: list[tuple[str, ...]]
    layout: Layout
    prompts: dict = field(default_factory=dict)
    shared: list[int] = field(default_factory=list)
    answers: list[list[int]] = field(default_factory=list)

    @property
    def labels(self) -> int:
        return int((self.targets != IGNORE).sum())


@dataclass
class Question:
    """Rows of a training file with the same pictures. `blank`: not trained on, see encode()."""

    rows: list[dict]
    images: list
    blank: bool = False


def encode(processor, groups: list[list[dict]], max_pixels: int, max_length: int, packed: bool, pictures_needed: bool = False) -> tuple[Batch | None, int]:
    """(a micro-batch of these groups of rows, the number of rows left out: unreadable pictures, longer than `max_length` tokens,
    a placeholder of the model in a text).

    pictures_needed: without any picture a blank one without labels is added, because with several processes all must
    pass through the vision tower, or those that do wait for ever.
    """
    questions, count = [], sum(map(len, groups))
    for rows in groups:
        if not (rows := [row for row in rows if not holds_placeholder(processor, row)]):
            continue
        try:
            questions.append(Question(rows, [open_image(image, max_pixels) for image in rows[0]["images"]]))
        except (OSError, ValueError):
            continue
    tokens = tokenize(processor, questions, max_length)
    left_out = count - sum(len(question.rows) for question in questions)
    if pictures_needed and not any(question.images for question in questions):
        blank = {"messages": [{"role": "user", "content": IMAGE}, {"role": "assistant", "content": "-"}], "images": ["blank"]}
        from PIL import Image

        questions.append(Question([blank], [Image.new("RGB", (56, 56))], blank=True))
        tokens = tokenize(processor, questions, 1 << 30)
    if not questions:
        return None, left_out
    return (pack if packed else pad)(processor, questions, *tokens), left_out


def holds_placeholder(processor, row: dict) -> bool:
    """Whether a text holds what this model knows as a piece of a picture or video: it would wait for pictures that are not there."""
    tokens = [token for name in ("image_token", "video_token") if (token := getattr(processor, name, None))]
    return any(token in part.get("text", "") for message in chat_parts(row["messages"]) for part in message["content"] for token in tokens)


def tokenize(processor, questions: list[Question], max_length: int) -> tuple[dict, list[list[list[int]]], list[list[list[int]]]]:
    """(inputs of the questions' first prompts, tokens of all prompts, of all replies and their ends), the latter by question.

    Prompts are exactly those of sampling, and replies are appended to them: nothing in front of a label differs. Rows that
    are too long, and questions without any row left, are taken out of `questions`.
    """
    if not questions:
        return {}, [], []
    try:
        inputs = encode_prompts(processor, [chat_parts(question.rows[0]["messages"][:-1], question.images) for question in questions])
    except ValueError:  # a picture that this processor refuses, such as a strip of a few pixels
        if len(questions) == 1:
            questions.clear()
            return {}, [], []
        for question in [*questions]:
            tokenize(processor, alone := [question], max_length)
            if not alone:
                questions.remove(question)
        return tokenize(processor, questions, max_length)
    prompts, replies, first_kept = [], [], []
    for question, ids, seen in zip(questions, inputs["input_ids"], inputs["attention_mask"].bool()):
        messages, first = [row["messages"][:-1] for row in question.rows], ids[seen].tolist()
        alike = all(message == messages[0] for message in messages)
        own = [first] * len(messages) if alike else other_prompts(processor, messages, first)
        if own is None:
            own = [encode_prompts(processor, [chat_parts(message, question.images)])["input_ids"][0].tolist() for message in messages]
        ends = reply_tokens(processor, question.rows)
        keep = [index for index in range(len(ends)) if len(own[index]) + len(ends[index]) <= max_length]
        question.rows = [question.rows[index] for index in keep]
        prompts.append([own[index] for index in keep])
        replies.append([ends[index] for index in keep])
        first_kept.append(bool(keep) and keep[0] == 0)
    if all(first_kept):
        return inputs, prompts, replies
    questions[:] = [question for question in questions if question.rows]
    return tokenize(processor, questions, max_length)


def reply_tokens(processor, rows: list[dict]) -> list[list[int]]:
    """Tokens of each row's reply, as the chat template writes it, and of what ends it.

    The line break that some templates put behind the end belongs to the next turn; a template that writes no end
    (LLaVA-1.5's) gets the tokenizer's, or the model would never learn to stop.
    """
    ends = []
    for row in rows:
        bare, reply = chat_parts(row["messages"][:-1]), row["messages"][-1]["content"]
        head = processor.apply_chat_template(bare, add_generation_prompt=True)
        full = processor.apply_chat_template([*bare, {"role": "assistant", "content": [{"type": "text", "text": reply}]}])
        end = (full.removeprefix(head) if full.startswith(head) else reply).rstrip()
        behind = end[end.find(reply.strip()) + len(reply.strip()) :]
        ends.append(end if behind else end + processor.tokenizer.eos_token)
    return processor.tokenizer(ends, add_special_tokens=False)["input_ids"]


def pack(processor, questions: list[Question], inputs: dict, prompts: list, replies: list) -> Batch:
    """One row of tokens."""
    import torch

    ids, predictors, targets, keys, lengths_q, lengths_k, shared, answers = [], [], [], [], [], [], [], []
    for question, own, ends in zip(questions, prompts, replies):
        # The last token of a prompt is never shared: it predicts another token in each answer.
        begin, count = len(ids), min(len(os.path.commonprefix(own)), min(map(len, own)) - 1) if len(own) > 1 else 0
        if count:
            ids += own[0][:count]
            keys += range(begin, begin + count)
            lengths_q.append(count)
            lengths_k.append(count)
        for prompt, end in zip(own, ends):
            start, piece = len(ids), prompt[count:] + end
            ids += piece
            keys += [*range(begin, begin + count), *range(start, len(ids))]
            lengths_q.append(len(piece))
            lengths_k.append(count + len(piece))
            if not question.blank:
                predictors += range(len(ids) - len(end) - 1, len(ids) - 1)
                targets += end
        shared.append(count)
        answers.append([len(prompt) - count + len(end) for prompt, end in zip(own, ends)])
    layout = Layout(lengths_q, lengths_k, torch.tensor(keys) if any(shared) else None)
    vision = {name: value for name, value in inputs.items() if name not in PER_TOKEN}
    row = {"input_ids": torch.tensor([ids]), "logits_to_keep": torch.tensor(predictors, dtype=torch.long)}
    pictures = [tuple(question.rows[0]["images"]) for question in questions]
    return Batch(vision | row, torch.tensor([targets], dtype=torch.long), len(ids), pictures, layout, dict(inputs), shared, answers)


def pad(processor, questions: list[Question], inputs: dict, prompts: list, replies: list) -> Batch:
    """A row of tokens for each row: prompts left-padded, replies right-padded, so that all labels stand in the last columns."""
    import torch
    import torch.nn.functional as F

    if any(len(question.rows) > 1 for question in questions):
        inputs = encode_prompts(processor, [chat_parts(row["messages"][:-1], question.images) for question in questions for row in question.rows])
    inputs, ends = dict(inputs), [end for group in replies for end in group]
    blank = [question.blank for question in questions for _ in question.rows]
    longest = max(map(len, ends))
    tokens = torch.tensor([end + [processor.tokenizer.pad_token_id] * (longest - len(end)) for end in ends])
    seen = torch.tensor([[1] * len(end) + [0] * (longest - len(end)) for end in ends])
    for name, part in {"input_ids": tokens, "attention_mask": seen, "mm_token_type_ids": 0 * seen, "token_type_ids": 0 * seen}.items():
        if name in inputs:
            inputs[name] = torch.cat([inputs[name], part], 1)
    learnt = seen.bool() & ~torch.tensor(blank)[:, None]
    targets = F.pad(tokens.masked_fill(~learnt, IGNORE), (0, 1), value=IGNORE)  # the last prompt token predicts the first, the last token nothing
    lengths = inputs["attention_mask"].sum(1).tolist()
    pictures = [tuple(question.rows[0]["images"]) for question in questions for _ in question.rows]
    return Batch(inputs | {"logits_to_keep": longest + 1}, targets, sum(lengths), pictures, Layout(lengths, lengths, None))
