"""Output files that survive a kill, a full disk and a second call, and the split of their rows among
processes.

A stage appends whole lines to OUT.part/rank_R.jsonl, a file of its own in each process. When all rows are
there, the first process joins the parts in the order of their keys and renames the result to OUT: what is
written does not depend on the number of processes or on the order in which rows arrived.

A rerun reads all parts: it drops a torn last line, skips the keys that are there and tries failed rows
again. Rows are shared out over all keys, whether done or not, so that processes agree without asking each
other.
"""

import contextlib
import errno
import fcntl
import heapq
import json
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from datetime import timedelta
from pathlib import Path

from mathse.records import fail, relative_images, row_key

SYNC_SECONDS = 5.0  # a power cut loses the rows written since
IMAGE_LENGTH, REPLY_LENGTH = (
    2000,
    1000,
)  # characters that an image, and a reply, count for when work is shared out
DISK_ERRORS = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO, errno.ESTALE,
    errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG,
}  # fmt: skip


# ---------------------------------------------------------------- processes


def processes() -> tuple[int, int]:
    """(rank, number of processes) as `torchrun` and `accelerate launch` tell them."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def become(rank: int, world: int) -> None:
    """Be one of several processes of this machine from here on, as a launcher would have started it."""
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
    os.environ.update({name: str(number) for name, number in names.items()})


def meet(world: int | None = None) -> None:
    """Wait for the other processes of this launch. The launcher ends all if one of them fails."""
    if (processes()[1] if world is None else world) == 1:
        return
    import torch.distributed as distributed

    if not distributed.is_initialized():  # gloo: to wait needs no GPU, and one process may wait for hours
        distributed.init_process_group("gloo", timeout=timedelta(days=7))
    distributed.barrier()


def share(lengths: dict[str, int]) -> set[str]:
    """This process's part of {key: expected length}; the longest first, each to the process with least so
    far.
    """
    rank, world = processes()
    loads, mine = [(0, number) for number in range(world)], set()
    for key in sorted(lengths, key=lambda key: (-lengths[key], key)):
        load, number = heapq.heappop(loads)
        heapq.heappush(loads, (load + lengths[key], number))
        if number == rank:
            mine.add(key)
    return mine


def expected_length(row: dict) -> int:
    """What a row costs a model, in characters read and written."""
    texts = len(row["question"]) + len(row.get("response") or "")
    return texts + IMAGE_LENGTH * len(row["images"]) + REPLY_LENGTH


@contextlib.contextmanager
def stage_end():
    """Around a stage's main(): threads that wait for work sleep, a full or read-only disk is one line, the
    process group is closed.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        where = f"{error.filename or 'the output'}: {error.strerror}"
        fail(f"{where}; what is complete is kept; mend this and call again to go on", 1)
    if processes()[1] > 1:
        import torch.distributed as distributed

        if distributed.is_initialized():  # left to the interpreter's exit, its threads may abort the process
            distributed.destroy_process_group()


# ---------------------------------------------------------------- output files


class Output:
    """The rows of one output file. `recipe` (mathse/recipe.py) says where it lies and how it is made.

    `done`: keys of the rows that earlier calls wrote, without those that failed.
    `alone`: this process writes the file by itself, while the others of its launch do something else.
    """

    def __init__(self, recipe, alone: bool = False):
        self.recipe, self.path, self.folder = recipe, recipe.output, recipe.part
        self.rank, self.world = (0, 1) if alone else processes()
        recipe.start(self.world)
        own = self.folder / f"rank_{self.rank}.jsonl"
        self.file = own.open("a+b", buffering=0)
        hold(self.file, self.folder)
        drop_torn_line(self.file)
        self.synced = time.monotonic()
        self.done = {key for key, (failed, *_) in self.index().items() if not failed}

    def write(self, row: dict) -> None:
        """Append a row. Raises OSError if the disk is full, with the file as it was before."""
        row = relative_images(row, self.path.parent)
        left = memoryview(json.dumps(row, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
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
        """{key: (has it failed, part file, offset of its line)}; of a key's rows one that has not failed,
        the last.
        """
        found = {}
        for path in sorted(self.folder.glob("*.jsonl")):
            for offset, row in whole_lines(path):
                key = row_key(row)
                if key not in found or found[key][0] or not has_failed(row):
                    found[key] = has_failed(row), path, offset
        return found

    def rows(self) -> Iterator[dict]:
        """The rows written so far by all processes, image paths relative to the output."""
        yield from (json.loads(line) for line in read_lines(self.index().values()))

    def finish(self, keys: Iterable[str], **spent: object) -> None:
        """Join the rows with these keys, in this order. `spent` goes into the recipe.

        Rows that are missing were not asked for because an endpoint stopped the stage: exit code 3.
        """
        self.file.close()
        meet(self.world)
        if self.rank == 0:
            index, keys = self.index(), list(keys)
            missing = [key for key in keys if key not in index]
            if missing:
                self.recipe.pause(**spent)
                print(
                    f"{self.folder}: {len(keys) - len(missing)} of {len(keys)} rows are written", flush=True
                )
                sys.exit(3)
            joined, tokens = self.folder / "joined", [0, 0]
            with joined.open("wb") as file:
                for line in read_lines([index[key] for key in keys]):
                    file.write(line)
                    tokens = [total + new for total, new in zip(tokens, tokens_of(json.loads(line)))]
            self.recipe.complete(joined, rows=len(keys), tokens=tokens, **spent)
        meet(self.world)


def hold(file, folder: Path) -> None:
    """Refuse a second call on one output, where the file system has locks; correctness does not depend on
    it.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        fail(f"{folder}: is being written by another process; wait for it or end it")
    except OSError:  # a shared disk without locks
        pass


def refuse_held(folder: Path) -> None:
    """End the command if another process holds a file of an unfinished output, before anything is removed."""
    for path in (*folder.glob("rank_*.jsonl"), *folder.glob("lock")):
        with path.open("ab") as file:
            hold(file, folder)


def drop_torn_line(file) -> None:
    """Cut off what stands behind the last whole line: a kill or a full disk left it."""
    whole, size = 0, os.fstat(file.fileno()).st_size
    file.seek(0)
    with contextlib.suppress(ValueError):
        while line := file.readline():
            if not line.endswith(b"\n"):
                break
            json.loads(line)
            whole += len(line)
    if whole < size:
        file.truncate(whole)


def whole_lines(path: Path) -> Iterator[tuple[int, dict]]:
    """(offset, row) of a part file's lines, up to one that is torn or still being written."""
    offset = 0
    with path.open("rb") as file:
        for line in file:
            if not line.endswith(b"\n"):
                return
            try:
                row = json.loads(line)
            except ValueError:
                return
            yield offset, row
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
    if "status" in row or "judge_tokens" in row:
        read, written = row.get("judge_tokens") or (0, 0)
        return read, written
    return row.get("prompt_tokens") or 0, row.get("tokens") or 0


def has_failed(row: dict) -> bool:
    """Whether a row is worth another try: a verified row because its judge failed, others because they
    did.
    """
    return bool(row.get("judge_error")) if "status" in row else row.get("finish") == "error"


def failed_rows(path: Path) -> int:
    """How many rows of a file failed; 0 if there is no such file."""
    return sum(has_failed(row) for _, row in whole_lines(path)) if path.is_file() else 0


# ---------------------------------------------------------------- whole files


def replace(part: Path, path: Path) -> None:
    """Rename what is complete; after a power cut it is there whole or not at all."""
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def write_json(path: Path, content: dict) -> None:
    """Write a JSON file, whole or not at all."""
    part = Path(f"{path}.part")
    text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
    part.write_text(
        text, encoding="utf-8", errors="backslashreplace"
    )  # half a character is escaped, as in JSON
    replace(part, path)


def remove(*paths: Path) -> None:
    """Remove files and folders, whether they are there or not."""
    for path in paths:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
