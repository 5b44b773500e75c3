"""The training file, and its rows -> optimizer steps of micro-batches. Torch is not needed."""

import heapq
import json
import math
import os
import random
from argparse import Namespace
from array import array
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from mathse.records import IMAGE, derive_seed, fail, read_rows, relative_images


def write_training_file(path: Path, sources: list[str], limit: int, choose: Callable, make: Callable) -> None:
    """Write the first `limit` (0: all) training rows in the order of the source files.

    choose() -> {(source, id, sample)}; make(row) -> {"messages", "images"} and what else is noted of a row.
    Rows of a training file are taken as they are.
    """
    ready = "messages" in next(read_rows(sources[0], check=False, may_be_empty=True), {})
    chosen = None if ready else choose()
    part, count = Path(f"{path}.part"), 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with part.open("w", encoding="utf-8") as file:
        for source in sources:
            for row in read_rows(source, ("id", "messages", "images"), check=ready, may_be_empty=True):
                if limit and count >= limit:
                    break
                if not ready:
                    if (source, row["id"], row["sample"]) not in chosen:
                        continue
                    row = make(row) | trace(row, Path(source), path.parent)
                file.write(json.dumps(relative_images(row, path.parent), ensure_ascii=False) + "\n")
                count += 1
    if not count:
        fail(f"{sources[0]}: status: no row to train on; look at what 02 has verified")
    part.replace(path)


def trace(row: dict, source: Path, folder: Path) -> dict:
    """Where a response comes from and the file of its verdict, of a reflection also its draft's; paths are
    relative to `folder`.
    """
    names = {name: row.get(name) for name in ("id", "sample", "model", "seed")}
    found = names | {"origin": row.get("origin", "sample"), "verified_in": os.path.relpath(source, folder)}
    if draft := row.get("draft_of"):
        verified_in = os.path.relpath(source.parent / draft["verified_in"], folder)
        found["draft_of"] = draft | {"verified_in": verified_in}
    return found


class TrainingRows:
    """Random access to the rows of a training file: only byte offsets are kept in memory.

    Rows are numbered by their keys, not by their place in the file. `group_of[n]`: rows with the same number
    have the same images, and prompts that begin alike. `held`: rows of problems that are not trained on.
    """

    def __init__(self, path: Path, hold_out: float = 0, seed: int = 0):
        entries, offset = [], 0
        with path.open("rb") as file:
            for line in file:
                row = json.loads(line)
                order = derive_seed(row["id"], row.get("sample"), row.get("origin"), row.get("status"))
                group = json.dumps([row["id"], row.get("images"), beginning(row)])
                entries.append((order, offset, len(line), group, row["id"]))
                offset += len(line)
        entries.sort()
        problems = sorted({entry[4] for entry in entries})
        held = held_problems(problems, hold_out, seed)
        if len(held) == len(problems):
            fail(f"--hold-out: {hold_out:g}: there are {len(problems)} problems to train on; leave some")
        known = {}
        self.path = path
        self.offsets = array("q", (entry[1] for entry in entries))
        self.sizes = array("l", (entry[2] for entry in entries))
        self.group_of = array("l", (known.setdefault(entry[3], len(known)) for entry in entries))
        self.held = [number for number, entry in enumerate(entries) if entry[4] in held]

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, index: int) -> dict:
        with self.path.open("rb") as file:
            file.seek(self.offsets[index])
            row = json.loads(file.readline())
        return row | {"images": [str(self.path.parent / image) for image in row["images"]]}


def held_problems(problems: list[str], hold_out: float, seed: int) -> set[str]:
    """So many problems, or a share below 1 of them, drawn by the seed."""
    if hold_out < 1:
        return {name for name in problems if derive_seed(seed, "held out", name) < hold_out * (1 << 31)}
    return {*heapq.nsmallest(int(hold_out), problems, key=lambda name: derive_seed(seed, "held out", name))}


def beginning(row: dict) -> list[str]:
    """A prompt's messages, the last one up to its last image."""
    *earlier, last = [message["content"] for message in row.get("messages", [])][:-1] or [""]
    return [*earlier, last[: last.rfind(IMAGE) + 1]]


def plan_steps(
    rows: TrainingRows, args: Namespace, world: int, packed: bool = True
) -> list[list[list[list[int]]]]:
    """steps[s][r]: the micro-batches (lists of row numbers) of process r in step s.

    Every epoch is a permutation of the groups by the seed; the rows of a group stand together, so that their
    common prompt is read once. The same in every process and in a rerun.
    """
    held, groups, order = {*rows.held}, defaultdict(list), []
    for number, group in enumerate(rows.group_of):
        if number not in held:
            groups[group].append(number)
    groups = list(groups.values())
    count = sum(map(len, groups))
    for epoch in range(math.ceil(args.epochs)):
        turn = list(range(len(groups)))
        random.Random(f"{args.seed} {epoch}").shuffle(turn)
        share = max(1, round(count * min(1.0, args.epochs - epoch)))
        order += [number for group in turn for number in groups[group]][:share]
    starts = range(0, len(order), args.batch_size)
    batches = (order[start : start + args.batch_size] for start in starts)
    return [deal(rows, batch, args.micro_batch, world, packed) for batch in batches]


def deal(
    rows: TrainingRows, numbers: list[int], most: int, world: int, packed: bool = True
) -> list[list[list[int]]]:
    """Micro-batches of at most `most` rows, by process.

    All processes get equally many. Those at the same place, which are computed at the same time, are nearly
    equal in length; empty ones fill up.
    """
    micro = (share_out if packed else cut)(rows, numbers, most, world)
    micro += [[] for _ in range(-len(micro) % world)]
    return [micro[rank::world] for rank in range(world)]


def share_out(rows: TrainingRows, numbers: list[int], most: int, world: int) -> list[list[int]]:
    """Micro-batches of nearly equal length; a group's rows stay together where they fit."""
    groups, whole = defaultdict(list), min(most, math.ceil(len(numbers) / world))
    for number in numbers:
        groups[rows.group_of[number]].append(number)
    pieces = [
        group[start : start + whole] for group in groups.values() for start in range(0, len(group), whole)
    ]

    def length(numbers: list[int]) -> int:
        return sum(rows.sizes[number] for number in numbers)

    micro = [[] for _ in range(world * math.ceil(len(numbers) / (world * most)))]
    shortest = [(0, place) for place in range(len(micro))]  # a heap of those with room
    for piece in sorted(pieces, key=length, reverse=True):
        passed = []
        while shortest and len(micro[shortest[0][1]]) + len(piece) > most:
            passed.append(heapq.heappop(shortest))
        if not shortest:
            shortest = [(0, len(micro) + more) for more in range(world)]
            micro += [[] for _ in range(world)]
        taken, place = heapq.heappop(shortest)
        micro[place] += piece
        for entry in [(taken + length(piece), place), *passed]:
            if len(micro[entry[1]]) < most:
                heapq.heappush(shortest, entry)
    return sorted(micro, key=lambda numbers: (not numbers, length(numbers)))  # empty ones last


def cut(rows: TrainingRows, numbers: list[int], most: int, world: int) -> list[list[int]]:
    """Micro-batches of rows of like length, so that there is little padding."""
    count = min(most, math.ceil(len(numbers) / world))
    ordered = sorted(numbers, key=lambda number: (rows.sizes[number], number))
    return [ordered[start : start + count] for start in range(0, len(ordered), count)]
