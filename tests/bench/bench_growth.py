"""Time and memory of sampling from 1,000 to 10,000 problems with a tiny random model: time should grow in
proportion, memory hardly.

    python tests/bench/bench_growth.py
    python tests/bench/bench_growth.py --problems 100 1000
"""

import argparse
import math
import os
import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import common
from mathse.chat import user_message
from mathse.generate import Request, open_model
from mathse.records import derive_seed


def parse_args() -> argparse.Namespace:
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    add = parser.add_argument
    add("--problems", nargs="+", type=int, default=[1000, 2000, 5000, 10000], help="default: %(default)s")
    add("--samples", type=int, default=8, help="a problem (default %(default)s)")
    add("--tokens", type=int, default=4, help="new tokens a sample (default %(default)s)")
    return parser.parse_args()


def main() -> None:
    args = parse_args()
    import tiny
    import torch
    from PIL import Image

    torch.set_num_threads(1)
    sampling = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "max_tokens": args.tokens, "max_pixels": 0}
    flags = argparse.Namespace(**sampling, batch_size=256, trust_remote_code=False, serve=None, processes=1)
    with tempfile.TemporaryDirectory() as folder:
        image = f"{folder}/image.png"
        Image.effect_noise((32, 32), 90).convert("RGB").save(image)
        generate = open_model(str(tiny.make_model("llava", Path(folder) / "model")), flags, common.load)

        def requests(count: int):
            for index in range(count):
                row = {"id": str(index), "question": f"{index} + {index} = ?", "images": [image]}
                messages = user_message(common.solve_prompt(row), row["images"])
                yield Request(row, messages, {k: derive_seed(index, k) for k in range(args.samples)})

        seconds = []
        sum(1 for _ in generate(requests(100)))  # warms up
        for count in args.problems:
            start, clock = time.process_time(), time.perf_counter()
            replies = sum(1 for _ in generate(requests(count)))
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            seconds.append(time.process_time() - start)
            took = f"{seconds[-1]:.1f} s of the processor, {time.perf_counter() - clock:.1f} s"
            print(f"{count} problems, {replies} samples: {took}, peak memory {peak:.0f} MB", flush=True)
        if len(seconds) > 1:
            sizes = [math.log(count) for count in args.problems]
            exponent = statistics.linear_regression(sizes, [math.log(value) for value in seconds]).slope
            print(f"time grows as problems to the power of {exponent:.2f}")


if __name__ == "__main__":
    main()
