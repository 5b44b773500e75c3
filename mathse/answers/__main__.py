"""The worker process of workers.py: python -m mathse.answers MEGABYTES SECONDS

Reads one check a line on stdin, [response, problem, finish], and writes its result as a line on stdout.
"""

import json
import resource
import signal
import sys

from mathse.answers.check import check_answer


def main(megabytes: int, seconds: float) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))
    check_answer("$\\sqrt{8}$", {"answer": "2\\sqrt{2}"})  # imports and warms up before the clock runs
    print("ready", flush=True)
    for line in sys.stdin:
        signal.alarm(int(seconds) + 2)  # ends this process (the default action) should its parent be gone
        print(json.dumps(check_answer(*json.loads(line))), flush=True)
        signal.alarm(0)


if __name__ == "__main__":
    main(int(sys.argv[1]), float(sys.argv[2]))
