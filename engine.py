"""Text from a model: one call for local models and for OpenAI-compatible endpoints (endpoint.py).

`open_model(spec, args)` returns a function that takes requests and yields a reply for each of their samples as it
finishes, in any order. A local model works like this:

  requests -> gather -> encode (a thread or processes, ahead of the model) -> Decoder.admit -> start -> step, step, ... -> replies
              prompts.py                                             decoder.py, slots.py

A question is paid for once. Requests with the same problem and the same pictures make a Question: one request with many
samples (01, 03, 05), or the candidates of one problem that are to be judged (02), if they come within one window of
LOOK_AHEAD batches. The longest beginning that all their prompts have in common, pictures included, goes through the
model once. Its keys and values are stored once, and what follows of each prompt (a candidate; of samples the last
token only) is read in rows that attend to them. Pictures are opened and resized once a question, too, and where the
tokenizer allows only the text behind them is tokenized for the other candidates. What the vision tower makes of them is
kept for a while, for candidates of another window or a second pass (features.py).

The rows stay full. `--batch-size` rows decode together; one that finishes is free at once. When an eighth of them is
free (REFILL), prompts for as many new samples are read together, left-padded and sorted by length so that little is
padding. Nothing is re-allocated or moved in a step; on CUDA it is replayed from a graph, see decoder.py. Memory for the
rows is counted before they are filled; should a step lack memory all the same, half of its rows start again later and
fewer are used from then on.

What is promised. A sample's tokens follow from the model, its prompt and its own seed: each token is the inverse of the
cumulative distribution at the next of the sample's own uniform numbers, which the CPU draws. What else is in the batch,
its size and order do not matter, as far as floating point allows: sums are taken in another order in another batch, so
that a token whose cumulative probability ends within rounding of the number drawn can differ (in bf16 more often than
in fp32), and so can everything behind it. Greedy tokens are those of generate(), with the same proviso.

Which models. The shared path needs a language part that attends through transformers' attention table and keeps every
token (Qwen2-VL, Qwen2.5-VL, Qwen3-VL, InternVL, Idefics3, LLaVA, LLaVA-OneVision do). Each model is tried on a picture when
it is loaded: do its logits agree with those of its own forward pass? If not, the plain path decodes one batch after
the other through generate(): prompts read once, then the cache repeated for each sample, finished rows dropped. A
line says which path is taken, and why if it is the plain one. A picture that cannot be read, a prompt that is too long,
or whatever else a batch raises becomes an error reply for its own requests: batches that fail are halved.
"""

import argparse
import copy
from dataclasses import dataclass, field, replace
from typing import Callable, Iterable, Iterator, NamedTuple

from checks import check_model
from common import chat_parts, encode_prompts, is_endpoint, load_model, load_processor, setup_kernels, user_message
from prompts import ERRORS, REFILL, Batch, Question, Sample, ahead, batches_of, gather, halves, one_line, open_pool, pictures, submit_to, worker_count


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


class Local(NamedTuple):
    """A loaded model with what every way of decoding needs."""

    model: object
    processor: object
    tokenizer: object  # a copy of the processor's, which belongs to the thread that encodes
    args: argparse.Namespace
    ends: set[int]  # tokens
    pieces: bool
    context: int


def open_local(spec: str, args: argparse.Namespace, pieces: bool) -> Generate:
    from transformers import GenerationConfig

    from decoder import Decoder

    device, dtype, attention = setup_kernels()
    pool = open_pool(spec, args.trust_remote_code, worker_count(device))
    processor = load_processor(spec, args.trust_remote_code)
    model = load_model(spec, device, dtype, attention, args.trust_remote_code).eval()
    ends = model.generation_config.eos_token_id or []
    ends = {*(ends if isinstance(ends, list) else [ends]), processor.tokenizer.eos_token_id}
    # A model folder's own habits (Qwen2-VL: top-k 1, a repetition penalty) would silently override the flags.
    model.generation_config = GenerationConfig(eos_token_id=sorted(ends), pad_token_id=processor.tokenizer.pad_token_id)
    local = Local(model, processor, copy.deepcopy(processor.tokenizer), args, ends, pieces, getattr(model.config.get_text_config(), "max_position_embeddings", 1 << 30))
    try:
        decoder = Decoder(model, probe(local), args.batch_size, args.max_tokens, ends, pieces)
        print(f"engine: shared prompts, {decoder.rows} rows", flush=True)
    except ERRORS as error:
        decoder = None
        pool.shutdown(wait=False)
        print(f"engine: plain path, {args.batch_size} rows ({one_line(error)})", flush=True)
    submit = submit_to(pool, spec, local)

    def generate(requests: Iterable[Request], temperature: float = args.temperature) -> Iterator[Reply]:
        if decoder is None:
            for group in gather(requests, args.batch_size, args.batch_size):
                yield from run_plain(local, [request for question in group for request in question.requests], temperature)
            return
        questions = gather(requests, args.batch_size, decoder.rows // REFILL)
        for sample in decoder.serve(ahead(submit, questions), lambda questions: batches_of(submit(questions)), temperature, args.top_k, args.top_p):
            yield reply_to(local, sample)

    generate.work = decoder.work if decoder else None  # what was computed, for tests and benchmarks
    return generate


def reply_to(local: Local, sample: Sample) -> Reply:
    """A finished sample as text."""
    reply = Reply(sample.request.row, sample.number, prompt_tokens=len(sample.prompt), seed=sample.request.seeds[sample.number])
    if sample.error:
        return replace(reply, finish="error", reason=sample.error)
    end = next((index for index, token in enumerate(sample.tokens) if token in local.ends), None)
    reply.text = local.tokenizer.decode(sample.tokens[:end], skip_special_tokens=True).strip()
    reply.finish, reply.tokens = ("length", len(sample.tokens)) if end is None else ("stop", end + 1)
    if local.pieces:
        reply.pieces = list(zip(local.tokenizer.batch_decode([[token] for token in sample.tokens[:end]]), sample.chances))
    return reply


def probe(local: Local) -> Batch:
    """Two samples of a question about a picture, which tell whether a model decodes with shared prompts as it does by itself."""
    from PIL import Image

    request = Request({"images": []}, user_message("1 + 1 = ?", [""]), {0: 0, 1: 0})
    inputs = encode_prompts(local.processor, [chat_parts(request.messages, [Image.effect_noise((64, 64), 99).convert("RGB")])])
    prompt = inputs["input_ids"][0].tolist()
    question = Question([request], len(prompt) - 3)
    return Batch([question], inputs, [Sample(request, number, question, prompt, 1) for number in request.seeds])


# ---------------------------------------------------------------- the plain path


def run_plain(local: Local, batch: list[Request], temperature: float) -> list[Reply]:
    """All samples of a batch of requests. A batch that fails is halved until the faulty request stands alone; one that lacks memory, further."""
    import torch

    try:
        inputs = encode_prompts(local.processor, [chat_parts(request.messages, pictures(local, request)) for request in batch]).to(local.model.device)
        lengths = inputs["attention_mask"].sum(1).tolist()
        limit = min(local.args.max_tokens, local.context - max(lengths))
        if limit < 1:
            raise ValueError(f"prompt of {max(lengths)} tokens in a context of {local.context}")
        with torch.inference_mode():
            tokens, chances = decode_batch(local.model, inputs, [list(request.seeds.values()) for request in batch], limit, temperature, local.args)
        owners = [(request, number, length) for request, length in zip(batch, lengths) for number in request.seeds]
        samples = zip(owners, tokens.tolist(), chances.tolist())
        return [reply_to(local, Sample(request, number, None, [0] * length, limit, *rows)) for (request, number, length), *rows in samples]
    except ERRORS as error:
        problem = error.with_traceback(None)  # which would keep the failed batch in memory
    if local.model.device.type == "cuda":
        torch.cuda.empty_cache()
    if len(batch) > 1:
        return [reply for half in halves(batch) for reply in run_plain(local, half, temperature)]
    if "memory" in str(problem) and len(batch[0].seeds) > 1:
        return [reply for half in halves(list(batch[0].seeds.items())) for reply in run_plain(local, [replace(batch[0], seeds=dict(half))], temperature)]
    return [reply_to(local, Sample(batch[0], number, error=one_line(problem))) for number in batch[0].seeds]


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
