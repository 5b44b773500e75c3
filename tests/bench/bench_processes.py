"""Fine-tuning on a CPU by one process with all threads and by a process a core: 04_finetune.py as a user
starts it, in turns. Tokens a second of the median step, and seconds of the whole command.

    bash run_rounds.sh
    python tests/bench/bench_processes.py --input R/orm/train.jsonl --model R/round_0/model  # R: runs/default
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


def parse_args() -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    add = parser.add_argument
    add("--input", required=True, help="a training file")
    add("--model", required=True, help="a model folder")
    add("--rows", type=int, default=480, help="rows to train on (default %(default)s)")
    add("--batch-size", type=int, default=16, help="rows a step (default %(default)s)")
    add("--repeats", type=int, default=3, help="default: %(default)s")
    return parser.parse_args()


def finetune(args: argparse.Namespace, processes: int) -> tuple[float, float]:
    """(tokens a second of the median step, seconds of the command)"""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "04_finetune.py", "--input", args.input, "--output", f"{folder}/model"]
        command += ["--model", args.model, "--limit", args.rows, "--lr", "1e-4", "--processes", processes]
        command += ["--batch-size", args.batch_size, "--micro-batch", args.batch_size]
        begun = time.monotonic()
        subprocess.run(list(map(str, command)), cwd=ROOT, check=True, capture_output=True)
        took = time.monotonic() - begun
        lines = Path(f"{folder}/model/train_log.jsonl").read_text().splitlines()
    return statistics.median(json.loads(line)["tokens_per_second"] for line in lines), took


def main() -> None:
    args = parse_args()
    counts = {"one process": 1, "a process a core": len(os.sched_getaffinity(0))}
    found = {name: [] for name in counts}
    for _ in range(args.repeats):
        for name, count in counts.items():
            found[name].append(finetune(args, count))
    for name, values in found.items():
        speeds, seconds = zip(*values)
        shown = f"{statistics.median(speeds):8.0f} tokens/s ({min(speeds):.0f}-{max(speeds):.0f})"
        print(
            f"{name:18} {shown}, {statistics.median(seconds):6.1f} s ({min(seconds):.1f}-{max(seconds):.1f})"
        )


if __name__ == "__main__":
    main()
