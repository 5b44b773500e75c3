"""Text from a model: one call for local models and for OpenAI-compatible endpoints (endpoint.py).

`open_model(spec, args)` returns a function that takes requests and yields a reply for each of their samples as it
finishes. A local model encodes a question's pictures and prompt once for all its samples (the cache is repeated, not
recomputed), rows that have finished leave the batch, and every sample draws its randomness from its own seed, so that
it does not depend on what else is in the batch.
"""

import argparse
import itertools
from dataclasses import dataclass, field
from typing import Callable, Iterable, Iterator

from common import chat_parts, check_model, encode_prompts, is_endpoint, load_model, load_processor, open_image, setup_kernels

LOOK_AHEAD = 16  # batches of requests that are sorted by length together


@dataclass
class Request:
    """`seeds[k]` is the seed of sample k; `key` and `row` are the caller's."""

    row: dict
    messages: list[dict]
    seeds: dict[int, int]


@dataclass
class Reply:
    """`finish`: stop, length (cut off at the token limit) or error (then `text` is empty and `reason` says why).

    `pieces`: each new token's text and log-probability at temperature 1; of local models, when open_model was asked for them.
    """

    row: dict
    sample: int
    text: str = ""
    finish: str = "stop"
    tokens: int = 0
    prompt_tokens: int = 0
    reason: str | None = None
    seed: int = 0
    pieces: list[tuple[str, float]] = field(default_factory=list)


Generate = Callable[..., Iterator[Reply]]  # (requests, temperature=that of the flags)


def open_model(spec: str, args: argparse.Namespace, pieces: bool = False) -> Generate:
    """Check and load the model; `args` holds the flags of common.add_model_flags."""
    check_model(spec)
    if is_endpoint(spec):
        from endpoint import open_endpoint  # it needs the classes above

        return open_endpoint(spec, args)
    return open_local(spec, args, pieces)


# ---------------------------------------------------------------- local models


def open_local(spec: str, args: argparse.Namespace, pieces: bool) -> Generate:
    import torch
    from transformers import GenerationConfig

    device, dtype, attention = setup_kernels()
    processor = load_processor(spec, args.trust_remote_code)
    model = load_model(spec, device, dtype, attention, args.trust_remote_code).eval()
    ends = model.generation_config.eos_token_id or []
    ends = {*(ends if isinstance(ends, list) else [ends]), processor.tokenizer.eos_token_id}
    # A model folder's own habits (Qwen2-VL: top-k 1, a repetition penalty) would silently override the flags.
    model.generation_config = GenerationConfig(eos_token_id=sorted(ends), pad_token_id=processor.tokenizer.pad_token_id)
    context = getattr(model.config.get_text_config(), "max_position_embeddings", 1 << 30)

    def run(batch: list[Request], temperature: float) -> list[Reply]:
        """All samples of a batch of requests. A batch that fails is halved until the faulty request stands alone."""
        try:
            chats = [chat_parts(request.messages, [open_image(image, args.max_pixels) for image in request.row["images"]]) for request in batch]
            inputs = encode_prompts(processor, chats).to(device)
            lengths = inputs["attention_mask"].sum(1).tolist()
            if max(lengths) + 1 > context:
                raise ValueError(f"prompt of {max(lengths)} tokens in a context of {context}")
            limit = min(args.max_tokens, context - max(lengths))
            with torch.inference_mode():
                tokens, logprobs = decode_batch(model, inputs, [list(request.seeds.values()) for request in batch], limit, temperature, args)
            reason = None
        except (OSError, ValueError, RuntimeError, IndexError, TypeError) as error:  # RuntimeError: out of memory too
            reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
        if reason:  # outside the except block, where the failed batch is no longer held in memory
            if device != "cpu":
                torch.cuda.empty_cache()
            if len(batch) > 1:
                return run(batch[: len(batch) // 2], temperature) + run(batch[len(batch) // 2 :], temperature)
            if "memory" in reason and len(seeds_left := list(batch[0].seeds.items())) > 1:
                halves = seeds_left[: len(seeds_left) // 2], seeds_left[len(seeds_left) // 2 :]
                return [reply for half in halves for reply in run([Request(batch[0].row, batch[0].messages, dict(half))], temperature)]
            return [Reply(batch[0].row, sample, finish="error", reason=reason, seed=seed) for sample, seed in batch[0].seeds.items()]
        replies, owners = [], [(request, length, *item) for request, length in zip(batch, lengths) for item in request.seeds.items()]
        for (request, length, sample, seed), row, chances in zip(owners, tokens.tolist(), logprobs.tolist()):
            end = next((index for index, token in enumerate(row) if token in ends), None)
            text = processor.tokenizer.decode(row[:end], skip_special_tokens=True).strip()
            count = len(row) if end is None else end + 1
            parts = list(zip(processor.tokenizer.batch_decode([[token] for token in row[:end]]), chances)) if pieces else []
            replies.append(Reply(request.row, sample, text, "length" if end is None else "stop", count, length, None, seed, parts))
        return replies

    def generate(requests: Iterable[Request], temperature: float = args.temperature) -> Iterator[Reply]:
        requests = iter(requests)
        first = next(requests, None)
        if first is None:
            return
        size = max(1, args.batch_size // max(1, len(first.seeds)))
        requests = itertools.chain([first], requests)
        while window := list(itertools.islice(requests, size * LOOK_AHEAD)):
            window.sort(key=lambda request: (len(request.row["images"]), len(request.messages[-1]["content"])))
            for start in range(0, len(window), size):
                yield from run(window[start : start + size], temperature)

    return generate


def decode_batch(model, inputs: dict, seeds: list[list[int]], limit: int, temperature: float, args: argparse.Namespace):
    """Decode len(seeds[b]) samples of each prompt b: (new tokens (rows, T), padded with the pad token; their log-probabilities).

    `inputs`: left-padded prompts (B, T). Prompts and pictures pass through the model once; then the cache is repeated.
    """
    import torch

    counts = torch.tensor([len(group) for group in seeds], device=inputs["input_ids"].device)
    flat = [seed for group in seeds for seed in group]
    greedy = temperature == 0
    if not greedy:  # one stream of uniform numbers a sample, drawn on the CPU: the same on every device and in every batch
        uniform = torch.stack([torch.rand(limit, generator=torch.Generator().manual_seed(seed)) for seed in flat]).to(counts.device)

    def repeat(tensor, dim: int):
        return tensor.repeat_interleave(counts, dim) if tensor.shape[dim] == len(counts) else tensor.expand_as(tensor)

    def per_row(state: dict, change: Callable) -> dict:  # M-RoPE positions are (3 or 4, rows, T), everything else (rows, T)
        names = ("attention_mask", "position_ids", "mm_token_type_ids", "token_type_ids")
        return state | {name: change(state[name], int(state[name].ndim == 3)) for name in names if state.get(name) is not None}

    def decode(model, input_ids, logits_processor, stopping_criteria, generation_config, **state):
        """generate()'s own loop, but for the repeated cache, the rows that leave, and each row's own randomness."""
        out = model(**model.prepare_inputs_for_generation(input_ids, is_first_iteration=True, **state), return_dict=True)
        keep_keys = ("attention_mask", "position_ids", "mm_token_type_ids", "token_type_ids", "past_key_values", "cache", "use_cache", "logits_to_keep")
        state = model._update_model_kwargs_for_generation(out, {key: value for key, value in state.items() if key in keep_keys})
        cache, ids = state.get("cache", state.get("past_key_values")), input_ids.repeat_interleave(counts, 0)  # its name before transformers 5.24
        logits = out.logits[:, -1].float().repeat_interleave(counts, 0)
        cache.batch_select_indices(torch.arange(len(counts), device=ids.device).repeat_interleave(counts))
        state = per_row(state, repeat)
        prompt = ids.shape[1]
        result = torch.full((len(flat), limit), generation_config.pad_token_id, device=ids.device)
        rows = torch.arange(len(flat), device=ids.device)
        logprobs = torch.zeros(len(flat), limit, device=ids.device)
        while True:
            scores = logits_processor(ids, logits)
            if greedy:
                token = scores.argmax(-1, keepdim=True)
            else:  # inverse of the cumulative distribution at the sample's own number
                total = scores.softmax(-1).cumsum(-1)
                point = uniform[rows, ids.shape[1] - prompt].unsqueeze(1) * total[:, -1:]
                token = torch.searchsorted(total, point, right=True).clamp_max(total.shape[1] - 1)
            logprobs[rows, ids.shape[1] - prompt] = logits.log_softmax(-1).gather(1, token).squeeze(1)
            ids = torch.cat([ids, token], 1)
            stop = stopping_criteria(ids, None)
            if stop.any():
                result[rows[stop], : ids.shape[1] - prompt] = ids[stop, prompt:]
                if stop.all():
                    return result[:, : ids.shape[1] - prompt], logprobs[:, : ids.shape[1] - prompt]
                going = (~stop).nonzero().squeeze(1)
                ids, rows = ids[going], rows[going]
                cache.batch_select_indices(going)
                state = per_row(state, lambda tensor, dim: tensor.index_select(dim, going))
            out = model(**model.prepare_inputs_for_generation(ids, next_sequence_length=1, **state), return_dict=True)
            state = model._update_model_kwargs_for_generation(out, state)
            logits = out.logits[:, -1].float()

    settings = {} if greedy else {"temperature": temperature, "top_p": args.top_p, "top_k": args.top_k}
    return model.generate(**inputs, max_new_tokens=limit, do_sample=not greedy, custom_generate=decode, **settings)
