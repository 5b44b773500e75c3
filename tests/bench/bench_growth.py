"""Time and memory of sampling from 1,000 to 10,000 problems, 8 samples of 4 tokens each, with a tiny random
model: time should grow in proportion, memory hardly.

    python tests/bench/bench_growth.py
    python tests/bench/bench_growth.py --problems 100 1000
"""

import math
import os
import statistics
import sys
import tempfile
from functools import partial
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from arms import peak_memory, timed

import common
from mathse.cli import Parser
from mathse.generate import open_model


def main() -> None:
    parser = Parser(__doc__)
    counts = [1000, 2000, 5000, 10000]
    parser.add_argument("--problems", nargs="+", type=int, default=counts, help="default: %(default)s")
    args = parser.parse_args()
    import tiny
    import torch
    from models import make_rows, sampling_requests
    from served_arm import flags

    torch.set_num_threads(1)
    settings = flags(temperature=1.0, max_tokens=4, max_pixels=0, batch_size=256, processes=1)
    with tempfile.TemporaryDirectory() as folder:
        [row] = make_rows(Path(folder), 1, 32)
        generate = open_model(str(tiny.make_model("llava", Path(folder) / "model")), settings, common.load)

        def sample(count: int) -> None:
            rows = (row | {"id": str(n), "question": f"{n} + {n} = ?"} for n in range(count))
            sum(1 for _ in generate(request for each in rows for request in sampling_requests([each], 8)))

        sample(100)  # warms up
        points = []
        for count in args.problems:
            took = timed(partial(sample, count))()
            points.append((math.log(count), math.log(took["s of the processor"])))
            told = ", ".join(f"{value:.1f} {unit}" for unit, value in took.items())
            print(f"{count} problems, {8 * count} samples: {told}, peak {peak_memory():.0f} MB", flush=True)
        if len(points) > 1:
            exponent = statistics.linear_regression(*zip(*points)).slope
            print(f"time grows as problems to the power of {exponent:.2f}")


if __name__ == "__main__":
    main()
