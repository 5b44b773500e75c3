"""The toy world's teacher: an OpenAI-compatible server that knows the problems of some files and answers
the prompts of the loop.

It is asked exactly as GPT-4o would be (01: solve, 02 --annotate: feedback, 03: reflect), finds the problem by
question and image, and answers from its solution; for problems of the toy world it also sees which step of a
response fails, and why. A seeded share of its solutions is wrong, so that verification matters.

    python toy/teacher.py --problems toy/train.jsonl --port 8001
    python 01_sample.py --input toy/train.jsonl --output distilled.jsonl --model
    http://127.0.0.1:8001/v1#teacher --limit 100
"""

import base64
import functools
import hashlib
import importlib
import json
import os
import random
import re
import sys
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
import problems as toy

from common import CLOSING, SOLVE_PROMPT
from mathse.chat import question_text
from mathse.cli import Parser, real, whole
from mathse.images import open_image
from mathse.records import fail, read_rows


def prompt_pattern(prompt: str) -> re.Pattern:
    """A prompt with {fields} -> a pattern with named groups: a prompt changed in its script is still
    understood here.
    """
    return re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>.*?)", re.escape(prompt)) + r"\Z", re.DOTALL)


def image_key(data: bytes) -> bytes:
    """By the decoded pixels, so that another encoding of the same image is found."""
    return hashlib.sha256(open_image(data, max_pixels=0).tobytes()).digest()


def problem_key(question: str, images: list[bytes]) -> bytes:
    return hashlib.sha256(question.encode() + b"".join(images)).digest()


class Teacher:
    """Answers a prompt with images.

    `wrong`: the share of its solutions that are wrong, by `seed` and problem.
    """

    def __init__(self, paths: list[Path], wrong: float, seed: int):
        self.wrong, self.seed, self.problems, self.by_question = wrong, seed, {}, {}
        for row in (row for path in paths for row in read_rows(path)):
            text = question_text(row)
            self.problems[
                problem_key(text, [image_key(Path(image).read_bytes()) for image in row["images"]])
            ] = row
            self.by_question.setdefault(text, row)
        stages = {name: importlib.import_module(name) for name in ("02_verify", "03_reflect")}
        self.prompts = {
            "solve": prompt_pattern(SOLVE_PROMPT),
            "feedback": prompt_pattern(stages["02_verify"].FEEDBACK_PROMPT),
            "reflect": prompt_pattern(stages["03_reflect"].REFLECT_PROMPT),
        }

    def answer(self, text: str, images: list[bytes], request_seed: int) -> str | None:
        """The reply, or None for an unknown prompt or problem."""
        kind, fields = next(
            (
                (kind, match.groupdict())
                for kind, pattern in self.prompts.items()
                if (match := pattern.match(text))
            ),
            (None, {}),
        )
        if kind is None:
            return None
        row = self.problems.get(problem_key(fields["question"], [image_key(data) for data in images]))
        # scaled-down images: the question alone decides, if it can
        if row is None and len(self.by_question) == len(self.problems):
            row = self.by_question.get(fields["question"])
        if row is None:
            return None
        rng = random.Random(f"{self.seed} {row['id']} {kind} {request_seed}")
        if kind == "feedback":
            return self.feedback(row, fields["response"])
        return self.solution(row, rng)

    def solution(self, row: dict, rng: random.Random) -> str:
        """The worked solution; in a seeded share of cases one that is wrong."""
        steps = (row.get("solution") or "").strip()
        if rng.random() >= self.wrong:
            return steps if CLOSING in steps else f"{steps}\n{CLOSING} {row['answer']}.".strip()
        family = toy.FAMILIES.get(row.get("subject"))
        numbers = toy.parse_numbers(row) if family else None
        if numbers:
            return toy.wrong_solution(family, numbers, row.get("options") or [], "The picture shows", rng)[0]
        others = [option for option in row.get("options") or [] if option != row["answer"]] or [
            f"not {row['answer']}"
        ]
        return f"{steps.replace(str(row['answer']), others[0])}\n{CLOSING} {others[0]}."

    def feedback(self, row: dict, response: str) -> str:
        """The first step that differs from the worked solution, and what is wrong with it, without the
        right answer.
        """
        mistake = toy.first_mistake(row.get("solution") or "", response)
        if mistake is None:
            names = ("error_step", "error_analysis", "error_type", "improvement_suggestion")
            return json.dumps({"status": "CORRECT"} | dict.fromkeys(names))
        step, analysis = mistake
        if row.get("subject") not in toy.FAMILIES:
            analysis = "This does not follow from what the image shows."
        told = {"error_step": step, "error_analysis": analysis, "error_type": error_type(row, step)}
        return json.dumps({"status": "WRONG"} | told | {"improvement_suggestion": "Look at this step again."})


def error_type(row: dict, step: str) -> str | None:
    """Of a wrong step: the picture's numbers, a sum that comes out wrong, another step; None if unclear."""
    if row.get("subject") not in toy.FAMILIES:
        return None
    if calculation := re.search(r"(\d+) ([-+*]) (\d+) = (-?\d+)\.?$", step):
        left, operation, right, result = calculation.groups()
        comes_out = toy.OPERATIONS[operation](int(left), int(right)) == int(result)
        return "reasoning" if comes_out else "calculation"
    if step.startswith(CLOSING):
        return "reasoning"
    said, shown = (
        re.findall(r"\d+", text.removeprefix("Step 1:")) for text in (step, row["solution"].split("\n")[0])
    )
    return "vision" if "picture shows" in step and said != shown else None


def handler(teacher: Callable[[], Teacher]) -> type:
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
                content = body["messages"][-1]["content"]
                parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
                text = "".join(part["text"] for part in parts if part["type"] == "text")
                images = [
                    base64.b64decode(part["image_url"]["url"].split(",", 1)[1])
                    for part in parts
                    if part["type"] == "image_url"
                ]
                answer = teacher().answer(text, images, body.get("seed") or 0)
            except (ValueError, KeyError, TypeError, OSError) as error:
                return self.reply(400, {"error": {"message": f"{type(error).__name__}: {error}"}})
            if answer is None:
                return self.reply(404, {"error": {"message": "unknown prompt or problem"}})
            usage = {
                "prompt_tokens": len(text) // 4 + 85 * len(images),
                "completion_tokens": max(1, len(answer) // 4),
            }
            message = {"role": "assistant", "content": answer}
            self.reply(
                200,
                {
                    "object": "chat.completion",
                    "model": "teacher",
                    "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                    "usage": usage,
                },
            )

        def log_message(self, *arguments) -> None:
            pass

    return Handler


def serve_in_background(server: ThreadingHTTPServer, parent: int) -> None:
    """Go on in a process of its own, which ends when `parent` does."""
    if os.fork():
        os._exit(0)
    null = os.open(os.devnull, os.O_RDWR)
    for stream in range(3):  # whoever reads our output need not wait for us
        os.dup2(null, stream)

    def follow() -> None:
        while Path(f"/proc/{parent}").exists():
            time.sleep(0.2)
        os._exit(0)

    threading.Thread(target=follow, daemon=True).start()


def main() -> None:
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--problems", type=Path, nargs="+", required=True, help="problems.jsonl files with solutions")
    add("--port", type=whole(0), default=0, help="TCP port on 127.0.0.1 (default %(default)s: any free one)")
    add("--background", type=whole(1), metavar="PID", help="print the address, go on until process PID ends")
    add(
        "--wrong",
        type=real(0, 1),
        default=0.1,
        help="share of its solutions that are wrong (default %(default)s)",
    )
    add("--seed", type=whole(0), default=0, help="draws which ones are wrong (default %(default)s)")
    args = parser.parse_args()

    @functools.cache
    def read() -> Teacher:
        files = [path for path in args.problems if path.is_file() and path.suffix != ".parquet"]
        return Teacher(files, args.wrong, args.seed)

    lock = threading.Lock()

    def teacher() -> Teacher:  # read at the first request, so that a run which asks nothing does not wait
        with lock:
            return read()

    try:
        server = ThreadingHTTPServer(("127.0.0.1", args.port), handler(teacher))
    except OSError as error:
        fail(f"--port: {args.port}: {error.strerror}; choose another")
    server.daemon_threads = True
    address = f"http://127.0.0.1:{server.server_port}/v1#teacher"
    if args.background:
        print(address, flush=True)
        serve_in_background(server, args.background)
    else:
        teacher()
        print(f"teacher of {', '.join(map(str, args.problems))} on {address}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
