"""Judging by a trained ORM, as 02_verify.py asks: with prompts shared and each by itself, and by generate().
Seconds of the processor, one thread; equal replies.

    bash run_rounds.sh
    python tests/bench/bench_judging.py --orm R/orm/model --paths R/round_1/samples.jsonl  # R: runs/default

The first paths of the file, whole problems, greedily, until each reply ends. The arms take turns; ratios are
those of medians.
"""

import argparse
import importlib
import os
import sys
from dataclasses import replace
from itertools import groupby
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests/bench")]

from bench_engine import compare
from engine_arms import chat
from worker import versions

import common
from mathse.chat import encode_prompts, user_message
from mathse.generate import Request
from mathse.generate.engine import Engine
from mathse.records import read_rows

ROWS = 128  # decoded together, by all arms


def parse_args() -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    add = parser.add_argument
    add("--orm", required=True, help="model folder that 04 --orm has written")
    add("--paths", required=True, help="samples.jsonl or verified.jsonl")
    add("--count", type=int, default=384, help="paths (default %(default)s)")
    add("--max-tokens", type=int, default=96, help="new tokens a verdict, at most (default %(default)s)")
    add("--repeats", type=int, default=5, help="default: %(default)s")
    return parser.parse_args()


def judging_requests(path: str, count: int) -> list[Request]:
    verify = importlib.import_module("02_verify")
    requests = []
    for _, rows in groupby(read_rows(path), lambda row: row["id"]):
        if len(requests) >= count:
            break
        for row in rows:
            messages = user_message(verify.judge_prompt(row), row["images"])
            requests.append(Request(row, messages, {0: 0}))
    return requests


def by_generate(model, processor, requests: list[Request], max_tokens: int) -> list[str]:
    """Whole prompts, those of like length together."""
    order = sorted(range(len(requests)), key=lambda place: len(requests[place].messages[-1]["content"]))
    texts = [""] * len(requests)
    for start in range(0, len(order), ROWS):
        places = order[start : start + ROWS]
        inputs = encode_prompts(processor, [chat(requests[place]) for place in places])
        out = model.generate(**inputs, max_new_tokens=max_tokens, do_sample=False)
        new = out[:, inputs["input_ids"].shape[1] :]
        for place, text in zip(places, processor.tokenizer.batch_decode(new, skip_special_tokens=True)):
            texts[place] = text.strip()
    return texts


def main() -> None:
    args = parse_args()
    import torch

    torch.set_num_threads(1)
    requests = judging_requests(args.paths, args.count)
    flags = {"temperature": 0.0, "top_k": 0, "top_p": 1.0, "max_tokens": args.max_tokens, "max_pixels": 0}
    engine = Engine(*common.load(args.orm), argparse.Namespace(**flags, batch_size=ROWS))
    plain, processor = (
        common.load_model(args.orm, "cpu", torch.float32).eval(),
        common.load_processor(args.orm),
    )
    alone = [replace(request, row=request.row | {"id": str(place)}) for place, request in enumerate(requests)]
    arms = {"engine": requests, "engine, nothing shared": alone}

    def by_engine(asked: list[Request]) -> list[str]:
        replies = {id(reply.row): reply.text for reply in engine(asked)}
        return [replies[id(request.row)] for request in asked]

    expected = by_generate(plain, processor, requests, args.max_tokens)
    print(
        f"{versions()}; {len(requests)} paths, {sum('CORRECT' in text for text in expected)} called correct"
    )
    for name, asked in arms.items():
        engine.work.clear()
        said = by_engine(asked)
        same = sum(one == other for one, other in zip(said, expected))
        print(
            f"  {name}: {same} of {len(said)} replies equal those of generate(); {dict(engine.work)}",
            flush=True,
        )
    timed = {name: lambda asked=asked: by_engine(asked) for name, asked in arms.items()}
    timed["generate()"] = lambda: by_generate(plain, processor, requests, args.max_tokens)
    compare(timed, args.repeats)


if __name__ == "__main__":
    main()
