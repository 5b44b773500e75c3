"""One stage as several processes: a rank a GPU or, where there is none, a rank a core.

A stage forks itself into ranks once it has imported and checked what they need. Each rank is a process as a
launcher would have started it (RANK, WORLD_SIZE, ...). Started by a launcher itself, as by torchrun on
several nodes, a stage forks nothing.
"""

import contextlib
import ctypes
import errno
import gc
import io
import multiprocessing
import os
import re
import signal
import socket
import sys
import tempfile
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import wait
from pathlib import Path

from mathse.records import fail, is_endpoint

GRACE = 2.0  # seconds that the first rank has to tell in its own words what has ended another
LESS_MEMORY = "set a smaller --batch-size (of 04 --micro-batch)"
KILLED = f"a rank was ended by {{}}, perhaps out of memory: {LESS_MEMORY} or fewer --processes"
KEPT = "what is complete is kept: call again to go on"
PR_SET_PDEATHSIG = 1  # of Linux' prctl: the signal that a process gets when its parent dies
CGROUPS = Path("/sys/fs/cgroup")
DISK_ERRORS = {
    errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG, errno.EIO, errno.ESTALE,
    errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG,
}  # fmt: skip


def processes() -> tuple[int, int]:
    """(rank, number of ranks) of this process."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def meet() -> None:
    """Wait for the other ranks of a launcher, which ends all if one of them fails."""
    if processes()[1] == 1:
        return
    import torch.distributed as distributed

    if not distributed.is_initialized():  # gloo: to wait needs no GPU, and one rank may wait for hours
        distributed.init_process_group("gloo", timeout=timedelta(days=7))
    distributed.barrier()


class Steady(io.TextIOWrapper):
    """An output that takes any character, and goes on when its reader has gone, as behind `| head`."""

    def write(self, text: str) -> int:
        with self.reader_may_go():
            return super().write(text)
        return len(text)

    def flush(self) -> None:
        with self.reader_may_go():
            super().flush()

    @contextlib.contextmanager
    def reader_may_go(self):
        try:
            yield
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)


def steady_outputs() -> None:
    """Make standard output and errors Steady. One that is closed leads nowhere: else the next file would take
    its number, and child processes would write into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # it takes the lowest free number: this one
    for number, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name) or open(number, "w", encoding="utf-8")
        if type(stream) is io.TextIOWrapper:
            flags = {"line_buffering": stream.line_buffering, "write_through": stream.write_through}
            stream = Steady(stream.detach(), stream.encoding, "backslashreplace", **flags)
            setattr(sys, name, stream)


@contextlib.contextmanager
def home_to_write():
    """Around libraries that keep caches in a user's home: where there is none that takes files, a temporary
    one, unless it holds what was downloaded.
    """
    home = Path(os.path.expanduser("~"))
    with contextlib.ExitStack() as ended:
        try:
            tempfile.TemporaryFile(dir=home).close()
        except OSError:
            if not (home / ".cache/huggingface").is_dir():
                os.environ["HOME"] = ended.enter_context(tempfile.TemporaryDirectory())
        yield


@contextlib.contextmanager
def stage_end():
    """Around what a process does: its outputs are steady, it has a home, idle threads sleep, a full or
    read-only disk and Ctrl-C are one line, the process group is closed.
    """
    steady_outputs()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # read when torch is imported
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # a look for GPUs must not start CUDA
    try:
        with home_to_write():
            yield
    except KeyboardInterrupt:
        fail(f"interrupted; {KEPT}", 130)
    except OSError as error:
        if error.errno not in DISK_ERRORS:
            raise
        where = f"{error.filename or 'the output'}: {error.strerror}"
        fail(f"{where}; mend this; {KEPT}", 1)
    except RuntimeError as error:
        end_if_device_failed(error)
        raise
    if "torch.distributed" in sys.modules:
        import torch.distributed as distributed

        if distributed.is_initialized():  # left to the interpreter's exit, its threads may abort the process
            distributed.destroy_process_group()


def end_if_device_failed(error: Exception) -> None:
    """End the stage with exit code 1 on an error that no other split of the rows would cure."""
    said = one_line(error)
    if type(error).__name__ == "OutOfMemoryError" or "DefaultCPUAllocator" in said:
        fail(f"out of memory: {LESS_MEMORY} ({said}); {KEPT}", 1)
    if "CUDA error" in said:
        fail(f"the device failed ({said}); {KEPT}", 1)


def one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


# ---------------------------------------------------------------- how many


def rank_count(asked: int | None, most: int, spec: str | None, copies: int) -> int:
    """How many ranks a stage forks: `asked`, else one a GPU, or as cores and memory reach, at most `most`.

    `copies`: bytes of memory that a rank takes for each byte of the weights in the folder `spec`. Nothing is
    forked for an endpoint, or where a launcher has done so. GPUs are counted by NVML: a process that has used
    CUDA could not fork ranks that do.
    """
    if "RANK" in os.environ or not spec or is_endpoint(spec):
        return 1
    if asked:
        return asked
    import torch

    if not (reach := torch.cuda.device_count()):
        size = copies * sum(path.stat().st_size for path in Path(spec).glob("*.safetensors"))
        reach = min(cores(), free_memory() // size if size else 1)
    return max(1, min(most, reach))


def cores() -> int:
    """The cores that this process may use: by its affinity, and by the quota of its container."""
    count = len(os.sched_getaffinity(0))
    for quota, period in (limit.split() for limit in cgroup_values("cpu.max")):
        if quota != "max":
            count = min(count, int(quota) // int(period))
    return max(1, count)


def free_memory() -> int:
    """Bytes that this process may still take: of the machine, and of its container."""
    lines = Path("/proc/meminfo").read_text().splitlines()
    free = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    used = zip(*map(cgroup_values, ("memory.max", "memory.current", "memory.stat")))
    for limit, current, stat in used:
        # given back when it is needed
        cached = int(re.search(r"^inactive_file (\d+)", stat, re.MULTILINE)[1])
        if limit != "max":
            free = min(free, int(limit) - int(current) + cached)
    return max(0, free)


def cgroup_values(name: str) -> list[str]:
    """What a control file says in the cgroup (v2) of this process and in those around it."""
    own = [line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::")]
    folder = CGROUPS / own[0].lstrip("/") if own else CGROUPS
    files = (place / name for place in (folder, *folder.parents) if place.is_relative_to(CGROUPS))
    return [file.read_text().strip() for file in files if file.is_file()]


# ---------------------------------------------------------------- ranks


def launch(ranks: int, work: Callable[[], None]) -> None:
    """Run work() in so many forked ranks; a single one is this process. A rank that fails ends the stage, in
    one line.
    """
    if ranks == 1:
        return work()
    context, port = multiprocessing.get_context("fork"), free_port()
    sys.stdout.flush()
    gc.freeze()  # else each rank copies and frees all that it shares when it ends: 0.6 s
    with contextlib.ExitStack() as opened:
        errors = [opened.enter_context(tempfile.TemporaryFile()) for _ in range(ranks)]
        names = [(rank, ranks, port, os.getpid(), errors[rank], work) for rank in range(ranks)]
        started = [context.Process(target=be_rank, args=name) for name in names]
        try:
            for process in started:
                process.start()
            watch(started, errors)
        finally:
            for process in started:
                if process.pid:
                    process.kill()
                    process.join()


def watch(started: list, errors: list) -> None:
    """Wait until all ranks have ended well, or end the stage as the first that did not."""
    running = {process.sentinel: process for process in started}
    while running:
        failed = running.pop(wait(list(running))[0])
        failed.join()
        if not failed.exitcode:
            continue
        if failed.exitcode < 0:
            fail(f"{KILLED.format(signal.Signals(-failed.exitcode).name)}; {KEPT}", 1)
        started[0].join(GRACE)
        if not started[0].exitcode:
            file = errors[started.index(failed)]
            file.seek(0)
            sys.stderr.write(file.read().decode("utf-8", "replace"))
        sys.exit(failed.exitcode)


def be_rank(rank: int, ranks: int, port: int, parent: int, errors, work: Callable[[], None]) -> None:
    """What a forked rank does. What others than the first have to say of an error is kept for watch()."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the stage's
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    end_with_parent(parent)
    if rank:
        os.dup2(errors.fileno(), sys.stderr.fileno())
    threads = max(1, cores() // ranks)
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
    names |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": threads}
    os.environ.update({name: str(value) for name, value in names.items()})
    import torch

    torch.set_num_threads(threads)  # of the parent's threads none is in a fork
    with stage_end():
        work()


def end_with_parent(parent: int, *_: object) -> None:
    """Let Linux kill this process when `parent`, which forked it, is gone, however it ended."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # gone before Linux was asked
        os._exit(1)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
