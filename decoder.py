"""Many samples at once from one model, on the device: keys and values in memory that stays, and the loop that fills it.

`Slots` is a transformers Cache. A question's keys and values are stored once for all its samples, a sample's own ones in
a row of its own. While the model decodes, each layer hands its new keys and values to `update`, which writes them into
the rows; `attend`, an attention of transformers' table, lets each row look at its question and at itself: the scores of
both parts go through one softmax, and a question's keys are read once for all its rows. Rows and questions in use are
always the first ones (the last takes the place of one that leaves), so that a step works on views and copies nothing.

`Decoder` keeps the rows full. It holds for every model of transformers whose layers attend through that table and keep
every token; whether a model is one of them is not looked up but tried, on a picture and a question (`Decoder.check`).
"""

import inspect
from collections import Counter, deque
from dataclasses import replace
from typing import Callable, Iterator

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
    if tokens > 1:  # many queries a row: bound by arithmetic, so each row may have its copy of the question's keys
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


class Slots(Cache):
    """Room for `rows` samples. `sample`: a prompt's cache, which tells the layers' shapes.

    lengths (rows): own tokens of a row; owners (rows): its question; question_lengths, next_positions (questions, K): of a
    question, its tokens and the position after them, in each of the K dimensions that the model counts in.
    """

    def __init__(self, sample: DynamicCache, rows: int):
        super().__init__(layers=[DynamicLayer()])  # only for what asks a cache about its kind
        shapes = [(layer.keys, layer.values) for layer in sample.layers]
        self.own = [[part.new_zeros(rows, part.shape[1], 0, part.shape[3]) for part in layer] for layer in shapes]
        self.prefix = [[part.new_zeros(0, part.shape[1], 0, part.shape[3]) for part in layer] for layer in shapes]
        self.lengths, self.owners = torch.zeros(rows, dtype=torch.long), torch.zeros(rows, dtype=torch.long)
        self.question_lengths, self.next_positions = torch.zeros(0, dtype=torch.long), None
        self.questions = 0

    # ------------------------------------------------------------ rows and questions come and go

    def add_questions(self, cache: DynamicCache, lengths: list[int], next_positions: torch.Tensor) -> range:
        """Take the keys and values of left-padded prompts (B, P); next_positions (B, K)."""
        new = range(self.questions, self.questions + len(lengths))
        self.next_positions = next_positions[:0] if self.next_positions is None else self.next_positions
        for layer, source in zip(self.prefix, cache.layers):
            for index, (target, part) in enumerate(zip(layer, (source.keys, source.values))):
                layer[index] = target = grown(target, new.stop, max(lengths))
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
        sources, targets = torch.tensor(sources), torch.tensor(targets)
        length = int(self.lengths[sources].max())
        for layer in self.own:
            for part in layer:
                part[targets, :, :length] = part[sources, :, :length]
        self.lengths[targets], self.owners[targets] = self.lengths[sources], self.owners[sources]

    # ------------------------------------------------------------ a step

    def begin(self, first: int, count: int, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Before `count` rows, from the first on, get up to `tokens` new tokens (more than 1: the rows are empty, the tokens right-padded).

        Returns the attention mask (count, 1, T, P + L) and the position ids ((K, count, T), or (count, T) if K is 1).
        """
        owners, lengths = self.owners[first : first + count], self.lengths[first : first + count]
        self.first, self.count, self.length, self.prefix_length = first, count, int(lengths.max()) + tokens, int(self.question_lengths.max())
        self.own = [[grown(part, len(part), self.length) for part in layer] for layer in self.own]
        device, steps = self.own[0][0].device, torch.arange(tokens)
        positions = (self.next_positions[owners] + lengths[:, None])[..., None] + steps  # (count, K, T)
        if tokens == 1:  # row_at (Q * m): the rows sorted by question, m places each; place_of (count): where a row went
            order, counts = owners.argsort(stable=True), owners.bincount(minlength=self.questions)
            widest, starts = int(counts.max()), counts.cumsum(0) - counts
            place_of, row_at = torch.empty_like(order), order.new_zeros(self.questions * widest)
            place_of[order] = owners[order] * widest + torch.arange(count) - starts[owners[order]]
            row_at[place_of] = torch.arange(count)
            self.place_of, self.row_at = place_of.to(device), row_at.to(device)
        shared = (torch.arange(self.prefix_length) < self.question_lengths[owners][:, None]).to(device)  # (count, P)
        self.row_lengths, self.row_owners, self.cells = lengths.to(device), owners.to(device), {}
        own = torch.arange(self.length, device=device) <= (self.row_lengths[:, None] + steps.to(device))[..., None]  # (count, T, L)
        visible = torch.cat([shared[:, None].expand(-1, tokens, -1), own], -1).unsqueeze(1)
        mask = torch.zeros(visible.shape, dtype=self.own[0][0].dtype, device=device).masked_fill_(~visible, -torch.inf)
        return mask, (positions.transpose(0, 1) if positions.shape[1] > 1 else positions[:, 0]).to(device)

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        """Write new keys and values (count, KV heads, T, width) behind the rows' own; return the rows' own, with a way to the shared ones."""
        for part, states in zip(self.own[layer_idx], (key_states, value_states)):
            if states.shape[2] > 1:
                part[self.first : self.first + self.count, :, : states.shape[2]] = states
            else:
                part.view(-1, part.shape[3]).index_copy_(0, self.new_cells(*part.shape[1:3]), states.flatten(0, 2))
        key, value = (part[self.first : self.first + self.count, :, : self.length] for part in self.own[layer_idx])
        key.slots = self
        return key, value

    def new_cells(self, heads: int, length: int) -> torch.Tensor:
        """Where the next token's keys lie (count * heads), counted in tokens from the start of a layer's memory."""
        if (heads, length) not in self.cells:
            rows = torch.arange(self.first, self.first + self.count, device=self.row_lengths.device)
            heads_of_rows = rows[:, None] * heads + torch.arange(heads, device=rows.device)
            self.cells[heads, length] = (heads_of_rows * length + self.row_lengths[:, None]).flatten()
        return self.cells[heads, length]

    def shared(self, layer_idx: int) -> list[torch.Tensor]:
        return [part[: self.questions, :, : self.prefix_length] for part in self.prefix[layer_idx]]

    def end(self, lengths: torch.Tensor) -> None:
        """After it: the numbers of tokens (count) that were no padding."""
        self.lengths[self.first : self.first + self.count] += lengths

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 1  # not empty: positions and masks are always given


def grown(part: torch.Tensor, count: int, length: int) -> torch.Tensor:
    """`part` with room for `count` rows of `length` tokens; zeros, because what is masked must still be finite."""
    if count <= part.shape[0] and length <= part.shape[2]:
        return part
    count = part.shape[0] if count <= part.shape[0] else max(count, part.shape[0] * 3 // 2)
    length = part.shape[2] if length <= part.shape[2] else -(-length // BLOCK) * BLOCK
    larger = part.new_zeros(count, part.shape[1], length, part.shape[3])
    larger[: part.shape[0], :, : part.shape[2]] = part
    return larger


# ---------------------------------------------------------------- decoding


class Decoder:
    """Decodes samples together, live[i] in row i of the slots; `work` counts what was computed."""

    def __init__(self, model, probe: Batch, rows: int, max_tokens: int, ends: set[int], pieces: bool):
        """Raises ValueError, or what the model raises, if it does not decode `probe` with shared prompts as it does by itself."""
        self.model, self.max_tokens, self.ends, self.pieces, self.work = model, max_tokens, ends, pieces, Counter()
        self.cache_name = "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"  # before transformers 5.24
        use_shared_prefix(model)
        cache = self.check(probe)
        token = sum(part.shape[1] * part.shape[3] * part.element_size() for layer in cache.layers for part in (layer.keys, layer.values))
        free = free_memory(model.device)
        self.rows = max(1, min(rows, free // 2 // (token * (max_tokens + TAIL))))  # the other half: questions, and what a step needs
        if self.rows < rows:
            print(f"engine: memory for {self.rows} rows, not for {rows}: {free >> 20} MiB free, {token * max_tokens >> 20} MiB a reply", flush=True)
        self.slots = Slots(cache, self.rows)

    @torch.inference_mode()
    def check(self, probe: Batch) -> DynamicCache:
        (question,), prompt, count = probe.questions, probe.samples[0].prompt, len(probe.samples)
        cache, positions, whole = self.read(probe.inputs, 2)
        if not all(type(layer) is DynamicLayer for layer in cache.layers):
            raise ValueError("not all its layers keep the keys and values of every token")
        for layer in cache.layers:
            layer.keys, layer.values = layer.keys[:, :, : question.shared], layer.values[:, :, : question.shared]
        self.slots = Slots(cache, count)
        self.slots.add_questions(cache, [question.shared], positions[..., question.shared - 1] + 1)
        self.slots.add_rows(0, [0] * count)
        logits = [self.forward(0, [prompt[question.shared : -1]] * count), self.forward(0, [prompt[-1:]] * count)]
        off = ((torch.stack(logits, 1) - whole).norm() / whole.expand(count, -1, -1).norm()).item()
        if not off < (1e-3 if self.model.dtype == torch.float32 else 5e-2):
            raise ValueError(f"with shared prompts its logits are off by {off:.1e}")
        self.work.clear()
        return cache

    # ------------------------------------------------------------ the loop

    @torch.inference_mode()
    def serve(self, batches: Iterator[Batch], encode: Callable, temperature: float, top_k: int, top_p: float) -> Iterator[Sample]:
        """Samples as they finish. A batch that fails is halved by `encode`; one that lacks memory waits for the others to end.

        New samples take free rows once these are a share of all: reading prompts holds the others up, and reads better many at a time.
        """
        self.slots.questions, self.live, self.waiting, self.questions = 0, [], deque(), []
        self.warpers = [TemperatureLogitsWarper(temperature)] if temperature else []
        self.warpers += [TopKLogitsWarper(top_k)] if temperature and top_k else []
        self.warpers += [TopPLogitsWarper(top_p)] if temperature and top_p < 1 else []
        again: deque[Batch] = deque()
        while True:
            started = len(self.live)
            if self.rows - started >= max(1, self.rows // REFILL) or not started:
                while started + len(self.waiting) < self.rows and (batch := again.popleft() if again else next(batches, None)):
                    error = self.admit(batch)
                    if error and len(batch.questions) > 1:
                        again.extendleft(reversed([part for half in halves(batch.questions) for part in encode(half)]))
                    elif error and lacks_memory(error) and (self.live or self.waiting):
                        again.appendleft(batch)
                        break
                    elif error:
                        yield from (replace(sample, error=error) for sample in batch.samples)
                    else:
                        yield from (sample for sample in batch.samples if sample.error)
                self.live += [self.waiting.popleft() for _ in range(min(self.rows - started, len(self.waiting)))]
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
        for sample in fresh:
            if self.warpers:
                sample.uniform = torch.rand(self.max_tokens, generator=torch.Generator().manual_seed(sample.request.seeds[sample.number])).tolist()
        self.slots.add_rows(first, [sample.question.slot for sample in fresh])
        tails = [sample.tail for sample in leaders]
        logits = self.forward(first, tails)
        self.work.update(tails=len(tails), tail_tokens=sum(map(len, tails)), tail_padding=sum(max(map(len, tails)) - len(tail) for tail in tails))
        sources = [place[id(sample.request)] for sample in fresh]
        self.slots.copy_rows([first + source for source in sources[len(leaders) :]], list(range(first + len(leaders), len(self.live))))
        return self.take(first, logits[torch.tensor(sources, device=logits.device)])

    def step(self) -> list[Sample]:
        """One more token in every row."""
        self.work.update(steps=1, decode_rows=len(self.live))
        return self.take(0, self.forward(0, [sample.tokens[-1:] for sample in self.live]))

    def take(self, first: int, logits: torch.Tensor) -> list[Sample]:
        """Choose the next tokens of the rows from `first` on, by logits (count, V); rows that have finished leave."""
        rows = self.live[first:]
        if self.warpers:  # the inverse of the cumulative distribution, at the sample's own number
            scores = logits
            for warper in self.warpers:
                scores = warper(None, scores)
            total = scores.softmax(-1).cumsum(-1)
            point = torch.tensor([[sample.uniform[len(sample.tokens)]] for sample in rows]).to(total.device)
            tokens = torch.searchsorted(total, point * total[:, -1:], right=True).clamp_max(total.shape[1] - 1)
        else:
            tokens = logits.argmax(-1, keepdim=True)
        chances = logits.log_softmax(-1).gather(1, tokens)[:, 0].tolist() if self.pieces else [0.0] * len(rows)
        done = []
        for row, (sample, (token,), chance) in enumerate(zip(rows, tokens.tolist(), chances), first):
            sample.tokens.append(token)
            sample.chances.append(chance)
            if token in self.ends or len(sample.tokens) == sample.limit:
                done.append(row)
        finished = [self.live[row] for row in done]
        if done:
            self.leave(done)
        return finished

    def leave(self, rows: list[int]) -> None:
        """Free rows: the last ones take their places. A question whose samples are all done goes too."""
        stay, leaving = len(self.live) - len(rows), set(rows)
        for sample in (self.live[row] for row in rows):
            sample.question.unfinished -= 1
        empty = {id(question): question for question in (self.live[row].question for row in rows) if question.unfinished == 0}
        targets, sources = [row for row in rows if row < stay], [row for row in range(stay, len(self.live)) if row not in leaving]
        self.slots.copy_rows(sources, targets)
        for target, source in zip(targets, sources):
            self.live[target] = self.live[source]
        del self.live[stay:]
        for question in empty.values():
            self.slots.drop_question(question.slot)
            last = self.questions.pop()
            if last is not question:
                self.questions[question.slot], last.slot = last, question.slot

    def retreat(self, started: int, error: RuntimeError) -> list[Sample]:
        """The memory did not do for a step: half of the rows that were to start, or else of all, wait, and fewer are used from now on."""
        starting = started < len(self.live)
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
        return []

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
        """Logits (count, V) behind new tokens of the rows from `first` on."""
        lengths = torch.tensor([len(row) for row in tokens])
        width = int(lengths.max())
        ids = torch.tensor([row + [0] * (width - len(row)) for row in tokens]).to(self.model.device)
        columns, index = (lengths - 1).unique(return_inverse=True)  # logits of columns that are some row's last: a mask would need transformers 5.23
        mask, positions = self.slots.begin(first, len(tokens), width)
        out = self.model(input_ids=ids, attention_mask=mask, position_ids=positions, use_cache=True, logits_to_keep=columns.to(ids.device), return_dict=True, **{self.cache_name: self.slots})
        self.slots.end(lengths)
        return out.logits[torch.arange(len(tokens)), index].float()


def lacks_memory(error: Exception) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or isinstance(error, RuntimeError) and "memory" in str(error)


def free_memory(device: torch.device) -> int:
    """Bytes; of the machine's memory, what Linux says can be had."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    with open("/proc/meminfo") as file:
        return 1024 * next(int(line.split()[1]) for line in file if line.startswith("MemAvailable"))
