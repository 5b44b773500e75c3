"""Keys and values of many samples in memory that stays, and the attention over them.

`Slots` is a transformers Cache. A question's keys and values are stored once for all its samples, a sample's own ones in
a row of its own. While the model decodes, each layer hands its new keys and values to `update`, which writes them into
the rows; `attend`, an attention of transformers' table, lets each row look at its question and at itself: the scores of
both parts go through one softmax, and a question's keys are read once for all its rows. Rows and questions in use are
always the first ones, so that a step works on views and copies nothing.

What a step reads and writes besides is on the device, too, at places that stay: the host tells a step its `Shape` and
nothing else, and writes to the device only when rows come or go (`arrange`). So a step can be captured (decoder.py).
"""

from typing import NamedTuple

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from common import set_text_attention

NAME = "shared_prefix"  # in transformers' table of attentions
BLOCK = 64  # tokens by which the memory of rows and questions grows


def use_shared_prefix(model) -> None:
    """Let the model's language part, not its vision tower, attend by `attend`; without Slots that is plain SDPA."""
    ALL_ATTENTION_FUNCTIONS.register(NAME, attend)
    ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)
    set_text_attention(model, NAME)


def attend(module, query, key, value, attention_mask, scaling=None, **settings):
    """query (R, heads, T, width); key and value as `Slots.update` returns them; mask (R, 1, T, P + L), added to the scores."""
    slots = getattr(key, "slots", None)
    if slots is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **settings)
    rows, heads, tokens, width = query.shape
    shared_key, shared_value = slots.shared(module.layer_idx)  # (Q, KV heads, P, width)
    group, scaling = heads // key.shape[1], width**-0.5 if scaling is None else scaling
    if slots.start is not None:  # many queries a row: bound by arithmetic, so each row may have its copy of the question's keys
        key, value = torch.cat([shared_key[slots.row_owners], key], 2), torch.cat([shared_value[slots.row_owners], value], 2)
        query = query.reshape(rows, -1, group * tokens, width)  # the heads of a key as its queries: with a mask and enable_gqa CUDA has no fast kernel
        out = scaled_dot_product_attention(query, key, value, attention_mask.repeat(1, 1, group, 1), scale=scaling)
        return out.view(rows, heads, tokens, width).transpose(1, 2), None
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
        length = rounded(new_tokens, BLOCK) if fixed else 0  # to grow later would cost the graphs
        self.own = [[part.new_zeros(rows, part.shape[1], length, part.shape[3]) for part in layer] for layer in shapes]
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
        self.start = None  # what was to be read may have failed
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
