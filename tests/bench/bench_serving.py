"""Time the local engine against a real vLLM on the same cores: sampling and judging, in wall seconds and in
seconds of the processor (clients, servers and forks together).

Writes: a table on stdout.

    bash tests/serving.sh VENV            # makes the environment with vLLM, once
    python tests/bench/bench_serving.py --vllm VENV/bin/vllm

Arms: the engine with one thread and with all; generate(), one thread, all rows in one batch; vLLM, asked as
--serve asks it: `n` samples a request, and a request a sample. Hardly a reply ends early: the folders' end
token is that of videos. The arms take turns; figures are medians, ratios those of wall seconds to the first.
"""

import argparse
import contextlib
import io
import json
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB; what it takes by itself may be too much
ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests/bench")]

from bench_engine import SIZES, judging_requests, make_rows, sampling_requests
from engine_arms import Local, by_generate, save
from worker import versions

import common
from mathse.cli import Parser, add_generation_flags
from mathse.generate import open_model
from mathse.generate.serve import Served

COMMAND = (
    "{vllm} serve {{model}} --port {{port}} --host 127.0.0.1 --dtype float32 --max-model-len 2048 "
    "--block-size 32 --no-enable-chunked-prefill --generation-config vllm"
)


def parse_args() -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    add = parser.add_argument
    add("--vllm", required=True, help="the vllm command of an environment that has it")
    add("--models", nargs="+", choices=["toy", "5m"], default=["toy", "5m"], help="default: %(default)s")
    add("--problems", type=int, default=8, help="default: %(default)s")
    add("--samples", type=int, default=16, help="samples, or candidates, a problem (default %(default)s)")
    add("--repeats", type=int, default=5, help="default: %(default)s")
    return parser.parse_args()


def endless(folder: Path) -> Path:
    """The model folder without a token that ends a reply: its end token is that of videos."""
    for name in ("config.json", "generation_config.json"):
        content = json.loads((folder / name).read_text())
        parts = [content, content.get("text_config", {})]
        for part in parts:
            if "eos_token_id" in part:
                part["eos_token_id"] = 6
        (folder / name).write_text(json.dumps(content))
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer | {"eos_token": "<|video_pad|>"}))
    return folder


def flags(max_tokens: int, rows: int, **wanted: object) -> argparse.Namespace:
    parser = Parser("")
    add_generation_flags(parser, max_tokens=max_tokens)
    return argparse.Namespace(
        **vars(parser.parse_args([])) | {"batch_size": rows, "concurrency": 256} | wanted
    )


def processor_seconds(group: int | None) -> float:
    """Of this process, its ended children, and the processes of a group."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    total = sum(each.ru_utime + each.ru_stime for each in used)
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if group and int(fields[2]) == group:
                total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def take_turns(arms: dict[str, Callable[[], int]], repeats: int, group: int, expected: int) -> None:
    """Time the arms and print a line each. An arm returns its number of new tokens: a random model draws the
    end token now and then, so seconds are those of the expected number.
    """
    taken = {name: [] for name in arms}
    for turn in range(repeats + 1):  # the first warms up
        for name, work in arms.items():
            clock, cpu = time.perf_counter(), processor_seconds(group)
            tokens = work()
            if not 0.9 * expected < tokens <= expected:
                sys.exit(f"{name}: {tokens} new tokens, not {expected}")
            if turn:
                spent = time.perf_counter() - clock, processor_seconds(group) - cpu
                taken[name].append(tuple(value * expected / tokens for value in spent))
    first = statistics.median(wall for wall, _ in next(iter(taken.values())))
    for name, times in taken.items():
        wall, cpu = (statistics.median(column) for column in zip(*times))
        low, high = min(wall for wall, _ in times), max(wall for wall, _ in times)
        line = f"  {name:28} {wall:6.2f} s ({low:.2f}-{high:.2f}), processor {cpu:6.2f} s"
        print(f"{line}, {wall / first:5.2f} x", flush=True)


def measure_task(task: str, spec: str, served: Served, args, rows: list[dict], most: int) -> None:
    """Sampling or judging, `most` new tokens a reply."""
    import torch

    count, is_judging = args.problems * args.samples, task == "judging"
    requests = (judging_requests if is_judging else sampling_requests)(rows, args.samples)
    singly = [replace(each, seeds={k: seed}) for each in requests for k, seed in each.seeds.items()]
    settings = flags(most, count, temperature=0.0 if is_judging else 1.0)
    with contextlib.redirect_stdout(io.StringIO()):
        engine = open_model(spec, settings, common.load)
    asked_of = {"engine, 1 thread": engine, "engine, all threads": engine}
    asked_of["vLLM"] = open_model(served.spec, settings, common.load)
    threads = {"engine, all threads": os.cpu_count()}
    local = Local(common.load_model(spec, "cpu", torch.float32).eval(), common.load_processor(spec))

    def answered(name: str, asked: list) -> Callable[[], int]:
        def work() -> int:
            torch.set_num_threads(threads.get(name, 1))
            return sum(reply.tokens for reply in asked_of[name](iter(asked)))

        return work

    def generated() -> int:
        torch.set_num_threads(1)
        with torch.inference_mode():
            return sum(map(len, by_generate(local, requests, [most] * count, is_judging)))

    arms = {name: answered(name, requests) for name in asked_of}
    if not is_judging:
        arms["vLLM, a request a sample"] = answered("vLLM", singly)
    arms["generate(), 1 thread"] = generated
    print(f" {task}: {args.problems} problems x {args.samples}, {most} tokens each", flush=True)
    take_turns(arms, args.repeats, served.process.pid, most * count)


def measure(name: str, args: argparse.Namespace, folder: Path) -> None:
    side, tokens, verdict_tokens = SIZES[name]
    shutil.copytree(save(name, folder / "saved"), folder / "model", dirs_exist_ok=True)
    spec = str(endless(folder / "model"))
    rows = make_rows(folder, args.problems, side)
    command = COMMAND.format(vllm=args.vllm)
    served = Served(spec, flags(tokens, 1, serve=command, output=folder / "served"))
    try:
        measure_task("sampling", spec, served, args, rows, tokens)
        measure_task("judging", spec, served, args, rows, verdict_tokens)
    finally:
        served.close()


def main() -> None:
    args = parse_args()
    print(f"{os.cpu_count()} cores, {versions('torch', 'transformers')}; {args.vllm}", flush=True)
    for name in args.models:
        print(name, flush=True)
        with tempfile.TemporaryDirectory() as folder:
            measure(name, args, Path(folder))


if __name__ == "__main__":
    main()
