"""The toy world's teacher: an OpenAI-compatible server that knows the problems of some files and answers
the prompts of the loop.

It is asked exactly as GPT-4o would be (01: solve, 02 --annotate: feedback, 03: reflect), finds the problem by
question and image, answers from its solution, and sees which step of a response fails, and why. A seeded
share of its solutions is wrong, so that verification matters.

    python toy/teacher.py --problems toy/train.jsonl --port 8001
    python 01_sample.py --input toy/train.jsonl --output d0.jsonl --model http://127.0.0.1:8001/v1#teacher
"""

import base64
import hashlib
import importlib
import json
import os
import random
import re
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
import problems as toy

from common import SOLVE_PROMPT
from mathse.chat import question_text
from mathse.cli import Parser, real, whole
from mathse.images import open_image
from mathse.records import fail, read_rows


def prompt_pattern(prompt: str) -> re.Pattern:
    """A prompt with {fields} -> a pattern with named groups, so that a changed prompt is understood, too."""
    names = set()

    def group(match: re.Match) -> str:
        is_new = match[1] not in names
        names.add(match[1])
        return f"(?P<{match[1]}>.*?)" if is_new else f"(?P={match[1]})"

    return re.compile(re.sub(r"\\\{(\w+)\\\}", group, re.escape(prompt)) + r"\Z", re.DOTALL)


def problem_key(question: str, images: list[bytes]) -> bytes:
    """Of the decoded pixels, so that another encoding of the same image is found."""
    pixels = (hashlib.sha256(open_image(data, max_pixels=0).tobytes()).digest() for data in images)
    return hashlib.sha256(question.encode() + b"".join(pixels)).digest()


class Teacher:
    """Answers a prompt with images; the share `wrong` of its solutions is wrong, by `seed` and problem."""

    def __init__(self, paths: list[Path], wrong: float, seed: int):
        self.wrong, self.seed, self.problems = wrong, seed, {}
        for row in chain.from_iterable(map(read_rows, paths)):
            images = [Path(image).read_bytes() for image in row["images"]]
            self.problems[problem_key(question_text(row), images)] = row
        verify, reflect = map(importlib.import_module, ("02_verify", "03_reflect"))
        self.patterns = {"solve": prompt_pattern(SOLVE_PROMPT)}
        self.patterns["feedback"] = prompt_pattern(verify.FEEDBACK_PROMPT)
        self.patterns["reflect"] = prompt_pattern(reflect.REFLECT_PROMPT)

    def answer(self, text: str, images: list[bytes], request_seed: int) -> str | None:
        """The reply, or None for an unknown prompt or problem."""
        matches = ((kind, pattern.match(text)) for kind, pattern in self.patterns.items())
        kind, fields = next(((kind, match) for kind, match in matches if match), (None, None))
        row = self.problems.get(problem_key(fields["question"], images)) if kind else None
        if row is None:
            return None
        if kind == "feedback":
            return self.feedback(row, fields["response"])
        return self.solution(row, random.Random(f"{self.seed} {row['id']} {kind} {request_seed}"))

    def solution(self, row: dict, rng: random.Random) -> str:
        """The worked solution; in a seeded share of cases one that is wrong."""
        if rng.random() >= self.wrong:
            return row["solution"]
        family, options = toy.FAMILIES[row["subject"]], row.get("options") or []
        return toy.wrong_solution(family, toy.parse_numbers(row), options, "The picture shows", rng)[0]

    def feedback(self, row: dict, response: str) -> str:
        """The first step that differs from the worked solution, and what is wrong with it."""
        told = dict.fromkeys(("error_step", "error_analysis", "error_type", "improvement_suggestion"))
        mistake = toy.first_mistake(row["solution"], response)
        if mistake is None:
            return json.dumps({"status": "CORRECT"} | told)
        _, kind = toy.diagnosis(mistake[0], row["solution"])
        told = dict(zip(told, (*mistake, kind, "Look at this step again.")))
        return json.dumps({"status": "WRONG"} | told)


def text_and_images(content: str | list[dict]) -> tuple[str, list[bytes]]:
    """Of a message as OpenAI's API has it, its images as data URLs."""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    urls = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    text = "".join(part["text"] for part in parts if part["type"] == "text")
    return text, [base64.b64decode(url.split(",", 1)[1]) for url in urls]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def reply(self, status: int, content: dict) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.reply(200, {"object": "list", "data": [{"id": "teacher", "object": "model"}]})

    def do_POST(self) -> None:
        try:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            text, images = text_and_images(body["messages"][-1]["content"])
            answer = self.server.teacher.answer(text, images, body.get("seed") or 0)
        except (ValueError, LookupError, TypeError, OSError) as error:
            return self.reply(400, {"error": {"message": f"{type(error).__name__}: {error}"}})
        if answer is None:
            return self.reply(404, {"error": {"message": "unknown prompt or problem"}})
        read, written = len(text) // 4 + 85 * len(images), max(1, len(answer) // 4)
        message = {"role": "assistant", "content": answer}
        content = {"object": "chat.completion", "model": "teacher"}
        content["choices"] = [{"index": 0, "message": message, "finish_reason": "stop"}]
        content["usage"] = {"prompt_tokens": read, "completion_tokens": written}
        self.reply(200, content)

    def log_message(self, *arguments) -> None:
        pass


def serve_in_background(server: ThreadingHTTPServer, parent: int) -> None:
    """Go on in a process of its own, which ends when `parent` does."""
    if os.fork():
        os._exit(0)
    null = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):  # whoever reads our output need not wait for us
        os.dup2(null, stream)
    # at each turn of its loop
    server.service_actions = lambda: Path(f"/proc/{parent}").exists() or os._exit(0)


def main() -> None:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--problems", type=Path, nargs="+", required=True, help="problems.jsonl files of the toy world")
    add("--port", type=whole(0), default=0, help="TCP port on 127.0.0.1 (default %(default)s: any free one)")
    add("--background", type=whole(1), metavar="PID", help="print the address, go on until process PID ends")
    share = "share of its solutions that are wrong (default %(default)s)"
    add("--wrong", type=real(0, 1), default=0.1, help=share)
    add("--seed", type=whole(0), default=0, help="draws which ones are wrong (default %(default)s)")
    args = parser.parse_args()
    if not (files := [path for path in args.problems if path.is_file()]):
        fail(f"--problems: {args.problems[0]}: no such file; python toy/problems.py makes toy/train.jsonl")
    try:
        server = ThreadingHTTPServer(("127.0.0.1", args.port), Handler)
    except (OSError, OverflowError) as error:
        fail(f"--port: {args.port}: {error}; choose another")
    address = f"http://127.0.0.1:{server.server_port}/v1#teacher"
    if args.background:
        print(address, flush=True)
        serve_in_background(server, args.background)
    server.teacher = Teacher(files, args.wrong, args.seed)  # meanwhile requests wait
    if not args.background:
        print(f"teacher of {', '.join(map(str, args.problems))} on {address}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
