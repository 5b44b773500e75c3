"""Many replies from one local model: a problem's prompt is read once, rows that finish are filled again.

    requests -> batched -> admit -> start -> step, step, ... -> replies

Requests of one problem are a group: samples of it (01, 03, 05), candidates that are to be judged (02). What
all prompts of a group begin with, images included, goes through the model once; its keys and values are kept
in a slot. `--batch-size` samples decode together, a row each: a row reads the rest of its prompt, then its
own last token again and again. It attends to its group's slot, whose keys are read once for all its rows, and
to itself. Greedily, equal prompts are decoded once.

A token is the inverse of the cumulative distribution at the next of the sample's own uniform numbers. So a
sample follows from the model, its prompt and its seed, as far as floating point allows: in another batch sums
are rounded otherwise, and a token at an edge may be another one. Greedy tokens are those of generate(), with
the same proviso.

A model is held if its language part attends through transformers' table of attentions and keeps every token;
an image and a question are tried when it is opened. What is not held is decoded by generate(), one request at
a time. A fault of a row becomes its error reply; one of the device, or of many rows in a row, ends the stage.

Shapes: B prompts, R rows, G slots, T new tokens of a row, P tokens of the longest shared part, L of the
longest row, K dimensions that the model counts positions in, W width of a head, V tokens of the vocabulary.
"""

import argparse
import inspect
import itertools
import math
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

import torch
import transformers
from torch.nn.functional import scaled_dot_product_attention
from transformers.cache_utils import Cache, DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mathse.attention import set_text_attention
from mathse.chat import encode_groups, reply_ends, row_errors
from mathse.generate.types import Generator, Reply, Request, probe
from mathse.images import open_image
from mathse.launch import KEPT, end_if_device_failed, one_line, processes
from mathse.records import IMAGE, fail
from mathse.replies import ended

ATTENTION = "rows"  # in transformers' table of attentions
BLOCK = 64  # tokens by which the memory of rows and slots grows
REFILL = 8  # rows are filled again when an eighth of them is free
WINDOW = 16  # times the rows: samples whose requests are grouped and sorted together
PASS_GROUPS, PASS_ROWS = 16, 32  # groups, and rests of prompts, that are read in one pass, at most
PASS_TOKENS = 32 << 10  # padded tokens of such a pass, at most
ROUNDING = 4  # times what another batch changes in a model's logits: more is a fault
HOPELESS = 20  # prompts that fail one after the other: then the rows are not at fault


class TooLong(ValueError):
    """A prompt that leaves no room for a reply, or several that are too much for one pass."""


THEIR_OWN = OSError, TooLong  # faults of rows: an image that cannot be read, a long text


@dataclass(eq=False)
class Group:
    """Requests with the same images and the same text up to them: their prompts begin alike."""

    requests: list[Request]
    prompts: list[list[int]] = field(default_factory=list)  # token ids, of each request
    shared: int = 0  # tokens that the prompts begin with, less than any of them has
    behind: list[int] = field(default_factory=list)  # (K), the position behind the shared tokens
    slot: int = 0  # where their keys and values are


@dataclass(eq=False)
class Sample:
    """One reply in the making."""

    request: Request
    number: int
    group: Group
    prompt: list[int] = field(default_factory=list)
    limit: int = 0  # new tokens, at most
    points: list[float] = field(default_factory=list)  # uniform numbers, one a token
    tokens: list[int] = field(default_factory=list)  # new ones
    twins: list[tuple[Request, int]] = field(default_factory=list)  # (request, number) of equal replies
    error: Exception | None = None

    @property
    def tail(self) -> list[int]:
        """What the group does not share, but for the last token, behind which the first new one is drawn."""
        return self.prompt[self.group.shared : -1]

    @property
    def written(self) -> int:
        """Tokens in its row, once the tail is read."""
        return len(self.prompt) - 1 - self.group.shared + len(self.tokens)


class Engine(Generator):
    """A loaded model as a Generator. Sample live[i] is in row i; `work` counts what is computed."""

    def __init__(self, model, processor, args: argparse.Namespace):
        self.model = model
        self.processor = processor
        self.args = args
        self.eos_ids = {*reply_ends(processor, model.generation_config)}
        if not self.eos_ids:
            fail("--model: no token ends its replies; name the eos_token in tokenizer_config.json")
        # the folder's own habits (Qwen2-VL: top-k 1, a repetition penalty) would silently override the flags
        habits = {"eos_token_id": sorted(self.eos_ids), "pad_token_id": processor.tokenizer.pad_token_id}
        model.generation_config = transformers.GenerationConfig(**habits)
        self.warpers = make_warpers(args.temperature, args.top_k, args.top_p)
        self.context = getattr(model.config.get_text_config(), "max_position_embeddings", 1 << 30)
        names = inspect.signature(model.forward).parameters
        self.cache_name = "cache" if "cache" in names else "past_key_values"  # before transformers 5.24
        self.live: list[Sample] = []
        self.waiting: deque[Sample] = deque()
        self.faults = Counter()  # one after the other, by what failed
        self.why_not = self.try_rows()
        self.work = Counter()
        if processes()[0] == 0:
            alone = f"one request at a time by generate() ({self.why_not}); --serve is faster"
            print("engine:", alone if self.why_not else f"{args.batch_size} rows", flush=True)

    def __call__(self, requests: Iterable[Request]) -> Iterator[Reply]:
        samples = self.in_rows(batched(requests, self.args.batch_size))
        if self.why_not:
            alone = ([[request]] for request in requests)
            samples = itertools.chain.from_iterable(self.tried(self.generate, alone))
        held = []  # samples that failed since one was decoded: the model may be at fault
        for sample in samples:
            held.append(sample)
            if not sample.error:
                yield from itertools.chain.from_iterable(map(self.replies, held))
                held.clear()
        yield from itertools.chain.from_iterable(map(self.replies, held))

    def replies(self, sample: Sample) -> Iterator[Reply]:
        """The reply of a finished sample, and that of each twin."""
        end = next((place for place, token in enumerate(sample.tokens) if token in self.eos_ids), None)
        finish, count = ("length", len(sample.tokens)) if end is None else ("stop", end + 1)
        text = self.processor.tokenizer.decode(sample.tokens[:end], skip_special_tokens=True).strip()
        text, finish = ended(text, finish)
        reason = one_line(sample.error) if sample.error else None
        said = text, "error" if reason else finish, count, len(sample.prompt), reason
        for request, number in ((sample.request, sample.number), *sample.twins):
            yield Reply(request.row, number, *said, seed=request.seeds[number])

    # ------------------------------------------------------------ requests -> tokens

    @torch.inference_mode()
    def tried(self, function: Callable, batches: Iterable[list[list[Request]]]) -> Iterator[list[Sample]]:
        """The samples of groups, by function(groups). What fails together is tried apart; what fails alone is
        the error of its samples.
        """
        for lists in batches:
            groups = [Group(requests) for requests in lists]
            samples, error = attempt(function, groups)
            if not error:
                self.faults["prompt"] = 0
                yield samples
            elif len(lists) > 1:
                yield from self.tried(function, ([requests] for requests in lists))
            else:
                self.blame("prompt", error)
                each = ((request, number) for request in lists[0] for number in request.seeds)
                yield [Sample(*made, groups[0], error=error) for made in each]

    def tokenize(self, groups: list[Group]) -> dict:
        """Fill in the tokens of groups. Returns inputs (B, T) for the first prompt of each, left-padded."""
        asked = []
        for group in groups:
            paths = group.requests[0].row["images"]
            images = [open_image(path, self.args.max_pixels) for path in paths]
            asked.append(([request.messages for request in group.requests], images))
        inputs, prompts = encode_groups(self.processor, asked)
        for group, group.prompts in zip(groups, prompts):
            shortest = min(map(len, group.prompts))
            if shortest >= self.context:
                raise self.too_long(shortest)
            group.shared = min(len(os.path.commonprefix(group.prompts)), shortest - 1)
        return inputs

    def too_long(self, length: int) -> TooLong:
        return TooLong(f"prompt of {length} tokens in a context of {self.context}")

    def samples(self, group: Group) -> list[Sample]:
        """The samples of an encoded group: greedily one a prompt, with its twins."""
        found, firsts = [], {}
        for request, prompt in zip(group.requests, group.prompts):
            limit = min(self.args.max_tokens, self.context - len(prompt))
            for number, seed in request.seeds.items():
                sample = Sample(request, number, group, prompt, limit)
                sample.error = self.too_long(len(prompt)) if limit < 1 else None
                if self.warpers:
                    # drawn by the CPU: the same on every device, in any batch
                    luck = torch.Generator().manual_seed(seed)
                    sample.points = torch.rand(self.args.max_tokens, generator=luck).tolist()
                elif (first := firsts.setdefault(tuple(prompt), sample)) is not sample:
                    first.twins.append((request, number))
                    continue
                found.append(sample)
        return found

    # ------------------------------------------------------------ the loop

    @torch.inference_mode()
    def in_rows(self, batches: Iterator[list[list[Request]]]) -> Iterator[Sample]:
        """Samples as they finish. New ones take free rows once these are a share of all: prompts are read
        better many at a time.
        """
        admitted = self.tried(self.admit, batches)
        self.live.clear()
        self.waiting.clear()
        while True:
            free = self.args.batch_size - len(self.live)
            if free >= max(1, self.args.batch_size // REFILL) or not self.live:
                yield from self.fill(admitted)
                fresh = [self.waiting.popleft() for _ in range(min(free, len(self.waiting)))]
                if not fresh and not self.live:
                    return
                yield from self.start(fresh)
            if self.live:
                yield from self.step()

    def fill(self, admitted: Iterator[list[Sample]]) -> Iterator[Sample]:
        """Read prompts until enough samples wait for the free rows. Yields samples that have failed."""
        while len(self.live) + len(self.waiting) < self.args.batch_size:
            samples = next(admitted, None)
            if samples is None:
                return
            self.waiting.extend(sample for sample in samples if not sample.error)
            yield from (sample for sample in samples if sample.error)

    def admit(self, groups: list[Group]) -> list[Sample]:
        """Read what the prompts of each group share. Returns the samples."""
        inputs = self.tokenize(groups)
        lengths = [group.shared for group in groups]
        if len(groups) > 1 and len(groups) * max(lengths) > PASS_TOKENS:
            raise TooLong(f"{len(groups)} prompts of up to {max(lengths)} tokens in one pass")
        cache, behind, _ = self.read(cut(inputs, lengths))
        used = {sample.group.slot for sample in (*self.live, *self.waiting)}
        for place, group in enumerate(groups):
            group.slot = next(slot for slot in itertools.count() if slot not in used)
            used.add(group.slot)
            group.behind = behind[place].tolist()
            self.cache.add_prompt(cache, place, group)
        self.work.update(prompts=len(groups), prompt_tokens=sum(lengths))
        return [sample for group in groups for sample in self.samples(group)]

    def blame(self, what: str, error: Exception) -> None:
        """End the stage if prompts fail one after the other, but for those that have failed before. An image,
        or a long text, is its own fault.
        """
        self.faults[what] += not isinstance(error, THEIR_OWN)
        if self.faults[what] == HOPELESS and not self.args.retry_errors:
            fail(f"the model failed on {HOPELESS} prompts in a row, the last: {one_line(error)}; {KEPT}", 1)

    def start(self, fresh: list[Sample]) -> list[Sample]:
        """Give samples rows and read the rest of their prompts. Returns those that have failed."""
        row = len(self.live)
        self.live += sorted(fresh, key=lambda sample: -len(sample.tail))
        while row < len(self.live):
            count = max(1, min(PASS_ROWS, PASS_TOKENS // (len(self.live[row].tail) or 1)))
            self.read_tails(row, self.live[row : row + count])
            row += count
        return self.leave([row for row, sample in enumerate(self.live) if sample.error])

    def read_tails(self, first: int, samples: list[Sample]) -> None:
        """Read the tails of the rows from `first` on; those that fail together one by one."""
        tails = [sample.tail for sample in samples]
        if not any(tails):
            return
        _, error = attempt(self.forward, first, samples, tails, [0] * len(tails))
        if not error:
            self.faults["tail"] = 0
            self.work.update(tails=len(tails), tail_tokens=sum(map(len, tails)))
        elif len(samples) == 1:
            self.blame("tail", error)
            samples[0].error = error
        else:
            for row, sample in enumerate(samples, first):
                self.read_tails(row, [sample])

    def step(self) -> list[Sample]:
        """One more token in every row. Returns the samples that have finished."""
        fed = [(sample.tokens or sample.prompt)[-1:] for sample in self.live]
        logits = self.forward(0, self.live, fed, [sample.written for sample in self.live])[:, -1]
        if self.warpers:
            points = torch.tensor([[sample.points[len(sample.tokens)]] for sample in self.live])
            for warper in self.warpers:
                logits = warper(None, logits)
        tokens = draw(logits, points.to(logits.device)) if self.warpers else logits.argmax(-1)
        for sample, token in zip(self.live, tokens.flatten().tolist()):
            sample.tokens.append(token)
        self.work.update(steps=1, decode_rows=len(self.live))
        ended = [each.tokens[-1] in self.eos_ids or len(each.tokens) == each.limit for each in self.live]
        return self.leave([row for row, done in enumerate(ended) if done])

    def leave(self, rows: list[int]) -> list[Sample]:
        """Free these rows; the last of those that stay take their places. Returns the samples that leave."""
        finished, stay, gone = [self.live[row] for row in rows], len(self.live) - len(rows), {*rows}
        targets = [row for row in rows if row < stay]
        sources = [row for row in range(stay, len(self.live)) if row not in gone]
        self.cache.move(sources, targets, max((self.live[row].written for row in sources), default=0))
        for target, source in zip(targets, sources):
            self.live[target] = self.live[source]
        del self.live[stay:]
        return finished

    # ------------------------------------------------------------ the model

    def read(self, inputs: dict, keep: int = 1) -> tuple[Cache, torch.Tensor, torch.Tensor]:
        """Read left-padded prompts (B, P): cache, positions behind them (B, K), last logits (B, keep, V)."""
        inputs = inputs.to(self.model.device)
        state = {name: value for name, value in inputs.items() if name != "input_ids"}
        positions = self.model._prepare_position_ids_for_generation(inputs["input_ids"], state)
        settings = {"use_cache": True, "logits_to_keep": keep, "return_dict": True}
        out = self.model(**inputs, position_ids=positions, **settings)
        self.work["pixel_rows"] += len(inputs.get("pixel_values", ()))
        positions = positions.transpose(0, 1) if positions.ndim == 3 else positions[:, None]
        behind = positions.expand(len(inputs["input_ids"]), -1, -1)[..., -1].cpu() + 1
        return out.get("cache", out.get("past_key_values")), behind, out.logits.float()

    def forward(self, first: int, rows: list[Sample], tokens: list[list[int]], lengths: list[int]):
        """Write tokens, right-padded, behind the first lengths[r] ones of the rows from `first` on. Returns
        the logits (R, 1, V) of the last column.
        """
        width = max(map(len, tokens))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in tokens]).to(self.model.device)
        now = self.cache.begin(first, rows, lengths, width)
        settings = {self.cache_name: self.cache, "use_cache": True, "logits_to_keep": 1, "return_dict": True}
        places = {"attention_mask": now.mask, "position_ids": now.position_ids}
        return self.model(input_ids=ids, **places, **settings).logits.float()

    def try_rows(self) -> str:
        """Why this model is not decoded in rows, "" if it is."""
        short, long = (Group([probe(text)]) for text in ("1 + 1 = ?", "1 + 1 = ?" * 9))
        inputs = self.tokenize([short]), self.tokenize([short, long])
        ALL_ATTENTION_FUNCTIONS.register(ATTENTION, attend)
        ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, sdpa_mask)
        attention = self.model.config.get_text_config()._attn_implementation
        problem, error = attempt(self.compare, short, *inputs)
        if problem := one_line(error) if error else problem:
            set_text_attention(self.model, attention)
        return problem

    @torch.inference_mode()
    def compare(self, group: Group, alone: dict, beside: dict) -> str:
        """Read a prompt as a whole, and in three parts in two rows: the last logits may differ by some times
        what they differ if it is read beside a longer prompt. Returns what is wrong.
        """
        set_text_attention(self.model, ATTENTION)
        self.work = Counter()
        (_, _, whole), (_, _, again) = self.read(alone, 2), self.read(beside, 2)
        prompt = group.prompts[0]
        group.shared = len(prompt) - 3
        cache, behind, _ = self.read(cut(alone, [group.shared]))
        if not all(type(layer) is DynamicLayer for layer in cache.layers):
            return "not all its layers keep the keys and values of every token"
        group.behind = behind[0].tolist()
        self.cache = Rows(cache, max(2, self.args.batch_size))
        self.cache.add_prompt(cache, 0, group)
        rows = [Sample(group.requests[0], number, group, prompt) for number in range(2)]
        last_but_one = self.forward(0, rows, [rows[0].tail] * 2, [0] * 2)
        last = self.forward(0, rows, [prompt[-1:]] * 2, [2] * 2)
        off = relative(torch.cat([last_but_one, last], 1), whole)
        least = 1e-3 if self.model.dtype == torch.float32 else 2e-2
        limit = max(least, ROUNDING * relative(again[:1], whole))
        return "" if off < limit else f"in rows its logits are off by {off:.1e}, more than {limit:.1e}"

    def generate(self, groups: list[Group]) -> list[Sample]:
        """The samples of one prompt, --batch-size at a time. Our numbers choose their tokens."""
        inputs, samples = self.tokenize(groups), self.samples(*groups)
        begin = inputs["input_ids"].shape[1]
        settings = {"max_new_tokens": samples[0].limit, "do_sample": bool(self.warpers)}
        for start in range(0, len(samples), self.args.batch_size):
            part = samples[start : start + self.args.batch_size]
            if self.warpers:
                points = torch.tensor([sample.points for sample in part]).to(self.model.device)
                chain = transformers.LogitsProcessorList([*self.warpers, OnlyDrawn(begin, points)])
                settings |= {"num_return_sequences": len(part), "logits_processor": chain}
            out = self.model.generate(**inputs.to(self.model.device), **settings)
            for sample, tokens in zip(part, out[:, begin:].tolist()):
                sample.tokens = tokens
        return samples


class OnlyDrawn(transformers.LogitsProcessor):
    """Leaves generate() no choice but the token that each row's number draws; points (R, new tokens)."""

    def __init__(self, begin: int, points: torch.Tensor):
        self.begin = begin
        self.points = points

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        chosen = draw(scores.float(), self.points[:, input_ids.shape[1] - self.begin, None])
        return torch.full_like(scores, -torch.inf).scatter_(1, chosen, 0.0)


# ---------------------------------------------------------------- keys, values and attention


@dataclass(eq=False)
class Pass:
    """How rows first ... first + R - 1 attend in one forward pass."""

    first: int
    columns: torch.Tensor  # (R, T), where in its row each token is written
    length: int  # L, of the longest row then
    shared: int  # P
    owners: torch.Tensor  # (R), the slot of each row
    slots: int  # G, those in use or in front of one in use
    most: int  # rows of a slot, at most
    places: torch.Tensor  # (R), where a row stands among slots of `most` rows each
    mask: torch.Tensor  # (R, 1, T, P + L), 0 or -inf
    position_ids: torch.Tensor  # (K, R, T), or (R, T) if K is 1

    def by_slot(self, part: torch.Tensor) -> torch.Tensor:
        """(R, KV heads, X, W) -> (G, KV heads, most * X, W)."""
        wide = part.new_zeros(self.slots * self.most, *part.shape[1:]).index_copy_(0, self.places, part)
        return wide.view(self.slots, self.most, *part.shape[1:]).transpose(1, 2).flatten(2, 3)

    def by_row(self, part: torch.Tensor) -> torch.Tensor:
        """The reverse."""
        return part.unflatten(2, (self.most, -1)).transpose(1, 2).flatten(0, 1)[self.places]


class Rows(Cache):
    """Keys and values of `count` samples, a row each, and of what groups share, a slot each. `example`: a
    prompt's cache, for the shapes of the layers.
    """

    def __init__(self, example: Cache, count: int):
        super().__init__(layers=[DynamicLayer()])  # only for what asks a cache about its kind
        shapes = [(layer.keys[:1, :, :0], layer.values[:1, :, :0]) for layer in example.layers]
        # a layer's [keys, values], each (rows or slots, KV heads, tokens, W)
        self.own = [[part.expand(count, -1, -1, -1) for part in kv] for kv in shapes]
        self.prompts = [[part[:0] for part in kv] for kv in shapes]
        self.device = shapes[0][0].device
        self.dtype = shapes[0][0].dtype

    def add_prompt(self, cache: Cache, place: int, group: Group) -> None:
        """Keep what a group shares, the end of row `place` of a cache, in its slot."""
        grow(self.prompts, group.slot + 1, group.shared)
        for kv, layer in zip(self.prompts, cache.layers):
            for part, source in zip(kv, (layer.keys, layer.values)):
                part[group.slot, :, : group.shared] = source[place, :, source.shape[2] - group.shared :]
                part[group.slot, :, group.shared :] = 0  # what another left there may not be finite

    def move(self, sources: list[int], targets: list[int], length: int) -> None:
        """Copy the first `length` tokens of some rows into others."""
        for part in itertools.chain.from_iterable(self.own if sources else []):
            part[targets, :, :length] = part[sources, :, :length]

    def begin(self, first: int, rows: list[Sample], lengths: list[int], width: int) -> Pass:
        """Before a pass that writes `width` tokens behind the first lengths[r] ones of each row."""
        owners = torch.tensor([sample.group.slot for sample in rows])
        shared = torch.tensor([sample.group.shared for sample in rows])
        behind = torch.tensor([sample.group.behind for sample in rows])
        columns = torch.tensor(lengths)[:, None] + torch.arange(width)
        longest, length = int(shared.max()), int(columns.max()) + 1
        grow(self.own, first + len(rows), length)
        positions = (behind[..., None] + columns[:, None]).transpose(0, 1).to(self.device)
        order, sizes = owners.argsort(stable=True), owners.bincount()
        ranks = torch.empty_like(order)  # of a row among those of its slot
        ranks[order] = torch.arange(len(rows)) - (sizes.cumsum(0) - sizes)[owners[order]]
        slots, most = len(sizes), int(sizes.max())
        moved = (part.to(self.device) for part in (columns, owners, owners * most + ranks, shared))
        columns, owners, places, shared = moved
        at_prompt = torch.arange(longest, device=self.device) < shared[:, None, None]
        at_own = torch.arange(length, device=self.device) <= columns[..., None]
        seen = torch.cat([at_prompt.expand(-1, width, -1), at_own], -1)[:, None]
        mask = torch.zeros_like(seen, dtype=self.dtype if width > 1 else torch.float32)
        mask.masked_fill_(~seen, -torch.inf)
        positions = positions if len(positions) > 1 else positions[0]
        self.now = Pass(first, columns, length, longest, owners, slots, most, places, mask, positions)
        return self.now

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        """What a layer calls: new keys and values (R, KV heads, T, W) -> the rows', (R, KV heads, L, W)."""
        now, found = self.now, []
        rows = torch.arange(len(key_states), device=self.device)[:, None]
        for part, states in zip(self.own[layer_idx], (key_states, value_states)):
            part = part[now.first : now.first + len(states)]
            part[rows, :, now.columns] = states.transpose(1, 2)
            found.append(part[:, :, : now.length])
        found[0].rows = self
        return tuple(found)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 1  # not empty: positions and masks are always given


def grow(layers: list[list[torch.Tensor]], count: int, length: int) -> None:
    """Room for `count` rows of `length` tokens; zeros, because what is masked must still be finite."""
    for kv in layers:
        for index, part in enumerate(kv):
            rows, heads, tokens, width = part.shape
            if count > rows or length > tokens:
                rows = rows if count <= rows else max(count, rows * 3 // 2)
                tokens = max(tokens, math.ceil(length / BLOCK) * BLOCK)
                kv[index] = part.new_zeros(rows, heads, tokens, width)
                kv[index][: part.shape[0], :, : part.shape[2]] = part


def attend(module, query, key, value, attention_mask, scaling=None, **settings):
    """query (R, heads, T, W); key and value as Rows.update() returns them. Without Rows it is plain SDPA.

    Returns the output (R, T, heads, W), and None for the weights.
    """
    rows = getattr(key, "rows", None)
    if rows is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **settings)
    now, (count, heads, tokens, width) = rows.now, query.shape
    scaling = width**-0.5 if scaling is None else scaling
    prompt = [part[: now.slots, :, : now.shared] for part in rows.prompts[module.layer_idx]]
    query = query.reshape(count, key.shape[1], -1, width)  # the heads of a key as its queries
    out = (attend_once if tokens == 1 else attend_often)(now, query, key, value, *prompt, scaling)
    return out.view(count, heads, tokens, width).transpose(1, 2), None


def attend_often(now: Pass, query, key, value, prompt_key, prompt_value, scaling):
    """Many queries a row: bound by arithmetic, so each row may have its copy of the prompt's keys."""
    key = torch.cat([prompt_key[now.owners], key], 2)  # (R, KV heads, P + L, W)
    value = torch.cat([prompt_value[now.owners], value], 2)
    # as long as the queries: with a mask and enable_gqa CUDA has no fast kernel
    mask = now.mask.repeat(1, 1, query.shape[2] // now.mask.shape[2], 1)
    return scaled_dot_product_attention(query, key, value, mask, scale=scaling)


def attend_once(now: Pass, query, key, value, prompt_key, prompt_value, scaling):
    """One query a row: bound by memory, so a prompt's keys are read once for all its rows."""
    scores = torch.cat([now.by_row(products(now.by_slot(query), prompt_key)), products(query, key)], -1)
    weights = scores.mul_(scaling).add_(now.mask).softmax(-1).to(value.dtype)
    at_prompt, at_own = weights.split([now.shared, now.length], -1)
    return now.by_row(now.by_slot(at_prompt) @ prompt_value) + at_own @ value


def products(query: torch.Tensor, key: torch.Tensor) -> torch.Tensor:
    """query (A, B, X, W), key (A, B, L, W) -> (A, B, X, L) in fp32: bf16 would change the weights."""
    if query.is_cuda and query.dtype != torch.float32:  # without a copy of the keys in fp32
        flat = torch.bmm(query.flatten(0, 1), key.flatten(0, 1).transpose(1, 2), out_dtype=torch.float32)
        return flat.view(*query.shape[:3], -1)
    return query.float() @ key.float().transpose(2, 3)


# ---------------------------------------------------------------- how a token is drawn


def make_warpers(temperature: float, top_k: int, top_p: float) -> list[transformers.LogitsProcessor]:
    """What changes logits (R, V) before a token is drawn; empty for greedy decoding."""
    if temperature == 0:
        return []
    warpers = [transformers.TemperatureLogitsWarper(temperature)]
    warpers += [transformers.TopKLogitsWarper(top_k)] if top_k else []
    return warpers + ([transformers.TopPLogitsWarper(top_p)] if top_p < 1 else [])


def draw(logits: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
    """Tokens (R, 1) of the distributions softmax(logits), logits (R, V), at the points (R, 1) in [0, 1)."""
    probabilities = logits.softmax(-1)
    total = probabilities.cumsum(-1)
    tokens = torch.searchsorted(total, points * total[:, -1:], right=True)
    numbers = torch.arange(logits.shape[1], device=logits.device)
    # the product may be rounded up to the sum itself, behind the last token that can be drawn
    last = torch.where(probabilities > 0, numbers, 0).amax(-1, keepdim=True)
    return torch.minimum(tokens, last)


# ---------------------------------------------------------------- groups of requests, prompts


def batched(requests: Iterable[Request], rows: int) -> Iterator[list[list[Request]]]:
    """Groups of requests, in lists that are read together, those of like length. Read lazily: a window of
    WINDOW times as many samples as there are rows, at most.
    """
    requests, more = iter(requests), True
    while more:
        groups, room, more = {}, WINDOW * rows, False
        for request in requests:
            text = request.messages[-1]["content"]
            key = request.row.get("id"), *request.row["images"], text[: text.rfind(IMAGE) + 1]
            groups.setdefault(key, []).append(request)
            room -= len(request.seeds)
            if more := room <= 0:
                break
        chosen, samples = [], 0
        for group in sorted(groups.values(), key=expected_length):
            if samples >= max(1, rows // REFILL) or len(chosen) == PASS_GROUPS:
                yield chosen
                chosen, samples = [], 0
            chosen.append(group)
            samples += sum(len(request.seeds) for request in group)
        if chosen:
            yield chosen


def expected_length(group: list[Request]) -> tuple[int, int]:
    """(images, characters) that the prompts of a group begin with."""
    texts = [request.messages[-1]["content"] for request in group]
    return len(group[0].row["images"]), len(os.path.commonprefix(texts))


def cut(inputs: dict, lengths: list[int]) -> transformers.BatchFeature:
    """Left-padded prompts (B, T) -> the first lengths[b] tokens of each, left-padded again (B, P)."""
    shared, whole = torch.tensor(lengths)[:, None], inputs["attention_mask"].sum(1, keepdim=True)
    places = torch.arange(max(lengths)) - (max(lengths) - shared)  # (B, P), below 0 is padding
    index = (places + inputs["input_ids"].shape[1] - whole).clamp_min(0)
    # any token but an image's may be the padding
    fillers = {"input_ids": inputs["input_ids"][:, -1:], "mm_token_type_ids": 0, "token_type_ids": 0}
    found = {"attention_mask": (places >= 0).long()}
    for name in fillers.keys() & inputs.keys():
        found[name] = inputs[name].gather(1, index).where(places >= 0, fillers[name])
    return transformers.BatchFeature({**inputs, **found})


# ---------------------------------------------------------------- opening a model, and faults


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    """How far logits are off, as a share of them."""
    return ((found - expected).norm() / expected.expand_as(found).norm()).item()


def attempt(function: Callable, *inputs: object) -> tuple[object, Exception | None]:
    """(function(*inputs), None), or (None, its error) if that is a row's; a device's ends the stage."""
    try:
        return function(*inputs), None
    except row_errors() as error:
        end_if_device_failed(error)
        return None, error.with_traceback(None)  # which would keep the inputs in memory
