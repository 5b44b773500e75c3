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
follows, and returns their cross-entropy, CHUNK logits at a time. No tensor of tokens x vocabulary exists.
"""

import argparse
import importlib.util
import inspect
from typing import Callable

import torch
import torch.nn.functional as F
from torch.utils.checkpoint import checkpoint
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from batches import IGNORE, PER_TOKEN, Batch, Layout
from common import set_text_attention
from features import Features, image_token

NAME = "packed"  # in transformers' table of attentions; it has no mask function there, so that no mask is made
CHUNK = 1 << 27  # logits at a time: 512 MiB in fp32; each chunk reads the whole output layer again
PEAKS = {"H200": 989e12, "H100": 989e12, "A100": 312e12, "L40S": 362e12, "4090": 165e12}  # FLOP/s of bf16, dense, by what a GPU's name holds: for mfu


class LabelLoss:
    """The output layer in training: hidden states (B, C, D) -> the cross-entropy (N) of the N `targets` (B, C) that are labels, instead of logits.

    `targets` is None outside of training: then the layer is as it was. `made`: what it returned last.
    """

    def __init__(self, head):
        self.project, self.vocabulary, self.targets, self.made = head.forward, head.weight.shape[0], None, None
        head.forward = self

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.targets is None:
            return self.project(hidden)
        keep = self.targets != IGNORE
        hidden, targets, rows = hidden[keep], self.targets[keep], max(1, CHUNK // self.vocabulary)
        if len(targets) <= rows:
            losses = self.entropy(hidden, targets)
        else:
            losses = torch.cat([checkpoint(self.entropy, *part, use_reentrant=False) for part in zip(hidden.split(rows), targets.split(rows))])
        self.made = losses.detach()
        return losses

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
    """A model ready to train on Batches.

    layout: tells the attention of all layers how the row at hand attends; it stands until the backward pass is over. features: of a frozen vision
    tower, kept for the next epochs; None where it is trained. whole: the loss is computed of whole logits, see changes_logits().
    """

    def __init__(self, model):
        self.model, self.layout, self.features, self.head, self.whole = model, None, None, LabelLoss(model.get_output_embeddings()), False
        self.attention, self.varlen = choose_attention(model.device)
        self.usual = model.config.get_text_config()._attn_implementation
        ALL_ATTENTION_FUNCTIONS.register(NAME, self.attend)

    def keep_features(self, room: int) -> None:
        """Let the vision tower, which is frozen, see each picture once, as far as `room` bytes hold what it makes of them and the model takes it."""
        if "mm_encoder_outputs" in inspect.signature(self.model.forward).parameters:
            self.features = Features(room)

    def use(self, packed: bool) -> None:
        """Let the language part, not the vision tower, attend packed or as it was loaded."""
        set_text_attention(self.model, NAME if packed else self.usual)

    def attend(self, module, query, key, value, attention_mask, scaling=None, sliding_window=None, softcap=None, **settings):
        """query (1, heads, T, width), key and value (1, KV heads, T, width) of a packed row; the mask is not looked at."""
        if sliding_window is not None or softcap is not None or settings.get("s_aux") is not None or query.shape[0] > 1 or attention_mask is not None:
            raise ValueError("this model's attention cannot be packed")
        query, key, value = (part[0].transpose(0, 1) for part in (query, key, value))  # (T, heads, width)
        if torch.is_autocast_enabled(query.device.type):  # rotary embeddings may have left it
            query, key, value = (part.to(torch.get_autocast_dtype(query.device.type)) for part in (query, key, value))
        if self.layout.keys is not None:
            key, value = key[self.layout.keys], value[self.layout.keys]
        out = self.varlen(query, key, value, self.layout, query.shape[-1] ** -0.5 if scaling is None else scaling)
        return out.unsqueeze(0), None

    def losses(self, model, batch: Batch) -> torch.Tensor:
        """Cross-entropy (N) of each label. `model`: this one, wrapped for several processes or not."""
        device = self.model.device
        inputs = {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.inputs.items()}
        if self.features and any(batch.pictures):
            inputs = self.pass_vision(batch, inputs)
        if batch.prompts:
            self.layout = batch.layout.to(device)
            inputs["position_ids"] = self.positions(batch).to(device)
        targets = batch.targets.to(device)
        if self.whole:
            keep = targets != IGNORE
            return F.cross_entropy(model(**inputs, use_cache=False).logits[keep].float(), targets[keep], reduction="none")
        self.head.targets = targets
        try:
            return model(**inputs, use_cache=False).logits
        finally:
            self.head.targets = None

    @torch.no_grad()
    def changes_logits(self, model, batch: Batch) -> bool:
        """Whether the model goes on computing with what its output layer returns (Gemma 4 bounds its logits, Granite scales them): that must not be losses."""
        return not torch.equal(self.losses(model, batch), self.head.made)

    def pass_vision(self, batch: Batch, inputs: dict) -> dict:
        """Inputs with what the frozen vision tower makes of the pictures: it works only if some of them were not seen before."""
        device, encode = self.model.device, self.model.base_model.get_image_features
        features = self.features.find(batch.pictures, device)
        if features is None:
            wanted = {name: inputs[name] for name in inspect.signature(encode).parameters if name in inputs}
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                features = encode(**wanted, return_dict=True)
            prompts = batch.prompts or batch.inputs
            self.features.keep(batch.pictures, (prompts["input_ids"] == image_token(self.model)).sum(1).tolist(), features)
        kept = {name: value for name, value in inputs.items() if name in (*PER_TOKEN, "logits_to_keep", "image_grid_thw")}
        return kept | {"mm_encoder_outputs": {"image": features}}

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
    def differs(self, model, packed: Batch, padded: Batch, alone: Batch, exact: bool) -> str:
        """Why these rows cannot be packed, in words; empty if the losses are those of padded rows.

        `alone`: the first of the rows by itself, which tells how much is rounding; exact: computed in fp32.
        """
        dropped = getattr(self.model.config.get_text_config(), "attention_dropout", 0)
        try:
            if dropped:
                raise ValueError(f"attention_dropout {dropped}")
            self.use(True)
            ours = self.losses(model, packed)
        except torch.OutOfMemoryError:
            raise
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError) as error:
            ours = error
        self.use(False)
        theirs, again = self.losses(model, padded), self.losses(model, alone)
        if isinstance(ours, Exception):
            return f"{type(ours).__name__}: {str(ours).splitlines()[0] if str(ours) else ''}"

        def off(some: torch.Tensor, others: torch.Tensor) -> float:
            return ((some - others).norm() / others.norm().clamp_min(1e-6)).item()

        allowed = max(1e-5 if exact else 2e-4, 10 * off(again, theirs[: len(again)]))
        return "" if off(ours, theirs) < allowed else f"the loss is off by {off(ours, theirs):.1e}"


class Speed:
    """Counts floating-point operations for mfu: the products of the text layers, the output layer and the vision tower, what is recomputed not counted."""

    def __init__(self, model, args: argparse.Namespace, device: str):
        text, embeddings = model.get_decoder(), {id(module.weight) for module in (model.get_input_embeddings(), model.get_output_embeddings())}
        inside = {id(parameter) for parameter in text.parameters()} | embeddings
        self.text = sum(parameter.numel() for parameter in text.parameters() if parameter.ndim > 1 and id(parameter) not in embeddings)
        self.vision = sum(parameter.numel() for parameter in model.parameters() if parameter.ndim > 1 and id(parameter) not in inside)
        self.head = model.get_output_embeddings().weight.numel()
        config = model.config.get_text_config()
        self.attention = 2 * config.num_hidden_layers * config.num_attention_heads * (getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)
        self.patch = getattr(getattr(model.config, "vision_config", None), "patch_size", 1)
        self.weights, self.seeing = (4 if args.lora else 6), (2 if args.freeze or args.lora else 6)  # an operand's two operations: forward, backward, the weight's gradient
        self.peak = next((peak for name, peak in PEAKS.items() if device != "cpu" and name in torch.cuda.get_device_name()), None)

    def flops(self, batch) -> float:
        """Of one micro-batch, forward and backward."""
        pixels = batch.inputs.get("pixel_values")
        patch = self.patch if isinstance(self.patch, int) else self.patch[0]
        patches = 0 if pixels is None else len(pixels) if pixels.ndim == 2 else pixels.numel() / (3 * patch**2)
        return self.weights * self.text * batch.tokens + 6 * self.attention * batch.layout.pairs() + self.weights * self.head * batch.labels + self.seeing * self.vision * patches
