"""Training batches: rows without padding, a question read once for all its answers, the loss at label tokens only.

Rows with the same pictures whose prompts begin alike are a question: k answers of a problem, or candidates that a judge
is shown. A packed micro-batch is one row of tokens, with no padding:

  | question 1 | its answer 1 | its answer 2 | question 2 | its answer 1 | ...

An answer (the rest of its prompt, then the reply) goes on counting positions where its question ends, as if it alone
stood behind it; it attends to its question and to itself. So loss and gradients are those of one sequence for each row,
and pictures, question and layers work once for what the rows share. `Layout` lists the pieces: each is a sequence of
queries with its own keys, bottom-right causal, which is what variable-length attention kernels compute. Which of them
is used is `choose_attention`'s choice: flash-attn or torch's own on a GPU, elsewhere a loop over
scaled_dot_product_attention. (The GPU kernels were not run yet.)

It holds for every model whose language part attends through transformers' attention table and keeps to full attention;
`Packing.differs` compares the loss with that of padded rows before a training begins. Where it does not hold, rows
are left-padded and right-padded as sampling pads them, those of like length together.

The output layer is replaced for training by `LabelLoss`: it gets the hidden states of those tokens alone that a label
follows, and returns the summed cross-entropy, CHUNK logits at a time. No tensor of tokens x vocabulary exists.
"""

import importlib.util
import inspect
import os
from dataclasses import dataclass, field
from typing import Callable

import torch
import torch.nn.functional as F
from PIL import Image
from torch.utils.checkpoint import checkpoint
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from common import IMAGE, chat_parts, encode_prompts, open_image, other_prompts

NAME = "packed"  # in transformers' table of attentions; it has no mask function there, so that no mask is made
IGNORE = -100
CHUNK = 1 << 24  # logits at a time: 64 MiB in fp32
PER_TOKEN = ("input_ids", "attention_mask", "mm_token_type_ids", "token_type_ids")


@dataclass
class Layout:
    """How a packed row attends: sequence i has lengths_q[i] of the row's tokens in turn, and the next lengths_k[i] of those that `keys` names."""

    lengths_q: list[int]
    lengths_k: list[int]
    keys: torch.Tensor | None  # token numbers (sum of lengths_k); None: the row itself, no question is shared
    cumulated: tuple = ()  # both lengths summed up from 0, int32: what kernels ask for

    def to(self, device) -> "Layout":
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
    targets: torch.Tensor
    tokens: int
    pictures: list[tuple[str, ...]]
    layout: Layout
    prompts: dict = field(default_factory=dict)
    shared: list[int] = field(default_factory=list)
    answers: list[list[int]] = field(default_factory=list)

    @property
    def labels(self) -> int:
        return int((self.targets != IGNORE).sum())


# ---------------------------------------------------------------- rows -> tensors


@dataclass
class Question:
    """Rows of a training file with the same pictures. `blank`: not trained on, see encode()."""

    rows: list[dict]
    images: list
    blank: bool = False


def encode(processor, groups: list[list[dict]], max_pixels: int, max_length: int, packed: bool, pictures_needed: bool = False) -> tuple[Batch | None, int]:
    """(a micro-batch of these groups of rows, the number of rows left out: unreadable pictures, longer than `max_length` tokens).

    pictures_needed: without any picture a blank one without labels is added, because with several processes all must
    pass through the vision tower, or those that do wait for ever.
    """
    questions, count = [], sum(map(len, groups))
    for rows in groups:
        try:
            questions.append(Question(rows, [open_image(image, max_pixels) for image in rows[0]["images"]]))
        except (OSError, ValueError):
            continue
    tokens = tokenize(processor, questions, max_length)
    left_out = count - sum(len(question.rows) for question in questions)
    if pictures_needed and not any(question.images for question in questions):
        blank = {"messages": [{"role": "user", "content": IMAGE}, {"role": "assistant", "content": "-"}], "images": ["blank"]}
        questions.append(Question([blank], [Image.new("RGB", (56, 56))], blank=True))
        tokens = tokenize(processor, questions, 1 << 30)
    if not questions:
        return None, left_out
    return (pack if packed else pad)(processor, questions, *tokens), left_out


def tokenize(processor, questions: list[Question], max_length: int) -> tuple[dict, list[list[list[int]]], list[list[list[int]]]]:
    """(inputs of the questions' first prompts, tokens of all prompts, of all replies and their ends), the latter by question.

    Prompts are exactly those of sampling, and replies are appended to them: nothing in front of a label differs. Rows that
    are too long, and questions without any row left, are taken out of `questions`.
    """
    if not questions:
        return {}, [], []
    inputs = encode_prompts(processor, [chat_parts(question.rows[0]["messages"][:-1], question.images) for question in questions])
    prompts, replies, short = [], [], []
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
        short.append(bool(keep) and keep[0] == 0)
    if all(short):
        return inputs, prompts, replies
    questions[:] = [question for question in questions if question.rows]
    return tokenize(processor, questions, max_length)


def reply_tokens(processor, rows: list[dict]) -> list[list[int]]:
    """Tokens of each row's reply with what ends it, as the chat template writes them."""
    ends = []
    for row in rows:
        bare, reply = chat_parts(row["messages"][:-1]), row["messages"][-1]["content"]
        head = processor.apply_chat_template(bare, add_generation_prompt=True)
        full = processor.apply_chat_template([*bare, {"role": "assistant", "content": [{"type": "text", "text": reply}]}])
        ends.append(full.removeprefix(head) if full.startswith(head) else reply + processor.tokenizer.eos_token)
    return processor.tokenizer(ends, add_special_tokens=False)["input_ids"]


def pack(processor, questions: list[Question], inputs: dict, prompts: list, replies: list) -> Batch:
    """One row of tokens."""
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


# ---------------------------------------------------------------- the model


class LabelLoss:
    """The output layer in training: hidden states (B, C, D) -> the cross-entropy (N) of the N `targets` (B, C) that are labels, instead of logits.

    `targets` is None outside of training: then the layer is as it was.
    """

    def __init__(self, head):
        self.project, self.vocabulary, self.targets = head.forward, head.weight.shape[0], None
        head.forward = self

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.targets is None:
            return self.project(hidden)
        keep = self.targets != IGNORE
        hidden, targets, rows = hidden[keep], self.targets[keep], max(1, CHUNK // self.vocabulary)
        if len(targets) <= rows:
            return self.entropy(hidden, targets)
        return torch.cat([checkpoint(self.entropy, *part, use_reentrant=False) for part in zip(hidden.split(rows), targets.split(rows))])

    def entropy(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(self.project(hidden).float(), targets, reduction="none")


def choose_attention(device) -> tuple[str, Callable]:
    """(name, variable-length attention): (query (T, heads, width), key and value (S, KV heads, width), layout on the device, scale) -> (T, heads, width)."""
    if device.type == "cuda" and importlib.util.find_spec("flash_attn"):
        from flash_attn import flash_attn_varlen_func

        return "flash-attn", lambda q, k, v, at, scale: flash_attn_varlen_func(q, k, v, *at.cumulated, max(at.lengths_q), max(at.lengths_k), softmax_scale=scale, causal=True)
    if device.type == "cuda" and importlib.util.find_spec("torch.nn.attention.varlen"):
        from torch.nn.attention.varlen import varlen_attn

        if {"window_size", "enable_gqa"} <= set(inspect.signature(varlen_attn).parameters):  # torch 2.10 has neither

            def by_torch(q, k, v, at, scale):
                return varlen_attn(q, k, v, *at.cumulated, max(at.lengths_q), max(at.lengths_k), scale=scale, window_size=(-1, 0), enable_gqa=True)

            return "torch's variable-length attention", by_torch
    return "one sequence after the other", by_sdpa


def by_sdpa(query, key, value, layout: Layout, scale: float) -> torch.Tensor:
    pieces = []
    for q, k, v in zip(query.split(layout.lengths_q), key.split(layout.lengths_k), value.split(layout.lengths_k)):
        mask = None if len(q) == len(k) else torch.ones(len(q), len(k), dtype=torch.bool, device=q.device).tril(len(k) - len(q))
        q, k, v = (part.transpose(0, 1).unsqueeze(0) for part in (q, k, v))
        out = F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, scale=scale, enable_gqa=k.shape[1] != q.shape[1])
        pieces.append(out[0].transpose(0, 1))
    return torch.cat(pieces)


class Packing:
    """A model ready to train on Batches. `layout` tells the attention of all layers how the row at hand attends: it stands until the backward pass is over."""

    def __init__(self, model):
        self.model, self.layout, self.head = model, None, LabelLoss(model.get_output_embeddings())
        self.attention, self.varlen = choose_attention(model.device)
        text = model.config.get_text_config()
        self.part = next((name for name in model.config.sub_configs if getattr(model.config, name) is text), "")
        self.usual = text._attn_implementation
        ALL_ATTENTION_FUNCTIONS.register(NAME, self.attend)

    def use(self, packed: bool) -> None:
        """Let the language part, not the vision tower, attend packed or as it was loaded."""
        self.model.set_attn_implementation({self.part: NAME if packed else self.usual})

    def attend(self, module, query, key, value, attention_mask, scaling=None, sliding_window=None, softcap=None, **settings):
        """query (1, heads, T, width), key and value (1, KV heads, T, width) of a packed row; the mask is not looked at."""
        if sliding_window is not None or softcap is not None or query.shape[0] > 1 or attention_mask is not None:
            raise ValueError("this model's attention cannot be packed")
        query, key, value = (part[0].transpose(0, 1) for part in (query, key, value))  # (T, heads, width)
        if torch.is_autocast_enabled(query.device.type):  # rotary embeddings may have left it
            query, key, value = (part.to(torch.get_autocast_dtype(query.device.type)) for part in (query, key, value))
        if self.layout.keys is not None:
            key, value = key[self.layout.keys], value[self.layout.keys]
        out = self.varlen(query, key, value, self.layout, query.shape[-1] ** -0.5 if scaling is None else scaling)
        return out.unsqueeze(0), None

    def losses(self, model, batch: Batch, features: dict | None = None) -> torch.Tensor:
        """Cross-entropy (N) of each label. `model`: this one, wrapped for several processes or not."""
        device = self.model.device
        inputs = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.inputs.items()}
        if features:
            inputs = {name: value for name, value in inputs.items() if name in (*PER_TOKEN, "logits_to_keep", "image_grid_thw")} | {"mm_encoder_outputs": features}
        if batch.prompts:
            self.layout = batch.layout.to(device)
            inputs["position_ids"] = self.positions(batch).to(device)
        self.head.targets = batch.targets.to(device)
        try:
            return model(**inputs, use_cache=False).logits
        finally:
            self.head.targets = None

    def positions(self, batch: Batch) -> torch.Tensor:
        """Position ids (1, T), or (K, 1, T) of a model that counts in K dimensions."""
        prompts = {name: value for name, value in batch.prompts.items() if "pixel" not in name}
        whole = self.model._prepare_position_ids_for_generation(prompts["input_ids"], prompts)
        whole = whole.transpose(0, 1) if whole.ndim == 3 else whole.unsqueeze(1).expand(len(prompts["input_ids"]), -1, -1)  # (Q, K, P)
        pieces = []
        for question, seen, shared, answers in zip(whole, prompts["attention_mask"].bool(), batch.shared, batch.answers):
            own = question[:, seen]
            begin = own[:, :shared] if shared else own
            pieces += [begin] if shared else []
            for length in answers:
                steps = begin[:, -1:] + torch.arange(1, length + 1)
                pieces.append(steps if shared else torch.cat([own, steps[:, : length - own.shape[1]]], 1))
        joined = torch.cat(pieces, 1)  # (K, T)
        return joined.unsqueeze(1) if len(joined) > 1 else joined

    @torch.no_grad()
    def differs(self, model, packed: Batch, padded: Batch) -> str:
        """Why these rows cannot be packed, in words; empty if the loss is that of padded rows."""
        try:
            self.use(True)
            ours = self.losses(model, packed)
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError) as error:
            ours = error
        self.use(False)
        theirs = self.losses(model, padded)
        if isinstance(ours, Exception):
            return f"{type(ours).__name__}: {str(ours).splitlines()[0] if str(ours) else ''}"
        off = ((ours - theirs).norm() / theirs.norm().clamp_min(1e-6)).item()
        return "" if off < (1e-5 if self.model.device.type == "cpu" else 5e-2) else f"the loss is off by {off:.1e}"
