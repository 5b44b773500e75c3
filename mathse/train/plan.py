"""The training file, and its rows -> optimizer steps of micro-batches. Torch is not needed."""

import json
import math
import os
import random
from argparse import Namespace
from array import array
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

from mathse.jsonl import remove
from mathse.records import IMAGE, derive_seed, fail, json_lines, read_rows, relative, relative_images, shown
from mathse.replies import without_end


def write_training_file(path: Path, sources: list[str], limit: int, choose: Callable, make: Callable) -> Path:
    """Write the first `limit` (0: all) training rows, in the order of the source files, beside `path`; where.

    choose() -> {(source, id, sample)}; make(row) -> {"messages", "images"} and what else is noted of a row.
    Rows of a training file are taken as they are.
    """
    places = [os.path.realpath(source) for source in sources]
    if len({*places}) < len(places):
        fail("--input: a file is named twice; name each once")
    if os.path.realpath(path) in places:
        fail(f"--train-file: {path}: is an input too; choose another")
    first = next((row for source in sources for _, row in json_lines(Path(source))), None)
    ready = isinstance(first, dict) and "messages" in first
    chosen = None if ready else choose()
    part, count = Path(f"{path}.{os.getpid()}.part"), 0
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
                said = row["messages"][-1]
                said["content"] = without_end(said["content"])
                weight = row.get("weight", 1)
                if not (isinstance(weight, int | float) and 0 <= weight < math.inf):
                    problem = f"{shown(weight)} of {shown(row['id'])} is not a number of at least 0"
                    fail(f"{source}: weight: {problem}")
                file.write(json.dumps(relative_images(row, path.parent), ensure_ascii=False) + "\n")
                count += 1
    if not count:
        remove(part)
        fail(f"{sources[0]}: status: no row to train on; look at what 02 has verified")
    return part


def trace(row: dict, source: Path, folder: Path) -> dict:
    """Where a response and its verdict come from, of a reflection also its draft, as paths from `folder`."""
    names = {name: row.get(name) for name in ("id", "sample", "model", "seed")}
    found = names | {"origin": row.get("origin", "sample"), "verified_in": relative(source, folder)}
    draft = row.get("draft_of")
    if isinstance(draft, dict) and isinstance(draft.get("verified_in"), str):
        found["draft_of"] = draft | {"verified_in": relative(source.parent / draft["verified_in"], folder)}
    return found


class TrainingRows:
    """Random access to the rows of a training file: only byte offsets are kept in memory.

    Rows are numbered by their keys, not by their place in the file. `group_of[n]`: rows with the same number
    have the same images, and prompts that begin alike. `sizes`: bytes, which stand for the length.
    """

    def __init__(self, path: Path):
        entries, offset = [], 0
        with path.open("rb") as file:
            for line in file:
                row = json.loads(line)
                order = derive_seed(row["id"], row.get("sample"), row.get("origin"), row.get("status"))
                group = json.dumps([row["id"], row.get("images"), beginning(row)])
                entries.append((order, offset, len(line), group))
                offset += len(line)
        entries.sort()
        known = {}
        self.path = path
        self.offsets = array("q", (entry[1] for entry in entries))
        self.sizes = array("l", (entry[2] for entry in entries))
        self.group_of = array("l", (known.setdefault(entry[3], len(known)) for entry in entries))

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, index: int) -> dict:
        with self.path.open("rb") as file:
            file.seek(self.offsets[index])
            row = json.loads(file.readline())
        return row | {"images": [str(self.path.parent / image) for image in row["images"]]}


def beginning(row: dict) -> list[str]:
    """A prompt's messages, the last one up to its last image."""
    *earlier, last = [message["content"] for message in row.get("messages", [])][:-1] or [""]
    return [*earlier, last[: last.rfind(IMAGE) + 1]]


def remove_unneeded(folder: Path) -> None:
    """What only an unfinished training needs."""
    remove(*folder.glob("checkpoint*"), folder / "lock")


def plan_steps(rows: TrainingRows, args: Namespace, most: int, world: int) -> list[list[list[list[int]]]]:
    """steps[s][r]: the micro-batches (lists of at most `most` row numbers) of process r in step s.

    Every epoch is a permutation of the groups by the seed; the rows of a group stand together, so that their
    common prompt is read once. The same in every process and in a rerun.
    """
    members, order = defaultdict(list), []
    for number, group in enumerate(rows.group_of):
        members[group].append(number)
    for epoch in range(math.ceil(args.epochs)):
        turn = list(members.values())
        random.Random(f"{args.seed} {epoch}").shuffle(turn)
        share = max(1, round(len(rows) * min(1.0, args.epochs - epoch)))
        order += [number for group in turn for number in group][:share]
    starts = range(0, len(order), args.batch_size)
    return [deal(rows, order[start : start + args.batch_size], most, world) for start in starts]


def deal(rows: TrainingRows, numbers: list[int], most: int, world: int) -> list[list[list[int]]]:
    """Micro-batches of at most `most` rows and nearly equal length, by process; a group's rows stay together
    where they fit.

    All processes get equally many. Those at the same place, which are computed at the same time, are nearly
    equal in length; empty ones stand last.
    """
    groups, whole = defaultdict(list), min(most, math.ceil(len(numbers) / world))
    for number in numbers:
        groups[rows.group_of[number]].append(number)
    pieces = [
        group[start : start + whole] for group in groups.values() for start in range(0, len(group), whole)
    ]

    def length(numbers: list[int]) -> int:
        return sum(rows.sizes[number] for number in numbers)

    micro = [[] for _ in range(world * math.ceil(len(numbers) / (world * most)))]
    lengths = [0] * len(micro)
    for piece in sorted(pieces, key=length, reverse=True):
        places = [place for place, taken in enumerate(micro) if len(taken) + len(piece) <= most]
        if not places:
            places = range(len(micro), len(micro) + world)
            micro += [[] for _ in places]
            lengths += [0] * world
        shortest = min(places, key=lengths.__getitem__)
        micro[shortest] += piece
        lengths[shortest] += length(piece)
    micro.sort(key=lambda numbers: (not numbers, length(numbers)))
    return [micro[rank::world] for rank in range(world)]
