"""What the toy base model can do: exact match of its greedy replies on fresh examples of each of its lessons.

    python tests/bench/base_skills.py --model toy/base --examples 200
"""

import argparse
import json
import random
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "toy")]

import pretrain
from common import add_model_flags, user_message
from engine import Request, open_model


def verdict(reply: str) -> str:
    """What a check comes to: the first line that is wrong (Step n of the ORM's form), or that all is right."""
    try:
        return str(json.loads(reply)["error_step"])
    except (ValueError, KeyError, TypeError):
        return str([line.startswith("Yes") for line in reply.split("\n")])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="toy/base")
    parser.add_argument("--examples", type=int, default=200, help="of each lesson (default %(default)s)")
    add_model_flags(parser, max_tokens=160)
    args = parser.parse_args()
    generate = open_model(args.model, args)
    with tempfile.TemporaryDirectory() as folder:
        for task, _ in pretrain.TASKS:
            rng, requests = random.Random(f"fresh {args.seed} {task.__name__}"), []
            for number in range(args.examples):
                example, path = task(rng), f"{folder}/{task.__name__}-{number}.png"
                if example.picture:
                    example.picture.image.save(path)
                images = [path] if example.picture else []
                requests.append(Request({"id": str(number), "images": images, "right": example.reply}, user_message(example.text, images), {0: 0}))
            replies = [(reply.text, reply.row["right"]) for reply in generate(requests)]
            exact = sum(text == right for text, right in replies) / len(replies)
            checks = f", the right verdict {sum(verdict(text) == verdict(right) for text, right in replies) / len(replies):.1%}" if "check" in task.__name__ else ""
            print(f"{task.__name__:<18} word for word {exact:.1%} of {len(replies)}{checks}", flush=True)


if __name__ == "__main__":
    main()
