"""The arms of a model that a real server such as vLLM serves, asked as --serve asks it."""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from arms import timed

import common
from mathse.cli import Parser, add_generation_flags
from mathse.generate import open_model
from mathse.generate.serve import Served


def flags(**wanted: object) -> argparse.Namespace:
    parser = Parser("")
    add_generation_flags(parser, max_tokens=1)
    return argparse.Namespace(**vars(parser.parse_args([])) | wanted)


def start(command: str, model: Path, folder: Path) -> Served:
    """A server of the model without a token that ends a reply: its end token is that of videos."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB; what it takes by itself may be too much
    place = shutil.copytree(model, folder / "endless", dirs_exist_ok=True)
    changes = {"config.json": {"eos_token_id": 6}, "generation_config.json": {"eos_token_id": 6}}
    for name, change in (changes | {"tokenizer_config.json": {"eos_token": "<|video_pad|>"}}).items():
        content = json.loads((place / name).read_text())
        if "text_config" in content:
            content["text_config"] |= change
        (place / name).write_text(json.dumps(content | change))
    return Served(str(place), flags(serve=command, output=folder / "served"))


def make_arms(served: Served, requests: list, lengths: list[int], greedy: bool) -> dict[str, Callable]:
    """All samples of a problem in one request, and each by itself; replies of one length."""
    settings = flags(max_tokens=lengths[0], concurrency=256, temperature=0.0 if greedy else 1.0)
    generate = open_model(served.spec, settings, common.load)

    def answer(asked: list) -> None:
        tokens = sum(reply.tokens for reply in generate(iter(asked)))
        if not 0.9 * sum(lengths) < tokens <= sum(lengths):  # now and then one draws the end token
            sys.exit(f"served: {tokens} new tokens, not {sum(lengths)}")

    singly = [replace(each, seeds={k: seed}) for each in requests for k, seed in each.seeds.items()]
    answer(requests)  # warms up
    arms = {"served": requests} | ({} if greedy else {"served, a request a sample": singly})
    return {name: timed(partial(answer, asked), served.process.pid) for name, asked in arms.items()}
