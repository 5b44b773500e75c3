"""What real_model.sh tries on a real language model, MODEL, and with a server of it, SERVE. Seconds are the
processor's.
"""

import os
import random
import subprocess
import sys
import time
from collections import Counter

import pytest
import tiny
import torch
from conftest import ROOT, read_rows, write_rows

import common
from mathse.chat import chat_parts, encode_prompts, turn_end, user_message
from mathse.generate import Request

MODEL, SERVE = os.environ["MODEL"], os.environ.get("SERVE")
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


def verified(row: dict, sample: int = 0, **changes) -> dict:
    """A problem's solution as a verified response."""
    made = row | {"sample": sample, "prompt": common.solve_prompt(row), "response": row["solution"]}
    return made | {"finish": "stop", "status": "correct"} | changes


@pytest.fixture
def rows_of(tmp_path):
    """The rows of a stage's output, if it is a file of the folder of this test."""

    def call(script: str, text: str, output: str, **files) -> list[dict]:
        words = [word for name, value in files.items() for word in (f"--{name}", value)]
        command = [sys.executable, script, *text.split(), *words, "--output", tmp_path / output]
        subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
        return read_rows(tmp_path / output) if (tmp_path / output).is_file() else []

    return call


def requests(samples: int) -> list[Request]:
    return [
        Request(row, user_message(common.solve_prompt(row), []), {k: 100 * n + k for k in range(samples)})
        for n, row in enumerate(problems(PROBLEMS))
    ]


def by_engine(temperature: float, asked: list[Request]) -> list:
    flags = {"max_tokens": TOKENS, "batch_size": PROBLEMS * SAMPLES}
    generate = tiny.open_engine(MODEL, temperature=temperature, **flags)
    start = time.process_time()
    replies = sorted(generate(asked), key=lambda reply: (reply.row["id"], reply.sample))
    took, tokens = time.process_time() - start, sum(reply.tokens for reply in replies)
    print(f"engine, temperature {temperature}: {tokens} tokens in {took:.1f} s")
    return replies


@torch.inference_mode()
def by_generate(model, processor, asked: list[Request], **settings: object) -> list[str]:
    inputs = encode_prompts(processor, [chat_parts(request.messages) for request in asked])
    start = time.process_time()
    out = model.generate(**inputs, max_new_tokens=TOKENS, **settings)[:, inputs["input_ids"].shape[1] :]
    took, tokens = time.process_time() - start, int((out != processor.tokenizer.pad_token_id).sum())
    print(f"generate(): {tokens} tokens in {took:.1f} s")
    return [text.strip() for text in processor.tokenizer.batch_decode(out, skip_special_tokens=True)]


def test_greedy_replies_are_those_of_generate_and_samples_differ():
    """They end where the template's turn does."""
    torch.set_num_threads(1)
    processor, model = common.load_processor(MODEL), common.load_model(MODEL, "cpu", torch.float32).eval()
    said = [reply.text for reply in by_engine(0.0, requests(1))]
    assert said == by_generate(model, processor, requests(1), do_sample=False)
    replies = by_engine(0.8, requests(SAMPLES))
    sampling = {"temperature": 0.8, "top_k": 0, "num_return_sequences": SAMPLES}
    by_generate(model, processor, requests(1), do_sample=True, **sampling)
    finish = Counter(reply.finish for reply in replies)
    assert finish["stop"] and not finish["error"], finish
    assert len({reply.text for reply in replies}) > 0.9 * len(replies)
    assert turn_end(processor) == processor.tokenizer.eos_token_id


@pytest.mark.parametrize("flags", ["--lr 1e-4", "--lr 1e-3 --lora 16"])
def test_it_learns_solutions_by_heart(flags, rows_of, tmp_path):
    taught = [verified(row) for row in problems(LESSONS)]
    given = write_rows(tmp_path / "verified.jsonl", taught)
    flags += " --epochs 12 --batch-size 4 --save-steps 0"
    rows_of("04_finetune.py", flags, "model", input=given, model=MODEL)
    said = rows_of("01_sample.py", f"--max-tokens {TOKENS}", "s.jsonl", input=given, model=tmp_path / "model")
    assert [row["response"] for row in said] == [row["solution"] for row in taught]


def test_as_an_orm_it_states_verdicts(rows_of, tmp_path):
    rows = []
    for row in problems(LESSONS):
        wrong = row["solution"].replace(f"{row['answer']}.", f"{int(row['answer']) + 1}.")
        why = {"error_step": wrong.split(". ")[1], "error_analysis": "The difference is wrong."}
        why |= {"status": "wrong", "teacher_check": "wrong"}
        rows += [verified(row), verified(row, 1, response=wrong, **why)]
    given = write_rows(tmp_path / "annotated.jsonl", rows)
    flags = "--orm --lr 1e-4 --epochs 6 --batch-size 4 --save-steps 0 --per-problem 2"
    rows_of("04_finetune.py", flags, "orm", input=given, model=MODEL)
    found = rows_of("02_verify.py", "--accept both", "v.jsonl", input=given, model=tmp_path / "orm")
    print(
        f"{sum(row['orm_check'] == row['answer_check'] for row in found)} of {len(found)} verdicts are right"
    )
    assert {row["orm_check"] for row in found} <= {"correct", "wrong"}


@pytest.mark.skipif(not SERVE, reason="no SERVE")
def test_a_servers_greedy_replies_are_the_engines(rows_of, tmp_path):
    files = {"input": write_rows(tmp_path / "problems.jsonl", problems(LESSONS)), "model": MODEL}
    local = rows_of("01_sample.py", f"--max-tokens {TOKENS}", "local.jsonl", **files)
    served = rows_of("01_sample.py", f"--max-tokens {TOKENS}", "served.jsonl", serve=SERVE, **files)
    same = sum(one["response"] == other["response"] for one, other in zip(local, served))
    assert same >= 0.9 * len(local), f"{same} of {len(local)} replies are the engine's"
