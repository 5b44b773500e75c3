"""Many samples at once from one model, on the device: keys and values in memory that stays, and the loop that fills it.

`Slots` is a transformers Cache. A question's keys and values are stored once for all its samples, a sample's own ones in
a row of its own. While the model decodes, each layer hands its new keys and values to `update`, which writes them into
the rows; `attend`, an attention of transformers' table, lets each row look at its question and at itself: the scores of
both parts go through one softmax, and a question's keys are read once for all its rows. Rows and questions in use are
always the first ones (the last takes the place of one that leaves), so that a step works on views and copies nothing.

`Decoder` keeps the rows full. It holds for every model of transformers whose layers attend through that table and keep
every token; whether a model is one of them is not looked up but tried, on a picture and a question (`Decoder.check`).

A step (`Decoder.one_token`) reads and writes only memory on the device that stays where it is: the last tokens, which it
replaces by the next ones, the rows' lengths and questions, the random numbers. The host tells it a `Shape` and nothing
else, writes to that memory only when rows come or go, and afterwards reads the new tokens. So a step of one shape can be
captured as a CUDA graph and replayed; there shapes are rounded up, so that a few graphs serve all steps. Elsewhere the
same function runs as it is, with exact shapes. The graphs were written without a GPU at hand: the tests record and replay
steps on the CPU instead, and `check` compares graph and step when a model is loaded on a GPU.
"""

import inspect
from collections import Counter, deque
from dataclasses import replace
from typing import Callable, Iterator, NamedTuple

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import DynamicCache, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper
from transformers.cache_utils import Cache, DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from engine import ERRORS, REFILL, Batch, Sample, halves, one_line

NAME = "shared_prefix"  # in transformers' table of attentions
BLOCK = 64  # tokens by which the memory of rows and questions grows
TAIL = 1024  # tokens of a prompt that are its own, as expected when rows are counted
CAPTURE_AT = 3  # a step's shape is captured when it is met for this time: until then it costs more than it saves
GRAPHS = 64  # kept, at most


def use_shared_prefix(model) -> None:
    """Let the model's language part, not its vision tower, attend by `attend`; without Slots that is plain SDPA."""
    ALL_ATTENTION_FUNCTIONS.register(NAME, attend)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)
    text = model.config.get_text_config()
    part = next((name for name in model.config.sub_configs if getattr(model.config, name) is text), "")
    model.set_attn_implementation({part: NAME})


def attend(module, query, key, value, attention_mask, scaling=None, **settings):
    """query (R, heads, T, width); key and value as `Slots.update` returns them; mask (R, 1, T, P + L), added to the scores."""
    slots = getattr(key, "slots", None)
    if slots is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **settings)
    rows, heads, tokens, width = query.shape
    shared_key, shared_value = slots.shared(module.layer_idx)  # (Q, KV heads, P, width)
    scaling = width**-0.5 if scaling is None else scaling
    if slots.start is not None:  # many queries a row: bound by arithmetic, so each row may have its copy of the question's keys
        key, value = torch.cat([shared_key[slots.row_owners], key], 2), torch.cat([shared_value[slots.row_owners], value], 2)
        out = scaled_dot_product_attention(query, key, value, attention_mask, scale=scaling, enable_gqa=key.shape[1] != heads)
        return out.transpose(1, 2), None
    group = heads // key.shape[1]
    query = (query * scaling).view(rows, -1, group, width)

    def by_question(part):  # (R, KV heads, group, X) -> (Q, KV heads, rows of a question * group, X); places without a row repeat row 0
        return part[slots.row_at].view(len(shared_key), -1, *part.shape[1:]).transpose(1, 2).flatten(2, 3)

    def by_row(part):
        return part.unflatten(2, (-1, group)).transpose(1, 2).flatten(0, 1)[slots.place_of]

    shared = by_row(by_question(query) @ shared_key.transpose(2, 3))
    scores = torch.cat([shared, query @ key.transpose(2, 3)], -1).add_(attention_mask)
    weights = scores.softmax(-1, dtype=torch.float32).to(value.dtype)
    at_question, at_own = weights.split([shared.shape[-1], key.shape[2]], -1)
    out = by_row(by_question(at_question) @ shared_value) + at_own @ value
    return out.view(rows, 1, heads, width), None


class Shape(NamedTuple):
    """Of a step: rows, questions, places for the rows of a question, and the tokens of prefixes and of rows that are looked at."""

    rows: int
    questions: int
    places: int
    prefix: int
    own: int


class Slots(Cache):
    """Room for `rows` samples of up to `new_tokens` tokens. `sample`: a prompt's cache, which tells the layers' shapes.

    The host knows lengths (rows): own tokens of a row; owners (rows): its question; question_lengths, next_positions
    (questions, K): of a question, its tokens and the position after them, in each of the K dimensions that the model counts in.
    The device has, in memory that stays, what a step reads and writes: state (5, rows): last token, length, owner, place among
    the rows of all questions, tokens drawn; uniform (rows, new_tokens): numbers in [0, 1) to draw them by; chances (rows):
    log-probabilities of the last tokens; question_state (1 + K, questions): question_lengths, next_positions.
    `moved` is counted up when memory had to be allocated anew. `fixed`: shapes of steps are rounded up.
    """

    def __init__(self, sample: DynamicCache, rows: int, new_tokens: int, fixed: bool):
        super().__init__(layers=[DynamicLayer()])  # only for what asks a cache about its kind
        shapes = [(layer.keys, layer.values) for layer in sample.layers]
        self.own = [[part.new_zeros(rows, part.shape[1], 0, part.shape[3]) for part in layer] for layer in shapes]
        self.prefix = [[part.new_zeros(0, part.shape[1], 0, part.shape[3]) for part in layer] for layer in shapes]
        self.lengths, self.owners = torch.zeros(rows, dtype=torch.long), torch.zeros(rows, dtype=torch.long)
        self.question_lengths, self.next_positions = torch.zeros(0, dtype=torch.long), None
        self.device = self.own[0][0].device
        self.state = torch.zeros(5, rows, dtype=torch.long, device=self.device)
        self.uniform, self.chances = torch.zeros(rows, new_tokens, device=self.device), torch.zeros(rows, device=self.device)
        self.question_state = torch.zeros(0, 0, dtype=torch.long, device=self.device)
        self.questions, self.moved, self.fixed, self.start = 0, 0, fixed, None

    def rounded(self, number: int, unit: int = 1) -> int:
        return rounded(number, unit) if self.fixed else number

    # ------------------------------------------------------------ rows and questions come and go

    def add_questions(self, cache: DynamicCache, lengths: list[int], next_positions: torch.Tensor) -> range:
        """Take the keys and values of left-padded prompts (B, P); next_positions (B, K)."""
        new = range(self.questions, self.questions + len(lengths))
        self.next_positions = next_positions[:0] if self.next_positions is None else self.next_positions
        self.grow(self.prefix, new.stop, max(lengths))
        for layer, source in zip(self.prefix, cache.layers):
            for target, part in zip(layer, (source.keys, source.values)):
                for question, row, length in zip(new, part, lengths):
                    target[question, :, :length] = row[:, row.shape[1] - length :]
                    target[question, :, length:] = 0  # what a former question left might not be finite
        self.question_lengths = torch.cat([self.question_lengths[: new.start], self.lengths.new_tensor(lengths)])
        self.next_positions = torch.cat([self.next_positions[: new.start], next_positions])
        self.questions = new.stop
        return new

    def drop_question(self, question: int) -> None:
        """The last question takes the place."""
        self.questions -= 1
        for layer in self.prefix:
            for part in layer:
                part[question] = part[self.questions]
        self.question_lengths[question], self.next_positions[question] = self.question_lengths[self.questions], self.next_positions[self.questions]
        self.owners[self.owners == self.questions] = question

    def add_rows(self, first: int, owners: list[int]) -> None:
        """Empty rows of these questions."""
        self.owners[first : first + len(owners)] = torch.tensor(owners)
        self.lengths[first : first + len(owners)] = 0

    def copy_rows(self, sources: list[int], targets: list[int]) -> None:
        if not len(sources):
            return
        length = int(self.lengths[sources].max())
        self.lengths[targets], self.owners[targets] = self.lengths[sources], self.owners[sources]
        sources, targets = torch.tensor(sources, device=self.device), torch.tensor(targets, device=self.device)
        for layer in self.own:
            for part in layer:
                part[targets, :, :length] = part[sources, :, :length]
        self.uniform[targets] = self.uniform[sources]

    def grow(self, layers: list[list[torch.Tensor]], count: int, length: int) -> None:
        """Room for `count` rows of `length` tokens; zeros, because what is masked must still be finite."""
        for layer in layers:
            for index, part in enumerate(layer):
                if count > part.shape[0] or length > part.shape[2]:
                    self.moved += 1
                    rows = part.shape[0] if count <= part.shape[0] else max(count, part.shape[0] * 3 // 2)
                    layer[index] = part.new_zeros(rows, part.shape[1], max(part.shape[2], rounded(length, BLOCK)), part.shape[3])
                    layer[index][: part.shape[0], :, : part.shape[2]] = part

    # ------------------------------------------------------------ prompts

    def begin_rows(self, first: int, count: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Before `count` empty rows, from the first on, get up to `tokens` tokens each, right-padded.

        Returns the attention mask (count, 1, T, P + T) and the position ids ((K, count, T), or (count, T) if K is 1).
        """
        owners, steps = self.owners[first : first + count], torch.arange(tokens)
        self.grow(self.own, len(self.lengths), tokens)
        self.start, self.row_owners, self.prefix_length, self.first_questions = first, owners.to(self.device), int(self.question_lengths.max()), self.questions
        shared = torch.arange(self.prefix_length) < self.question_lengths[owners][:, None]  # (count, P)
        visible = torch.cat([shared[:, None].expand(-1, tokens, -1), (steps <= steps[:, None]).expand(count, -1, -1)], -1).unsqueeze(1).to(self.device)
        positions = (self.next_positions[owners][..., None] + steps).to(self.device)  # (count, K, T)
        return self.mask(visible), positions.transpose(0, 1) if positions.shape[1] > 1 else positions[:, 0]

    def end_rows(self, lengths: torch.Tensor) -> None:
        """After it: the numbers of tokens (count) that were no padding."""
        self.lengths[self.start : self.start + len(lengths)] = lengths
        self.start = None

    # ------------------------------------------------------------ a step

    def arrange(self, used: list[int], tokens: list[int], drawn: list[int]) -> None:
        """Rows have come or gone: tell the device about those in use, with the last token and the number of tokens of each."""
        owners, lengths = self.owners[used], self.lengths[used]
        order, counts = owners.argsort(stable=True), owners.bincount(minlength=self.questions)
        rows, places = min(self.rounded(used[-1] + 1), len(self.lengths)), self.rounded(int(counts.max()))
        room = min(len(part) for layer in self.prefix for part in layer)
        questions, prefix = min(self.rounded(self.questions), room), self.rounded(int(self.question_lengths.max()), BLOCK)
        self.used, self.shape = used, Shape(rows, questions, places, prefix, 0)
        state = torch.zeros(5, rows, dtype=torch.long)
        state[3] = questions * places  # rows that are not in use have no place; they go on from nothing, and no one looks at them
        ranks = torch.empty_like(order)
        ranks[order] = torch.arange(len(used)) - (counts.cumsum(0) - counts)[owners[order]]
        state[:, used] = torch.stack([torch.tensor(tokens), lengths, owners, owners * places + ranks, torch.tensor(drawn)])
        self.state[:, :rows] = state.to(self.device)
        of_questions = torch.cat([self.question_lengths[: self.questions, None], self.next_positions[: self.questions]], 1).T
        if self.question_state.shape[1] < room:
            self.question_state, self.moved = self.state.new_zeros(len(of_questions), room), self.moved + 1
        self.question_state[:, : self.questions] = of_questions.to(self.device)

    def next_shape(self) -> Shape:
        """Of the next step, for which there is room then."""
        length = self.rounded(int(self.lengths[self.used].max()) + 1, BLOCK)
        self.grow(self.own, len(self.lengths), length)
        return self.shape._replace(own=length)

    def begin_step(self, shape: Shape) -> tuple[torch.Tensor, torch.Tensor]:
        """On the device only: attention mask (R, 1, 1, P + L) and position ids ((K, R, 1), or (R, 1) if K is 1).

        row_at (Q * m): the rows sorted by question, m places each; place_of (R): where a row went.
        """
        _, self.row_lengths, owners, places, _ = self.state[:, : shape.rows]
        count, self.first_questions, self.prefix_length, self.length, self.cells = shape.questions * shape.places, shape.questions, shape.prefix, shape.own, {}
        self.numbers = torch.arange(shape.rows, device=self.device)
        self.row_at = places.new_zeros(count + 1).index_copy_(0, places, self.numbers)[:count]
        self.place_of = places.clamp_max(count - 1)
        of_rows = self.question_state[:, owners]  # (1 + K, R)
        shared = torch.arange(shape.prefix, device=self.device) < of_rows[0][:, None]
        own = torch.arange(shape.own, device=self.device) <= self.row_lengths[:, None]
        positions = (of_rows[1:] + self.row_lengths)[..., None]
        return self.mask(torch.cat([shared, own], -1)[:, None, None]), positions if len(positions) > 1 else positions[0]

    def end_step(self) -> None:
        """The host's part of it, once the step has run."""
        self.lengths[self.used] += 1

    # ------------------------------------------------------------ what the layers call

    def mask(self, visible: torch.Tensor) -> torch.Tensor:
        return torch.zeros(visible.shape, dtype=self.own[0][0].dtype, device=self.device).masked_fill_(~visible, -torch.inf)

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        """Write new keys and values (R, KV heads, T, width) behind the rows' own; return the rows' own, with a way to the shared ones."""
        own, new = self.own[layer_idx], (key_states, value_states)
        for part, states in zip(own, new):
            if self.start is not None:
                part[self.start : self.start + len(states), :, : states.shape[2]] = states
            else:
                part.view(-1, part.shape[3]).index_copy_(0, self.new_cells(*part.shape[1:3]), states.flatten(0, 2))
        key, value = new if self.start is not None else (part[: len(states), :, : self.length] for part, states in zip(own, new))
        key.slots = self
        return key, value

    def new_cells(self, heads: int, length: int) -> torch.Tensor:
        """Where the next token's keys lie (R * heads), counted in tokens from the start of a layer's memory."""
        if (heads, length) not in self.cells:
            heads_of_rows = self.numbers[:, None] * heads + torch.arange(heads, device=self.device)
            self.cells[heads, length] = (heads_of_rows * length + self.row_lengths[:, None]).flatten()
        return self.cells[heads, length]

    def shared(self, layer_idx: int) -> list[torch.Tensor]:
        return [part[: self.first_questions, :, : self.prefix_length] for part in self.prefix[layer_idx]]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 1  # not empty: positions and masks are always given


def rounded(number: int, unit: int) -> int:
    """Up to the next k * 2^e units, k <= 8: at most a quarter more, and few numbers in all."""
    units = -(-number // unit)
    step = 1 << max(0, (units - 1).bit_length() - 3)
    return -(-units // step) * step * unit


# ---------------------------------------------------------------- decoding


class Decoder:
    """Decodes samples together, live[i] in row i of the slots (None: it has finished); `work` counts what was computed."""

    def __init__(self, model, probe: Batch, rows: int, max_tokens: int, ends: set[int], pieces: bool):
        """Raises ValueError, or what the model raises, if it does not decode `probe` with shared prompts as it does by itself."""
        self.model, self.max_tokens, self.ends, self.work = model, max_tokens, ends, Counter()
        self.cache_name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"  # before transformers 5.24
        self.capture, self.graphs, self.met = graph_capture(model.device), {}, Counter()
        self.sampling, self.warpers, self.pieces = (), [], True
        use_shared_prefix(model)
        cache = self.check(probe)
        token = sum(part.shape[1] * part.shape[3] * part.element_size() for layer in cache.layers for part in (layer.keys, layer.values))
        free = free_memory(model.device)
        self.rows = max(1, min(rows, free // 2 // (token * (max_tokens + TAIL))))  # the other half: questions, and what a step needs
        if self.rows < rows:
            print(f"engine: memory for {self.rows} rows, not for {rows}: {free >> 20} MiB free, {token * max_tokens >> 20} MiB a reply", flush=True)
        self.slots, self.pieces = Slots(cache, self.rows, max_tokens, self.capture is not None), pieces
        self.forget_graphs()

    @torch.inference_mode()
    def check(self, probe: Batch) -> DynamicCache:
        (question,), prompt, count = probe.questions, probe.samples[0].prompt, len(probe.samples)
        cache, positions, whole = self.read(probe.inputs, 2)
        if not all(type(layer) is DynamicLayer for layer in cache.layers):
            raise ValueError("not all its layers keep the keys and values of every token")
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys[:, :, : question.shared], layer.values[:, :, : question.shared]
        self.slots = Slots(cache, count, self.max_tokens, self.capture is not None)
        self.slots.add_questions(cache, [question.shared], positions[..., question.shared - 1] + 1)
        self.slots.add_rows(0, [0] * count)
        logits = [self.forward(0, [prompt[question.shared : -1]] * count)]
        self.slots.arrange([*range(count)], [prompt[-1]] * count, [0] * count)
        shape = self.slots.next_shape()
        logits.append(self.next_logits(shape)[:count])
        off = ((torch.stack(logits, 1) - whole).norm() / whole.expand(count, -1, -1).norm()).item()
        if not off < self.tolerance():
            raise ValueError(f"with shared prompts its logits are off by {off:.1e}")
        if self.capture:
            self.check_capture(shape)
        self.work.clear()
        return cache

    def check_capture(self, shape: Shape) -> None:
        """Does the captured step write what the step itself writes?"""
        watched = [self.slots.state, self.slots.chances, *self.slots.own[-1]]
        before = [part.clone() for part in watched]
        self.one_token(shape)
        expected = [part.clone() for part in watched]
        for part, value in zip(watched, before):
            part.copy_(value)
        if graph := self.captured(shape):
            graph()
            off = max(((part - value).float().norm() / value.float().norm()).item() for part, value in zip(watched[1:], expected[1:]))
            if not off < self.tolerance():
                self.without_graphs(f"they are off by {off:.1e}")

    def tolerance(self) -> float:
        return 1e-3 if self.model.dtype == torch.float32 else 5e-2

    # ------------------------------------------------------------ the loop

    @torch.inference_mode()
    def serve(self, batches: Iterator[Batch], encode: Callable, temperature: float, top_k: int, top_p: float) -> Iterator[Sample]:
        """Samples as they finish. A batch that fails is halved by `encode`; one that lacks memory waits for the others to end.

        New samples take free rows once these are a share of all: reading prompts holds the others up, and reads better many at a time.
        """
        self.slots.questions, self.live, self.waiting, self.questions = 0, [], deque(), []
        if self.sampling != (temperature, top_k, top_p):
            self.forget_graphs()
        self.sampling = temperature, top_k, top_p
        self.warpers = [TemperatureLogitsWarper(temperature)] if temperature else []
        self.warpers += [TopKLogitsWarper(top_k)] if temperature and top_k else []
        self.warpers += [TopPLogitsWarper(top_p)] if temperature and top_p < 1 else []
        again: deque[Batch] = deque()
        while True:
            busy = started = sum(sample is not None for sample in self.live)
            if self.rows - busy >= max(1, self.rows // REFILL) or not busy:
                while busy + len(self.waiting) < self.rows and (batch := again.popleft() if again else next(batches, None)):
                    error = self.admit(batch)
                    if error and len(batch.questions) > 1:
                        again.extendleft(reversed([part for half in halves(batch.questions) for part in encode(half)]))
                    elif error and lacks_memory(error) and (busy or self.waiting):
                        again.appendleft(batch)
                        break
                    elif error:
                        yield from (replace(sample, error=error) for sample in batch.samples)
                    else:
                        yield from (sample for sample in batch.samples if sample.error)
                if self.waiting:
                    self.compact()
                    self.live += [self.waiting.popleft() for _ in range(min(self.rows - busy, len(self.waiting)))]
                    started = busy
            if not self.live:
                return
            try:
                finished = self.start(started) if started < len(self.live) else self.step()
            except RuntimeError as error:
                if not lacks_memory(error):
                    raise
                finished = self.retreat(started, error)
            yield from finished

    def admit(self, batch: Batch) -> Exception | None:
        """Read the shared beginnings of a batch's prompts; its samples then wait for rows."""
        if not batch.questions:
            return None
        try:
            cache, positions, _ = self.read(batch.inputs, 1)
            slots = self.slots.add_questions(cache, [question.shared for question in batch.questions], positions[..., -1] + 1)
        except ERRORS as error:
            return error.with_traceback(None)  # which would keep the failed batch in memory
        for question, slot in zip(batch.questions, slots):
            question.slot, question.unfinished = slot, 0
        self.questions += batch.questions
        for sample in batch.samples:
            sample.question.unfinished += 1
        self.waiting.extend(batch.samples)
        seen = batch.inputs["attention_mask"]
        self.work.update(prompts=len(seen), prompt_tokens=int(seen.sum()), prompt_padding=int((1 - seen).sum()), pixel_rows=len(batch.inputs.get("pixel_values", ())))
        return None

    def start(self, first: int) -> list[Sample]:
        """Read the rest of the prompts of the samples from row `first` on, a request's once for all its samples, and take their first tokens."""
        fresh = self.live[first:]
        leaders = list({id(sample.request): sample for sample in fresh}.values())
        place = {id(sample.request): index for index, sample in enumerate(leaders)}
        fresh = leaders + [sample for sample in fresh if sample is not leaders[place[id(sample.request)]]]
        self.live[first:] = fresh
        self.changed = True
        self.slots.add_rows(first, [sample.question.slot for sample in fresh])
        tails = [sample.tail for sample in leaders]
        logits = self.forward(first, tails)
        self.work.update(tails=len(tails), tail_tokens=sum(map(len, tails)), tail_padding=sum(max(map(len, tails)) - len(tail) for tail in tails))
        sources = [place[id(sample.request)] for sample in fresh]
        self.slots.copy_rows([first + source for source in sources[len(leaders) :]], list(range(first + len(leaders), len(self.live))))
        uniform = self.slots.uniform[first : len(self.live)]
        if self.warpers:  # drawn on the CPU: the same numbers on every device
            uniform.copy_(torch.stack([torch.rand(self.max_tokens, generator=torch.Generator().manual_seed(sample.request.seeds[sample.number])) for sample in fresh]))
        tokens, chances = self.choose(logits[torch.tensor(sources, device=logits.device)], uniform[:, :1])
        return self.collect(first, tokens.tolist(), chances.tolist())

    def step(self) -> list[Sample]:
        """One more token in every row."""
        if self.changed:
            used = [row for row, sample in enumerate(self.live) if sample]
            self.slots.arrange(used, [self.live[row].tokens[-1] for row in used], [len(self.live[row].tokens) for row in used])
            self.changed = False
        shape, count = self.slots.next_shape(), len(self.slots.used)
        self.work.update(steps=1, decode_rows=count, idle_rows=shape.rows - count)
        graph = self.graph_of(shape)
        if graph:
            graph()
        else:
            self.one_token(shape)
        self.slots.end_step()
        return self.collect(0, self.slots.state[0, : len(self.live)].tolist(), self.slots.chances[: len(self.live)].tolist() if self.pieces else [0.0] * len(self.live))

    def one_token(self, shape: Shape) -> None:
        """A step, on the device from end to end: what can be captured."""
        tokens, lengths, _, _, drawn = self.slots.state[:, : shape.rows]
        logits = self.next_logits(shape)
        chosen, chances = self.choose(logits, self.slots.uniform[: shape.rows].gather(1, drawn[:, None]))
        tokens.copy_(chosen)
        self.slots.chances[: shape.rows].copy_(chances)
        lengths.add_(1)
        drawn.add_(1)

    def choose(self, logits: torch.Tensor, points: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The next tokens (R) by logits (R, V) and each row's number in [0, 1) (R, 1), and their log-probabilities (R), if asked for."""
        if self.warpers:  # the inverse of the cumulative distribution, at the sample's own number
            scores = logits
            for warper in self.warpers:
                scores = warper(None, scores)
            total = scores.softmax(-1).cumsum(-1)
            tokens = torch.searchsorted(total, points * total[:, -1:], right=True).clamp_max(total.shape[1] - 1)
        else:
            tokens = logits.argmax(-1, keepdim=True)
        chances = logits.log_softmax(-1).gather(1, tokens) if self.pieces else torch.zeros_like(points)
        return tokens[:, 0], chances[:, 0]

    def collect(self, first: int, tokens: list[int], chances: list[float]) -> list[Sample]:
        """Add the new tokens of the rows from `first` on to their samples; those that have finished leave."""
        done = []
        for row, (token, chance) in enumerate(zip(tokens, chances), first):
            if sample := self.live[row]:
                sample.tokens.append(token)
                sample.chances.append(chance)
                if token in self.ends or len(sample.tokens) == sample.limit:
                    done.append(row)
        finished = [self.live[row] for row in done]
        if done:
            self.leave(done)
        return finished

    def leave(self, rows: list[int]) -> None:
        """Free rows, and questions whose samples are all done."""
        self.changed, empty = True, {}
        for row in rows:
            question, self.live[row] = self.live[row].question, None
            question.unfinished -= 1
            if question.unfinished == 0:
                empty[id(question)] = question
        for question in empty.values():
            self.slots.drop_question(question.slot)
            last = self.questions.pop()
            if last is not question:
                self.questions[question.slot], last.slot = last, question.slot
        if self.slots.rounded(sum(sample is not None for sample in self.live)) < self.slots.rounded(len(self.live)):
            self.compact()

    def compact(self) -> None:
        """The rows in use become the first ones: the last of them take the places of those that have left."""
        stay = sum(sample is not None for sample in self.live)
        targets = [row for row in range(stay) if self.live[row] is None]
        sources = [row for row in range(stay, len(self.live)) if self.live[row] is not None]
        self.slots.copy_rows(sources, targets)
        for target, source in zip(targets, sources):
            self.live[target] = self.live[source]
        del self.live[stay:]
        self.changed = True

    def retreat(self, started: int, error: RuntimeError) -> list[Sample]:
        """The memory did not do for a step: half of the rows that were to start, or else of all, wait, and fewer are used from now on."""
        starting = started < len(self.live)
        if not starting:
            self.compact()
        keep = started if starting else started // 2
        back = self.live[keep:]
        if keep == 0 and len(back) == 1:
            back[0].error = error.with_traceback(None)
            self.leave([0])
            return back
        self.rows = max(1, keep + len(back) // 2 if starting else keep)
        print(f"engine: {one_line(error)}; going on with {self.rows} rows", flush=True)
        del self.live[keep:]
        for sample in reversed(back):
            sample.tokens.clear()
            sample.chances.clear()
            self.waiting.appendleft(sample)
        self.changed = True
        return []

    # ------------------------------------------------------------ captured steps

    def graph_of(self, shape: Shape) -> Callable | None:
        """The captured step of this shape, if it is there or due."""
        if self.slots.moved != self.captured_at:  # a graph looks where the memory was
            self.forget_graphs()
        graph = self.graphs.pop(shape, None)
        if graph is None and self.capture:
            self.met[shape] += 1
            graph = self.captured(shape) if self.met[shape] >= CAPTURE_AT else None
        if graph:
            self.graphs[shape] = graph  # behind those that were used less recently
            self.work.update(replays=1)
        return graph

    def captured(self, shape: Shape) -> Callable | None:
        if len(self.graphs) >= GRAPHS:
            del self.graphs[next(iter(self.graphs))]
        try:
            graph = self.capture(lambda: self.one_token(shape))
        except ERRORS as error:
            return self.without_graphs(one_line(error))
        self.work.update(graphs=1)
        return graph

    def without_graphs(self, reason: str) -> None:
        print(f"engine: steps are not captured ({reason})", flush=True)
        self.capture = None
        self.forget_graphs()

    def forget_graphs(self) -> None:
        self.graphs.clear()
        self.met.clear()
        self.captured_at = self.slots.moved

    # ------------------------------------------------------------ the model

    def read(self, inputs: dict, keep: int) -> tuple[DynamicCache, torch.Tensor, torch.Tensor]:
        """One pass over left-padded prompts, prepared by generate() itself: cache, position ids (B, K, P), last logits (B, keep, V)."""

        def once(model, input_ids, logits_processor, stopping_criteria, generation_config, **state):
            prepared = model.prepare_inputs_for_generation(input_ids, is_first_iteration=True, **state) | {"logits_to_keep": keep}
            positions = prepared["position_ids"]
            out = model(**prepared, return_dict=True)
            positions = positions.transpose(0, 1) if positions.ndim == 3 else positions[:, None]
            return out.get("cache", out.get("past_key_values")), positions.expand(len(input_ids), -1, -1).cpu(), out.logits.float()

        inputs = {name: value.to(self.model.device) if isinstance(value, torch.Tensor) else value for name, value in inputs.items()}
        return self.model.generate(**inputs, max_new_tokens=1, do_sample=False, custom_generate=once)

    def forward(self, first: int, tokens: list[list[int]]) -> torch.Tensor:
        """Logits (count, V) behind the first own tokens of the rows from `first` on."""
        lengths = torch.tensor([len(row) for row in tokens])
        width = int(lengths.max())
        ids = torch.tensor([row + [0] * (width - len(row)) for row in tokens]).to(self.model.device)
        columns, index = (lengths - 1).unique(return_inverse=True)  # logits of columns that are some row's last: a mask would need transformers 5.23
        mask, positions = self.slots.begin_rows(first, len(tokens), width)
        logits = self.call(ids, mask, positions, columns.to(ids.device))
        self.slots.end_rows(lengths)
        return logits[torch.arange(len(tokens)), index].float()

    def next_logits(self, shape: Shape) -> torch.Tensor:
        """Logits (R, V) behind the last token of each row."""
        mask, positions = self.slots.begin_step(shape)
        return self.call(self.slots.state[0, : shape.rows, None], mask, positions, 1)[:, -1].float()

    def call(self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, keep: int | torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=keep, return_dict=True, **{self.cache_name: self.slots}).logits


def graph_capture(device: torch.device) -> Callable | None:
    """On CUDA a function that captures a step and returns what repeats it; elsewhere None. Written for CUDA, not run there."""
    if device.type != "cuda":
        return None
    pool = torch.cuda.graph_pool_handle()  # one for all: they run one after the other and leave nothing in it

    def capture(step: Callable) -> Callable:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):  # the thread that encodes may go on
            step()
        return graph.replay

    return capture


def lacks_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or isinstance(error, RuntimeError) and "memory" in str(error)


def free_memory(device: torch.device) -> int:
    """Bytes; of the machine's memory, what Linux says can be had."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    with open("/proc/meminfo") as file:
        return 1024 * next(int(line.split()[1]) for line in file if line.startswith("MemAvailable"))
