"""Requests -> PromptGroups -> encoded Batches: images opened and resized, prompts tokenized and padded.

A torch DataLoader encodes ahead of the model, on a GPU in worker processes. The requests themselves are read
lazily in the main process: a stage's generator may have side effects there. Torch is imported where it is
needed.
"""

import argparse
import itertools
import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial

from mathse.chat import chat_parts, encode_prompts, encode_texts
from mathse.generate.faults import INPUT_ERRORS, end_if_device_failed, halves, one_line
from mathse.generate.types import Request
from mathse.images import open_image
from mathse.launch import cores, end_with_parent
from mathse.records import IMAGE

LOOK_AHEAD = 16  # batches of requests that are grouped and sorted together
REFILL = 8  # prompts for an eighth of the rows are read at a time
PASS_TOKENS = 32 << 10  # padded tokens of a forward pass over prompts
PASS_GROUPS = 16  # PromptGroups that are encoded together: PASS_TOKENS at 2,048 tokens a prompt
WORKERS = 4  # processes that encode for a GPU, at most
PREFETCH = 2  # lists of PromptGroups that each of them encodes ahead
GUESS = 64  # tokens of drafts that are read in one pass, at most
FORESEEN = 0.25  # drafts are followed while one still fits this share of the new rows


@dataclass
class PromptGroup:
    """Requests with the same images and the same text up to them: their prompts begin alike."""

    requests: list[Request]
    shared: int = 0  # tokens that all their prompts begin with
    slot: int = -1  # where the KV cache of these tokens is stored
    unfinished: int = 0  # samples


@dataclass
class Sample:
    """One reply in the making."""

    request: Request
    number: int
    group: PromptGroup | None = None
    prompt: list[int] = field(default_factory=list)  # token ids
    limit: int = 0  # new tokens, at most
    tokens: list[int] = field(default_factory=list)  # new token ids
    logprobs: list[float] = field(default_factory=list)  # of `tokens`, at temperature 1
    drafts: list[list[int]] = field(default_factory=list)  # token ids of the request's
    twins: list["Sample"] = field(default_factory=list)  # those that get the same reply
    error: str | None = None  # in one line

    @property
    def tail(self) -> list[int]:
        """The tokens of the prompt that the group does not share."""
        return self.prompt[self.group.shared :]

    def guess(self) -> list[int] | None:
        """The next tokens in which all drafts agree that begin as this reply does, and room for one more.
        None if no draft goes on from here.
        """
        count = len(self.tokens)
        possible = [draft for draft in self.drafts if draft[:count] == self.tokens and len(draft) > count]
        end = min(self.limit - 1, count + GUESS)
        return os.path.commonprefix(possible)[count:end] if possible else None


@dataclass
class Batch:
    """`inputs`: the model's, for the shared tokens of `groups`, left-padded (B, P).

    `samples`: those of the groups, or, without groups, samples that have failed already.
    """

    groups: list[PromptGroup]
    inputs: dict
    samples: list[Sample]

    def join_twins(self) -> list[Sample]:
        """The first sample of each prompt; those that greedily get the same reply become its twins."""
        firsts: dict[tuple, Sample] = {}
        for sample in self.samples:
            first = firsts.setdefault((id(sample.group), sample.limit, *sample.prompt), sample)
            if first is not sample:
                first.twins.append(sample)
        return list(firsts.values())


def worth_reading(guesses: list[list[int] | None]) -> list[list[int]]:
    """The guesses, as far as a share FORESEEN of the rows has one so long: the others' places are padding.
    Empty if drafts foresee fewer rows. Where drafts part, a row reads no guess and goes on behind that.
    """
    lengths = sorted((len(guess) for guess in guesses if guess is not None), reverse=True)
    share = math.ceil(FORESEEN * len(guesses))
    if not guesses or len(lengths) < share:
        return []
    return [(guess or [])[: lengths[share - 1]] for guess in guesses]


def gather(requests: Iterable[Request], rows: int, alone: bool = False) -> Iterator[list[PromptGroup]]:
    """Requests as PromptGroups, in lists that a model of so many rows reads together.

    The groups of one window are sorted by the length of what their prompts share. Not more than a window is
    read ahead. `alone`: nothing is shared, each request is a group, and a list fills the rows (plain.py).
    """
    requests = iter(requests)
    first = next(requests, None)
    if first is None:
        return
    requests = itertools.chain([first], requests)
    window = max(1, rows // len(first.seeds)) * LOOK_AHEAD
    enough, most = (rows, rows) if alone else (max(1, rows // REFILL), PASS_GROUPS)
    while taken := list(itertools.islice(requests, window)):
        groups = groups_of_one(taken, rows) if alone else groups_of(taken)
        chosen, samples = [], 0
        for group in sorted(groups, key=expected_size):
            count = sum(len(request.seeds) for request in group.requests)
            if chosen and samples + count > rows:
                yield chosen
                chosen, samples = [], 0
            chosen.append(group)
            samples += count
            if samples >= enough or len(chosen) == most:
                yield chosen
                chosen, samples = [], 0
        if chosen:
            yield chosen


def groups_of(requests: list[Request]) -> Iterable[PromptGroup]:
    groups: dict[tuple, PromptGroup] = {}
    for request in requests:
        text = request.messages[-1]["content"]
        key = request.row.get("id"), *request.row["images"], text[: text.rfind(IMAGE) + 1]
        groups.setdefault(key, PromptGroup([])).requests.append(request)
    return groups.values()


def groups_of_one(requests: list[Request], rows: int) -> Iterator[PromptGroup]:
    """Groups of one request each, with at most `rows` samples."""
    for request in requests:
        seeds = list(request.seeds.items())
        for start in range(0, len(seeds), rows):
            yield PromptGroup([replace(request, seeds=dict(seeds[start : start + rows]))])


def expected_size(group: PromptGroup) -> tuple[int, int]:
    """(images, characters) that the group's prompts begin with."""
    texts = [request.messages[-1]["content"] for request in group.requests]
    return len(group.requests[0].row["images"]), len(os.path.commonprefix(texts))


# ---------------------------------------------------------------- encoding


class PromptDataset:
    """`dataset[groups]`: the list of Batches of some PromptGroups, for a DataLoader.

    Tensors are handed over as numpy arrays: torch would pass them through /dev/shm, which is small in
    containers.
    """

    def __init__(self, processor, args: argparse.Namespace, context: int, whole: bool = False):
        self.processor = processor
        self.max_pixels = args.max_pixels
        self.max_tokens = args.max_tokens
        self.context = context  # tokens of prompt and reply, at most
        self.whole = whole  # inputs of whole prompts, not of what a group shares without the last token

    def __getitem__(self, groups: list[PromptGroup]) -> list[Batch]:
        batches = self.encode(groups)
        for batch in batches:
            for name, value in batch.inputs.items():
                batch.inputs[name] = value.numpy() if hasattr(value, "numpy") else value
        return batches

    def encode(self, groups: list[PromptGroup]) -> list[Batch]:
        """A list that fails, or that is too much for one pass, is halved.

        A group that fails alone becomes a batch of failed samples.
        """
        try:
            chats = [self.chat(group.requests[0]) for group in groups]
            inputs = encode_prompts(self.processor, chats)
            seen = inputs["attention_mask"].bool()
            firsts = [ids[mask].tolist() for ids, mask in zip(inputs["input_ids"], seen)]
            prompts = [self.prompts_of(group, first) for group, first in zip(groups, firsts)]
        except INPUT_ERRORS as error:
            end_if_device_failed(error)
            if len(groups) > 1:
                return [batch for half in halves(groups) for batch in self.encode(half)]
            return [failed_batch(groups[0].requests, one_line(error))]
        if max(len(prompt) for texts in prompts for prompt in texts) >= self.context:
            return self.without_too_long(groups, prompts)
        samples = []
        for group, texts in zip(groups, prompts):
            longest = min(map(len, texts)) - (not self.whole)
            group.shared = min(len(os.path.commonprefix(texts)), longest)
            for request, prompt in zip(group.requests, texts):
                limit = min(self.max_tokens, self.context - len(prompt))
                drafts = [] if self.whole else self.draft_tokens(request.drafts)
                samples += [
                    Sample(request, number, group, prompt, limit, drafts=drafts) for number in request.seeds
                ]
        lengths = [group.shared for group in groups]
        if len(groups) > 1 and len(groups) * max(lengths) > PASS_TOKENS:
            return [batch for half in halves(groups) for batch in self.encode(half)]
        return [Batch(groups, cut(inputs, lengths, self.processor.tokenizer.pad_token_id), samples)]

    def draft_tokens(self, drafts: tuple[str, ...]) -> list[list[int]]:
        return self.processor.tokenizer([*drafts], add_special_tokens=False)["input_ids"] if drafts else []

    def chat(self, request: Request) -> list[dict]:
        images = [open_image(path, self.max_pixels) for path in request.row["images"]]
        return chat_parts(request.messages, images)

    def prompts_of(self, group: PromptGroup, first: list[int]) -> list[list[int]]:
        """Token ids of the prompts of a group, of which the first is known."""
        if len(group.requests) == 1:
            return [first]
        messages = [request.messages for request in group.requests]
        if prompts := encode_texts(self.processor, messages, first):
            return prompts
        chats = [self.chat(request) for request in group.requests]
        return [encode_prompts(self.processor, [chat])["input_ids"][0].tolist() for chat in chats]

    def without_too_long(self, groups: list[PromptGroup], prompts: list[list[list[int]]]) -> list[Batch]:
        """Failed samples of the prompts that do not fit, and the others encoded once more."""
        batches = []
        for group, texts in zip(groups, prompts):
            for request, prompt in zip(group.requests, texts):
                if len(prompt) >= self.context:
                    error = f"ValueError: prompt of {len(prompt)} tokens in a context of {self.context}"
                    batches.append(failed_batch([request], error))
            kept = zip(group.requests, texts)
            group.requests = [request for request, prompt in kept if len(prompt) < self.context]
        left = [group for group in groups if group.requests]
        return batches + (self.encode(left) if left else [])


def failed_batch(requests: list[Request], error: str) -> Batch:
    samples = [Sample(request, number, error=error) for request in requests for number in request.seeds]
    return Batch([], {}, samples)


def cut(inputs: dict, lengths: list[int], pad_token: int) -> dict:
    """Left-padded prompts (B, T) -> the first lengths[b] tokens of each, left-padded again (B, P)."""
    import torch

    shared = torch.tensor(lengths)[:, None]
    whole = inputs["attention_mask"].sum(1, keepdim=True)
    places = torch.arange(max(lengths)) - (max(lengths) - shared)  # (B, P), below 0 is padding
    index = (places + inputs["input_ids"].shape[1] - whole).clamp_min(0)
    pads = {"input_ids": pad_token, "attention_mask": 0, "mm_token_type_ids": 0, "token_type_ids": 0}
    shorter = {
        name: inputs[name].gather(1, index).masked_fill(places < 0, pad)
        for name, pad in pads.items()
        if name in inputs
    }
    return {**inputs} | shorter


# ---------------------------------------------------------------- ahead of the model


def load_batches(
    dataset: PromptDataset, groups: Iterator[list[PromptGroup]], workers: int
) -> Iterator[Batch]:
    """Batches, encoded in `workers` processes; with 0 in this one, when they are asked for."""
    from torch.utils.data import DataLoader

    loader = DataLoader(
        dataset,
        sampler=groups,
        batch_size=None,
        collate_fn=unchanged,
        num_workers=workers,
        worker_init_fn=partial(end_with_parent, os.getpid()),
        multiprocessing_context="fork" if workers else None,
        prefetch_factor=PREFETCH if workers else None,
    )
    for batches in loader:
        yield from batches


def unchanged(batches: list[Batch]) -> list[Batch]:
    return batches


def on_device(inputs: dict, device) -> dict:
    """A batch's arrays as tensors on a device; what else a processor returns stays as it is."""
    import torch

    tensors = (name for name, value in inputs.items() if hasattr(value, "shape"))
    return inputs | {name: torch.as_tensor(inputs[name], device=device) for name in tensors}


def worker_count(device) -> int:
    """Worker processes: none for a model on the CPU, whose cores are busy."""
    if device.type == "cpu":
        return 0
    return min(WORKERS, cores() - 1)
