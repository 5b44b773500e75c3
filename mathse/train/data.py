"""Rows of a training file -> micro-batches of tensors, packed (see packing.py) or padded.

Nothing here needs a model: it also runs in the processes that prepare micro-batches ahead of the training.
Torch is imported where tensors are made.
"""

import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

from mathse.chat import chat_parts, encode_prompts, encode_texts
from mathse.images import open_image
from mathse.launch import end_with_parent
from mathse.records import IMAGE
from mathse.train.rows import TrainingRows

IGNORE = -100  # target of a token that is not learnt
# A processor's outputs that have an entry a token; the others are about images.
PER_TOKEN = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")
PROBE = "Yes"  # a reply that no chat template rewrites


@dataclass
class Layout:
    """How a packed row attends: sequence i has the next lengths_q[i] of its tokens as queries, and the next
    lengths_k[i] of the tokens that `keys` numbers as keys.

    `keys`: sum(lengths_k) token numbers; None: each sequence attends to itself alone, no prompt is shared.
    `cumulated`: both lengths summed up from 0, int32 on the device, as attention kernels read them.
    """

    lengths_q: list[int]
    lengths_k: list[int]
    keys: object = None
    cumulated: tuple = ()

    def to(self, device) -> "Layout":
        """With tensors on the device, for one pass through the model."""
        import torch

        bounds = ([0, *itertools.accumulate(lengths)] for lengths in (self.lengths_q, self.lengths_k))
        cumulated = tuple(torch.tensor(bound, dtype=torch.int32, device=device) for bound in bounds)
        keys = None if self.keys is None else torch.tensor(self.keys, device=device)
        return replace(self, keys=keys, cumulated=cumulated)


@dataclass
class MicroBatch:
    """What the model reads, and `targets` (B, C): the token after each hidden state that is kept, or IGNORE.

    `tokens`: without padding. `images[g]`: paths of the images of group g (packed) or row g (padded).
    Packed, B is 1 and there is more: `prompts`, the groups' first prompts, left-padded (G, P), from which
    positions are computed; `shared[g]`, how many tokens of them are read once; `answers[g]`, the lengths of
    what follows in each row.
    """

    inputs: dict
    targets: object
    tokens: int
    images: list[tuple[str, ...]]
    layout: Layout | None = None
    prompts: dict = field(default_factory=dict)
    shared: list[int] = field(default_factory=list)
    answers: list[list[int]] = field(default_factory=list)

    @property
    def labels(self) -> int:
        return int((self.targets != IGNORE).sum())

    def convert(self, change: Callable) -> "MicroBatch":
        """With `change` applied to every input, prompt tensor and the targets."""
        inputs, prompts = (
            {name: change(value) for name, value in values.items()} for values in (self.inputs, self.prompts)
        )
        return replace(self, inputs=inputs, prompts=prompts, targets=change(self.targets))


@dataclass
class RowGroup:
    """Rows with the same images. `blank`: not trained on, see encode_rows()."""

    rows: list[dict]
    images: list
    blank: bool = False


class MicroBatches:
    """Dataset of prepared micro-batches: (MicroBatch, or None if no row is usable; number of rows left out).

    `args` has max_pixels and max_length; `world`: number of processes.
    """

    def __init__(self, rows: TrainingRows, micro_batches: list, processor, args, packed: bool, world=1):
        self.rows = rows
        self.micro_batches = micro_batches
        self.processor = processor
        self.limits = args.max_pixels, args.max_length
        self.packed = packed
        self.world = world

    def __len__(self) -> int:
        return len(self.micro_batches)

    def __getitem__(self, index: int) -> tuple[MicroBatch | None, int]:
        numbers = itertools.groupby(self.micro_batches[index], lambda number: self.rows.group_of[number])
        groups = [[self.rows[number] for number in group] for _, group in numbers]
        return encode_rows(self.processor, groups, *self.limits, self.packed, self.world > 1)


def prefetch_batches(dataset: MicroBatches, workers: int, seed: int) -> Iterator[tuple]:
    """The micro-batches in order, prepared ahead by `workers` processes."""
    import torch
    from torch.utils.data import DataLoader

    # A generator of its own: a resumed training draws the same dropout.
    settings = {"generator": torch.Generator().manual_seed(seed), "collate_fn": as_arrays}
    # else a worker with batches that nobody takes would outlive a training process that is killed
    settings |= {"num_workers": workers, "worker_init_fn": partial(end_with_parent, os.getpid())}
    settings |= {"multiprocessing_context": "fork" if workers else None}
    loader = DataLoader(dataset, batch_size=None, prefetch_factor=4 if workers else None, **settings)
    for batch, left_out in loader:
        yield batch and batch.convert(as_tensor), left_out


def as_arrays(item: tuple[MicroBatch | None, int]) -> tuple[MicroBatch | None, int]:
    """With numpy arrays: a worker would pass tensors on through /dev/shm, of which containers have 64 MB."""
    batch, left_out = item
    return batch and batch.convert(
        lambda value: value.numpy() if hasattr(value, "numpy") else value
    ), left_out


def as_tensor(value: object) -> object:
    import torch

    return torch.from_numpy(value) if hasattr(value, "dtype") else value


def encode_rows(
    processor,
    groups: list[list[dict]],
    max_pixels: int,
    max_length: int,
    packed: bool,
    images_needed: bool = False,
) -> tuple[MicroBatch | None, int]:
    """(a micro-batch of these groups of rows, number of rows left out).

    Left out are rows with unreadable images, with more than `max_length` tokens, or with a placeholder of
    the model in a text. `images_needed`: where there is no image, a blank one without labels is added, as
    with several processes all must pass the vision tower, or those that do wait for ever.
    """
    usable, count = [], sum(map(len, groups))
    for rows in groups:
        if not (rows := [row for row in rows if not holds_placeholder(processor, row)]):
            continue
        try:
            usable.append(RowGroup(rows, [open_image(image, max_pixels) for image in rows[0]["images"]]))
        except (OSError, ValueError):
            continue
    tokens = tokenize(processor, usable, max_length)
    left_out = count - sum(len(group.rows) for group in usable)
    if images_needed and not any(group.images for group in usable):
        usable.append(blank_group())
        tokens = tokenize(processor, usable, 1 << 30)
    if not usable:
        return None, left_out
    return (pack if packed else pad)(processor, usable, *tokens), left_out


def blank_group() -> RowGroup:
    from PIL import Image

    messages = [{"role": "user", "content": IMAGE}, {"role": "assistant", "content": PROBE}]
    return RowGroup([{"messages": messages, "images": ["blank"]}], [Image.new("RGB", (56, 56))], blank=True)


def holds_placeholder(processor, row: dict) -> bool:
    """Whether a text holds this model's token of an image or video: it would wait for one."""
    names = (getattr(processor, name, None) for name in ("image_token", "video_token"))
    tokens = [token for token in names if token]
    parts = (part for message in chat_parts(row["messages"]) for part in message["content"])
    return any(token in part.get("text", "") for part in parts for token in tokens)


def tokenize(processor, groups: list[RowGroup], max_length: int) -> tuple[dict, list, list]:
    """(inputs of the groups' first prompts; by group and row: tokens of the prompt, of the reply and its
    end).

    Prompts are exactly those of sampling, and replies are appended to them: nothing in front of a label
    differs. Rows that are too long, and groups without any row left, are taken out of `groups`.
    """
    if not groups:
        return {}, [], []
    chats = [chat_parts(group.rows[0]["messages"][:-1], group.images) for group in groups]
    try:
        inputs = encode_prompts(processor, chats)
    except ValueError:  # an image that this processor refuses, such as a strip of a few pixels
        if len(groups) == 1:
            groups.clear()
            return {}, [], []
        for group in [*groups]:
            tokenize(processor, alone := [group], max_length)
            if not alone:
                groups.remove(group)
        return tokenize(processor, groups, max_length)
    prompts, replies, first_kept = [], [], []
    for group, ids, seen in zip(groups, inputs["input_ids"], inputs["attention_mask"].bool()):
        own = prompt_tokens(processor, group, ids[seen].tolist())
        ends = reply_tokens(processor, group.rows)
        keep = [index for index in range(len(ends)) if len(own[index]) + len(ends[index]) <= max_length]
        group.rows = [group.rows[index] for index in keep]
        prompts.append([own[index] for index in keep])
        replies.append([ends[index] for index in keep])
        first_kept.append(bool(keep) and keep[0] == 0)
    if all(first_kept):
        return inputs, prompts, replies
    groups[:] = [group for group in groups if group.rows]
    return tokenize(processor, groups, max_length)


def prompt_tokens(processor, group: RowGroup, first: list[int]) -> list[list[int]]:
    """Tokens of each row's prompt; `first` are those of the first row's."""
    messages = [row["messages"][:-1] for row in group.rows]
    if all(message == messages[0] for message in messages):
        return [first] * len(messages)
    if (tokens := encode_texts(processor, messages, first)) is not None:
        return tokens
    chats = [chat_parts(message, group.images) for message in messages]
    return [encode_prompts(processor, [chat])["input_ids"][0].tolist() for chat in chats]


def reply_tokens(processor, rows: list[dict]) -> list[list[int]]:
    """Tokens of each row's reply, as the chat template writes it, and of what ends it.

    The line break that some templates put behind the end belongs to the next turn. A template that writes
    no end (LLaVA-1.5's) gets the tokenizer's EOS, or the model would never learn to stop. A reply that the
    template rewrites, such as one with its reasoning taken out, is learnt as it stands.
    """

    def turn(row: dict, reply: str) -> str | None:
        """What the template appends to the prompt for this reply; None if it hides the reply."""
        bare = chat_parts(row["messages"][:-1])
        head = processor.apply_chat_template(bare, add_generation_prompt=True)
        said = {"role": "assistant", "content": [{"type": "text", "text": reply}]}
        whole = processor.apply_chat_template([*bare, said])
        text = whole.removeprefix(head).rstrip()
        return text if whole.startswith(head) and reply.strip() in text else None

    end = (turn(rows[0], PROBE) or PROBE).rpartition(PROBE)[2] or processor.tokenizer.eos_token
    texts = []
    for row in rows:
        reply = row["messages"][-1]["content"]
        text = turn(row, reply) or reply.rstrip()
        texts.append(text if text.endswith(end) else text + end)
    return processor.tokenizer(texts, add_special_tokens=False)["input_ids"]


def pack(processor, groups: list[RowGroup], inputs: dict, prompts: list, replies: list) -> MicroBatch:
    """One row of tokens, see packing.py."""
    import torch

    ids, keys, predictors, targets = [], [], [], []
    lengths_q, lengths_k, shared, answers = [], [], [], []
    for group, own, ends in zip(groups, prompts, replies):
        begin, count = len(ids), 0
        if len(own) > 1:  # the last token of a prompt is not shared: it predicts another token in each row
            count = min(len(os.path.commonprefix(own)), min(map(len, own)) - 1)
        common = range(begin, begin + count)
        if count:
            ids += own[0][:count]
            keys += common
            lengths_q.append(count)
            lengths_k.append(count)
        for prompt, end in zip(own, ends):
            start, answer = len(ids), prompt[count:] + end
            ids += answer
            keys += [*common, *range(start, len(ids))]
            lengths_q.append(len(answer))
            lengths_k.append(count + len(answer))
            if not group.blank:
                predictors += range(len(ids) - len(end) - 1, len(ids) - 1)
                targets += end
        shared.append(count)
        answers.append([len(prompt) - count + len(end) for prompt, end in zip(own, ends)])
    vision = {name: value for name, value in inputs.items() if name not in PER_TOKEN}
    row = {"input_ids": torch.tensor([ids]), "logits_to_keep": torch.tensor(predictors, dtype=torch.long)}
    return MicroBatch(
        inputs=vision | row,
        targets=torch.tensor([targets], dtype=torch.long),
        tokens=len(ids),
        images=[tuple(group.rows[0]["images"]) for group in groups],
        layout=Layout(lengths_q, lengths_k, keys if any(shared) else None),
        prompts={name: value for name, value in inputs.items() if "pixel" not in name},
        shared=shared,
        answers=answers,
    )


def pad(processor, groups: list[RowGroup], inputs: dict, prompts: list, replies: list) -> MicroBatch:
    """A row of tokens for each row: prompts left-padded, replies right-padded, all labels in the last
    columns.
    """
    import torch
    import torch.nn.functional as F

    rows = [(group, row) for group in groups for row in group.rows]
    if len(rows) > len(groups):
        chats = [chat_parts(row["messages"][:-1], group.images) for group, row in rows]
        inputs = encode_prompts(processor, chats)
    inputs, ends = dict(inputs), [end for group in replies for end in group]
    longest, filler = max(map(len, ends)), processor.tokenizer.pad_token_id
    tokens = torch.tensor([end + [filler] * (longest - len(end)) for end in ends])
    seen = torch.tensor([[1] * len(end) + [0] * (longest - len(end)) for end in ends])
    for name, part in zip(PER_TOKEN, (tokens, seen, 0 * seen, 0 * seen)):
        if name in inputs:
            inputs[name] = torch.cat([inputs[name], part], 1)
    blank = torch.tensor([group.blank for group, _ in rows])[:, None]
    targets = tokens.masked_fill(~seen.bool() | blank, IGNORE)
    return MicroBatch(
        inputs=inputs | {"logits_to_keep": longest + 1},
        # the prompt's last token predicts the first target, the last token predicts nothing
        targets=F.pad(targets, (0, 1), value=IGNORE),
        tokens=int(inputs["attention_mask"].sum()),
        images=[tuple(group.rows[0]["images"]) for group, _ in rows],
    )
