"""What the toy base model can do: exact match of its greedy replies on fresh examples of each of its lessons.

python tests/bench/base_skills.py --model toy/base --examples 200
"""

import json
import random
import sys
import tempfile
from pathlib import Path
from statistics import mean

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "toy")]

import pretrain

import common
from mathse.chat import user_message
from mathse.cli import Parser, add_generation_flags
from mathse.generate import Request, open_model


def verdict(reply: str) -> str:
    """What a check comes to: the first wrong line (Step n of the ORM's form), or that all is right."""
    try:
        return str(json.loads(reply)["error_step"])
    except (ValueError, KeyError, TypeError):
        return str([line.startswith("Yes") for line in reply.split("\n")])


def make_request(task, number: int, rng: random.Random, folder: str) -> Request:
    example, images = task(rng), []
    if example.picture:
        images = [f"{folder}/{task.__name__}-{number}.png"]
        example.picture.image.save(images[0])
    row = {"id": str(number), "images": images, "right": example.reply}
    return Request(row, user_message(example.text, images), {0: 0})


def main() -> None:
    parser = Parser(__doc__)
    parser.add_argument("--model", default="toy/base", help="default: %(default)s")
    parser.add_argument("--examples", type=int, default=200, help="of each lesson (default %(default)s)")
    add_generation_flags(parser, max_tokens=160)
    args = parser.parse_args()
    generate = open_model(args.model, args, common.load)
    with tempfile.TemporaryDirectory() as folder:
        for task in pretrain.TASKS:
            rng = random.Random(f"fresh {args.seed} {task.__name__}")
            requests = [make_request(task, number, rng, folder) for number in range(args.examples)]
            replies = [(reply.text, reply.row["right"]) for reply in generate(requests)]
            exact = mean(text == right for text, right in replies)
            agree = mean(verdict(text) == verdict(right) for text, right in replies)
            checked = f", the right verdict {agree:.1%}" if "check" in task.__name__ else ""
            print(f"{task.__name__:<18} word for word {exact:.1%} of {len(replies)}{checked}", flush=True)


if __name__ == "__main__":
    main()
