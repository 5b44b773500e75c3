"""Leave out training problems that a test set holds too, before anything is trained on them.

A problem is contaminated by a test problem, and `why` says so, if
  pixels    a picture of both decodes to the same pixels, whatever is asked about it;
  picture   a picture of both looks the same: re-encoded, resized or both. First the perceptual hash (24 x 24 grey levels) must agree, then
            the two pictures themselves, brought to one size and blurred by a pixel: one other digit in a drawing is told apart;
  text      question and options are the same, their order, case, width and white space aside, and at least one of the two has no picture.
The same words under two different pictures are two problems. A picture of one colour says nothing and counts as none.

Reads:  problems.jsonl        the training problems, and the test sets as 05_evaluate.py takes them
Writes: OUTPUT                the problems that are kept (--action warn: all)
        contamination.jsonl   beside it: id, test_set and test_id of the nearest test problem, why, distance (of the pictures, in grey levels),
                              images (the two that are alike), also (further test problems that it is contaminated by)

    python decontaminate.py --input toy/train.jsonl --test toy/test.jsonl --output clean/problems.jsonl
    python decontaminate.py --input problems.jsonl --test mathvision:MATH-V/testmini mathvista:MathVista --output clean/problems.jsonl --action warn
"""

import argparse
import hashlib
import json
import os
import re
import unicodedata
from collections import Counter, defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Iterable, Iterator

import numpy as np
from PIL import Image, ImageFilter
from tqdm import tqdm

from benchmarks import load_problems, parse_columns
from checks import check_flags, read_rows
from common import fail, open_image, row_key
from output import Output, disk_errors, finished

HASH_SIDE, HASH_LIMIT = 24, 20  # cells a side of the perceptual hash; grey levels that any cell may differ
LIMIT = 28  # levels of brightness or colour that two pictures may differ at any place; below 112 pixels a quarter of the longer side: small print blurs
COMPARED_SIDE = 1024  # pixels of the longer side, at most
BLUR = (1.0, 3.0, 3.0)  # pixels: of brightness and of the two colours, which JPEG stores coarsely
BLANK = 16  # grey levels between the brightest and the darkest pixel; less is a picture of one colour
CHUNK = 256  # problems that are decoded together


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", required=True, help="problems.jsonl: the training problems")
    parser.add_argument("--test", nargs="+", required=True, help="test sets: problems.jsonl, NAME:PATH or hf:NAME:SPLIT")
    parser.add_argument("--output", type=Path, required=True, help="problems.jsonl to write")
    parser.add_argument("--action", choices=["drop", "warn"], default="drop", help="leave contaminated problems out, or list them only (default %(default)s)")
    parser.add_argument("--columns", default="", help='columns of hub data sets, for example "question=problem images=image"')
    parser.add_argument("--limit", type=int, default=0, help="only the first N problems of each test set (default %(default)s: all)")
    parser.add_argument("--workers", type=int, default=os.cpu_count(), help="threads that decode pictures (default %(default)s: one a core)")
    return parser.parse_args()


# ---------------------------------------------------------------- what is compared


@dataclass
class Fingerprint:
    """Of a picture: a digest of its decoded pixels, and its perceptual hash, HASH_SIDE**2 grey levels (uint8)."""

    path: str
    digest: bytes
    levels: np.ndarray


def fingerprint(path: str) -> Fingerprint | None:
    """The fingerprint of a picture, or None if it is blank. Raises ValueError, with the path, if it cannot be decoded."""
    try:
        image = open_image(path, max_pixels=0)
    except OSError as error:
        raise ValueError(f"{path}: cannot be decoded ({error})") from error
    grey = image.convert("L")
    low, high = grey.getextrema()
    if high - low < BLANK:
        return None
    digest = hashlib.blake2b(image.tobytes(), digest_size=16, person=b"%d" % image.width).digest()
    return Fingerprint(path, digest, np.asarray(grey.resize((HASH_SIDE, HASH_SIDE), Image.Resampling.BICUBIC)).reshape(-1))


def picture_distance(one: str, other: str) -> tuple[int, float]:
    """(how far two pictures differ where they differ most, 0 ... 255; how far the same picture may). Colours are looked at if brightness agrees."""
    images = [open_image(path, max_pixels=0) for path in (one, other)]
    size = np.minimum(images[0].size, images[1].size)  # a copy may be stretched: each side is brought to the smaller one
    width, height = np.maximum(1, np.rint(size * min(1, COMPARED_SIDE / size.max()))).astype(int).tolist()
    channels = [image.resize((width, height), Image.Resampling.BICUBIC).convert("YCbCr").split() for image in images]
    limit, distance = min(LIMIT, max(width, height) / 4), 0
    for ours, theirs, blur in zip(*channels, BLUR):
        ours, theirs = (np.asarray(channel.filter(ImageFilter.GaussianBlur(blur)), np.int16) for channel in (ours, theirs))
        distance = max(distance, int(np.abs(ours - theirs).max()))
        if distance > limit:
            break
    return distance, limit


def normalised(text: object) -> str:
    """Text without marks of pictures, white space, dollar signs, differences of width and case, and punctuation at its end."""
    return re.sub(r"<image\d*>|[\s$]", "", unicodedata.normalize("NFKC", str(text))).casefold().rstrip(".,:;?!。")


def text_key(row: dict) -> bytes:
    """A digest of question and options, these in any order and without their letters."""
    options = sorted(normalised(re.sub(r"^\s*[(（]?[A-Z][).:．）、]\s*", "", str(option))) for option in row.get("options") or [])
    return hashlib.blake2b(json.dumps([normalised(row["question"]), options]).encode(), digest_size=16).digest()


def fingerprinted(rows: Iterable[dict], source: str, workers: int) -> Iterator[tuple[dict, list[Fingerprint]]]:
    """Problems with the fingerprints of their pictures (not of blank ones), in order. Threads do: Pillow lets go of the interpreter."""
    rows = iter(rows)
    with ThreadPoolExecutor(max(1, workers)) as pool:
        while chunk := list(islice(rows, CHUNK)):
            for row, job in zip(chunk, [pool.submit(lambda row: [fingerprint(image) for image in row["images"]], row) for row in chunk]):
                try:
                    yield row, [found for found in job.result() if found]
                except ValueError as error:
                    fail(f"{source}: id {row['id']!r}: images: {error}; repair the file or remove the row")


class HeldOut:
    """The test problems, searched by picture and by text. Of each picture a fingerprint is held, not the picture."""

    def __init__(self, problems: Iterable[tuple[dict, list[Fingerprint]]]):
        self.pictures: list[tuple[dict, Fingerprint]] = []
        self.texts: dict[bytes, list[tuple[dict, bool]]] = defaultdict(list)  # text_key -> (test problem, whether it has a picture)
        for row, found in problems:
            test = {"test_set": row["benchmark"], "test_id": row["id"]}
            self.texts[text_key(row)].append((test, bool(found)))
            self.pictures += [(test, theirs) for theirs in found]
        self.levels = np.array([theirs.levels for _, theirs in self.pictures], np.uint8).reshape(-1, HASH_SIDE**2)

    def near(self, ours: Fingerprint) -> list[tuple[dict, Fingerprint]]:
        """The pictures whose perceptual hash agrees."""
        numbers = np.arange(len(self.levels))
        for cells in (slice(0, None, HASH_SIDE + 1), slice(None)):  # the cells of the diagonal rule out most
            theirs, mine = self.levels[numbers, cells], ours.levels[cells]
            numbers = numbers[(np.maximum(theirs, mine) - np.minimum(theirs, mine)).max(1, initial=0) <= HASH_LIMIT]
        return [self.pictures[number] for number in numbers]

    def matches(self, row: dict, found: list[Fingerprint]) -> list[dict]:
        """The test problems that contaminate a training problem, each once, the surest first: test_set, test_id, why, distance, images."""
        matches = []
        for ours in found:
            for test, theirs in self.near(ours):
                same = ours.digest == theirs.digest
                distance, limit = (0, LIMIT) if same else picture_distance(ours.path, theirs.path)
                if distance <= limit:
                    matches.append(test | {"why": "pixels" if same else "picture", "distance": distance, "images": [ours.path, theirs.path]})
        matches.sort(key=lambda match: (match["why"] != "pixels", match["distance"]))
        matches += [test | {"why": "text", "distance": 0, "images": []} for test, has_picture in self.texts.get(text_key(row), ()) if not (found and has_picture)]
        once: dict[tuple, dict] = {}
        for match in matches:
            once.setdefault((match["test_set"], match["test_id"]), match)
        return list(once.values())


# ---------------------------------------------------------------- the stage


def test_problems(args: argparse.Namespace) -> Iterator[dict]:
    for spec in args.test:
        name, rows = load_problems(spec, args.output.parent / "images", parse_columns(args.columns))
        for row in islice(rows, args.limit or None):
            yield row | {"benchmark": name}


def main() -> None:
    args = parse_args()
    check_flags(args)
    if finished(args.output):
        return
    tests = HeldOut(fingerprinted(tqdm(test_problems(args), desc="test sets", unit="row", disable=None), "--test", args.workers))
    listing = args.output.parent / "contamination.jsonl"
    if not Path(f"{args.output}.part").exists():  # a list that is there belongs to an earlier output, perhaps of other test sets
        for end in ("", ".part"):
            Path(f"{listing}{end}").unlink(missing_ok=True)
    kept, listed = Output(args.output, args), Output(listing)
    done = kept.done | (listed.done if args.action == "drop" else set())
    kept_rows, reasons = len(kept.done), Counter()
    rows = (row for row in read_rows(args.input, ("id", "question", "answer")) if row_key({"id": row["id"]}) not in done)
    for row, found in fingerprinted(tqdm(rows, desc="decontaminate", unit="row", disable=None), args.input, args.workers):
        matches = tests.matches(row, found)
        if matches and row_key({"id": row["id"]}) not in listed.done:
            also = [f"{match['test_set']}: {match['test_id']}" for match in matches[1:]]
            listed.write({"id": row["id"]} | matches[0] | {"also": also})
            reasons[matches[0]["why"]] += 1
        if not matches or args.action == "warn":
            kept.write(row)
            kept_rows += 1
    found = len(listed.done) + reasons.total()
    if not kept_rows:
        fail(f"{args.input}: all its {found} problems are in the test sets; train on others, or keep them by --action warn")
    listed.finish(found)
    kept.finish(kept_rows)
    counts = ", ".join(f"{count} by {why}" for why, count in reasons.items())
    print(f"{args.output}: {kept_rows} problems kept, {found} contaminated" + (f" ({counts}), listed in {listed.path}" if found else "") + f"; {len(tests.pictures)} test pictures")


if __name__ == "__main__":
    with disk_errors():
        main()
