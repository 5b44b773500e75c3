"""The loop that decodes many samples at once from one model and keeps the rows full.

`Decoder` holds for every model of transformers whose layers attend through transformers' table of attentions
and keep every token (kv_cache.py). Whether a model is one of them is tried on an image and a question
(`check`).
"""

import argparse
import inspect
from collections import Counter, deque
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer

from mathse.generate.batching import PASS_TOKENS, REFILL, Batch, Sample, on_device, worth_reading
from mathse.generate.faults import (
    MODEL_ERRORS,
    FaultCounter,
    end_if_device_failed,
    halves,
    is_out_of_memory,
    one_line,
)
from mathse.generate.kv_cache import PromptPass, SharedKVCache, StepPass, use_shared_prompts
from mathse.generate.sampling import draw, make_warpers, uniform_numbers

DRAFT_LOGITS = 1 << 26  # logits of drafts at a time: 256 MiB in fp32, a few times that where they are sampled
FEW, PADDING = 16, 0.05  # a pass over more rows than FEW has at most this share of its tokens as padding


class Decoder:
    """Decodes samples together, live[i] in row i of the cache; `work` counts what was computed."""

    def __init__(self, model, probe: Batch, args: argparse.Namespace, eos_ids: set[int], logprobs: bool):
        """Raises ValueError, or what the model raises, if it does not decode `probe` with shared prompts as
        it does by itself.
        """
        self.model = model
        self.args = args
        self.eos_ids = eos_ids
        self.logprobs = logprobs
        self.work = Counter()
        names = inspect.signature(model.forward).parameters
        self.cache_name = "cache" if "cache" in names else "past_key_values"  # before transformers 5.24
        use_shared_prompts(model)
        example = self.check(probe)
        self.rows = args.batch_size
        self.cache = SharedKVCache(example, self.rows)
        self.uniform = torch.zeros(self.rows, args.max_tokens, device=model.device)

    @torch.inference_mode()
    def check(self, probe: Batch) -> DynamicCache:
        (group,), prompt, count = probe.groups, probe.samples[0].prompt, len(probe.samples)
        example, positions, whole = self.read(probe.inputs, 2)  # whole: logits of the last two tokens
        if not all(type(layer) is DynamicLayer for layer in example.layers):
            raise ValueError("not all its layers keep the keys and values of every token")
        for layer in example.layers:
            layer.keys = layer.keys[:, :, : group.shared]
            layer.values = layer.values[:, :, : group.shared]
        self.cache = SharedKVCache(example, count)
        self.cache.add_prompts(example, [group.shared], positions[..., group.shared - 1] + 1)
        self.cache.add_rows(0, [0] * count)
        last_but_one = self.forward(0, [prompt[group.shared : -1]] * count)
        last = self.next_logits([prompt[-1]] * count)
        logits = torch.stack([last_but_one, last], 1)
        off = ((logits - whole).norm() / whole.expand(count, -1, -1).norm()).item()
        if not off < (1e-3 if self.model.dtype == torch.float32 else 2e-2):
            raise ValueError(f"with shared prompts its logits are off by {off:.1e}")
        self.work.clear()
        return example

    # ------------------------------------------------------------ the loop

    @torch.inference_mode()
    def serve(self, batches: Iterator[Batch], encode: Callable, temperature: float) -> Iterator[Sample]:
        """Samples as they finish; greedily one a prompt, with its twins. A batch that fails is halved by
        `encode`: PromptGroups -> batches.

        New samples take free rows once these are a share of all: prompts are read better many at a time.
        """
        self.warpers = make_warpers(temperature, self.args.top_k, self.args.top_p)
        self.cache.groups = 0
        self.groups = []
        self.live: list[Sample] = []
        self.waiting: deque[Sample] = deque()
        self.again: deque[Batch] = deque()  # halves of batches that failed
        self.prompt_faults = FaultCounter()
        self.tail_faults = FaultCounter()
        while True:
            busy = len(self.live)
            if self.rows - busy >= max(1, self.rows // REFILL) or not busy:
                yield from self.fill(batches, encode)
                free = min(self.rows - busy, len(self.waiting))
                self.live += [self.waiting.popleft() for _ in range(free)]
            if not self.live:
                return
            if busy < len(self.live):
                yield from self.start(busy)
                yield from self.follow_drafts(busy)
            else:
                yield from self.step()

    def fill(self, batches: Iterator[Batch], encode: Callable) -> Iterator[Sample]:
        """Read prompts until enough samples wait for the free rows. Yields samples that have failed."""
        while len(self.live) + len(self.waiting) < self.rows:
            batch = self.again.popleft() if self.again else next(batches, None)
            if batch is None:
                return
            if not batch.groups:
                yield from batch.samples
            elif error := self.admit(batch):
                end_if_device_failed(error)
                if len(batch.groups) > 1:
                    parts = [part for half in halves(batch.groups) for part in encode(half)]
                    self.again.extendleft(reversed(parts))
                else:
                    self.prompt_faults.failed(error)
                    yield from (replace(sample, error=one_line(error)) for sample in batch.samples)

    def admit(self, batch: Batch) -> Exception | None:
        """Read the tokens that the prompts of a batch share; its samples then wait for rows."""
        lengths = [group.shared for group in batch.groups]
        try:
            cache, positions, _ = self.read(batch.inputs, 1)
            places = self.cache.add_prompts(cache, lengths, positions[..., -1] + 1)
        except MODEL_ERRORS as error:
            return error.with_traceback(None)  # which would keep the failed batch in memory
        self.prompt_faults.passed()
        for group, place in zip(batch.groups, places):
            group.slot, group.unfinished = place, 0
        samples = batch.samples if self.warpers else batch.join_twins()
        for sample in samples:
            sample.group.unfinished += 1
        self.groups += batch.groups
        self.waiting.extend(samples)
        padding = len(lengths) * max(lengths) - sum(lengths)
        self.work.update(prompts=len(lengths), prompt_tokens=sum(lengths), prompt_padding=padding)
        return None

    def start(self, first: int) -> list[Sample]:
        """Read the rest of the prompts of the samples from row `first` on, a request's once for all its
        samples, and take their first tokens. Returns the samples that have finished.
        """
        fresh = self.live[first:]
        leaders = list({id(sample.request): sample for sample in fresh}.values())
        leaders.sort(key=lambda sample: len(sample.tail))
        place = {id(sample.request): index for index, sample in enumerate(leaders)}
        followers = [sample for sample in fresh if sample is not leaders[place[id(sample.request)]]]
        fresh = leaders + followers
        self.live[first:] = fresh
        self.cache.add_rows(first, [sample.group.slot for sample in fresh])
        logits = self.read_tails(first, leaders)
        sources = [place[id(sample.request)] for sample in fresh]
        targets = range(first + len(leaders), len(self.live))
        self.cache.copy_rows([first + source for source in sources[len(leaders) :]], list(targets))
        for sample, source in zip(fresh, sources):
            sample.error = leaders[source].error
        uniform = self.uniform[first : len(self.live)]
        if self.warpers:
            seeds = [sample.request.seeds[sample.number] for sample in fresh]
            uniform.copy_(torch.stack([uniform_numbers(seed, self.args.max_tokens) for seed in seeds]))
        logits = logits[torch.tensor(sources, device=logits.device)]
        return self.collect(first, *self.choose(logits, uniform[:, :1]))

    def read_tails(self, first: int, samples: list[Sample]) -> torch.Tensor:
        """Logits (R, V) behind the prompts of the samples in the rows from `first` on.

        Halved if it is too much for one pass, or too much padding, or if the pass fails. A sample that fails
        alone gets an error.
        """
        tails = [sample.tail for sample in samples]
        tokens, padded = sum(map(len, tails)), len(tails) * max(map(len, tails))
        padding = padded - tokens
        is_even = len(samples) <= FEW or padding < PADDING * tokens
        try:
            if len(samples) == 1 or (padded <= PASS_TOKENS and is_even):
                logits = self.forward(first, tails)
                self.work.update(tails=len(tails), tail_tokens=tokens, tail_padding=padding)
                self.tail_faults.passed()
                return logits
        except MODEL_ERRORS as error:
            end_if_device_failed(error)
            if len(samples) == 1:
                self.tail_faults.failed(error)
                samples[0].error = one_line(error)
                return torch.zeros(1, self.vocabulary, device=self.model.device)
        left, right = halves(samples)
        return torch.cat([self.read_tails(first, left), self.read_tails(first + len(left), right)])

    def follow_drafts(self, first: int) -> Iterator[Sample]:
        """Read in one pass what drafts foresee for the rows from `first` on. A row keeps the tokens that it
        would have drawn one by one, and gets the one behind them. Yields the samples that have finished.
        """
        while guesses := worth_reading([sample.guess() for sample in self.live[first:]]):
            rows = self.live[first:]
            try:
                drawn = self.read_guesses(first, guesses)
            except MODEL_ERRORS as error:
                if not is_out_of_memory(error):
                    end_if_device_failed(error)
                for sample in rows:
                    sample.drafts = []  # then token by token
                return
            counts, tokens, logprobs = [], [], []
            for sample, guess, row, scores in zip(rows, guesses, *drawn):
                agree = (token == other not in self.eos_ids for token, other in zip(guess, row))
                kept = next((place for place, same in enumerate(agree) if not same), len(guess))
                sample.tokens += guess[:kept]
                sample.logprobs += scores[:kept]
                counts.append(kept + 1)
                tokens.append(row[kept])
                logprobs.append(scores[kept])
            self.cache.end_rows(first, torch.tensor(counts))
            drafted = {"draft_tokens": sum(map(len, guesses)), "draft_kept": sum(counts) - len(counts)}
            self.work.update(drafted, draft_passes=1)
            yield from self.collect(first, tokens, logprobs)

    def read_guesses(self, first: int, guesses: list[list[int]]) -> tuple[list[list[int]], list[list[float]]]:
        """What the rows from `first` on draw behind their last token and behind each token of their guess,
        and its log-probabilities. DRAFT_LOGITS logits and PASS_TOKENS tokens at a time.
        """
        rows, width = self.live[first:], 1 + max(map(len, guesses))
        many = max(1, min(DRAFT_LOGITS // self.vocabulary, PASS_TOKENS) // width)
        tokens, logprobs = [], []
        for begin in range(0, len(rows), many):
            part = rows[begin : begin + many]
            read = [[sample.tokens[-1], *guess] for sample, guess in zip(part, guesses[begin:])]
            ids = torch.tensor([row + [0] * (width - len(row)) for row in read]).to(self.model.device)
            logits = self.call(ids, self.cache.begin_rows(first + begin, len(part), width), width)
            drawn = torch.tensor([len(sample.tokens) for sample in part])[:, None] + torch.arange(width)
            drawn = drawn.clamp_max(self.args.max_tokens - 1).to(logits.device)
            points = self.uniform[first + begin : first + begin + len(part)].gather(1, drawn)
            chosen = self.choose(logits.flatten(0, 1).float(), points.flatten()[:, None])
            for found, values in zip((tokens, logprobs), chosen):
                found += [values[start : start + width] for start in range(0, len(values), width)]
        return tokens, logprobs

    def step(self) -> list[Sample]:
        """One more token in every row. Returns the samples that have finished."""
        rows = len(self.live)
        logits = self.next_logits([sample.tokens[-1] for sample in self.live])
        drawn = torch.tensor([len(sample.tokens) for sample in self.live]).to(logits.device)
        points = self.uniform[:rows].gather(1, drawn[:, None])
        self.work.update(steps=1, decode_rows=rows)
        return self.collect(0, *self.choose(logits, points))

    def choose(self, logits: torch.Tensor, points: torch.Tensor) -> tuple[list[int], list[float]]:
        """The next tokens by logits (R, V) and each row's number in [0, 1) (R, 1); their log-probabilities,
        if asked for, else zeros.
        """
        scores = logits
        for warper in self.warpers:
            scores = warper(None, scores)
        tokens = draw(scores, points) if self.warpers else scores.argmax(-1, keepdim=True)
        if not self.logprobs:
            return tokens[:, 0].tolist(), [0.0] * len(tokens)
        return tokens[:, 0].tolist(), logits.log_softmax(-1).gather(1, tokens)[:, 0].tolist()

    def collect(self, first: int, tokens: list[int], logprobs: list[float]) -> list[Sample]:
        """Add the new tokens of the rows from `first` on to their samples. Those that are done leave."""
        done = []
        for row, (sample, token, logprob) in enumerate(zip(self.live[first:], tokens, logprobs), first):
            sample.tokens.append(token)
            sample.logprobs.append(logprob)
            if sample.error or token in self.eos_ids or len(sample.tokens) == sample.limit:
                done.append(row)
        finished = [self.live[row] for row in done]
        if done:
            self.free_rows({*done})
            self.drop_groups(finished)
        return finished

    def free_rows(self, gone: set[int]) -> None:
        """The last of the rows that stay take the places of those that go."""
        stay = len(self.live) - len(gone)
        targets = sorted(row for row in gone if row < stay)
        sources = [row for row in range(stay, len(self.live)) if row not in gone]
        self.cache.copy_rows(sources, targets)
        self.uniform[targets] = self.uniform[sources]
        for target, source in zip(targets, sources):
            self.live[target] = self.live[source]
        del self.live[stay:]

    def drop_groups(self, finished: list[Sample]) -> None:
        """Free the prompts of the groups whose samples are all done."""
        for sample in finished:
            group = sample.group
            group.unfinished -= 1
            if group.unfinished:
                continue
            self.cache.drop_prompt(group.slot)
            last = self.groups.pop()
            if last is not group:
                self.groups[group.slot] = last
                last.slot = group.slot

    # ------------------------------------------------------------ the model

    def read(self, inputs: dict, keep: int) -> tuple[DynamicCache, torch.Tensor, torch.Tensor]:
        """One pass over left-padded prompts (B, P), prepared by generate() itself.

        Returns the cache, position ids (B, K, P) on the host, and the last logits (B, keep, V).
        """

        def once(model, input_ids, logits_processor, stopping_criteria, generation_config, **state):
            prepared = model.prepare_inputs_for_generation(input_ids, is_first_iteration=True, **state)
            positions = prepared["position_ids"]
            out = model(**prepared | {"logits_to_keep": keep}, return_dict=True)
            positions = positions.transpose(0, 1) if positions.ndim == 3 else positions[:, None]
            positions = positions.expand(len(input_ids), -1, -1).cpu()
            return out.get("cache", out.get("past_key_values")), positions, out.logits.float()

        self.work["pixel_rows"] += len(inputs.get("pixel_values", ()))
        inputs = on_device(inputs, self.model.device)
        return self.model.generate(**inputs, max_new_tokens=1, do_sample=False, custom_generate=once)

    def forward(self, first: int, tokens: list[list[int]]) -> torch.Tensor:
        """Logits (R, V) behind the first own tokens of the rows from `first` on."""
        lengths = torch.tensor([len(row) for row in tokens])
        width = int(lengths.max())
        ids = torch.tensor([row + [0] * (width - len(row)) for row in tokens]).to(self.model.device)
        # logits of the columns that are some row's last: a mask would need transformers 5.23
        columns, index = (lengths - 1).unique(return_inverse=True)
        logits = self.call(ids, self.cache.begin_rows(first, len(tokens), width), columns.to(ids.device))
        self.cache.end_rows(first, lengths)
        self.vocabulary = logits.shape[-1]
        return logits[torch.arange(len(tokens)), index].float()

    def next_logits(self, tokens: list[int]) -> torch.Tensor:
        """Logits (R, V) behind one more token in each of the first R rows."""
        ids = torch.tensor(tokens)[:, None].to(self.model.device)
        logits = self.call(ids, self.cache.begin_step(len(tokens)), 1)
        self.cache.end_step(len(tokens))
        return logits[:, -1].float()

    def call(self, ids: torch.Tensor, now: PromptPass | StepPass, keep: int | torch.Tensor) -> torch.Tensor:
        """Logits of the last `keep` tokens, or of the columns `keep`."""
        out = self.model(
            input_ids=ids,
            attention_mask=now.mask,
            position_ids=now.position_ids,
            use_cache=True,
            logits_to_keep=keep,
            return_dict=True,
            **{self.cache_name: self.cache},
        )
        return out.logits
