"""Rows -> packed micro-batches, and a model's losses of them: no padding, a prompt once for its rows, logits
of label tokens only.

Rows with the same images whose prompts begin alike are a group: k responses of a problem, or candidates that
a judge is shown. A packed micro-batch is one row of tokens:

  | prompt 1 | its answer 1 | its answer 2 | prompt 2 | its answer 1 | ...

An answer (the rest of its prompt, then the reply) counts positions on from where its prompt ends and attends
to its prompt and itself. So loss and gradients are those of one sequence a row, and images, prompt and layers
are computed once for what the rows share. `Batch.lengths` lists the sequences: queries with their own keys,
bottom-right causal, which is what variable-length attention kernels compute.

This holds for models whose language part attends through transformers' table of attentions and keeps to full
attention. `why_not` compares with the rows passed one at a time, at the start of a training; where it does
not hold, each row is a micro-batch of its own, for the model's own attention and logits.

In a packed pass the output layer gets the hidden states of those tokens alone that a label follows, and
returns their losses, CHUNK logits at a time. No tensor of tokens x vocabulary exists.
"""

import contextlib
import itertools
import os
from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mathse.attention import set_text_attention
from mathse.chat import (
    PER_TOKEN,
    as_text,
    chat_parts,
    encode_groups,
    render,
    row_errors,
    token_ids,
    turn_end,
)
from mathse.images import open_image
from mathse.launch import end_with_parent
from mathse.records import IMAGE, fail
from mathse.replies import opened_thought
from mathse.train.plan import TrainingRows

PACKED = "packed"  # in transformers' table of attentions; it has no mask function there, so no mask is made
CHUNK = 1 << 27  # logits at a time: 512 MiB in fp32; each chunk reads the whole output layer again
# Differences of losses that are rounding, computed in fp32 and in bf16: see how_far_off().
ROUNDING = {"no": 1e-5, "bf16": 5e-2}


@dataclass
class Batch:
    """What the model reads, the N label tokens that it learns (`targets`), and their `weights` (N). Arrays:
    tensors would travel through /dev/shm, of which containers have 64 MB; tensors from to() on.

    `tokens`: that pass the model. A batch without `lengths` is one row, for the model's own attention.
    Packed, sequence i has the next lengths[0][i] tokens as queries, and the next lengths[1][i] of those that
    `keys` numbers as keys (None: of all tokens, nothing is shared); `bounds`: lengths summed up from 0.
    Positions are computed of `prompts`, the groups' first ones, left-padded (G, P): starts[g] tokens of one
    stand in the row, and answers[g] are the lengths of what follows it.
    """

    inputs: dict
    targets: object
    weights: object
    tokens: int
    lengths: tuple[list[int], list[int]] | None = None
    keys: object = None
    bounds: tuple = ()
    prompts: dict = field(default_factory=dict)
    starts: list[int] = field(default_factory=list)
    answers: list[list[int]] = field(default_factory=list)

    def to(self, device: torch.device) -> "Batch":
        def moved(value: object) -> object:
            if isinstance(value, dict):
                return {name: moved(part) for name, part in value.items()}
            return torch.as_tensor(value, device=device) if isinstance(value, np.ndarray) else value

        names = "inputs", "targets", "weights", "keys", "prompts"
        bounds = tuple(map(moved, self.bounds))
        return replace(self, bounds=bounds, **{name: moved(getattr(self, name)) for name in names})


# ---------------------------------------------------------------- rows -> tokens


@dataclass
class Group:
    """Rows with the same images, and the tokens of their prompts and replies. `blank`: see encode()."""

    rows: list[dict]
    images: list
    blank: bool = False
    prompts: list[list[int]] = field(default_factory=list)
    replies: list[list[int]] = field(default_factory=list)


def prefetch(micro_batches: list, workers: int, seed: int, **encoding) -> Iterator[tuple[Batch | None, int]]:
    """encode() of the micro-batches in order, prepared ahead by `workers` processes."""
    settings = {"collate_fn": partial(encode, **encoding), "num_workers": workers}
    if workers:
        settings |= {"prefetch_factor": 4, "multiprocessing_context": "fork"}
        # a worker may wait for someone to take its batch, also when its training has been killed
        settings |= {"worker_init_fn": partial(end_with_parent, os.getpid())}
    generator = torch.Generator().manual_seed(seed)  # its own: a resumed training draws the same dropout
    yield from DataLoader(micro_batches, batch_size=None, generator=generator, **settings)


def encode(
    numbers: list[int], rows: TrainingRows, processor, args: Namespace, packed=True, world=1
) -> tuple[Batch | None, int]:
    """(a micro-batch of these rows, None if none is usable; number of rows left out). Not `packed`: one row.

    Left out are rows with unreadable images or with more than --max-length tokens. With several processes
    (`world`) a blank image without labels is added where there is none: all must pass the vision tower, or
    those that do wait for ever.
    """
    found = []
    for _, group in itertools.groupby(numbers, rows.group_of.__getitem__):
        members = [*map(rows.__getitem__, group)]
        with contextlib.suppress(OSError, ValueError):
            images = [open_image(image, args.max_pixels) for image in members[0]["images"]]
            found.append(Group(members, images))
    usable, inputs = tokenize(processor, found, args.max_length)
    left_out = len(numbers) - sum(len(group.rows) for group in usable)
    if world > 1 and not any(group.images for group in usable):
        messages = [{"role": "user", "content": IMAGE}, {"role": "assistant", "content": "?"}]
        blank = Group([{"messages": messages}], [Image.new("RGB", (56, 56))], blank=True)
        usable, inputs = tokenize(processor, [*usable, blank], 1 << 30)
    if not usable:
        return None, left_out
    return (pack if packed else pass_alone)(usable, inputs), left_out


def tokenize(processor, groups: list[Group], max_length: int) -> tuple[list[Group], dict]:
    """(the groups with their tokens, without rows that are too long; inputs of their first prompts). Prompts
    are exactly those of sampling, and replies are appended: nothing in front of a label differs.
    """
    if not groups:
        return [], {}
    try:
        asked = [([row["messages"][:-1] for row in group.rows], group.images) for group in groups]
        inputs, prompts = encode_groups(processor, asked)
        for group, group.prompts in zip(groups, prompts):
            group.replies = reply_tokens(processor, group.rows)
    except row_errors():  # of a row, such as a strip of a few pixels that this processor refuses
        if len(groups) == 1:
            return [], {}
        kept = [group for group in groups if tokenize(processor, [replace(group)], max_length)[0]]
        if len(kept) == len(groups):
            raise
        return tokenize(processor, kept, max_length)
    first_kept = []
    for group in groups:
        parts = (group.rows, group.prompts, group.replies)
        fits = [len(prompt) + len(reply) <= max_length for prompt, reply in zip(*parts[1:])]
        group.rows, group.prompts, group.replies = ([*itertools.compress(part, fits)] for part in parts)
        first_kept.append(fits[0])
    if all(first_kept):
        return groups, {name: np.asarray(value) for name, value in inputs.items()}
    return tokenize(processor, [group for group in groups if group.rows], max_length)


def reply_tokens(processor, rows: list[dict]) -> list[list[int]]:
    """Tokens of what is sampled behind the generation prompt: each row's reply, as the chat template writes
    it, up to the token that ends a turn; what follows, such as a line break, belongs to the next turn. What
    prompt or template write in front of it, as the mark that opens a thought, is not written again. A reply
    that the template rewrites, such as one with its reasoning taken out, is learnt as it stands.
    """
    end, texts = end_mark(processor), []
    for row in rows:
        chat = chat_parts(row["messages"][:-1])
        reply = row["messages"][-1]["content"].strip()
        head = render(processor, chat, add_generation_prompt=True)
        reply = without(reply.removesuffix(end).rstrip(), opened_thought(head))
        before, behind = around(processor, chat, head, reply, end)
        texts.append(before + as_text(processor, without(reply, before.strip())) + behind + end)
    return token_ids(processor, texts)


def without(reply: str, beginning: str = "") -> str:
    return reply.removeprefix(beginning).lstrip() if beginning else reply


def around(processor, chat: list[dict], head: str, reply: str, end: str) -> tuple[str, str]:
    """What the template writes between a chat with generation prompt, `head`, and a reply, and between that
    and the end.
    """
    said = {"role": "assistant", "content": [{"type": "text", "text": reply}]}
    turn = render(processor, [*chat, said])
    reply = as_text(processor, reply)
    body, has_end, _ = turn.removeprefix(head).partition(end)
    place = body.rfind(reply) if reply else 0
    if not turn.startswith(head) or place < 0:
        return "", ""
    return body[:place], body[place + len(reply) :] if has_end else ""


def end_mark(processor) -> str:
    """What ends a reply: the token with which the chat template ends a turn; of a template that writes none
    (LLaVA-1.5's) the tokenizer's EOS.
    """
    if (end := turn_end(processor)) is None:
        end = processor.tokenizer.eos_token_id
    if end is None:
        problem = "neither its chat template nor its tokenizer names a token that ends a reply"
        fail(f"--model: {problem}; set eos_token in its tokenizer_config.json")
    return processor.tokenizer.convert_ids_to_tokens(end)


# ---------------------------------------------------------------- tokens -> micro-batch


def pack(groups: list[Group], inputs: dict) -> Batch:
    """One row of tokens, see above."""
    ids, keys, predictors, targets, weights = [], [], [], [], []
    lengths, starts, answers = ([], []), [], []
    for group in groups:
        begin, count = len(ids), 0
        if len(group.rows) > 1:  # a prompt's last token is not shared: it predicts another one in each row
            shortest = min(map(len, group.prompts))
            count = min(len(os.path.commonprefix(group.prompts)), shortest - 1)
            ids += group.prompts[0][:count]
            lengths[0].append(count)
            lengths[1].append(count)
        common = range(begin, begin + count)
        keys += common
        for row, prompt, reply in zip(group.rows, group.prompts, group.replies):
            start = len(ids)
            ids += prompt[count:] + reply
            keys += [*common, *range(start, len(ids))]
            lengths[0].append(len(ids) - start)
            lengths[1].append(count + len(ids) - start)
            if not group.blank:
                predictors += range(len(ids) - len(reply) - 1, len(ids) - 1)
                targets += reply
                weights += [row.get("weight", 1)] * len(reply)
        starts.append(count if len(group.rows) > 1 else len(group.prompts[0]))
        pairs = zip(group.prompts, group.replies)
        answers.append([len(prompt) + len(reply) - starts[-1] for prompt, reply in pairs])
    vision = {name: value for name, value in inputs.items() if name not in PER_TOKEN}
    row = {"input_ids": np.array([ids]), "logits_to_keep": np.array(predictors, dtype=np.int64)}
    return Batch(
        inputs=vision | row,
        targets=np.array(targets, dtype=np.int64),
        weights=np.array(weights, dtype=np.float32),
        tokens=len(ids),
        lengths=lengths,
        keys=np.array(keys) if len(keys) > len(ids) else None,
        bounds=tuple(np.cumsum([0, *part], dtype=np.int32) for part in lengths),
        prompts={name: value for name, value in inputs.items() if "pixel" not in name},
        starts=starts,
        answers=answers,
    )


def pass_alone(groups: list[Group], inputs: dict) -> Batch:
    """A single row as the model reads it by itself; a blank one beside it is padded to the same length."""
    replies = [group.replies[0] for group in groups]
    longest = max(map(len, replies))
    tokens = np.array([reply + reply[-1:] * (longest - len(reply)) for reply in replies])
    seen = np.array([[1] * len(reply) + [0] * (longest - len(reply)) for reply in replies])
    for name, part in zip(PER_TOKEN, (tokens, seen, 0 * seen, 0 * seen)):
        if name in inputs:
            inputs[name] = np.concatenate([inputs[name], part], 1)
    learnt = [] if groups[0].blank else replies[0]
    return Batch(
        inputs=inputs | {"logits_to_keep": longest + 1},  # the first of them predicts the reply's first token
        targets=np.array(learnt, dtype=np.int64),
        weights=np.full(len(learnt), groups[0].rows[0].get("weight", 1), dtype=np.float32),
        tokens=int(inputs["attention_mask"].sum()),
    )


# ---------------------------------------------------------------- attention


def choose_attention(device: torch.device) -> tuple[str, Callable]:
    """(name, variable-length attention): (query (T, heads, width), key and value (S, KV heads, width), Batch
    on the device, scale) -> (T, heads, width).
    """
    if device.type != "cuda":
        return "one sequence after the other", by_sdpa
    from torch.nn.attention.varlen import varlen_attn

    def by_kernel(query, key, value, batch: Batch, scale: float) -> torch.Tensor:
        causal = {"window_size": (-1, 0), "enable_gqa": True, "scale": scale}
        return varlen_attn(query, key, value, *batch.bounds, *map(max, batch.lengths), **causal)

    return "torch's variable-length attention", by_kernel


def by_sdpa(query, key, value, batch: Batch, scale: float) -> torch.Tensor:
    outputs, (lengths_q, lengths_k) = [], batch.lengths
    for q, k, v in zip(query.split(lengths_q), key.split(lengths_k), value.split(lengths_k)):
        mask = None
        if len(q) != len(k):
            mask = torch.ones(len(q), len(k), dtype=torch.bool, device=q.device).tril(len(k) - len(q))
        q, k, v = (part.transpose(0, 1).unsqueeze(0) for part in (q, k, v))
        how = {"is_causal": mask is None, "scale": scale, "enable_gqa": k.shape[1] != q.shape[1]}
        outputs.append(F.scaled_dot_product_attention(q, k, v, mask, **how)[0].transpose(0, 1))
    return torch.cat(outputs)


# ---------------------------------------------------------------- losses


class Packing:
    """A model that computes the losses of micro-batches. Made when its weights are on their device.

    `token_loss`: (logits (n, V) in fp32, targets (n)) -> losses (n).
    `batch`: the one at hand; it stands until the backward pass is over.
    `targets`: its labels while it passes the output layer, which then returns their losses.
    `limit`: what the model asks of its attention that is not there.
    """

    def __init__(self, model, token_loss: Callable):
        self.model = model
        self.token_loss = token_loss
        self.batch = None
        self.targets = None
        self.limit = ""
        self.attention, self.varlen = choose_attention(model.device)
        self.usual = model.config.get_text_config()._attn_implementation
        ALL_ATTENTION_FUNCTIONS.register(PACKED, self.attend)
        head = model.get_output_embeddings()
        self.project, self.vocabulary = head.forward, head.weight.shape[0]
        head.forward = self.output

    def use(self, packed: bool) -> None:
        """Let the language part, not the vision tower, attend packed or as it was loaded."""
        set_text_attention(self.model, PACKED if packed else self.usual)

    def attend(
        self, module, query, key, value, mask, scaling=None, sliding_window=None, softcap=None, **settings
    ):
        """query (1, heads, T, width), key and value (1, KV heads, T, width) of a packed row."""
        unusual = sliding_window, softcap, settings.get("s_aux"), mask
        if any(part is not None for part in unusual):  # goes on: other processes compute the same layer
            self.limit = "its attention is not full attention"
        query, key, value = (part[0].transpose(0, 1) for part in (query, key, value))  # (T, heads, width)
        kind = query.device.type
        if torch.is_autocast_enabled(kind):  # rotary embeddings may have left it
            dtype = torch.get_autocast_dtype(kind)
            query, key, value = (part.to(dtype) for part in (query, key, value))
        if self.batch.keys is not None:
            key, value = key[self.batch.keys], value[self.batch.keys]
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        return self.varlen(query, key, value, self.batch, scale).unsqueeze(0), None

    def output(self, hidden: torch.Tensor) -> torch.Tensor:
        """The output layer, or in a packed pass: hidden states (1, N, D) of the tokens before the N labels ->
        their losses (N), CHUNK logits at a time.
        """
        if self.targets is None:
            return self.project(hidden)

        def losses(hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return self.token_loss(self.project(hidden).float(), targets)

        rows = max(1, CHUNK // self.vocabulary)
        if len(self.targets) <= rows:
            return losses(hidden[0], self.targets)
        parts = zip(hidden[0].split(rows), self.targets.split(rows))
        return torch.cat([checkpoint(losses, *part, use_reentrant=False) for part in parts])

    def losses(self, model, batch: Batch) -> torch.Tensor:
        """The loss (N) of each label. `model`: this one, wrapped for several processes or not."""
        batch = batch.to(self.model.device)
        if batch.lengths is None:
            logits = model(**batch.inputs, use_cache=False).logits[0, -batch.inputs["logits_to_keep"] :]
            return self.token_loss(logits[: len(batch.targets)].float(), batch.targets)
        self.batch, self.targets = batch, batch.targets
        try:
            return model(**batch.inputs, position_ids=self.positions(batch), use_cache=False).logits
        finally:
            self.targets = None

    def positions(self, batch: Batch) -> torch.Tensor:
        """Position ids (1, T) of a packed row; (K, 1, T) of a model that counts in K dimensions."""
        ids, seen = batch.prompts["input_ids"], batch.prompts["attention_mask"].bool()
        whole = self.model._prepare_position_ids_for_generation(ids, batch.prompts)
        whole = whole.transpose(0, 1) if whole.ndim == 3 else whole.unsqueeze(1).expand(len(ids), -1, -1)
        parts = []  # of (G, K, P)
        for prompt, shown, start, answers in zip(whole, seen, batch.starts, batch.answers):
            begin = torch.cat([0 * prompt[:, :1] - 1, prompt[:, shown][:, :start]], 1)
            parts.append(begin[:, 1:])
            parts += [begin[:, -1:] + torch.arange(1, length + 1, device=ids.device) for length in answers]
        joined = torch.cat(parts, 1)  # (K, T)
        return joined.unsqueeze(1) if len(joined) > 1 else joined


@torch.no_grad()
def why_not(packing: Packing, model, batch: Batch, alone: list[Batch], rounding: float) -> str:
    """Why the losses of a packed micro-batch are not those of its rows `alone`; empty if they are."""
    if dropout := getattr(packing.model.config.get_text_config(), "attention_dropout", 0):
        return f"attention_dropout {dropout}"  # the comparison goes without
    packing.use(True)
    ours = packing.losses(model, batch)
    packing.use(False)
    theirs = torch.cat([packing.losses(model, row) for row in alone])
    off = how_far_off(ours, theirs)
    return packing.limit or ("" if off < rounding else f"the loss is off by {off:.1e}")


def how_far_off(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The root mean square of the differences of two losses (N), as a share of the loss or, where that is
    smaller, in nats: of a model that is sure of its labels hardly more than rounding is left.
    """
    return ((ours - theirs).norm() / theirs.norm().clamp_min(max(1, len(theirs)) ** 0.5)).item()
