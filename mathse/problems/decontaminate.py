"""Find training problems that a test set holds too.

A problem is contaminated by a test problem, and `why` says so, if
  pixels    an image of both decodes to the same pixels, whatever is asked about it;
  image     an image of both looks the same: re-encoded, resized or both. First the perceptual hash (24 x 24
            grey levels) must agree, then the two images themselves, brought to one size and blurred by a
            pixel: one other digit in a drawing is told apart;
  text      question and options are the same, their order, case, width and white space aside, and at least
            one of the two has no image.
The same words under two different images are two problems. An image of one colour says nothing and counts as
none.
"""

import hashlib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageFilter
from tqdm import tqdm

from mathse.images import open_image
from mathse.records import fail

HASH_SIDE = 24  # cells a side of the perceptual hash
HASH_LIMIT = 20  # grey levels that any cell may differ
# Levels of brightness or colour that two images may differ at any place. Below 112 pixels a quarter of the
# longer side: small print blurs.
LEVEL_LIMIT = 28
COMPARED_SIDE = 1024  # pixels of the longer side, at most
BLURS = (1.0, 3.0, 3.0)  # pixels: of brightness and of the two colours, which JPEG stores coarsely
BLANK = 16  # grey levels between the brightest and the darkest pixel; an image with less is of one colour
CHUNK = 256  # problems whose images are decoded together


class ImageHash(NamedTuple):
    path: str
    digest: bytes  # of the decoded pixels
    levels: np.ndarray  # the perceptual hash: HASH_SIDE**2 uint8


def hash_image(path: str) -> ImageHash | None:
    """The hash of an image, or None if it is blank. Raises OSError if it cannot be decoded."""
    image = open_image(path, max_pixels=0)
    grey = image.convert("L")
    low, high = grey.getextrema()
    if high - low < BLANK:
        return None
    digest = hashlib.blake2b(image.tobytes(), digest_size=16, person=b"%d" % image.width).digest()
    return ImageHash(path, digest, np.asarray(grey.resize((HASH_SIDE, HASH_SIDE), Image.BICUBIC)).ravel())


def hash_images(rows: Iterable[tuple[str, dict]], what: str) -> Iterator[tuple[dict, list[ImageHash]]]:
    """Problems with their places -> problems with the hashes of their images (not of blank ones), in order,
    beside a progress bar.

    Threads decode: Pillow releases the GIL. An image that cannot be decoded ends the command.
    """
    rows = iter(tqdm(rows, desc=what, unit="row", disable=None))
    with ThreadPoolExecutor() as pool:
        while chunk := list(islice(rows, CHUNK)):
            jobs = [[pool.submit(hash_image, image) for image in row["images"]] for _, row in chunk]
            for (where, row), running in zip(chunk, jobs):
                hashes = []
                for image, job in zip(row["images"], running):
                    try:
                        hashes.append(job.result())
                    except OSError as error:
                        remedy = "repair the file or remove the row"
                        fail(f"{where}: images: {image}: cannot be decoded ({error}); {remedy}")
                yield row, [found for found in hashes if found]


def image_distance(one: str, other: str) -> tuple[int, float]:
    """(levels, 0 ... 255, by which two images differ most; levels by which copies of one image may differ).

    Colours are compared if brightness agrees.
    """
    images = [open_image(path, max_pixels=0) for path in (one, other)]
    # a copy may be stretched: each side is brought to the smaller one
    size = np.minimum(images[0].size, images[1].size)
    scale = min(1, COMPARED_SIDE / size.max())
    size = np.maximum(1, np.rint(size * scale)).astype(int).tolist()
    channels = [image.resize(size, Image.BICUBIC).convert("YCbCr").split() for image in images]
    limit, distance = min(LEVEL_LIMIT, max(size) / 4), 0
    for *pair, blur in zip(*channels, BLURS):
        ours, theirs = (np.asarray(part.filter(ImageFilter.GaussianBlur(blur)), np.int16) for part in pair)
        distance = max(distance, int(np.abs(ours - theirs).max()))
        if distance > limit:
            break
    return distance, limit


def normalised(text: object) -> str:
    """Text without image marks, white space, dollar signs, differences of width and case, and punctuation at
    its end.
    """
    text = unicodedata.normalize("NFKC", str(text))
    return re.sub(r"<image\d*>|[\s$]", "", text).casefold().rstrip(".,:;?!。")


def text_key(row: dict) -> tuple[str, ...]:
    """Question and options, these in any order and without their letters."""
    texts = [re.sub(r"^\s*[(（]?[A-Z][).:．）、]\s*", "", str(option)) for option in row.get("options") or []]
    return normalised(row["question"]), *sorted(map(normalised, texts))


class HeldOut:
    """The test problems, searched by image and by text. Only hashes of the images are held.

    `problems`: (name of the test set, row, hashes of its images).
    """

    def __init__(self, problems: Iterable[tuple[str, dict, list[ImageHash]]]):
        self.images: list[tuple[dict, ImageHash]] = []
        # text_key -> (test problem, whether it has an image)
        self.texts: dict[tuple, list[tuple[dict, bool]]] = defaultdict(list)
        for name, row, hashes in problems:
            test = {"test_set": name, "test_id": row["id"]}
            self.texts[text_key(row)].append((test, bool(hashes)))
            self.images += [(test, theirs) for theirs in hashes]
        levels = [theirs.levels for _, theirs in self.images]
        self.levels = np.array(levels, np.uint8).reshape(-1, HASH_SIDE**2)

    def near(self, ours: ImageHash) -> Iterator[tuple[dict, ImageHash]]:
        """The images whose perceptual hash agrees."""
        numbers = np.arange(len(self.levels))
        for cells in (slice(0, None, HASH_SIDE + 1), slice(None)):  # the cells of the diagonal rule out most
            theirs, mine = self.levels[numbers, cells], ours.levels[cells]
            differences = np.maximum(theirs, mine) - np.minimum(theirs, mine)  # uint8 has no sign
            numbers = numbers[differences.max(1, initial=0) <= HASH_LIMIT]
        return (self.images[number] for number in numbers)

    def matches(self, row: dict, hashes: list[ImageHash]) -> list[dict]:
        """The test problems that contaminate a training problem, each once, the surest first.

        Each with test_set, test_id, why, distance (grey levels) and images (the two that are alike).
        """
        found = []
        for ours in hashes:
            for test, theirs in self.near(ours):
                same = ours.digest == theirs.digest
                distance, limit = (0, LEVEL_LIMIT) if same else image_distance(ours.path, theirs.path)
                if distance <= limit:
                    why = {"why": "pixels" if same else "image", "distance": distance}
                    found.append(test | why | {"images": [ours.path, theirs.path]})
        found.sort(key=lambda match: (match["why"] != "pixels", match["distance"]))
        by_text = {"why": "text", "distance": 0, "images": []}
        tests = self.texts.get(text_key(row), ())
        found += [test | by_text for test, has_image in tests if not (hashes and has_image)]
        surest: dict[tuple, dict] = {}
        for match in found:
            surest.setdefault((match["test_set"], match["test_id"]), match)
        return [*surest.values()]
