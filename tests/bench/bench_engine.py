"""Time local generation against transformers' generate(), ms-swift's sampler and a server such as vLLM, and
its steps against what the device can do.

    python tests/bench/bench_engine.py
    python tests/bench/bench_engine.py --tasks fixed --swift VENV/bin/python
    python tests/bench/bench_engine.py --tasks fixed judging --serve "VENV/bin/vllm serve {model}
      --port {port} --dtype float32 --max-model-len 2048 --block-size 32 --no-enable-chunked-prefill"
    python tests/bench/bench_engine.py --orm R/orm/model --paths R/round_1/samples.jsonl  # of a run R
    python tests/bench/bench_engine.py --models 7b   # on a CUDA machine; elsewhere the tiny model instead

Models: `toy` is toy/base, the others are Qwen2-VL with random weights (7b: the shape of Qwen2-VL-7B).
Tasks:
  decode             a step of 1, 64, 256 and 512 rows, beside the bound of roofline.py
  fixed, log-normal  N samples a problem; generate(num_return_sequences=N) goes on to the longest one's end
  judging            a verdict on each of N candidates a problem; the engine with nothing shared; generate()
                     on as many whole prompts in one batch
  --orm              the same of a run's ORM on real paths, each verdict as long as it is
No EOS: every sample has a length given beforehand, all the same or drawn from a log-normal distribution. The
engine must give generate()'s greedy tokens first. Then the arms take turns; ratios are those of medians. The
clock counts where there is a GPU, or a server (by bash tests/serving.sh VENV); else the processor.
"""

import contextlib
import os
import statistics
import sys
import tempfile
from dataclasses import replace
from itertools import islice
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
sys.path[:0] = [str(Path(__file__).resolve().parents[2])]

import models
import served_arm
import swift_arm
from arms import in_turns, seconds, show, timed

import common
from mathse.chat import encode_prompts
from mathse.cli import Parser
from mathse.records import read_rows

TASKS = ("decode", "fixed", "log-normal", "judging")


def time_steps(local: tuple, rows: list[dict], count: int, samples: int, tokens: int, ceilings) -> None:
    """Steps of `count` rows: as many problems as they need, each with all its samples."""
    from roofline import step_bound

    problems, samples = -(-count // min(count, samples)), min(count, samples)
    copies = [rows[index % len(rows)] | {"id": f"copy {index}"} for index in range(problems)]
    engine = models.make_engine(*local, count, tokens + 1)
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
        requests = models.sampling_requests(copies, samples)
        models.by_engine(engine, requests, [tokens + 1] * (samples * problems), greedy=False)
    shared, own = engine.work["prompt_tokens"] / engine.work["prompts"], 1 + tokens / 2
    bound, took = step_bound(local[0], ceilings, count, problems, shared, own), statistics.median(times)
    what = f"  {count:4} rows, {shared:.0f} + {own:.0f} tokens: {1e3 * took:8.2f} ms a step"
    share = f"bound {1e3 * bound:8.3f} ms: {100 * bound / took:5.1f} %"
    print(f"{what}, {share}, {count / took:8.0f} tokens/s", flush=True)


def asked(task: str, local: tuple, args, rows: list[dict]) -> tuple[list, list[int]]:
    """(requests of a task, the length of each sample)"""
    count = args.problems * args.samples
    if task == "judging":
        return models.judging_requests(rows, args.samples), [args.verdict_tokens] * count
    if task == "verdicts":
        requests = models.verdict_requests(islice(read_rows(args.paths), count))
        engine = models.make_engine(*local, count, 96, temperature=0.0, ends=True)
        lengths = {id(reply.row): reply.tokens for reply in engine(requests)}
        return requests, [lengths[id(request.row)] for request in requests]
    varied = models.log_normal(count, args.tokens, 3 * args.tokens)
    return models.sampling_requests(rows, args.samples), [args.tokens] * count if task == "fixed" else varied


def time_samples(task: str, local: tuple, name: str, args, rows: list[dict], folder: Path) -> None:
    """Check that the arms of a task agree, then time them."""
    import torch

    requests, lengths = asked(task, local, args, rows)
    count, new, greedy = len(lengths), lengths[0], task in ("judging", "verdicts")
    engine = models.make_engine(*local, count, max(lengths))
    theirs = models.by_generate(*local, requests, lengths, True)
    same = sum(one == other for one, other in zip(models.by_engine(engine, requests, lengths, True), theirs))
    if local[0].dtype == torch.float32 and same < count:
        sys.exit(f"{name}: {task}: only {same} of {count} greedy samples are the same; not timed")
    engine.work.clear()
    models.by_engine(engine, requests, lengths, greedy)
    equal = f"{same} of {count} greedy samples equal generate()'s"
    print(f" {task}: {sum(lengths)} new tokens; {equal}; the engine's work {dict(engine.work)}", flush=True)
    arms = {"engine": timed(lambda: models.by_engine(engine, requests, lengths, greedy))}
    arms["generate()"] = timed(lambda: models.by_generate(*local, requests, lengths, greedy))
    if greedy:
        alone = [replace(each, row=each.row | {"id": str(place)}) for place, each in enumerate(requests)]
        arms["engine, nothing shared"] = timed(lambda: models.by_engine(engine, alone, lengths, True))
    with contextlib.ExitStack() as stack:
        saved = models.save(name, folder / "saved") if args.swift or args.serve else None
        if args.swift and task == "fixed":
            job = {"model": str(saved), "samples": args.samples, "tokens": new, "threads": args.threads}
            worker = swift_arm.start(args.swift, job, requests, folder)
            stack.callback(worker.close)
            prompts = [encode_prompts(local[1], [models.chat(each)])["input_ids"][0] for each in requests]
            read, expected = worker.ask(count)["tokens"], [new * count, args.samples * sum(map(len, prompts))]
            if read != expected:
                sys.exit(f"{name}: ms-swift: {read}, not {expected} new and prompt tokens; not timed")
            arms["ms-swift, all rows together"] = lambda: worker.ask(count)["took"]
            arms["ms-swift, as by default"] = lambda: worker.ask(1)["took"]
        if args.serve and task in ("fixed", "judging"):
            served = served_arm.start(args.serve, saved, folder)
            stack.callback(served.close)
            arms |= served_arm.make_arms(served, requests, lengths, greedy)
        show(in_turns(arms, args.repeats))


def main() -> None:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--models", nargs="+", choices=models.SIZES, default=["toy", "5m"], help="default: %(default)s")
    add("--tasks", nargs="+", choices=TASKS, default=TASKS, help="default: all")
    add("--problems", type=int, default=8, help="default: %(default)s")
    add("--samples", type=int, default=16, help="samples, or candidates, a problem (default %(default)s)")
    add("--rows", nargs="+", type=int, default=[1, 64, 256, 512], help="rows a step (default %(default)s)")
    add("--side", type=int, help="pixels of an image's side (default: by the model)")
    add("--tokens", type=int, help="new tokens a sample, on average (default: by the model)")
    add("--verdict-tokens", type=int, help="new tokens a verdict (default: by the model)")
    add("--repeats", type=int, default=5, help="default: %(default)s")
    add("--threads", type=int, default=1, help="of every arm (default %(default)s)")
    add("--orm", help="model folder that 04 --orm has written; it judges the first of --paths")
    add("--paths", help="samples.jsonl")
    add("--swift", metavar="PYTHON", help="of ms-swift's environment (--side: a multiple of 112)")
    add("--serve", metavar="COMMAND", help="a server of {model} on {port}")
    args = parser.parse_args()
    import torch
    from roofline import copy_bandwidth, matmul_rate

    torch.set_num_threads(args.threads)
    device, dtype, _ = common.setup_kernels()
    ceilings = copy_bandwidth(device), matmul_rate(device, dtype)
    print(f"copies {ceilings[0] / 1e9:.1f} GB/s, products {ceilings[1] / 1e12:.3f} TFLOP/s", flush=True)
    given = args.side, args.tokens, args.verdict_tokens
    for name in ["toy"] if args.orm else models.choose(args.models, device):
        sizes = (value or usual for value, usual in zip(given, models.SIZES[name]))
        args.side, args.tokens, args.verdict_tokens = sizes
        with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
            local = common.load(args.orm) if args.orm else models.build(name, device, dtype)
            print(f"{name}: {local[0].num_parameters() / 1e6:.1f} M parameters, side {args.side}", flush=True)
            rows = models.make_rows(Path(folder), args.problems, args.side)
            for task in ["verdicts"] if args.orm else args.tasks:
                if task == "decode":
                    for count in args.rows:
                        time_steps(local, rows, count, args.samples, 2 * args.tokens, ceilings)
                else:
                    time_samples(task, local, name, args, rows, Path(folder))


if __name__ == "__main__":
    main()
