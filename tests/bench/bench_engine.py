"""Time local generation against transformers' generate() and ms-swift's sampler, and its steps against what
the device can do.

Writes: a table on stdout; with --output the numbers as JSON.

    python tests/bench/bench_engine.py
    python tests/bench/bench_engine.py --tasks fixed --swift VENV/bin/python
    python tests/bench/bench_engine.py --models 7b   # on a CUDA machine; elsewhere the tiny model instead

Models: `toy` is toy/base, the others are Qwen2-VL with random weights (7b: the shape of Qwen2-VL-7B).
Tasks:
  decode             a step of 1, 64, 256 and 512 rows, in per cent of the bound of roofline.py by the copies
                     and matrix products measured here
  fixed, log-normal  N samples a problem; generate(num_return_sequences=N), whose rows go on to the end of the
                     longest sample
  judging            a verdict on each of N candidates a problem; the engine with nothing shared; generate()
                     on as many whole prompts in one batch
  round              seconds of the stages' own commands: sample, check the answers, judge, fine-tune
No EOS: every sample has a length given beforehand, all the same or drawn from a log-normal distribution. Each
arm must give the same greedy tokens first. Then the arms take turns; ratios are those of medians.
"""

import argparse
import importlib
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests/bench")]

from engine_arms import Local, build, by_engine, by_generate, chat, sample_by_swift, save
from worker import Worker, seconds, versions

import common
from mathse.chat import encode_prompts, user_message
from mathse.generate import Request
from mathse.records import derive_seed

TEXT = "Step 1: The image shows a rectangle with sides 5 and 8. Step 2: The area is 5 * 8 = 40. "
WORDS = (TEXT + "The answer to this problem is").split()
TASKS = ("decode", "fixed", "log-normal", "judging", "round")
# pixels of an image's side; new tokens: of a sample, of a verdict
SIZES = {"tiny": (64, 16, 8), "toy": (112, 48, 24), "5m": (112, 48, 24), "7b": (896, 128, 32)}


def parse_args() -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    add = parser.add_argument
    add("--models", nargs="+", choices=SIZES, default=["toy", "5m"], help="default: %(default)s")
    add("--tasks", nargs="+", choices=TASKS, default=TASKS, help="default: all")
    add("--problems", type=int, default=8, help="default: %(default)s")
    add("--samples", type=int, default=16, help="samples, or candidates, a problem (default %(default)s)")
    add(
        "--rows",
        nargs="+",
        type=int,
        default=[1, 64, 256, 512],
        help="rows a step (default %(default)s)",
    )
    add("--tokens", type=int, help="new tokens a sample, on average (default: by the model)")
    add("--verdict-tokens", type=int, help="new tokens a verdict (default: by the model)")
    add("--side", type=int, help="pixels of an image's side (default: by the model)")
    add("--repeats", type=int, default=5, help="default: %(default)s")
    add("--threads", type=int, default=1, help="of every arm (default %(default)s)")
    swift = "environment with ms-swift and qwen_vl_utils: its sampler is one more arm of `fixed`"
    add("--swift", metavar="PYTHON", help=f"{swift} (--side: a multiple of 112, which it does not resize)")
    add("--output", help="JSON file")
    return parser.parse_args()


# ---------------------------------------------------------------- workload


def make_rows(folder: Path, count: int, side: int) -> list[dict]:
    from PIL import Image

    rows = []
    for index in range(count):
        path = f"{folder}/{index}.png"
        Image.effect_noise((side, side), 90).convert("RGB").save(path)
        rows.append({"id": str(index), "question": "What is the area of the rectangle?", "images": [path]})
    return rows


def solve_messages(row: dict) -> list[dict]:
    return user_message(common.solve_prompt(row), row["images"])


def sampling_requests(rows: list[dict], samples: int) -> list[Request]:
    made = []
    for row in rows:
        seeds = {k: derive_seed(row["id"], k) for k in range(samples)}
        made.append(Request(row, solve_messages(row), seeds))
    return made


def judging_requests(rows: list[dict], samples: int, alone: bool = False) -> list[Request]:
    """Candidates of each problem; `alone`: as if each were of another problem."""
    made, judge = [], importlib.import_module("02_verify").judge_prompt
    for row in rows:
        for k in range(samples):
            response = " ".join([*WORDS[: 20 + k % 8], str(k)])
            text = judge({"question": row["question"], "response": response})
            name = f"{row['id']} {k}" if alone else row["id"]
            made.append(Request(row | {"id": name, "sample": k}, user_message(text, row["images"]), {0: 0}))
    return made


def log_normal(count: int, mean: int, longest: int) -> list[int]:
    draw = random.Random(0)
    draws = [draw.lognormvariate(0, 0.6) for _ in range(count)]
    return [min(longest, max(1, round(value * mean * count / sum(draws)))) for value in draws]


# ---------------------------------------------------------------- tasks


def compare(arms: dict, repeats: int) -> dict:
    """Seconds of each arm, `repeats` times in turn: {arm: {median_s, all_s, ratio to the first arm}}.

    An arm returns its own seconds, or anything else.
    """
    times = {arm: [] for arm in arms}
    for _ in range(repeats):
        for arm, work in arms.items():
            start = seconds()
            own = work()
            times[arm].append(own if isinstance(own, float) else seconds() - start)
    median = {arm: statistics.median(values) for arm, values in times.items()}
    first = next(iter(median.values()))
    for arm, values in times.items():
        spread = f"({min(values):.2f}-{max(values):.2f})"
        print(f"  {arm:34} {median[arm]:8.2f} s {spread}  {median[arm] / first:6.2f} x", flush=True)
    return {
        arm: {"median_s": median[arm], "all_s": values, "ratio": median[arm] / first}
        for arm, values in times.items()
    }


def time_steps(local: Local, rows: list[dict], count: int, samples: int, tokens: int, ceilings) -> dict:
    """Steps of `count` rows: as many problems as they need, each with all its samples."""
    from roofline import step_of

    samples = min(count, samples)
    problems = -(-count // samples)
    copies = [rows[index % len(rows)] | {"id": f"copy {index}"} for index in range(problems)]
    requests = sampling_requests(copies, samples)
    engine = local.engine(count, tokens + 1)
    times, once = [], engine.step

    def timed_step():
        start, full = seconds(), len(engine.live) == count
        finished = once()
        if full:
            times.append(seconds() - start)
        return finished

    engine.step = timed_step
    for _ in range(2):  # the first warms up
        times.clear()
        engine.work.clear()
        by_engine(engine, requests, [tokens + 1] * (samples * problems), greedy=False)
    work = engine.work
    shared = work["prompt_tokens"] / work["prompts"]
    own = 1 + tokens / 2
    bound = step_of(local.model).bound(*ceilings, count, problems, shared, own)
    took = statistics.median(times)
    what = f"  {count:4} rows, {shared:.0f} + {own:.0f} tokens: {1e3 * took:8.2f} ms a step"
    share = f"bound {1e3 * bound:8.3f} ms: {100 * bound / took:5.1f} %"
    print(f"{what}, {share}, {count / took:8.0f} tokens/s", flush=True)
    found = {"rows": count, "step_s": took, "bound_s": bound, "share": bound / took}
    return found | {"shared": shared, "own": own, "steps": len(times)}


def generation_task(task: str, local: Local, engine, args, name: str, rows: list[dict], folder: Path, sizes):
    """Check that the arms of a task agree, then time them."""
    import torch

    _, tokens, verdict_tokens = sizes
    count, greedy = args.problems * args.samples, task == "judging"
    lengths = {
        "fixed": [tokens] * count,
        "log-normal": log_normal(count, tokens, 3 * tokens),
        "judging": [verdict_tokens] * count,
    }[task]
    requests = judging_requests(rows, args.samples) if greedy else sampling_requests(rows, args.samples)
    ours = by_engine(engine, requests, lengths, True)
    theirs = by_generate(local, requests, lengths, True)
    same = sum(one == other for one, other in zip(ours, theirs))
    if local.model.dtype == torch.float32 and same < count:
        sys.exit(f"{name}: {task}: only {same} of {count} greedy samples are the same; not timed")
    engine.work.clear()
    by_engine(engine, requests, lengths, greedy)
    work = dict(engine.work)
    arms = {
        "engine": lambda: by_engine(engine, requests, lengths, greedy),
        "generate()": lambda: by_generate(local, requests, lengths, greedy),
    }
    if task == "judging":
        alone = judging_requests(rows, args.samples, alone=True)
        arms["engine, nothing shared"] = lambda: by_engine(engine, alone, lengths, True)
    worker = None
    if task == "fixed" and args.swift:
        worker = start_swift(local, args, name, requests, folder, tokens)
        arms["ms-swift, all rows together"] = lambda: worker.ask(count)["seconds"]
        arms["ms-swift, as by default"] = lambda: worker.ask(1)["seconds"]
    equal = f"greedy tokens equal {same}/{count}"
    print(
        f" {task}: {count} samples, {sum(lengths)} new tokens, {equal}; the engine's work {work}", flush=True
    )
    found = {"arms": compare(arms, args.repeats), "equal": same, "samples": count}
    if worker:
        worker.close()
    return found | {"new_tokens": sum(lengths), "work": work}


def start_swift(local: Local, args, name: str, requests: list[Request], folder: Path, tokens: int) -> Worker:
    """A worker of ms-swift that has been seen to read and write as many tokens as the other arms."""
    data, count = folder / "swift.jsonl", args.problems * args.samples
    lines = []
    for request in requests:
        messages = [*request.messages, {"role": "assistant", "content": "40"}]
        lines.append(json.dumps({"messages": messages, "images": request.row["images"]}) + "\n")
    data.write_text("".join(lines))
    job = {"model": str(save(name, folder / "saved")), "data": str(data), "folder": str(folder / "swift")}
    job |= {"samples": args.samples, "tokens": tokens, "threads": args.threads}
    worker = Worker(args.swift, __file__, job, folder / "swift.log")
    first = worker.ask(count)
    prompts = [encode_prompts(local.processor, [chat(request)])["input_ids"][0] for request in requests]
    expected = tokens * count, args.samples * sum(map(len, prompts))
    if (first.get("new_tokens"), first.get("prompt_tokens")) != expected:
        sys.exit(f"{name}: ms-swift: {first}, not {expected} new and prompt tokens; not timed")
    return worker


def mini_round(model: Path, folder: Path, rows: list[dict], samples: int, sizes, adapters: tuple) -> dict:
    """Seconds of the stages' commands, started as a user does. What is judged and learned is written here: a
    random model's own text says nothing.
    """
    _, tokens, verdict_tokens = sizes
    problems, taken = folder / "problems.jsonl", {}
    problems.write_text("".join(json.dumps(row | {"answer": "40"}) + "\n" for row in rows))
    drawn, checked, judged = (folder / f"{name}.jsonl" for name in ("samples", "checked", "judged"))

    def stage(name: str, script: str, source: Path, output: Path, *flags) -> None:
        command = [sys.executable, script, "--input", source, "--output", output, *flags]
        clock, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run([*map(str, command)], cwd=ROOT, capture_output=True, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        if done.returncode:
            sys.exit(f"{name}: {done.stderr[-600:]}")
        wall = time.perf_counter() - clock
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        taken[name] = {"clock_s": wall, "processor_s": cpu}
        print(f"  {name:34} {wall:8.2f} s, {cpu:.2f} s of the processor", flush=True)

    generation = ("--model", model, "--temperature", 1, "--batch-size", len(rows) * samples)
    stage(
        "sample", "01_sample.py", problems, drawn, "--samples", samples, "--max-tokens", tokens, *generation
    )
    replies = [json.loads(line) for line in drawn.open()]
    lines = []
    for row in replies:
        response = " ".join([*WORDS[row["sample"] % 8 :], str(40 + row["sample"] % 2)])
        lines.append(json.dumps(row | {"response": response, "finish": "stop"}) + "\n")
    solved = folder / "solved.jsonl"
    solved.write_text("".join(lines))
    stage("check the answers", "02_verify.py", solved, checked, "--accept", "answer")
    orm = ("--accept", "orm", "--max-tokens", verdict_tokens)
    stage("judge", "02_verify.py", solved, judged, *orm, *generation)
    learning = ("--batch-size", 8, "--max-length", 1 << 14, "--save-steps", 0)
    stage("fine-tune", "04_finetune.py", checked, folder / "model", "--model", model, *learning, *adapters)
    tokens = sum(row["tokens"] for row in replies)
    print(f"    {len(replies)} samples, {tokens} tokens", flush=True)
    return taken


# ---------------------------------------------------------------- main


def measure(name: str, args: argparse.Namespace, device: str, dtype, ceilings: tuple[float, float]) -> dict:
    """All tasks with one model."""
    import torch

    given = args.side, args.tokens, args.verdict_tokens
    sizes = [value or default for value, default in zip(given, SIZES[name])]
    found = {}
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        folder = Path(folder)
        rows = make_rows(folder, args.problems, sizes[0])
        local = build(name, device, dtype)
        parameters = sum(part.numel() for part in local.model.parameters()) / 1e6
        print(f"{name}: {parameters:.1f} M parameters, images of {sizes[0]} x {sizes[0]}", flush=True)
        if "decode" in args.tasks:
            print(" decode", flush=True)
            found["decode"] = [
                time_steps(local, rows, count, args.samples, 2 * sizes[1], ceilings) for count in args.rows
            ]
        engine = local.engine(args.problems * args.samples, 3 * sizes[1])
        for task in ("fixed", "log-normal", "judging"):
            if task in args.tasks:
                found[task] = generation_task(task, local, engine, args, name, rows, folder, sizes)
        del local, engine
        if "round" in args.tasks:
            print(" round", flush=True)
            # all of its weights, with the optimizer's state, would need 133 GB
            adapters = ("--lora", 16) if name == "7b" else ()
            model = save(name, folder / "saved")
            found["round"] = mini_round(model, folder, rows, args.samples, sizes, adapters)
    return found


def main() -> None:
    if sys.argv[1:2] == ["--worker"]:
        sample_by_swift(json.loads(sys.argv[2]))
        return
    args = parse_args()
    import torch
    from roofline import copy_bandwidth, matmul_rate

    device, dtype, _ = common.setup_kernels(args.threads)
    if device == "cpu" and "7b" in args.models:
        print("no CUDA device: the tiny model instead of 7b")
        args.models = ["tiny" if name == "7b" else name for name in args.models]
    name = torch.cuda.get_device_name() if device != "cpu" else "CPU"
    machine = f"{name}, {args.threads} threads, {versions('torch', 'transformers')}"
    ceilings = copy_bandwidth(device), matmul_rate(device, dtype)
    copies, products = (
        f"copies {ceilings[0] / 1e9:.1f} GB/s",
        f"matrix products {ceilings[1] / 1e12:.3f} TFLOP/s",
    )
    print(f"{machine}\n{copies}, {products}", flush=True)
    results = {"machine": machine, "settings": vars(args)}
    results |= {"copy_bytes_s": ceilings[0], "matmul_flop_s": ceilings[1]}
    results["models"] = {name: measure(name, args, device, dtype, ceilings) for name in args.models}
    if args.output:
        Path(args.output).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
