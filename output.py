"""What a stage writes and survives: an output file that a kill, a full disk or a second call cannot damage, and the split of
its work among processes. Torch is not needed."""

import argparse
import contextlib
import errno
import fcntl
import hashlib
import heapq
import json
import os
import platform
import sys
import time
from pathlib import Path
from typing import Iterable

from common import fail, is_endpoint, processes, relative_images, row_key

SYNC_SECONDS = 5.0  # a power cut loses what was written since
PICTURE_LENGTH, REPLY_LENGTH = 2000, 1000  # characters that a picture, and a reply, count for when work is dealt out
FILES = {"input", "test", "unsolved_in", "balance_with", "model"}
HOW = {"output", "batch_size", "concurrency", "timeout", "workers", "max_requests", "max_cost", "spent", "retry_errors", "judge", "classify", "against"}  # flags that leave the rows alone
DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO}


class Output:
    """A JSONL file that survives a kill: rows are appended to OUT.part, which becomes OUT when all are there.

    `done` holds the keys of the rows that earlier calls have written; a torn end is cut off, and rows that failed are left
    out of OUT.part to be tried again. The processes of one launch (RANK, WORLD_SIZE) append to one file, each write a whole
    line under a lock, and see the same `done`. OUT.part.json says who writes, and with which settings (`args`): another
    call meanwhile, or a call with other settings, ends with an error.
    """

    def __init__(self, path: str | Path, args: argparse.Namespace | None = None):
        self.path, self.part, self.state_path = Path(path), Path(f"{path}.part"), Path(f"{path}.part.json")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.state_file = self.state_path.open("a+b", buffering=0)  # its lock is held to the end: while one holds it, no other launch writes
        launch = launch_name()
        if try_lock(self.state_file) and self.state().get("launch") != launch:
            self.prepare(launch, stage_settings(args))
        fcntl.flock(self.state_file, fcntl.LOCK_SH)  # the others of this launch wait here for the first
        if self.state().get("launch") != launch:
            fail(f"{self.part}: is being written by another process; wait for it or end it")
        finished, left = self.path.exists(), self.state()["bytes"]
        self.file, self.synced = self.part.open("ab", buffering=0), time.monotonic()
        self.done = set()
        with (self.path if finished else self.part).open("rb") as file:
            for line in file:
                if not finished and (left := left - len(line)) < 0:  # written by another process of this launch, just now
                    break
                self.done.add(row_key(json.loads(line)))

    def state(self) -> dict:
        self.state_file.seek(0)
        try:
            return json.loads(self.state_file.read() or b"{}")
        except ValueError:  # torn
            return {}

    def prepare(self, launch: str, settings: dict) -> None:
        """Mend OUT.part and note who writes it: by the first process of a launch, while the others wait."""
        before = self.state().get("settings", settings) if self.part.exists() else settings
        if changed := [f"{name} was {before.get(name)!r}, is {value!r}" for name, value in settings.items() if before.get(name) != value]:
            fail(f"{self.part}: was begun with other settings: {'; '.join(changed)}; set them back, or remove it to start anew")
        whole = failed = 0
        with self.part.open("a+b") as file:
            file.seek(0)
            for line in file:
                row = json_row(line)
                if row is None:  # torn by a kill or a full disk: what follows is written again
                    break
                whole, failed = whole + len(line), failed + has_failed(row)
            file.truncate(whole)
        if failed:
            new = Path(f"{self.path}.part.new")
            with self.part.open("rb") as old, new.open("wb") as file:
                file.writelines(line for line in old if not has_failed(json.loads(line)))
                whole = file.tell()
            replace(new, self.part)
        self.state_file.truncate(0)
        self.state_file.write(json.dumps({"launch": launch, "settings": settings, "bytes": whole}).encode())

    @contextlib.contextmanager
    def locked(self):
        if processes()[1] > 1:
            fcntl.flock(self.file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            if processes()[1] > 1:
                fcntl.flock(self.file, fcntl.LOCK_UN)

    def write(self, row: dict) -> None:
        """Append a row. Raises OSError when the disk is full, with the file as it was before."""
        left = memoryview(json.dumps(relative_images(row, self.path.parent), ensure_ascii=False).encode("utf-8", "replace") + b"\n")
        with self.locked():
            before = os.fstat(self.file.fileno()).st_size
            try:
                while left:
                    left = left[self.file.write(left) :]
            except OSError as error:
                with contextlib.suppress(OSError):
                    self.file.truncate(before)
                raise OSError(error.errno, error.strerror, str(self.part)) from None
            if time.monotonic() - self.synced > SYNC_SECONDS:
                os.fsync(self.file.fileno())
                self.synced = time.monotonic()

    def finish(self, expected: int, alone: bool = False) -> bool:
        """Rename to the final name once `expected` rows are there: True in the process, the last to be done, that does it.

        If a single process, or one of several that writes `alone`, has not written them all, its endpoint stopped it: the command ends with exit code 3.
        """
        with self.locked():
            if self.path.exists():  # another process has done it
                self.part.unlink(missing_ok=True)
                self.state_path.unlink(missing_ok=True)
                return False
            with self.part.open("rb") as file:
                count = sum(1 for _ in file)
            if count >= expected:
                self.state_path.unlink(missing_ok=True)
                replace(self.part, self.path)
                return True
        if alone or processes()[1] == 1:
            print(f"{self.part}: {count} of {expected} rows are written", flush=True)
            sys.exit(3)
        return False

    def wait(self, patience: int = 60) -> None:
        """Until the launch's other processes have finished the file; ends the command once all of them are gone for `patience` seconds."""
        fcntl.flock(self.state_file, fcntl.LOCK_UN)
        alone = 0
        while not self.path.exists():
            alone = alone + 1 if try_lock(self.state_file) else 0
            fcntl.flock(self.state_file, fcntl.LOCK_UN)
            if alone > patience:
                fail(f"{self.part}: a process of this launch has ended before its share was written; call again to go on", 1)
            time.sleep(1)


def try_lock(file) -> bool:
    """Lock a file if nobody holds it."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def replace(part: Path, path: Path) -> None:
    """Rename what is complete to its final name, on the disk too: after a power cut it is there whole or not at all."""
    with part.open("rb") as file:
        os.fsync(file.fileno())
    part.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def write_json(path: Path, content: dict) -> None:
    """Write a JSON file, whole or not at all."""
    part = Path(f"{path}.part")
    part.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8", errors="backslashreplace")  # half a character is escaped as JSON does
    replace(part, path)


def json_row(line: bytes) -> dict | None:
    """A whole line's row, or None."""
    try:
        row = json.loads(line) if line.endswith(b"\n") else None
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def has_failed(row: dict) -> bool:
    """Whether a row is worth another try: of a verified row, because its judge failed; of any other, because its response did."""
    return bool(row.get("judge_error")) if "status" in row else row.get("finish") == "error"


def failed_rows(path: Path) -> int:
    """How many rows of a file failed; 0 if there is no such file."""
    with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
        return sum(has_failed(json.loads(line)) for line in file)
    return 0


def reopen(paths: Iterable[Path]) -> None:
    """Make complete files, where they are there, unfinished again: Output leaves out the rows that failed and keeps the others."""
    for path in paths:
        with contextlib.suppress(FileNotFoundError):  # it may never have been, or another process of this launch has done it
            path.replace(f"{path}.part")


def finished(path: str | Path, retry_errors: bool = False) -> bool:
    """True, with a line that says so, if the output stands already; an empty folder is none. `retry_errors` opens a file again that holds rows which failed."""
    path = Path(path)
    if not path.exists() or path.is_dir() and not any(path.iterdir()):
        return False
    if retry_errors and (failed := failed_rows(path)):
        print(f"{path}: {failed} rows failed and are tried again", flush=True)
        reopen([path])
        return False
    print(f"skip {path}: it is complete", flush=True)
    return True


def stage_settings(args: argparse.Namespace | None) -> dict:
    """The flags that decide what a stage writes. Files stand for their content; an endpoint is its model, wherever it is served."""

    def content(name: str, value: object) -> object:
        return [content(name, item) for item in value] if isinstance(value, list) else fingerprint(str(value)) if name in FILES else value

    return {name: content(name, value) for name, value in vars(args or argparse.Namespace()).items() if name not in HOW}


def fingerprint(value: str) -> str:
    """A file's hash, a hash of the names and sizes in a folder (also of a benchmark's, NAME:FOLDER), the model's name of an endpoint, or the text itself."""
    if is_endpoint(value):
        return "#" + value.partition("#")[2]
    place = value if os.path.exists(value) else value.partition(":")[2]
    if os.path.isfile(place):
        with open(place, "rb") as file:
            return "sha256 " + hashlib.file_digest(file, "sha256").hexdigest()[:16]
    if os.path.isdir(place):
        return "files " + hashlib.sha256(json.dumps(sorted((item.name, item.stat().st_size) for item in os.scandir(place) if item.is_file())).encode()).hexdigest()[:16]
    return value


def launch_name() -> str:
    """The same in all processes of a launch and in no other: on one node they are the launcher's children, on several they meet at one port."""
    if processes()[1] == 1:
        return f"{platform.node()} {os.getpid()} {time.monotonic_ns()}"
    one_node = os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]
    place = f"{platform.node()} {os.getppid()}" if one_node else f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    return f"{place} {os.environ.get('TORCHELASTIC_RUN_ID', '')} {os.environ.get('TORCHELASTIC_RESTART_COUNT', '')}"


def share(lengths: dict) -> set:
    """This process's part of {key: expected length}: the longest first, each to the process that has least so far; the same in every process."""
    rank, world = processes()
    loads, mine = [(0, number) for number in range(world)], set()
    for key in sorted(lengths, key=lambda key: (-lengths[key], key)):
        load, number = heapq.heappop(loads)
        heapq.heappush(loads, (load + lengths[key], number))
        if number == rank:
            mine.add(key)
    return mine


def expected_length(row: dict) -> int:
    """What a row costs a model, in characters: question, response and pictures read, and a reply of unknown length."""
    return len(row["question"]) + len(row.get("response") or "") + PICTURE_LENGTH * len(row["images"]) + REPLY_LENGTH


@contextlib.contextmanager
def disk_errors():
    """End the command in one line when the disk is full or may not be written; what was written is kept."""
    try:
        yield
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        fail(f"{error.filename or 'the output'}: {error.strerror}; what is complete is kept; mend this and call again to go on", 1)
