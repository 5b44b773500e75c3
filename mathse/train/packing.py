"""Train on rows without padding, a shared prompt read once, the loss at label tokens only.

Rows with the same images whose prompts begin alike are a group: k responses of a problem, or candidates that
a judge is shown. A packed micro-batch is one row of tokens:

  | prompt 1 | its answer 1 | its answer 2 | prompt 2 | its answer 1 | ...

An answer (the rest of its prompt, then the reply) counts positions on from where its prompt ends and attends
to its prompt and itself. So loss and gradients are those of one sequence a row, and images, prompt and layers
are computed once for what the rows share. `Layout` lists the sequences: queries with their own keys,
bottom-right causal, which is what variable-length attention kernels compute.

This holds for models whose language part attends through transformers' table of attentions and keeps to full
attention. `check_losses` compares with padded rows once, at the start, and ends a training where it does not
hold. Padded rows are left-padded and right-padded as in sampling, rows of like length together.

In training the output layer is replaced by `LabelLoss`: it gets the hidden states of those tokens alone
that a label follows, and returns their losses, CHUNK logits at a time. No tensor of tokens x vocabulary
exists.
"""

import importlib.util
import inspect
from argparse import Namespace
from collections.abc import Callable
from typing import NoReturn

import torch
import torch.nn.functional as F
from accelerate.utils import gather_object
from torch.utils.checkpoint import checkpoint
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from mathse.attention import set_text_attention
from mathse.records import fail
from mathse.train.data import IGNORE, PER_TOKEN, Layout, MicroBatch, MicroBatches
from mathse.train.rows import TrainingRows
from mathse.train.vision_cache import VisionCache

PACKED = "packed"  # in transformers' table of attentions; it has no mask function there, so no mask is made
CHUNK = 1 << 27  # logits at a time: 512 MiB in fp32; each chunk reads the whole output layer again
# Differences of losses that are rounding, computed in fp32 and in bf16: see how_far_off().
ROUNDING = {"no": 1e-5, "bf16": 5e-2}


class LabelLoss:
    """The output layer in training: hidden states (B, C, D) -> losses (N) of the N labels in `targets` (B,
    C).

    `targets` is None outside of training: then the layer is as it was. `token_loss`: (logits (n, V) in fp32,
    targets (n)) -> losses (n).
    """

    def __init__(self, head, token_loss: Callable):
        self.project = head.forward
        self.vocabulary = head.weight.shape[0]
        self.token_loss = token_loss
        self.targets = None
        head.forward = self

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.targets is None:
            return self.project(hidden)
        keep = self.targets != IGNORE
        hidden, targets = hidden[keep], self.targets[keep]
        rows = max(1, CHUNK // self.vocabulary)
        if len(targets) <= rows:
            return self.losses(hidden, targets)
        parts = zip(hidden.split(rows), targets.split(rows))
        return torch.cat([checkpoint(self.losses, *part, use_reentrant=False) for part in parts])

    def losses(self, hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return self.token_loss(self.project(hidden).float(), targets)


def choose_attention(device: torch.device) -> tuple[str, Callable]:
    """(name, variable-length attention): (query (T, heads, width), key and value (S, KV heads, width), Layout
    on the device, scale) -> (T, heads, width).
    """
    if device.type == "cuda" and importlib.util.find_spec("flash_attn"):
        from flash_attn import flash_attn_varlen_func

        def by_flash(q, k, v, layout: Layout, scale: float):
            longest = max(layout.lengths_q), max(layout.lengths_k)
            return flash_attn_varlen_func(
                q, k, v, *layout.cumulated, *longest, softmax_scale=scale, causal=True
            )

        return "flash-attn", by_flash
    if device.type == "cuda" and importlib.util.find_spec("torch.nn.attention.varlen"):
        from torch.nn.attention.varlen import varlen_attn

        def by_torch(q, k, v, layout: Layout, scale: float):
            longest = max(layout.lengths_q), max(layout.lengths_k)
            causal = {"window_size": (-1, 0), "enable_gqa": True}
            return varlen_attn(q, k, v, *layout.cumulated, *longest, scale=scale, **causal)

        if {"window_size", "enable_gqa"} <= inspect.signature(varlen_attn).parameters.keys():
            return "torch's variable-length attention", by_torch  # torch 2.10 has neither
    return "one sequence after the other", by_sdpa


def by_sdpa(query, key, value, layout: Layout, scale: float) -> torch.Tensor:
    outputs = []
    keys, values = key.split(layout.lengths_k), value.split(layout.lengths_k)
    for q, k, v in zip(query.split(layout.lengths_q), keys, values):
        mask = None
        if len(q) != len(k):
            mask = torch.ones(len(q), len(k), dtype=torch.bool, device=q.device).tril(len(k) - len(q))
        q, k, v = (part.transpose(0, 1).unsqueeze(0) for part in (q, k, v))
        how = {"is_causal": mask is None, "scale": scale, "enable_gqa": k.shape[1] != q.shape[1]}
        outputs.append(F.scaled_dot_product_attention(q, k, v, mask, **how)[0].transpose(0, 1))
    return torch.cat(outputs)


class Packing:
    """A model that computes the losses of micro-batches. Made when its weights are on their device.

    `layout`: how the row at hand attends, in all layers; it stands until the backward pass is over.
    `cache`: features of a frozen vision tower, kept for the next epochs; None where it is trained.
    `whole`: losses are computed of whole logits, for models that compute on with what the output layer
    returns.
    """

    def __init__(self, model, token_loss: Callable):
        self.model = model
        self.token_loss = token_loss
        self.layout = None
        self.cache = None
        self.whole = False
        self.head = LabelLoss(model.get_output_embeddings(), token_loss)
        self.attention, self.varlen = choose_attention(model.device)
        self.usual = model.config.get_text_config()._attn_implementation
        ALL_ATTENTION_FUNCTIONS.register(PACKED, self.attend)

    def keep_features(self, room: int) -> None:
        """Let the frozen vision tower see each image once, as far as `room` bytes hold its features."""
        if "mm_encoder_outputs" in inspect.signature(type(self.model).forward).parameters:
            self.cache = VisionCache(room)

    def use(self, packed: bool) -> None:
        """Let the language part, not the vision tower, attend packed or as it was loaded."""
        set_text_attention(self.model, PACKED if packed else self.usual)

    def attend(
        self, module, query, key, value, mask, scaling=None, sliding_window=None, softcap=None, **settings
    ):
        """query (1, heads, T, width), key and value (1, KV heads, T, width) of a packed row."""
        limited = sliding_window is not None or softcap is not None or settings.get("s_aux") is not None
        if limited or query.shape[0] > 1 or mask is not None:
            raise ValueError("its attention is not full attention")
        query, key, value = (part[0].transpose(0, 1) for part in (query, key, value))  # (T, heads, width)
        kind = query.device.type
        if torch.is_autocast_enabled(kind):  # rotary embeddings may have left it
            dtype = torch.get_autocast_dtype(kind)
            query, key, value = (part.to(dtype) for part in (query, key, value))
        if self.layout.keys is not None:
            key, value = key[self.layout.keys], value[self.layout.keys]
        scale = query.shape[-1] ** -0.5 if scaling is None else scaling
        return self.varlen(query, key, value, self.layout, scale).unsqueeze(0), None

    def losses(self, model, batch: MicroBatch) -> torch.Tensor:
        """The loss (N) of each label. `model`: this one, wrapped for several processes or not."""
        batch = batch.convert(self.on_device)
        inputs, targets = batch.inputs, batch.targets
        if self.cache and any(batch.images):
            inputs = self.pass_vision(batch)
        if batch.prompts:
            self.layout = batch.layout.to(self.model.device)
            inputs = inputs | {"position_ids": self.positions(batch)}
        if self.whole:
            keep = targets != IGNORE
            return self.token_loss(model(**inputs, use_cache=False).logits[keep].float(), targets[keep])
        self.head.targets = targets
        try:
            return model(**inputs, use_cache=False).logits
        finally:
            self.head.targets = None

    def on_device(self, value: object) -> object:
        return value.to(self.model.device) if isinstance(value, torch.Tensor) else value

    def pass_vision(self, batch: MicroBatch) -> dict:
        """Inputs with the features of images in place of pixels; the tower runs only for new images."""
        device, inputs = self.model.device, batch.inputs
        see = self.model.base_model.get_image_features
        features = self.cache.find(batch.images, device)
        if features is None:
            wanted = {name: inputs[name] for name in inspect.signature(see).parameters if name in inputs}
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                features = see(**wanted, return_dict=True)
            config, prompts = self.model.config, batch.prompts or inputs
            token = getattr(config, "image_token_id", getattr(config, "image_token_index", None))
            self.cache.keep(batch.images, (prompts["input_ids"] == token).sum(1).tolist(), features)
        names = (*PER_TOKEN, "logits_to_keep", "image_grid_thw")
        kept = {name: value for name, value in inputs.items() if name in names}
        return kept | {"mm_encoder_outputs": {"image": features}}

    def positions(self, batch: MicroBatch) -> torch.Tensor:
        """Position ids (1, T) of a packed row; (K, 1, T) of a model that counts in K dimensions."""
        ids, seen = batch.prompts["input_ids"], batch.prompts["attention_mask"].bool()
        whole = self.model._prepare_position_ids_for_generation(ids, batch.prompts)
        if whole.ndim == 3:
            whole = whole.transpose(0, 1)  # (G, K, P)
        else:
            whole = whole.unsqueeze(1).expand(len(ids), -1, -1)
        parts = []
        for prompt, shown, shared, answers in zip(whole, seen, batch.shared, batch.answers):
            own = prompt[:, shown]
            begin = own[:, :shared] if shared else own
            if shared:
                parts.append(begin)
            for length in answers:
                steps = begin[:, -1:] + torch.arange(1, length + 1, device=own.device)
                parts.append(steps if shared else torch.cat([own, steps[:, : length - own.shape[1]]], 1))
        joined = torch.cat(parts, 1)  # (K, T)
        return joined.unsqueeze(1) if len(joined) > 1 else joined

    @torch.no_grad()
    def difference(self, model, batch: MicroBatch, padded: MicroBatch) -> float:
        """How far the losses of `batch` are off those of whole logits of the same rows padded, relative."""
        self.use(bool(batch.prompts))
        ours = self.losses(model, batch)
        self.use(False)
        self.whole = True
        theirs = self.losses(model, padded)
        self.whole = False
        return how_far_off(ours, theirs)


def how_far_off(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The root mean square of the differences of two losses (N), as a share of the loss or, where that is
    smaller, in nats: of a model that is sure of its labels hardly more than rounding is left.
    """
    return ((ours - theirs).norm() / theirs.norm().clamp_min(max(1, len(theirs)) ** 0.5)).item()


def check_losses(
    accelerator, packing: Packing, model, rows: TrainingRows, micro_batches: list, processor, args: Namespace
) -> None:
    """Compare the losses of one of these micro-batches with those of whole logits of padded rows, and choose.

    Packed losses that differ end the command in every process; padded ones that differ are computed of whole
    logits from here on. Without dropout, whose random numbers are the training's.
    """
    packed, world = args.batches == "packed", accelerator.num_processes

    def encoded(numbers: list[int], packed: bool) -> MicroBatch | None:
        return MicroBatches(rows, [numbers], processor, args, packed, world)[0][0]

    def alone(numbers: list[int]) -> int:
        return len({rows.group_of[number] for number in numbers}) - len(numbers)

    candidates = sorted(micro_batches, key=alone)  # first those whose rows share most
    made = ((encoded(numbers, packed), encoded(numbers, False)) for numbers in candidates)
    batch, padded = next((pair for pair in made if pair[0]), (None, None))
    labels = torch.tensor(padded.labels if padded else 0, device=accelerator.device)
    if not accelerator.reduce(labels, "sum"):
        reason = "all are longer than --max-length, or have images that cannot be read"
        fail(f"no row of the first step can be used: {reason}")
    model.eval()
    reasons = [why for why in gather_object([why_not(accelerator, packing, model, batch, padded)]) if why]
    model.train()
    if packed and reasons:
        refuse(reasons[0])
    packing.use(packed)
    packing.whole = bool(reasons)
    if packed:
        saved = f"{batch.tokens} tokens for {padded.inputs['input_ids'].numel()} padded ones"
        accelerator.print(
            f"batches: packed, a prompt once for its rows: {saved}; attention: {packing.attention}"
        )
    else:
        loss = f"; loss of whole logits: {reasons[0]}" if reasons else ""
        accelerator.print(f"batches: padded, rows of like length together{loss}")


def why_not(accelerator, packing: Packing, model, batch: MicroBatch, padded: MicroBatch) -> str:
    """Why this batch has not the losses of whole logits of padded rows; empty if it has."""
    dropout = getattr(packing.model.config.get_text_config(), "attention_dropout", 0)
    if batch.prompts and dropout:  # the comparison goes without
        return f"attention_dropout {dropout}"
    try:
        off = packing.difference(model, batch, padded)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:  # what a model raises that computes on with its logits, or attends otherwise
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
        if accelerator.is_fsdp2 and batch.prompts:  # at once: the others may wait for this one's shards
            refuse(reason)
        return reason
    return "" if off < ROUNDING[accelerator.mixed_precision] else f"the loss is off by {off:.1e}"


def refuse(reason: str) -> NoReturn:
    fail(f"--batches packed: rows of this model cannot be packed: {reason}; set --batches padded")
