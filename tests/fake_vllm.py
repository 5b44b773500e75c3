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
import threading
import time
from pathlib import Path

from server import Server, choices

MODEL, PORT, DIE_AFTER = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]) if len(sys.argv) > 3 else 0
HABITS = Path(MODEL) / "generation_config.json"
DEFAULTS = json.loads(HABITS.read_text()) if HABITS.is_file() else {}
FOLDER = Path(os.environ["FAKE_VLLM"])  # of what the tests look at
SEEN, DIED_ONCE = FOLDER / "seen.jsonl", FOLDER / "died"


def text_of(body: dict, number: int) -> str:
    """Greedy the same for a prompt, else by seed and number."""
    if "response_format" in body:
        return '{"status": "CORRECT", "error_step": null, "error_analysis": null}'
    top_k = body.get("top_k", DEFAULTS.get("top_k"))
    is_greedy = "GREEDY" in os.environ or not body.get("temperature") or top_k == 1
    drawn = json.dumps(body["messages"], sort_keys=True) + (
        "" if is_greedy else f"{body.get('seed')} {number}"
    )
    return f"The answer to this problem is {int(hashlib.sha256(drawn.encode()).hexdigest(), 16) % 50}."


def behave(number: int, body: dict) -> tuple[int, dict, dict]:
    if number + 1 == DIE_AFTER and ("AGAIN" in os.environ or not DIED_ONCE.exists()):
        DIED_ONCE.touch()
        os._exit(9)
    with open(SEEN, "a") as file:
        file.write(json.dumps({name: body[name] for name in body if name != "messages"}) + "\n")
    return 200, choices(*(text_of(body, place) for place in range(body.get("n", 1)))), {}


child = subprocess.Popen(["sleep", "1000"])
with (FOLDER / "pids").open("a") as pids:
    pids.write(f"{os.getpid()} {child.pid}\n")
time.sleep(1)
Server(behave, seconds=0.0, told=[{"id": MODEL, "owned_by": "vllm"}], port=PORT)
threading.Event().wait()
