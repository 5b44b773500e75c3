"""Output files that survive a kill, a full disk and a second call, and the split of their rows among ranks.

A rank appends whole lines to OUT.part/rank_R.jsonl. When all rows are there, they are joined in the order of
their keys and the result is renamed to OUT: what is written does not depend on the number of ranks or on the
order in which rows arrived. A rerun drops a torn last line and skips the keys that are there.
"""

import contextlib
import fcntl
import itertools
import json
import os
import shutil
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from mathse.launch import meet, processes
from mathse.records import fail, relative_images, row_key, written_rows

SYNC_SECONDS = 5.0  # a power cut loses the rows written since
EARLIER = "earlier.jsonl"  # in OUT.part: a complete output whose failed rows are tried again
HOPELESS = 20  # rows that have all failed: then they are no result
IMAGE_LENGTH, REPLY_LENGTH = 2000, 1000  # characters that an image, and a reply, count for in keys_of_rank()


def keys_of_rank(lengths: dict[str, int]) -> list[str]:
    """This rank's part of {row_key(): expected length}. The rows of a problem share a prompt, so they stay
    together. The longest problem goes first, each to the rank with least so far.
    """
    rank, ranks = processes()
    problems = defaultdict(list)
    for key in lengths:
        problems[key.rpartition(", ")[0].rpartition(", ")[0]].append(key)
    sizes = {name: sum(lengths[key] for key in keys) for name, keys in problems.items()}
    loads, mine = [0] * ranks, []
    for name in sorted(problems, key=lambda name: (-sizes[name], name)):
        number = loads.index(min(loads))
        loads[number] += sizes[name]
        if number == rank:
            mine += problems[name]
    return mine


def expected_length(row: dict) -> int:
    """What a row costs a model, in characters read and written."""
    texts = len(row["question"]) + len(row.get("response") or "")
    return texts + IMAGE_LENGTH * len(row["images"]) + REPLY_LENGTH


# ---------------------------------------------------------------- output files


class Output:
    """The rows of one output file. `recipe` (mathse/recipe.py) says where it lies and how it is made.

    `done`: keys of the rows that earlier calls wrote, without those that are to be tried again.
    """

    def __init__(self, recipe):
        self.recipe, self.path, self.folder = recipe, recipe.output, recipe.part
        recipe.start()
        self.file, self.synced = None, time.monotonic()
        self.done = {key for key, place in self.index().items() if not is_open(place)}

    def write(self, row: dict) -> None:
        """Append a row to this rank's file. Raises OSError if the disk is full, with the file as before."""
        if self.file is None:
            path = self.folder / f"rank_{processes()[0]}.jsonl"
            drop_torn_line(path)
            self.file = path.open("ab", buffering=0)
        left = memoryview(line_of(relative_images(row, self.path.parent)))
        before = os.fstat(self.file.fileno()).st_size
        try:
            while left:
                left = left[self.file.write(left) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                self.file.truncate(before)
            raise OSError(error.errno, error.strerror, str(self.folder)) from None
        if time.monotonic() - self.synced > SYNC_SECONDS:
            os.fsync(self.file.fileno())
            self.synced = time.monotonic()

    def index(self) -> dict[str, tuple[bool, Path, int]]:
        """{key: (has it failed, part file, offset of its line)}; of a key's rows the last good one."""
        found = {}
        for path in sorted(self.folder.glob("*.jsonl")):
            with path.open("rb") as file:
                for offset, _, row in lines_of(file):
                    key = row_key(row)
                    if key not in found or found[key][0] or not has_failed(row):
                        found[key] = has_failed(row), path, offset
        return found

    def rows(self) -> Iterator[dict]:
        """The rows written so far by all ranks, image paths relative to the output."""
        yield from (json.loads(line) for line in read_lines(self.index().values()))

    def finish(self, keys: Iterable[str], settle: Callable = iter) -> None:
        """Join the rows with these keys, in this order.

        `settle`: the rows of a problem, which follow each other -> these rows with what they decide together.
        Rows that are missing were not asked for because an endpoint stopped the stage: exit code 3.
        """
        meet()
        if processes()[0] == 0:
            index, keys = self.index(), list(keys)
            missing = sum(key not in index or is_open(index[key]) for key in keys)
            if missing:
                self.recipe.pause()
                print(f"{self.folder}: {len(keys) - missing} of {len(keys)} rows are written", flush=True)
                sys.exit(3)
            if len(keys) >= HOPELESS and all(index[key][0] for key in keys):
                first = json.loads(next(read_lines([index[keys[0]]])))
                reason = f"the first: {first.get('reason') or first.get('judge_error')}"
                remedy = f"mend the cause, remove {self.folder} and call again"
                fail(f"{self.folder}: all {len(keys)} rows have failed, {reason}; {remedy}", 1)
            joined, tokens = self.folder / "joined", [0, 0]
            with joined.open("wb") as file:
                rows = (json.loads(line) for line in read_lines([index[key] for key in keys]))
                groups = itertools.groupby(rows, key=lambda row: (row["id"], row.get("benchmark")))
                for row in itertools.chain.from_iterable(settle(list(group)) for _, group in groups):
                    file.write(line_of(row))
                    tokens = [total + new for total, new in zip(tokens, tokens_of(row))]
            self.recipe.complete(joined, rows=len(keys), tokens=tokens)
        meet()


def is_open(place: tuple[bool, Path, int]) -> bool:
    """Whether the row at this place of an index is one that is to be tried again."""
    failed, path, _ = place
    return failed and path.name == EARLIER


def line_of(row: dict) -> bytes:
    return json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n"


def hold(folder: Path):
    """An open file that keeps other calls off an unfinished output; it ends the command if one is at work.

    A shared disk may have no locks: correctness does not depend on them.
    """
    file = (folder / "lock").open("ab")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        fail(f"{folder}: is being written by another process; wait for it or end it")
    except OSError:
        pass
    return file


def drop_torn_line(path: Path) -> None:
    """Cut off what stands behind the last whole line: a kill or a full disk left it."""
    with path.open("a+b") as file:
        file.truncate(max((end for _, end, _ in lines_of(file)), default=0))


def lines_of(file) -> Iterator[tuple[int, int, dict]]:
    """(offset, its end, row) of a file's lines, up to one that is torn or still being written."""
    offset = 0
    file.seek(0)
    with contextlib.suppress(ValueError):
        while (line := file.readline()).endswith(b"\n"):
            row = json.loads(line)
            yield offset, offset + len(line), row
            offset += len(line)


def read_lines(places: Iterable[tuple[bool, Path, int]]) -> Iterator[bytes]:
    """The lines at these places of an index."""
    with contextlib.ExitStack() as stack:
        files = {}
        for _, path, offset in places:
            if path not in files:
                files[path] = stack.enter_context(path.open("rb"))
            files[path].seek(offset)
            yield files[path].readline()


def tokens_of(row: dict) -> tuple[int, int]:
    """(tokens read, tokens written) by the model that made a row: of a verified row the judge."""
    if "judge_reply" in row:
        return tuple(row.get("judge_tokens") or (0, 0))
    return row.get("prompt_tokens") or 0, row.get("tokens") or 0


def has_failed(row: dict) -> bool:
    """Whether a row is worth another try: it failed or, of a verified row, its judge did."""
    return bool(row.get("judge_error")) if "judge_reply" in row else row.get("finish") == "error"


def failed_rows(path: Path) -> int:
    """How many rows of a file failed; 0 if there is no such file."""
    return sum(map(has_failed, written_rows(path)))


# ---------------------------------------------------------------- whole files


def replace(part: Path, path: Path) -> None:
    """Rename what is complete; after a power cut it is there whole or not at all."""
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def write_json(path: Path, content: object) -> None:
    """Write a JSON file, whole or not at all. Half a character is escaped, as in JSON."""
    part = Path(f"{path}.part")
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    part.write_text(text, encoding="utf-8", errors="backslashreplace")
    replace(part, path)


def remove(*paths: Path) -> None:
    """Remove files and folders, whether they are there or not."""
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
