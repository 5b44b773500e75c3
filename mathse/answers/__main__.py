"""The worker process of workers.py: python -m mathse.answers MEGABYTES SECONDS

Reads one check a line on stdin, [response, problem, finish], and writes its result as a line on stdout.
"""

import json
import resource
import signal
import sys

from mathse.answers.check import check_answer, equal_in_mathematics


def main(megabytes: int, seconds: float) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))
    equal_in_mathematics("\\sqrt{4}", "2", None)  # import and warm up before the clock runs
    print("ready", flush=True)
    for line in sys.stdin:
        signal.alarm(int(seconds) + 2)  # ends this process (the default action) should its parent be gone
        try:
            result = check_answer(*json.loads(line))
        except Exception:  # of sympy, on strange input: RecursionError, MemoryError, TypeError ...
            result = {"answer_check": "undecided", "extracted": None, "rule": "crash"}
        print(json.dumps(result), flush=True)
        signal.alarm(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
