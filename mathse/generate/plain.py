"""The plain path, for models that cannot decode with shared prompts: one batch after the other by generate().

Prompts are read once, then the cache is repeated for each sample, and finished rows are dropped.
"""

import argparse
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from mathse.generate.batching import Batch, Sample, on_device
from mathse.generate.faults import MODEL_ERRORS, FaultCounter, end_if_device_failed, halves, one_line
from mathse.generate.sampling import draw, uniform_numbers

PER_ROW = ("attention_mask", "position_ids", "mm_token_type_ids", "token_type_ids")
CACHE = ("past_key_values", "cache", "use_cache", "logits_to_keep")


class PlainDecoder:
    """Decodes batches of whole prompts. `work` stays empty."""

    def __init__(self, model, args: argparse.Namespace):
        self.model = model
        self.args = args
        self.rows = args.batch_size
        self.work = Counter()
        self.faults = FaultCounter()

    @torch.inference_mode()
    def serve(self, batches: Iterator[Batch], encode: Callable, temperature: float) -> Iterator[Sample]:
        """Samples as they finish. A batch that fails is halved by `encode`: PromptGroups -> batches."""
        for batch in batches:
            error = self.decode(batch, temperature) if batch.groups else None
            if error is None:
                yield from batch.samples
            elif len(batch.groups) > 1:
                halved = (part for half in halves(batch.groups) for part in encode(half))
                yield from self.serve(halved, encode, temperature)
            else:
                self.faults.failed(error)
                yield from (replace(sample, error=one_line(error)) for sample in batch.samples)

    def decode(self, batch: Batch, temperature: float) -> Exception | None:
        """Fill in the tokens of all samples of a batch."""
        limit = min(sample.limit for sample in batch.samples)
        seeds = [list(group.requests[0].seeds.values()) for group in batch.groups]
        try:
            inputs = on_device(batch.inputs, self.model.device)
            tokens, logprobs = decode_batch(self.model, inputs, seeds, limit, temperature, self.args)
        except MODEL_ERRORS as error:
            end_if_device_failed(error)
            return error.with_traceback(None)  # which would keep the failed batch in memory
        self.faults.passed()
        for sample, row, row_logprobs in zip(batch.samples, tokens.tolist(), logprobs.tolist()):
            sample.tokens = row
            sample.logprobs = row_logprobs
        return None


def decode_batch(
    model, inputs: dict, seeds: list[list[int]], limit: int, temperature: float, args: argparse.Namespace
) -> tuple[torch.Tensor, torch.Tensor]:
    """Decode len(seeds[b]) samples of each prompt b of `inputs`, left-padded (B, T).

    Returns new tokens (R, limit or fewer), padded with the pad token, and their log-probabilities.
    """
    flat = [seed for group in seeds for seed in group]
    device = inputs["input_ids"].device
    counts = torch.tensor([len(group) for group in seeds], device=device)
    uniform = None
    if temperature:
        uniform = torch.stack([uniform_numbers(seed, limit) for seed in flat]).to(device)

    def decode(model, input_ids, logits_processor, stopping_criteria, generation_config, **state):
        """generate()'s own loop, but for the repeated cache, the rows that leave, and each row's own
        randomness.
        """
        prepared = model.prepare_inputs_for_generation(input_ids, is_first_iteration=True, **state)
        out = model(**prepared, return_dict=True)
        kept = {key: value for key, value in state.items() if key in PER_ROW + CACHE}
        state = model._update_model_kwargs_for_generation(out, kept)
        cache = state.get("cache", state.get("past_key_values"))  # its name before transformers 5.24
        cache.batch_select_indices(torch.arange(len(counts), device=device).repeat_interleave(counts))
        state = per_row(state, lambda tensor, dim: repeat(tensor, counts, dim))
        ids = input_ids.repeat_interleave(counts, 0)
        logits = out.logits[:, -1].float().repeat_interleave(counts, 0)
        tokens = torch.full((len(flat), limit), generation_config.pad_token_id, device=device)
        logprobs = torch.zeros(len(flat), limit, device=device)
        rows = torch.arange(len(flat), device=device)  # that are still decoded
        for column in range(limit):
            scores = logits_processor(ids, logits)
            if uniform is None:
                token = scores.argmax(-1, keepdim=True)
            else:
                token = draw(scores, uniform[rows, column].unsqueeze(1))
            tokens[rows, column] = token[:, 0]
            logprobs[rows, column] = logits.log_softmax(-1).gather(1, token)[:, 0]
            ids = torch.cat([ids, token], 1)
            stop = stopping_criteria(ids, None)
            if stop.all():
                break
            if stop.any():
                going = (~stop).nonzero().squeeze(1)
                ids = ids[going]
                rows = rows[going]
                cache.batch_select_indices(going)
                state = per_row(state, select(going))
            prepared = model.prepare_inputs_for_generation(ids, next_sequence_length=1, **state)
            out = model(**prepared, return_dict=True)
            state = model._update_model_kwargs_for_generation(out, state)
            logits = out.logits[:, -1].float()
        return tokens[:, : column + 1], logprobs[:, : column + 1]

    settings = {"max_new_tokens": limit, "do_sample": bool(temperature), "custom_generate": decode}
    if temperature:
        settings |= {"temperature": temperature, "top_p": args.top_p, "top_k": args.top_k}
    return model.generate(**inputs, **settings)


def per_row(state: dict, change: Callable) -> dict:
    """Change what has a row a sample: M-RoPE positions are (3 or 4, rows, T), everything else (rows, T)."""
    held = [name for name in PER_ROW if state.get(name) is not None]
    return state | {name: change(state[name], int(state[name].ndim == 3)) for name in held}


def repeat(tensor: torch.Tensor, counts: torch.Tensor, dim: int) -> torch.Tensor:
    if tensor.shape[dim] != len(counts):  # one row for all
        return tensor.expand_as(tensor)
    return tensor.repeat_interleave(counts, dim)


def select(rows: torch.Tensor) -> Callable:
    return lambda tensor, dim: tensor.index_select(dim, rows)
