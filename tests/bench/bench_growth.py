"""Time and memory of sampling from 1,000 to 10,000 problems with a tiny random model: time should grow in proportion, memory hardly.

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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problems", nargs="+", type=int, default=[1000, 2000, 5000, 10000], help="default: %(default)s")
    parser.add_argument("--samples", type=int, default=8, help="a problem (default %(default)s)")
    parser.add_argument("--tokens", type=int, default=4, help="new tokens a sample (default %(default)s)")
    args = parser.parse_args()
    import tiny
    import torch
    from PIL import Image

    import common
    import engine

    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        Image.effect_noise((32, 32), 90).convert("RGB").save(f"{folder}/picture.png")
        flags = argparse.Namespace(temperature=1.0, top_p=1.0, top_k=0, max_tokens=args.tokens, max_pixels=0, batch_size=256, trust_remote_code=False)
        generate = engine.open_model(str(tiny.make_model("llava", Path(folder) / "model")), flags)

        def requests(count: int):
            for index in range(count):
                row = {"id": str(index), "question": f"{index} + {index} = ?", "images": [f"{folder}/picture.png"]}
                yield engine.Request(row, common.solve_messages(row), {k: common.derive_seed(index, k) for k in range(args.samples)})

        seconds = []
        sum(1 for _ in generate(requests(100)))  # warms up
        for count in args.problems:
            start, clock = time.process_time(), time.perf_counter()
            replies = sum(1 for _ in generate(requests(count)))
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            seconds.append(time.process_time() - start)
            print(f"{count} problems, {replies} samples: {seconds[-1]:.1f} s of the processor, {time.perf_counter() - clock:.1f} s, peak memory {peak:.0f} MB", flush=True)
        if len(seconds) > 1:
            exponent = statistics.linear_regression([math.log(count) for count in args.problems], [math.log(value) for value in seconds]).slope
            print(f"time grows as problems to the power of {exponent:.2f}")


if __name__ == "__main__":
    main()
