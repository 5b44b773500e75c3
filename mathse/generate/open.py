"""Open a model for generation: one call for local models and for OpenAI-compatible endpoints.

A local model works like this:

    requests -> gather -> encode (ahead of the model) -> Decoder.admit -> start -> step, step, ... -> replies
                batching.py                              decoder.py, kv_cache.py

A prompt is computed once. Requests with the same problem and images make a PromptGroup: one request with many
samples (01, 03, 05), or candidates of one problem that are to be judged (02), if they come within one
window of LOOK_AHEAD batches. What all their prompts begin with, images included, goes through the model
once, and its keys and values are stored once. The rest of each prompt is read in rows that attend to them.
Prompts that are the same to their end, as of equal candidates, are decoded once where that is greedy.

The rows stay full. `--batch-size` rows decode together, and one that finishes is free at once. When an
eighth of them is free (REFILL), prompts for as many new samples are read, sorted by the length of what they
share so that little is padding, in passes of at most PASS_TOKENS.

A sample's tokens follow from the model, its prompt and its own seed: each token is the inverse of the
cumulative distribution at the next of the sample's own uniform numbers. The rest of the batch, its size and
its order do not matter, as far as floating point allows: in another batch sums are taken in another order,
so a token whose cumulative probability ends within rounding of the number drawn can differ (in bf16 more
often than in fp32), and with it all that follow. Greedy tokens are those of generate(), with the same
proviso.

The shared path needs a language part that attends through transformers' attention table and keeps every token
(Qwen2-VL, Qwen2.5-VL, Qwen3-VL, InternVL, Idefics3, LLaVA, LLaVA-OneVision do). Each model is tried on an
image when it is loaded: if its logits are not those of its own forward pass, the plain path (plain.py)
decodes one batch after the other through generate(). A line says which path is taken.

On a CPU the problems are shared out to one process a core (processes.py).

Faults of a row become its error reply, faults of the device end the stage (faults.py).
"""

import argparse
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from mathse.attention import set_text_attention
from mathse.chat import chat_parts, encode_prompts, user_message
from mathse.generate.batching import (
    Batch,
    PromptDataset,
    PromptGroup,
    Sample,
    gather,
    load_batches,
    worker_count,
)
from mathse.generate.endpoint import CONCURRENCY, Endpoint
from mathse.generate.faults import INPUT_ERRORS, end_if_device_failed, one_line
from mathse.generate.serve import Served
from mathse.generate.types import Generator, Reply, Request
from mathse.records import is_endpoint


def open_model(
    spec: str, args: argparse.Namespace, load: Callable, schema: dict | None = None, logprobs: bool = False
) -> Generator:
    """Reach the endpoint, serve the model (--serve), or load it by load(spec, trust_remote_code) -> (model,
    processor).

    `args`: the flags of cli.add_generation_flags. `logprobs`: replies get token_logprobs, if the server tells
    them. `schema`: a JSON schema that replies must keep to, if the server takes one; a local model does not.
    """
    if is_endpoint(spec):
        args = argparse.Namespace(**vars(args) | {"concurrency": args.concurrency or CONCURRENCY})
        return Endpoint(spec, args, logprobs, schema)
    if args.serve:
        return Served(spec, args, logprobs=logprobs, schema=schema)
    model, processor = load(spec, args.trust_remote_code)
    return LocalModel(model, processor, args, logprobs)


class LocalModel:
    """A loaded model as a Generator: see types.py."""

    def __init__(self, model, processor, args: argparse.Namespace, logprobs: bool = False):
        from transformers import GenerationConfig

        from mathse.generate.decoder import Decoder
        from mathse.generate.plain import PlainDecoder

        self.tokenizer = processor.tokenizer
        self.args = args
        self.logprobs = logprobs
        self.device = model.device
        self.eos_ids = eos_ids_of(model, processor)
        # The folder's own habits (Qwen2-VL: top-k 1, a repetition penalty) would silently override the flags.
        model.generation_config = GenerationConfig(
            eos_token_id=sorted(self.eos_ids), pad_token_id=self.tokenizer.pad_token_id
        )
        text = model.config.get_text_config()
        context = getattr(text, "max_position_embeddings", 1 << 30)
        attention = text._attn_implementation
        try:
            self.decoder = Decoder(model, make_probe(processor), args, self.eos_ids, logprobs)
            self.is_plain = False
            print(f"engine: shared prompts, {self.decoder.rows} rows", flush=True)
        except INPUT_ERRORS as error:
            end_if_device_failed(error)
            set_text_attention(model, attention)
            self.decoder = PlainDecoder(model, args)
            self.is_plain = True
            print(f"engine: plain path, {args.batch_size} rows ({one_line(error)})", flush=True)
        self.dataset = PromptDataset(processor, args, context, whole=self.is_plain)

    @property
    def work(self) -> Counter:
        return self.decoder.work

    def spent(self) -> dict:
        return {}

    def close(self) -> None:
        """A local model is gone with the stage."""

    def __call__(self, requests: Iterable[Request], temperature: float | None = None) -> Iterator[Reply]:
        temperature = self.args.temperature if temperature is None else temperature
        try:
            for sample in self.samples(requests, temperature):
                yield self.reply(sample)
        except RuntimeError as error:
            end_if_device_failed(error)
            raise

    def samples(self, requests: Iterable[Request], temperature: float) -> Iterator[Sample]:
        groups = gather(requests, self.decoder.rows, alone=self.is_plain)
        batches = load_batches(self.dataset, groups, worker_count(self.device))
        for sample in self.decoder.serve(batches, self.dataset.__getitem__, temperature):
            yield sample
            for twin in sample.twins:
                yield replace(sample, request=twin.request, number=twin.number)

    def reply(self, sample: Sample) -> Reply:
        """A finished sample as text."""
        reply = Reply(
            sample.request.row,
            sample.number,
            prompt_tokens=len(sample.prompt),
            seed=sample.request.seeds[sample.number],
        )
        if sample.error:
            return replace(reply, finish="error", reason=sample.error)
        ends = (index for index, token in enumerate(sample.tokens) if token in self.eos_ids)
        end = next(ends, None)
        reply.text = self.tokenizer.decode(sample.tokens[:end], skip_special_tokens=True).strip()
        reply.finish = "length" if end is None else "stop"
        reply.tokens = len(sample.tokens) if end is None else end + 1
        if self.logprobs:
            texts = self.tokenizer.batch_decode([[token] for token in sample.tokens[:end]])
            reply.token_logprobs = list(zip(texts, sample.logprobs))
        return reply


def eos_ids_of(model, processor) -> set[int]:
    """The tokens that end a reply: the tokenizer's and those of the folder's generation_config.json."""
    ids = model.generation_config.eos_token_id or []
    return {*(ids if isinstance(ids, list) else [ids]), processor.tokenizer.eos_token_id}


def make_probe(processor) -> Batch:
    """Two samples of a question about an image, on which a model's two ways of decoding are compared."""
    from PIL import Image

    image = Image.effect_noise((64, 64), 99).convert("RGB")
    request = Request({"images": []}, user_message("1 + 1 = ?", [""]), {0: 0, 1: 0})
    inputs = encode_prompts(processor, [chat_parts(request.messages, [image])])
    prompt = inputs["input_ids"][0].tolist()
    group = PromptGroup([request], shared=len(prompt) - 3)
    return Batch([group], inputs, [Sample(request, number, group, prompt, 1) for number in request.seeds])
