"""What real_model.sh tries on a real language model: MODEL [SERVE] -> lines; exit code 1 if one is wrong.

Greedy replies are generate()'s, samples differ, and replies end where the template's turn does. Fine-tuned,
of all weights and by LoRA, it knows 16 solutions by heart; as an ORM it states verdicts. A server, if its
command is given, replies as the engine does. Seconds are those of the processor.
"""

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from conftest import ROOT, read_rows, write_rows

import common
from mathse.chat import chat_parts, encode_prompts, turn_end, user_message
from mathse.generate import Request, open_model

PROBLEMS, SAMPLES, TOKENS = 8, 8, 64
LESSONS = 16
THINGS = ("apples", "marbles", "stamps", "books")


def problems(count: int) -> list[dict]:
    """Word problems with their solutions."""
    made, draw = [], random.Random(0)
    for number in range(count):
        a, b, c, thing = draw.randint(3, 30), draw.randint(3, 30), draw.randint(2, 9), draw.choice(THINGS)
        text = f"Tom has {a} {thing}. He buys {b} more and gives {c} to Ann. How many {thing} has he now?"
        solution = f"{a} + {b} = {a + b}. {a + b} - {c} = {a + b - c}. {common.CLOSING} {a + b - c}."
        row = {"id": str(number), "question": text, "images": [], "answer": str(a + b - c)}
        made.append(row | {"solution": solution})
    return made


def requests(samples: int) -> list[Request]:
    return [
        Request(row, user_message(common.solve_prompt(row), []), {k: 100 * n + k for k in range(samples)})
        for n, row in enumerate(problems(PROBLEMS))
    ]


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


def stage(script: str, *switches: str, **flags: object) -> list[dict]:
    """The rows of a stage's output."""
    words = [str(word) for name, value in flags.items() for word in (f"--{name.replace('_', '-')}", value)]
    command = [sys.executable, script, *switches, *words]
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return read_rows(flags["output"]) if Path(flags["output"]).is_file() else []


def learns(spec: str, folder: Path, **flags: object) -> bool:
    """Whether 04 teaches it the solutions by heart."""
    rows = problems(LESSONS)
    asked = write_rows(folder / "problems.jsonl", rows)
    known = {"sample": 0, "finish": "stop", "status": "correct"}
    taught = [row | known | {"prompt": common.solve_prompt(row), "response": row["solution"]} for row in rows]
    place = write_rows(folder / "verified.jsonl", taught)
    settings = {"epochs": 12, "batch_size": 4, "save_steps": 0, "lr": 1e-4} | flags
    stage("04_finetune.py", input=place, output=folder / "model", model=spec, **settings)
    said = stage(
        "01_sample.py", input=asked, output=folder / "s.jsonl", model=folder / "model", max_tokens=TOKENS
    )
    same = sum(one["response"] == row["solution"] for one, row in zip(said, rows))
    print(f"04 {flags or 'of all weights'}: {same} of {LESSONS} solutions by heart", flush=True)
    return same == LESSONS


def judges(spec: str, folder: Path) -> bool:
    """Whether 04 makes an ORM of it, whose replies are verdicts."""
    rows = []
    for row in problems(LESSONS):
        wrong = row["solution"].replace(f"{row['answer']}.", f"{int(row['answer']) + 1}.")
        step = wrong.split(". ")[1]
        known = {"prompt": "-", "finish": "stop"}
        rows.append(row | known | {"sample": 0, "response": row["solution"], "status": "correct"})
        why = {"teacher_check": "wrong", "error_step": step, "error_analysis": "The difference is wrong."}
        rows.append(row | known | {"sample": 1, "response": wrong, "status": "wrong"} | why)
    place = write_rows(folder / "annotated.jsonl", rows)
    flags = {"epochs": 6, "batch_size": 4, "save_steps": 0, "lr": 1e-4, "per_problem": 2}
    stage("04_finetune.py", "--orm", input=place, output=folder / "orm", model=spec, **flags)
    found = stage("02_verify.py", input=place, output=folder / "v.jsonl", model=folder / "orm", accept="both")
    stated = sum(row["orm_check"] in ("correct", "wrong") for row in found)
    right = sum(row["orm_check"] == row["answer_check"] for row in found)
    print(f"04 --orm: {stated} of {len(found)} replies are verdicts, {right} of them right", flush=True)
    return stated == len(found)


def is_served(spec: str, serve: str, folder: Path) -> bool:
    """Whether a server's greedy replies are the engine's."""
    asked = write_rows(folder / "problems.jsonl", problems(LESSONS))
    flags = {"input": asked, "model": spec, "max_tokens": TOKENS}
    local = stage("01_sample.py", output=folder / "local.jsonl", **flags)
    served = stage("01_sample.py", output=folder / "served.jsonl", serve=serve, **flags)
    same = sum(one["response"] == other["response"] for one, other in zip(local, served))
    print(f"served, greedy: {same} of {len(local)} replies are the engine's", flush=True)
    return same >= 0.9 * len(local)


def main() -> None:
    torch.set_num_threads(1)
    spec, serve = sys.argv[1], " ".join(sys.argv[2:])
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
    held = [same == PROBLEMS, distinct > 0.9 * len(replies), ends, not finish["error"]]
    with tempfile.TemporaryDirectory() as place:
        folders = [Path(place) / name for name in ("all", "lora", "orm", "served")]
        for folder in folders:
            folder.mkdir()
        held += [learns(spec, folders[0]), learns(spec, folders[1], lora=16, lr=1e-3)]
        held += [judges(spec, folders[2]), not serve or is_served(spec, serve, folders[3])]
    sys.exit(not all(held))


if __name__ == "__main__":
    main()
