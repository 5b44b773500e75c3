"""Do what `python WORDS ...` would: a stage or module in a fork of tests/forks.py, others by Python itself.

python -IS tests/fork.py SOCKET WORDS ...
"""

import json
import os
import socket
import sys


def ask(address: str, words: list[str]) -> int:
    """The exit code of a command that the server runs."""
    call = {"words": words, "folder": os.getcwd(), "environment": {**os.environ}}
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        socket.send_fds(connection, [b"."], [0, 1, 2])
        connection.sendall(json.dumps(call).encode() + b"\n")
        return int(connection.recv(9) or 1)


if __name__ == "__main__":
    address, *words = sys.argv[1:]
    if not (words[0] == "-m" or words[0].startswith("0") or "RANKS" in os.environ):
        os.execv(sys.executable, [sys.executable, *words])
    code = ask(address, words)
    os.kill(os.getpid(), -code) if code < 0 else sys.exit(code)
