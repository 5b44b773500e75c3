"""Keys and values of many samples and of the prompts that they share, and the attention over both.

`SharedKVCache` is a transformers Cache. What the prompts of a PromptGroup share is stored once (prompt_kv),
what a sample adds in a row of its own (sample_kv). In a forward pass each layer hands its new keys and values
to `update`, which writes them into the rows; `attend`, an entry of transformers' table of attentions, lets
each row look at its group's prompt and at itself. The scores of both parts go through one softmax, in fp32,
and a prompt's keys are read once for all its rows. Rows and groups in use are always the first ones.

Shapes: R rows, G groups, T new tokens of a row, P tokens of the longest prompt, L of the longest row, K
dimensions that the model counts positions in, W width of a head.
"""

from dataclasses import dataclass, field

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import DynamicCache
from transformers.cache_utils import Cache, DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mathse.attention import set_text_attention

ATTENTION = "shared_prompt"  # in transformers' table of attentions
BLOCK = 64  # tokens by which the memory of rows and prompts grows


def use_shared_prompts(model) -> None:
    """Let the model's language part attend by `attend`; without a SharedKVCache that is plain SDPA."""
    ALL_ATTENTION_FUNCTIONS.register(ATTENTION, attend)
    ALL_MASK_ATTENTION_FUNCTIONS.register(ATTENTION, sdpa_mask)
    set_text_attention(model, ATTENTION)


@dataclass
class PromptPass:
    """A forward pass over several more tokens, right-padded, of rows first ... first + R - 1."""

    first: int
    places: torch.Tensor  # (R, T), where in its row each token is written
    length: int  # L, with them
    owners: torch.Tensor  # (R), the group of each row
    prompt_length: int  # P
    mask: torch.Tensor  # (R, 1, T, P + L), 0 or -inf, in the model's type
    position_ids: torch.Tensor  # (K, R, T), or (R, T) if K is 1
    repeated: dict[int, torch.Tensor] = field(default_factory=dict)

    def mask_of(self, heads: int) -> torch.Tensor:
        """The mask (R, 1, heads * T, P + L) of queries whose heads stand one after the other."""
        if heads not in self.repeated:
            self.repeated[heads] = self.mask.repeat(1, 1, heads, 1)
        return self.repeated[heads]


@dataclass
class Layout:
    """Which rows belong to which prompt: the same from step to step until rows come or go."""

    groups: int  # G
    numbers: torch.Tensor  # (R), 0 ... R - 1
    row_at: torch.Tensor  # (G * m): the rows sorted by group, m places a group; empty places hold row 0
    place_of: torch.Tensor  # (R), where in it a row is
    prompt_mask: torch.Tensor  # (R, P), 0 or -inf, fp32
    next_positions: torch.Tensor  # (R, K), behind the prompt

    def by_group(self, part: torch.Tensor) -> torch.Tensor:
        """(R, KV heads, X, W) -> (G, KV heads, m * X, W)."""
        grouped = part[self.row_at].view(self.groups, -1, *part.shape[1:])
        return grouped.transpose(1, 2).flatten(2, 3)

    def by_row(self, part: torch.Tensor, heads: int) -> torch.Tensor:
        """The reverse, for X = heads."""
        return part.unflatten(2, (-1, heads)).transpose(1, 2).flatten(0, 1)[self.place_of]


@dataclass
class StepPass:
    """A forward pass over one token of each of the first R rows."""

    layout: Layout
    prompt_length: int  # P
    lengths: torch.Tensor  # (R), own tokens before it: where it is written
    length: int  # L, with it
    mask: torch.Tensor  # (R, 1, 1, P + L), 0 or -inf, fp32
    position_ids: torch.Tensor  # (K, R, 1), or (R, 1) if K is 1


# ---------------------------------------------------------------- attention


def attend(module, query, key, value, attention_mask, scaling=None, **settings):
    """query (R, heads, T, W); key and value as `SharedKVCache.update` returns them, (R, KV heads, L, W).

    Returns the output (R, T, heads, W), and None for the weights.
    """
    cache = getattr(key, "kv_cache", None)
    if cache is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **settings)
    scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
    function = attend_prompt if isinstance(cache.current, PromptPass) else attend_step
    return function(cache.current, query, key, value, *cache.shared(module.layer_idx), scaling), None


def attend_prompt(now: PromptPass, query, key, value, prompt_key, prompt_value, scaling):
    """Many queries a row: bound by arithmetic, so each row may have its copy of the prompt's keys."""
    rows, heads, tokens, width = query.shape
    group = heads // key.shape[1]
    key = torch.cat([prompt_key[now.owners], key], 2)  # (R, KV heads, P + L, W)
    value = torch.cat([prompt_value[now.owners], value], 2)
    # the heads of a key as its queries: with a mask and enable_gqa CUDA has no fast kernel
    query = query.reshape(rows, -1, group * tokens, width)
    out = scaled_dot_product_attention(query, key, value, now.mask_of(group), scale=scaling)
    return out.view(rows, heads, tokens, width).transpose(1, 2)


def attend_step(now: StepPass, query, key, value, prompt_key, prompt_value, scaling):
    """One query a row: bound by memory. Scores in fp32: rounded to bf16 they would change the weights."""
    rows, heads, _, width = query.shape
    layout, group = now.layout, heads // key.shape[1]
    query = (query.float() * scaling).view(rows, -1, group, width)
    prompt_scores = layout.by_group(query) @ prompt_key.float().transpose(2, 3)  # (G, KV heads, m * group, P)
    prompt_scores = layout.by_row(prompt_scores, group)  # (R, KV heads, group, P)
    own_scores = query @ key.float().transpose(2, 3)  # (R, KV heads, group, L)
    weights = torch.cat([prompt_scores, own_scores], -1).add_(now.mask).softmax(-1).to(value.dtype)
    at_prompt, at_own = weights.split([now.prompt_length, now.length], -1)
    out = layout.by_row(layout.by_group(at_prompt) @ prompt_value, group) + at_own @ value
    return out.view(rows, 1, heads, width)


# ---------------------------------------------------------------- cache


class SharedKVCache(Cache):
    """Room for `rows` samples. `example`: a prompt's cache, which tells the layers' shapes.

    On the host: lengths (rows), own tokens of each row; owners (rows), its group; prompt_lengths (G);
    next_positions (G, K), the position behind the prompt.
    """

    def __init__(self, example: DynamicCache, rows: int):
        super().__init__(layers=[DynamicLayer()])  # only for what asks a cache about its kind
        shapes = [(layer.keys, layer.values) for layer in example.layers]
        # a layer's [keys, values], each (rows or G, KV heads, tokens, W)
        self.sample_kv = [
            [part.new_zeros(rows, part.shape[1], 0, part.shape[3]) for part in kv] for kv in shapes
        ]
        self.prompt_kv = [
            [part.new_zeros(0, part.shape[1], 0, part.shape[3]) for part in kv] for kv in shapes
        ]
        self.device = shapes[0][0].device
        self.dtype = shapes[0][0].dtype
        self.lengths = torch.zeros(rows, dtype=torch.long)
        self.owners = torch.zeros(rows, dtype=torch.long)
        self.groups = 0
        self.prompt_lengths = torch.zeros(0, dtype=torch.long)
        self.next_positions = None
        self.layout: Layout | None = None  # of the next step; None when rows or groups have come or gone
        self.current: PromptPass | StepPass | None = None

    # ------------------------------------------------------------ rows and groups come and go

    def add_prompts(self, cache: DynamicCache, lengths: list[int], next_positions: torch.Tensor) -> range:
        """Take the keys and values of left-padded prompts (B, P); next_positions (B, K). Returns their
        places.
        """
        new = range(self.groups, self.groups + len(lengths))
        grow(self.prompt_kv, new.stop, max(lengths))
        for kv, source in zip(self.prompt_kv, cache.layers):
            for target, part in zip(kv, (source.keys, source.values)):
                for place, row, length in zip(new, part, lengths):
                    target[place, :, :length] = row[:, row.shape[1] - length :]
                    target[place, :, length:] = 0  # what a former prompt left there might not be finite
        if self.next_positions is None:
            self.next_positions = next_positions[:0]
        self.prompt_lengths = torch.cat([self.prompt_lengths[: new.start], torch.tensor(lengths)])
        self.next_positions = torch.cat([self.next_positions[: new.start], next_positions])
        self.groups = new.stop
        self.layout = None
        return new

    def drop_prompt(self, place: int) -> None:
        """The last prompt takes its place."""
        self.groups -= 1
        for kv in self.prompt_kv:
            for part in kv:
                part[place] = part[self.groups]
        self.prompt_lengths[place] = self.prompt_lengths[self.groups]
        self.next_positions[place] = self.next_positions[self.groups]
        self.owners[self.owners == self.groups] = place
        self.layout = None

    def add_rows(self, first: int, owners: list[int]) -> None:
        """Empty rows, from row `first` on, of these groups."""
        rows = slice(first, first + len(owners))
        self.owners[rows] = torch.tensor(owners)
        self.lengths[rows] = 0
        self.layout = None

    def copy_rows(self, sources: list[int], targets: list[int]) -> None:
        self.layout = None
        if not sources:
            return
        length = int(self.lengths[sources].max())
        self.lengths[targets] = self.lengths[sources]
        self.owners[targets] = self.owners[sources]
        sources = torch.tensor(sources, device=self.device)
        targets = torch.tensor(targets, device=self.device)
        for kv in self.sample_kv:
            for part in kv:
                part[targets, :, :length] = part[sources, :, :length]

    # ------------------------------------------------------------ passes

    def begin_rows(self, first: int, count: int, tokens: int) -> PromptPass:
        """Before `count` rows, from `first` on, get up to `tokens` tokens more each, right-padded."""
        owners, lengths = self.owners[first : first + count], self.lengths[first : first + count]
        places = lengths[:, None] + torch.arange(tokens)  # (R, T)
        length = int(lengths.max()) + tokens
        grow(self.sample_kv, len(self.lengths), length)
        prompt = self.visible_prompt(owners)[:, None].expand(-1, tokens, -1)  # (R, T, P)
        own = torch.arange(length) <= places[..., None]  # (R, T, L)
        visible = torch.cat([prompt, own], -1)[:, None].to(self.device)
        positions = self.next_positions[owners][..., None] + places[:, None]  # (R, K, T)
        self.current = PromptPass(
            first=first,
            places=places.to(self.device),
            length=length,
            owners=owners.to(self.device),
            prompt_length=prompt.shape[-1],
            mask=additive(visible, self.dtype),
            position_ids=as_position_ids(positions.to(self.device)),
        )
        return self.current

    def end_rows(self, first: int, lengths: torch.Tensor) -> None:
        """After it: the numbers of tokens (R) that stay; the others were padding, or are not wanted."""
        self.lengths[first : first + len(lengths)] += lengths
        self.layout = None

    def begin_step(self, rows: int) -> StepPass:
        """Before each of the first `rows` rows gets one token more."""
        if self.layout is None or len(self.layout.numbers) != rows:
            self.layout = self.lay_out(rows)
        length = int(self.lengths[:rows].max()) + 1
        grow(self.sample_kv, len(self.lengths), length)
        lengths = self.lengths[:rows].to(self.device)
        own = additive(torch.arange(length, device=self.device) <= lengths[:, None], torch.float32)
        positions = (self.layout.next_positions + lengths[:, None])[..., None]  # (R, K, 1)
        self.current = StepPass(
            layout=self.layout,
            prompt_length=self.layout.prompt_mask.shape[1],
            lengths=lengths,
            length=length,
            mask=torch.cat([self.layout.prompt_mask, own], -1)[:, None, None],
            position_ids=as_position_ids(positions),
        )
        return self.current

    def end_step(self, rows: int) -> None:
        self.lengths[:rows] += 1

    def lay_out(self, rows: int) -> Layout:
        owners = self.owners[:rows]
        order, counts = owners.argsort(stable=True), owners.bincount(minlength=self.groups)
        ranks = torch.empty_like(order)  # of a row among those of its group
        ranks[order] = torch.arange(rows) - (counts.cumsum(0) - counts)[owners[order]]
        places = int(counts.max())  # m
        place_of = owners * places + ranks
        row_at = torch.zeros(self.groups * places, dtype=torch.long)
        row_at[place_of] = torch.arange(rows)
        return Layout(
            groups=self.groups,
            numbers=torch.arange(rows, device=self.device),
            row_at=row_at.to(self.device),
            place_of=place_of.to(self.device),
            prompt_mask=additive(self.visible_prompt(owners).to(self.device), torch.float32),
            next_positions=self.next_positions[owners].to(self.device),
        )

    def visible_prompt(self, owners: torch.Tensor) -> torch.Tensor:
        """(R, P): which prompt tokens the rows of these groups (R) look at."""
        length = int(self.prompt_lengths[: self.groups].max())
        return torch.arange(length) < self.prompt_lengths[owners][:, None]

    # ------------------------------------------------------------ what the layers call

    def update(self, key_states, value_states, layer_idx, *args, **kwargs):
        """Write new keys and values (R, KV heads, T, W) behind the rows' own.

        Returns the rows' own keys and values (R, KV heads, L, W).
        """
        now, own = self.current, []
        for part, states in zip(self.sample_kv[layer_idx], (key_states, value_states)):
            if isinstance(now, PromptPass):
                part = part[now.first : now.first + len(states)]
                rows = torch.arange(len(states), device=part.device)[:, None]
                part[rows, :, now.places] = states.transpose(1, 2)
            else:
                part[now.layout.numbers, :, now.lengths] = states[:, :, 0]
            own.append(part[: len(states), :, : now.length])
        own[0].kv_cache = self
        return tuple(own)

    def shared(self, layer_idx: int) -> list[torch.Tensor]:
        """The prompts' [keys, values], each (G, KV heads, P, W)."""
        return [part[: self.groups, :, : self.current.prompt_length] for part in self.prompt_kv[layer_idx]]

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return 1  # not empty: positions and masks are always given


def grow(layers: list[list[torch.Tensor]], count: int, length: int) -> None:
    """Room for `count` rows of `length` tokens; zeros, because what is masked must still be finite."""
    for kv in layers:
        for index, part in enumerate(kv):
            old_count, heads, old_length, width = part.shape
            if count <= old_count and length <= old_length:
                continue
            rows = old_count if count <= old_count else max(count, old_count * 3 // 2)
            kv[index] = part.new_zeros(rows, heads, max(old_length, -(-length // BLOCK) * BLOCK), width)
            kv[index][:old_count, :, :old_length] = part


def additive(visible: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A mask that is added to scores."""
    return torch.zeros(visible.shape, dtype=dtype, device=visible.device).masked_fill_(~visible, -torch.inf)


def as_position_ids(positions: torch.Tensor) -> torch.Tensor:
    """(R, K, T) -> (K, R, T), or (R, T) if K is 1."""
    return positions.transpose(0, 1) if positions.shape[1] > 1 else positions[:, 0]
