"""A server that behaves as vLLM was seen to, for the tests of --serve.

python fake_vllm.py MODEL PORT [DIE_AFTER]. It is up after a second, says that it is a vLLM, takes what a
request does not say from the folder's generation_config.json (top_k 1: greedy), gives `n` texts, and has a
child that outlives it if nobody ends it.
With DIE_AFTER it dies at that request, once, or with AGAIN in the environment each time.
"""

import hashlib
import json
import os
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

MODEL, PORT, DIE_AFTER = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 0
HABITS = Path(MODEL) / "generation_config.json"
DEFAULTS = json.loads(HABITS.read_text()) if HABITS.is_file() else {}
COUNT = []


def text_of(body: dict, number: int) -> str:
    """Greedy the same for a prompt, else by seed and number."""
    prompt = json.dumps(body["messages"], sort_keys=True)
    if "response_format" in body:
        return '{"status": "CORRECT", "error_step": null, "error_analysis": null}'
    is_greedy = (
        "GREEDY" in os.environ or not body.get("temperature") or body.get("top_k", DEFAULTS.get("top_k")) == 1
    )
    luck = "" if is_greedy else f"{body.get('seed')} {number}"
    return (
        f"The answer to this problem is {int(hashlib.sha256((prompt + luck).encode()).hexdigest(), 16) % 50}."
    )


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        pass

    def send(self, body: dict) -> None:
        data = json.dumps(body).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        self.send({"object": "list", "data": [{"id": MODEL, "owned_by": "vllm"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        COUNT.append(body)
        if DIE_AFTER and len(COUNT) == DIE_AFTER and ("AGAIN" in os.environ or not DIED_ONCE.exists()):
            DIED_ONCE.touch()
            os._exit(9)
        with open(SEEN, "a") as file:
            file.write(json.dumps({name: body[name] for name in body if name != "messages"}) + "\n")
        texts = [text_of(body, number) for number in range(body.get("n", 1))]
        choices = [{"message": {"content": text}, "finish_reason": "stop"} for text in texts]
        self.send({"choices": choices, "usage": {"prompt_tokens": 7, "completion_tokens": 3 * len(texts)}})


FOLDER = Path(os.environ["FAKE_VLLM"])  # of what the tests look at
SEEN, DIED_ONCE = FOLDER / "seen.jsonl", FOLDER / "died"
child = subprocess.Popen(["sleep", "1000"])
with (FOLDER / "pids").open("a") as pids:
    pids.write(f"{os.getpid()} {child.pid}\n")
time.sleep(1)
ThreadingHTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
