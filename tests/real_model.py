"""What real_model.sh tries on a real language model: MODEL -> lines; exit code 1 if one is wrong.

Greedy replies are generate()'s, samples differ, and replies end where the template's turn does. Seconds are
those of the processor.
"""

import argparse
import random
import sys
import time
from collections import Counter
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent)]

import torch

import common
from mathse.chat import chat_parts, encode_prompts, turn_end, user_message
from mathse.generate import Request, open_model

PROBLEMS, SAMPLES, TOKENS = 8, 8, 64
THINGS = ("apples", "marbles", "stamps", "books")


def requests(samples: int) -> list[Request]:
    """Word problems."""
    made, draw = [], random.Random(0)
    for number in range(PROBLEMS):
        a, b, c, thing = draw.randint(3, 30), draw.randint(3, 30), draw.randint(2, 9), draw.choice(THINGS)
        text = f"Tom has {a} {thing}. He buys {b} more and gives {c} to Ann. How many {thing} has he now?"
        row = {"id": str(number), "question": text, "images": []}
        seeds = {k: 100 * number + k for k in range(samples)}
        made.append(Request(row, user_message(common.solve_prompt(row), []), seeds))
    return made


def by_engine(model: str, temperature: float, asked: list[Request]) -> list:
    flags = {"temperature": temperature, "top_p": 1.0, "top_k": 0, "max_tokens": TOKENS, "max_pixels": 0}
    more = {"batch_size": PROBLEMS * SAMPLES, "serve": None, "trust_remote_code": False}
    generate = open_model(model, argparse.Namespace(**flags, **more), common.load)
    start = time.process_time()
    replies = sorted(generate(asked), key=lambda reply: (reply.row["id"], reply.sample))
    took, tokens = time.process_time() - start, sum(reply.tokens for reply in replies)
    print(f"engine, temperature {temperature}: {tokens} tokens in {took:.1f} s", flush=True)
    return replies


@torch.inference_mode()
def by_generate(model, processor, asked: list[Request], **settings: object) -> list[str]:
    inputs = encode_prompts(processor, [chat_parts(request.messages) for request in asked])
    start = time.process_time()
    out = model.generate(**inputs, max_new_tokens=TOKENS, **settings)[:, inputs["input_ids"].shape[1] :]
    took, tokens = time.process_time() - start, int((out != processor.tokenizer.pad_token_id).sum())
    print(f"generate(): {tokens} tokens in {took:.1f} s", flush=True)
    return [text.strip() for text in processor.tokenizer.batch_decode(out, skip_special_tokens=True)]


def main() -> None:
    torch.set_num_threads(1)
    spec = sys.argv[1]
    processor, model = common.load_processor(spec), common.load_model(spec, "cpu", torch.float32).eval()
    said = [reply.text for reply in by_engine(spec, 0.0, requests(1))]
    expected = by_generate(model, processor, requests(1), do_sample=False)
    same = sum(one == other for one, other in zip(said, expected))
    print(f"greedy: {same} of {PROBLEMS} replies are generate()'s, such as {said[0][:100]!r}")
    replies = by_engine(spec, 0.8, requests(SAMPLES))
    sampling = {"temperature": 0.8, "top_k": 0, "num_return_sequences": SAMPLES}
    by_generate(model, processor, requests(1), do_sample=True, **sampling)
    distinct, finish = len({reply.text for reply in replies}), Counter(reply.finish for reply in replies)
    print(f"samples: {distinct} of {len(replies)} texts differ, {dict(finish)}")
    ends = turn_end(processor) == processor.tokenizer.eos_token_id and finish["stop"] > 0
    sys.exit(not (same == PROBLEMS and distinct > 0.9 * len(replies) and ends and not finish["error"]))


if __name__ == "__main__":
    main()
