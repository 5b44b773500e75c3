"""Bad input ends a command in one line on stderr that names file, line, field and remedy, with exit code 2,
before a model is loaded; odd but legal input works. Most cases call the checks in this process; one a stage
runs it as a user does.
"""

import argparse
import functools
import io
import json
import os
import shutil
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from conftest import ROOT, read_rows, write_rows
from PIL import Image

import common
from mathse import chat, cli, images, records

SAMPLE = ("id", "question", "sample", "response", "finish")


def problem(**changes) -> dict:
    return {"id": "a", "question": "What?", "images": ["x.png"], "answer": "1"} | changes


def line(**changes) -> str:
    return json.dumps(problem(**changes))


def sample(**changes) -> str:
    return (
        line(sample=0, response="It is 1.", finish="stop", **changes)
        if not set(changes) & {"sample", "finish"}
        else line(**({"sample": 0, "response": "1", "finish": "stop"} | changes))
    )


def trained(*messages: dict, images=("x.png",)) -> str:
    return json.dumps({"id": "a", "sample": 0, "messages": list(messages), "images": list(images)})


USER, REPLY = {"role": "user", "content": "<image>What?"}, {"role": "assistant", "content": "1"}


@pytest.fixture
def folder(tmp_path):
    """A folder with a sound image, x.png."""
    Image.new("RGB", (20, 20), "red").save(tmp_path / "x.png")
    return tmp_path


def refused(capsys, call, *words: str) -> str:
    """The call ends with exit code 2 and one line that holds these words."""
    with pytest.raises(SystemExit) as end:
        call()
    error = capsys.readouterr().err
    assert (
        end.value.code == 2
        and error.startswith("error: ")
        and len(error.splitlines()) == 1
        and len(error) < 1000
    ), error
    for word in words:
        assert word in error, error
    return error


# name: (the file's content, line, field or "", the fault, the remedy)
BAD_LINES = {
    "empty file": ("", "", "", "the file is empty", "write at least one row"),
    "blank lines only": ("\n \r\n\n", "", "", "the file is empty", "write at least one row"),
    "broken JSON": ("{", 1, "", "not a JSON object", "mend or remove"),
    "broken in line 3": (
        line() + "\n" + line(id="b") + "\n" + line(id="c")[:-1],
        3,
        "",
        "not a JSON object",
        "mend or remove",
    ),
    "two objects in a line": (line() + line(id="b"), 1, "", "Extra data", "one object a line"),
    "JSON over several lines": (
        json.dumps([problem()], indent=1),
        1,
        "",
        "not a JSON object",
        "one object a line",
    ),
    "an array": ("[1]", 1, "", "a list instead of a JSON object", "write {"),
    "a number": ("7", 1, "", "a int instead of a JSON object", "write {"),
    "null": ("null", 1, "", "instead of a JSON object", "write {"),
    "UTF-16": (line().encode("utf-16"), 1, "", "UTF-16", "save the file as UTF-8"),
    "UTF-16 without its mark": (line().encode("utf-16-le"), 1, "", "not a JSON object", "mend or remove"),
    "Latin-1": (
        line(question="Größe?").encode().decode("unicode_escape").encode("latin-1"),
        1,
        "",
        "not a JSON object in UTF-8",
        "mend or remove",
    ),
    "compressed": (
        b"\x1f\x8b\x08\x00" + bytes(range(128, 200)),
        1,
        "",
        "not a JSON object in UTF-8",
        "mend or remove",
    ),
    "NaN": (line(answer=float("nan")), 1, "", "NaN is not a number that JSON has", "mend or remove"),
    "Infinity": (
        line(level=float("-inf")),
        1,
        "",
        "-Infinity is not a number that JSON has",
        "mend or remove",
    ),
    "a float out of range": (
        line().replace('"1"', "1e999"),
        1,
        "",
        "1e999 is not a number that JSON has",
        "mend or remove",
    ),
    "an integer of 9,999 digits": (
        line().replace('"1"', "1" * 9999),
        1,
        "",
        "not a JSON object",
        "mend or remove",
    ),
    "nested without end": ("[" * 200_000, 1, "", "not a JSON object", "mend or remove"),
    "no id": (json.dumps({"question": "What?", "answer": "1"}), 1, "id", "missing", "this stage needs"),
    "no question": (json.dumps({"id": "a", "answer": "1"}), 1, "question", "missing", "this stage needs"),
    "id is null": (line(id=None), 1, "id", "None is not a string", "write one"),
    "id is a number": (line(id=3), 1, "id", "3 is not a string", "write one"),
    "id is a list": (line(id=["a"]), 1, "id", "is not a string", "write one"),
    "id is blank": (line(id=" "), 1, "id", "is not a string with text", "write one"),
    "id twice": (line() + "\n" + line(), 2, "id", "stands already in line 1", "make it unique"),
    "id twice behind a blank line": (
        line() + "\n\n" + line(),
        3,
        "id",
        "stands already in line 1",
        "make it unique",
    ),
    "id with a line feed, twice": (
        line(id="a\nb") + "\n" + line(id="a\nb"),
        2,
        "id",
        "stands already in line 1",
        "make it unique",
    ),
    "half a character in the id": (
        line(id="a\ud83d"),
        1,
        "id",
        "half a surrogate pair",
        "write the text anew",
    ),
    "half a character in an option": (
        line(options=["1", "\udc00"]),
        1,
        "options",
        "half a surrogate pair",
        "write the text anew",
    ),
    "question is null": (line(question=None), 1, "question", "None is not a string", "write one"),
    "question is a number": (line(question=1.5), 1, "question", "is not a string", "write one"),
    "question is blank": (line(question="\u3000\n"), 1, "question", "is not a string with text", "write one"),
    "an image's mark": (line(question="See <image>."), 1, "question", "placeholder '<image>'", "remove it"),
    "a model's token": (
        line(question="<|image_pad|>"),
        1,
        "question",
        "placeholder '<|image_pad|>'",
        "remove it",
    ),
    "a mark in an option": (
        line(options=["1", "<image>"]),
        1,
        "options",
        "placeholder '<image>'",
        "remove it",
    ),
    "images is a bare string": (
        line(images="x.png"),
        1,
        "images",
        "must be a list of paths",
        'write ["image.png"]',
    ),
    "images is an object": (
        line(images={"a": "x.png"}),
        1,
        "images",
        "must be a list of paths",
        'write ["image.png"]',
    ),
    "a null among images": (
        line(images=["x.png", None]),
        1,
        "images",
        "must be a list of paths",
        'write ["image.png"]',
    ),
    "a very long string as images": (
        line(images="x" * 100_000),
        1,
        "images",
        "must be a list of paths",
        'write ["image.png"]',
    ),
    "options is a string": (
        line(options="1, 2"),
        1,
        "options",
        "must be a list of strings",
        'write ["3", "4"]',
    ),
    "options is an object": (
        line(options={"A": "1"}),
        1,
        "options",
        "must be a list of strings",
        'write ["3", "4"]',
    ),
    "a null among options": (
        line(options=["1", None]),
        1,
        "options",
        "must be a list of strings",
        'write ["3", "4"]',
    ),
    "a truth value among options": (
        line(options=["1", True]),
        1,
        "options",
        "must be a list of strings",
        'write ["3", "4"]',
    ),
    "answer not among the options": (
        line(options=["3", "4"]),
        1,
        "answer",
        "'1' is not among the options ['3', '4']",
        "write the letter or the text",
    ),
    "a letter beyond the options": (
        line(options=["3", "4"], answer="C"),
        1,
        "answer",
        "'C' is not among the options",
        "write the letter or the text",
    ),
    "answer is an object": (line(answer={"value": 1}), 1, "answer", "must be a string, a number", "or null"),
    "answer is a truth value": (line(answer=True), 1, "answer", "must be a string, a number", "or null"),
    "answer is an empty list": (line(answer=[]), 1, "answer", "must be a string, a number", "or null"),
    "a misspelt field": (
        line(image="x.png", images=None).replace('"images": null, ', ""),
        1,
        "image",
        "not a field",
        "call it 'images'",
    ),
    "options by another name": (line(choices=["1", "2"]), 1, "choices", "not a field", "call it 'options'"),
    "an image beside an empty list": (
        line(image_path="x.png", images=[]),
        1,
        "image_path",
        "not a field",
        "call it 'images'",
    ),
    "choices beside null": (
        line(Choices=["1", "2"], options=None),
        1,
        "Choices",
        "not a field",
        "call it 'options'",
    ),
    "an option a field": (line(option_a="1"), 1, "option_a", "not a field", "call it 'options'"),
    "an answer by another name": (
        line(ground_truth="1", answer=None),
        1,
        "ground_truth",
        "not a field",
        "call it 'answer'",
    ),
    "a capital": (
        line(Answer="1").replace('"answer": "1", ', ""),
        1,
        "Answer",
        "not a field",
        "call it 'answer'",
    ),
    "answer is blank": (line(answer=" "), 1, "answer", "is empty", "write null"),
}

BAD_SAMPLES = {
    "no sample": (line(), 1, "sample", "missing", "this stage needs"),
    "sample is text": (sample(sample="0"), 1, "sample", "'0' is not a whole number", "number the samples"),
    "sample is negative": (sample(sample=-1), 1, "sample", "-1 is not a whole number", "number the samples"),
    "sample is a truth value": (
        sample(sample=True),
        1,
        "sample",
        "True is not a whole number",
        "number the samples",
    ),
    "sample twice": (
        sample() + "\n" + sample(sample=1) + "\n" + sample(sample=1),
        3,
        "id",
        "sample 1 stands already in line 2",
        "make it unique",
    ),
    "response is null": (
        line(sample=0, response=None, finish="stop"),
        1,
        "response",
        "None is not a string",
        "write one",
    ),
    "unknown finish": (sample(finish="done"), 1, "finish", "'done' is none of stop", "is this a file of 01"),
    "unknown status": (sample(status="ok"), 1, "status", "'ok' is none of correct", "is this a file of 01"),
}

BAD_TRAINING = {
    "messages is text": (
        json.dumps({"id": "a", "messages": "x", "images": []}),
        1,
        "messages",
        "must be a list",
        "the last by the assistant",
    ),
    "no reply": (trained(USER), 1, "messages", "must be a list", "the last by the assistant"),
    "content in parts": (
        trained(USER, {"role": "assistant", "content": [{"type": "text", "text": "1"}]}),
        1,
        "messages",
        "must be a list",
        "with texts",
    ),
    "unknown role": (
        trained(USER, {"role": "tool", "content": "x"}, REPLY),
        1,
        "messages",
        "must be a list",
        "the last by the assistant",
    ),
    "an image without its mark": (
        trained(USER, REPLY, images=["x.png", "x.png"]),
        1,
        "messages",
        "1 <image> marks for 2 images",
        "one for each",
    ),
}


@pytest.mark.parametrize("case", [*BAD_LINES, *BAD_SAMPLES, *BAD_TRAINING])
def test_bad_lines(folder, capsys, case):
    content, number, field, fault, remedy = (BAD_LINES | BAD_SAMPLES | BAD_TRAINING)[case]
    required = (
        ("id", "question")
        if case in BAD_LINES
        else SAMPLE
        if case in BAD_SAMPLES
        else ("id", "messages", "images")
    )
    path = folder / "p.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    where = f"{path}:{number}: " if number else f"{path}: "
    refused(
        capsys,
        lambda: list(records.read_rows(path, required)),
        where + (f"{field}: " if field else ""),
        fault,
        remedy,
    )


def test_a_line_of_100_mb_is_refused_unread(folder, capsys):
    with (folder / "p.jsonl").open("wb") as file:
        file.write(line().encode() + b"\n")
        file.truncate(100 << 20)
    tracemalloc.start()
    refused(
        capsys,
        lambda: list(records.read_rows(folder / "p.jsonl")),
        "p.jsonl:2: a line of more than 16 MB",
        "write one JSON object a line",
    )
    assert tracemalloc.get_traced_memory()[1] < 50 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(
    "kind, fault", [("missing", "no such file"), ("folder", "not a plain file"), ("pipe", "not a plain file")]
)
def test_bad_files(tmp_path, capsys, kind, fault):
    path = tmp_path / "p.jsonl"
    if kind == "folder":
        path.mkdir()
    if kind == "pipe":
        os.mkfifo(path)  # opening it would wait for ever
    refused(capsys, lambda: list(records.read_rows(path)), f"{path}: {fault}")


# ---------------------------------------------------------------- images


def jpeg(size=(64, 64), **options) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (*size[::-1], 3), np.uint8)).save(
        buffer, "JPEG", **options
    )
    return buffer.getvalue()


def bomb() -> bytes:
    """A PNG whose header claims 20,000 x 20,000 pixels."""
    import zlib

    chunks = (
        b"IHDR" + (20_000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0]),
        b"IDAT" + zlib.compress(bytes(1000)),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        (len(chunk) - 4).to_bytes(4, "big") + chunk + zlib.crc32(chunk).to_bytes(4, "big") for chunk in chunks
    )


# name: (the path as written, the file's content if one is made, the fault, the remedy)
BAD_IMAGES = {
    "missing": ("no.png", None, "no such file", "write its path"),
    "a dangling link": ("dangling.png", None, "no such file", "write its path"),
    "a folder": ("sub", None, "a folder or a device", "not an image"),
    "its own folder": ("", None, "a folder or a device", "not an image"),
    "a device": ("/dev/zero", None, "a folder or a device", "not an image"),
    "a pipe": ("pipe", None, "a folder or a device", "not an image"),
    "a web address": ("https://example.org/x.png", None, "read from a file", "download it"),
    "a data URL": ("data:image/png;base64,iVBORw0KGgo=", None, "read from a file", "download it"),
    "NUL in the path": ("a\0.png", None, "a\\x00.png: no", "its path"),
    "a name of 5,000 letters": (
        "x" * 5000,
        None,
        "not an image that can be read (OSError)",
        "mend the file or its path",
    ),
    "zero bytes": ("empty.png", b"", "an empty file", "fetch it again"),
    "text": ("text.png", b"not an image", "not an image that can be read", "save it as one of PNG, JPEG"),
    "SVG": (
        "x.svg",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "not an image that can be read",
        "save it as one of PNG, JPEG",
    ),
    "PDF": ("x.pdf", b"%PDF-1.4\n", "not an image that can be read", "save it as one of PNG, JPEG"),
    "EPS, which would start another program": (
        "x.eps",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n",
        "not an image that can be read",
        "save it as one of PNG, JPEG",
    ),
    "a PNG of 400 million pixels": ("bomb.png", bomb(), "more than 100000000 pixels", "scale it down"),
    "the start of a PNG": (
        "start.png",
        b"\x89PNG\r\n\x1a\n\0\0",
        "not an image that can be read",
        "save it as one of",
    ),
}


@pytest.mark.parametrize("case", list(BAD_IMAGES))
def test_bad_images(folder, capsys, case):
    name, content, fault, remedy = BAD_IMAGES[case]
    (folder / "sub").mkdir()
    os.mkfifo(folder / "pipe")
    (folder / "dangling.png").symlink_to("nowhere.png")
    if content is not None:
        (folder / name).write_bytes(content)
    write_rows(folder / "p.jsonl", [problem(id="fine"), problem(images=["x.png", name])])
    refused(
        capsys,
        lambda: list(records.read_rows(folder / "p.jsonl")),
        f"{folder}/p.jsonl:2: images: ",
        fault,
        remedy,
    )


def test_pixels_of_32_bits_are_refused(folder, capsys):
    Image.fromarray(np.ones((5, 5), np.float32)).save(folder / "f.tif")
    write_rows(folder / "p.jsonl", [problem(images=["f.tif"])])
    refused(
        capsys,
        lambda: list(records.read_rows(folder / "p.jsonl")),
        "p.jsonl:1: images: f.tif: pixels of 32 bits",
        "save it with 8 or 16 bits",
    )


def gif() -> bytes:
    buffer = io.BytesIO()
    frames = [Image.new("RGB", (30, 20), colour) for colour in ("red", "lime", "blue")]
    frames[0].save(buffer, "GIF", save_all=True, append_images=frames[1:])
    return buffer.getvalue()


def turned() -> bytes:
    """A JPEG of 40 x 20, its left half black, that its EXIF says to turn by 90 degrees clockwise."""
    image, exif, buffer = Image.new("RGB", (40, 20), "white"), Image.Exif(), io.BytesIO()
    image.paste("black", (0, 0, 20, 20))
    exif[0x0112] = 6
    image.save(buffer, "JPEG", exif=exif, quality=95)
    return buffer.getvalue()


def saved(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def palette() -> Image.Image:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    return image


# name: (content, size that is read at 100,000 pixels, colour at the top left, tolerance)
LEGAL_IMAGES = {
    "grayscale": (saved(Image.new("L", (9, 7), 100)), (9, 7), (100, 100, 100)),
    "black and white": (saved(Image.new("1", (9, 7), 1)), (9, 7), (255, 255, 255)),
    "grayscale of 16 bits: by its full range": (
        saved(Image.fromarray(np.full((7, 9), 32896, np.uint16))),
        (9, 7),
        (128, 128, 128),
    ),
    "TIFF of 16 bits": (
        saved(Image.fromarray(np.full((7, 9), 65535, np.uint16)), "TIFF"),
        (9, 7),
        (255, 255, 255),
    ),
    "RGBA: on white": (saved(Image.new("RGBA", (9, 7), (0, 0, 0, 0))), (9, 7), (255, 255, 255)),
    "grayscale, half transparent": (saved(Image.new("LA", (9, 7), (0, 128))), (9, 7), (127, 127, 127)),
    "palette": (saved(palette()), (4, 4), (255, 0, 0)),
    "palette with a transparent colour": (saved(palette(), transparency=1), (4, 4), (255, 255, 255)),
    "CMYK": (saved(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=95), (16, 16), (255, 0, 0)),
    "EXIF-rotated: turned": (turned(), (20, 40), (0, 0, 0)),
    "animated GIF: its first frame": (gif(), (30, 20), (255, 0, 0)),
    "one pixel": (saved(Image.new("RGB", (1, 1), "blue")), (1, 1), (0, 0, 255)),
    "one row of 3,000": (saved(Image.new("RGB", (3000, 1), "blue")), (3000, 1), (0, 0, 255)),
    "20 megapixels: scaled down": (
        saved(Image.new("RGB", (5000, 4000), "blue"), "JPEG"),
        (353, 282),
        (0, 0, 255),
    ),
    "20 megapixels, PNG": (
        saved(Image.new("L", (5000, 4000), 50), compress_level=1),
        (353, 282),
        (50, 50, 50),
    ),
    "WebP": (saved(Image.new("RGB", (9, 7), "blue"), "WEBP", lossless=True), (9, 7), (0, 0, 255)),
    "BMP": (saved(Image.new("RGB", (9, 7), "blue"), "BMP"), (9, 7), (0, 0, 255)),
}


@pytest.mark.parametrize("case", list(LEGAL_IMAGES))
def test_legal_images(tmp_path, case):
    content, size, colour = LEGAL_IMAGES[case]
    path = tmp_path / "image"  # a name tells nothing
    path.write_bytes(content)
    assert images.image_problem(path) is None
    image = images.open_image(str(path), 100_000)
    assert image.mode == "RGB" and image.size == size
    assert max(abs(one - other) for one, other in zip(image.getpixel((0, 0)), colour)) <= 3
    if case.startswith("EXIF"):
        assert image.getpixel((10, 35)) > (250, 250, 250)


def test_a_image_of_many_rows_is_opened_once(tmp_path, monkeypatch):
    opened = []
    monkeypatch.setattr(records, "image_problem", lambda path: opened.append(path))
    write_rows(
        tmp_path / "s.jsonl",
        [
            {"id": name, "question": "Q", "images": [f"{name}.png"], "sample": k}
            for name in "ab"
            for k in range(4)
        ],
    )
    assert len([*records.read_rows(tmp_path / "s.jsonl")]) == 8 and opened == [
        tmp_path / "a.png",
        tmp_path / "b.png",
    ]


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM"])
def test_a_damaged_image_raises_one_kind_of_error(tmp_path, kind):
    """What a stage meets mid-run becomes an error record: open_image raises OSError or returns an image,
    whatever bytes it is given.
    """
    rng, path = np.random.default_rng(0), tmp_path / "image"
    whole = np.frombuffer(saved(Image.fromarray(rng.integers(0, 255, (40, 30, 3), np.uint8)), kind), np.uint8)
    outcomes = set()
    for _ in range(60):
        damaged = whole.copy()
        places = rng.integers(0, min(len(whole), rng.choice([60, len(whole)])), rng.integers(1, 6))
        damaged[places] = rng.integers(0, 256, len(places))
        path.write_bytes(
            damaged[: rng.integers(1, len(whole) + 1)].tobytes() if rng.random() < 0.3 else damaged.tobytes()
        )
        if images.image_problem(path) is None:
            try:
                outcomes.add(images.open_image(str(path), 100_000).mode)
            except OSError:
                outcomes.add("error")
    assert outcomes <= {"RGB", "error"} and outcomes


# ---------------------------------------------------------------- legal files


LEGAL_LINES = {
    "BOM": b"\xef\xbb\xbf" + line().encode() + b"\n",
    "CRLF": (line() + "\r\n" + line(id="b") + "\r\n").encode(),
    "no line feed at the end": line().encode(),
    "blank lines": f"\n{line()}\n\n \n".encode(),
    "escaped characters": line(question="多少？ \U0001f600").encode(),
    "ids of any text": "\n".join(
        line(id=name) for name in ("a/b", "a b", " a", "a\0b", "../a", "多", "a" * 5000)
    ).encode(),
    "null fields": line(images=None, options=None, answer=None, solution=None).encode(),
    "no images": json.dumps({"id": "a", "question": "1 + 1?"}).encode(),
    "numbers as answers and options": line(options=[1, 2.5], answer=2.5).encode(),
    "options without letters": line(options=["3 cm", "4 cm"], answer="4 cm").encode(),
    "options with letters": line(options=["(A) 3", "(B) 4"], answer="(B)").encode(),
    "several right options": line(options=["3", "4", "5"], answer="AC").encode(),
    "several answers": line(answer=["1", "-1"]).encode(),
    "MATH-V's marks of several images in one": line(question="<image1> or <image2>?").encode(),
    "further fields": line(level=3, extra={"deep": [1, None]}).encode(),
}


@pytest.mark.parametrize("case", list(LEGAL_LINES))
def test_legal_lines(folder, case):
    path = folder / "data of Müller 数据" / "my problems.jsonl"
    path.parent.mkdir()
    (path.parent / "x.png").symlink_to(folder / "x.png")  # data sets often lie on another disk
    path.write_bytes(LEGAL_LINES[case])
    rows = list(records.read_rows(path))
    assert rows and all(Path(image).is_file() for row in rows for image in row["images"])


def test_images_of_a_question_keep_their_order(folder):
    names = ["b.png", "a.png", "sub/../b.png", str(folder / "x.png")]
    (folder / "sub").mkdir()
    for name in ("a.png", "b.png"):
        Image.new("RGB", (5, 5)).save(folder / name)
    (row,) = records.read_rows(write_rows(folder / "p.jsonl", [problem(images=names)]))
    assert [Path(image).name for image in row["images"]] == ["b.png", "a.png", "b.png", "x.png"]
    parts = chat.chat_parts(chat.user_message(common.solve_prompt(row), row["images"]), row["images"])[0][
        "content"
    ]
    assert [part["image"] for part in parts if part["type"] == "image"] == row["images"]


def test_legal_input_goes_through_a_model(folder, run):
    """Every legal image, several images, none, and a question longer than the context: an error row, not
    a crash.
    """
    target = folder / "data of Müller 数据"
    target.mkdir()
    rows = [
        problem(id="none", images=[]),
        problem(id="long", question="How many? " * 20_000, images=[]),
        problem(id="two", images=["0.png", "1.png"]),
    ]
    for index, (content, _, _) in enumerate(LEGAL_IMAGES.values()):
        (target / f"{index}.png").write_bytes(content)
        rows.append(problem(id=f"image/{index} \0", images=[f"{index}.png"]))
    write_rows(target / "my problems.jsonl", rows)
    flags = ["--model", ROOT / "toy" / "base", "--max-tokens", 2, "--max-pixels", 20_000]
    done = run(
        "01_sample.py", "--input", target / "my problems.jsonl", "--output", target / "out put.jsonl", *flags
    )
    assert done.returncode == 0, done.stderr
    replies = {row["id"]: row for row in read_rows(target / "out put.jsonl")}
    assert set(replies) == {row["id"] for row in rows}
    failed = {name: row["reason"] for name, row in replies.items() if row["finish"] == "error"}
    # Qwen2-VL takes no aspect ratio above 200
    extreme = next(row["id"] for row, case in zip(rows[3:], LEGAL_IMAGES) if case == "one row of 3,000")
    assert set(failed) == {"long", extreme}, failed
    assert "context" in failed["long"] and "aspect ratio" in failed[extreme]


# ---------------------------------------------------------------- models


SEEING, READING = (
    {"model_type": "llava", "architectures": ["LlavaForConditionalGeneration"], "vision_config": {}},
    {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]},
)


@pytest.fixture
def weights(tmp_path):
    from safetensors.numpy import save_file

    save_file({"a": np.zeros(100, np.float32)}, tmp_path / "weights")
    return (tmp_path / "weights").read_bytes()


# name: (files of the model folder, None standing for sound weights; words of the message)
BAD_MODELS = {
    "nothing in it": ({}, "no config.json in it; is it a model folder?"),
    "config is no JSON": ({"config.json": "{"}, "config.json: not JSON"),
    "config is a list": ({"config.json": "[]"}, "config.json: not a JSON object"),
    "a model of text alone": (
        {"config.json": READING, "model.safetensors": None},
        "a Qwen2ForCausalLM that reads no images, by its config.json; give an image-text-to-text model",
    ),
    "no weights": ({"config.json": SEEING}, "no *.safetensors weights in it; is the download complete?"),
    "pickled weights": (
        {"config.json": SEEING, "pytorch_model.bin": "x"},
        "pickled ones (pytorch_model.bin) are never loaded: convert them",
    ),
}
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
# Weights that only loading shows to be broken: what model.safetensors holds.
BAD_WEIGHTS = {
    "zero bytes": b"",
    "a broken header": b"\x7f" * 200,
    "cut off": 0.5,
    "a Git LFS pointer": POINTER.encode(),
}


def make_model(folder: Path, files: dict, weights: bytes) -> Path:
    folder.mkdir()
    for name, content in files.items():
        if isinstance(content, dict):
            (folder / name).write_text(json.dumps(content))
        else:
            (folder / name).write_bytes(
                content.encode()
                if isinstance(content, str)
                else weights[: int(len(weights) * (content or 1))]
            )
    return folder


ARGS = argparse.Namespace(dry_run=None, output="out.jsonl")


@pytest.mark.parametrize("case", list(BAD_MODELS))
def test_bad_models(tmp_path, capsys, weights, case):
    files, words = BAD_MODELS[case]
    folder = make_model(tmp_path / "model", files, weights)
    refused(capsys, lambda: cli.check_model(ARGS, str(folder)), f"--model: {folder}: ", words)


@pytest.mark.parametrize("case", list(BAD_WEIGHTS))
def test_weights_that_cannot_be_loaded(tmp_path, capsys, tiny_model, case):
    """from_pretrained says what is wrong; it is one line, also for shards that are missing."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_model("llava"), folder)
    content, path = BAD_WEIGHTS[case], folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * content)] if isinstance(content, float) else content)
    load = functools.partial(common.load_model, str(folder), "cpu", torch.float32)
    capsys.readouterr()  # the progress of making the model
    refused(capsys, load, f"--model: {folder}: cannot be loaded")


def test_a_shard_that_is_missing(tmp_path, capsys, tiny_model):
    folder = tmp_path / "model"
    shutil.copytree(tiny_model("llava"), folder)
    (folder / "model.safetensors").rename(folder / "a.safetensors")
    index = {"metadata": {}, "weight_map": {"x": "a.safetensors", "y": "b.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    load = functools.partial(common.load_model, str(folder), "cpu", torch.float32)
    capsys.readouterr()  # the progress of making the model
    refused(capsys, load, f"--model: {folder}: cannot be loaded")


def test_a_model_with_a_tokenizer_but_no_processor(tmp_path, capsys):
    """As remote code that makes its inputs itself has it, for one CogVLM2."""
    tiny.make_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(READING))
    words = "no processor of images and texts", "an endpoint that serves it"
    refused(capsys, lambda: common.load_processor(str(tmp_path)), f"--model: {tmp_path}: has a ", *words)


@pytest.mark.parametrize(
    "spec, words",
    [
        ("no/such/folder", "no such folder; give a model folder, a hub id"),
        ("./owner/name", "no such folder"),
        ("~/model", "no such folder"),
        ("gpt2", "no such folder"),
        (__file__, "no such folder"),
        ("localhost:8000/v1#m", "no such folder"),
        ("http://127.0.0.1:9/v1", "an endpoint is written http://host:port/v1#model-name"),
        ("http://127.0.0.1:9/v1#", "an endpoint is written"),
        ("http://#m", "an endpoint is written"),
        ("https://h/d?api-version=1", "an endpoint is written"),
        ("http://host:port/v1#m", "an endpoint is written"),
        ("http://[::1/v1#m", "an endpoint is written"),
    ],
)
def test_bad_specs_of_models(capsys, spec, words):
    refused(capsys, lambda: cli.check_model(ARGS, spec, "--judge"), f"--judge: {spec}: ", words)


@pytest.mark.parametrize(
    "files",
    [
        {"config.json": SEEING, "model.safetensors": None},
        {"config.json": SEEING, "a.safetensors": None, "b.safetensors": None},
        # remote code
        {"config.json": READING | {"auto_map": {"AutoModel": "code.Model"}}, "model.safetensors": None},
        {
            "config.json": {"model_type": "vision-encoder-decoder", "encoder": {}, "decoder": {}},
            "model.safetensors": None,
        },
        # both: the safe one is loaded
        {"config.json": SEEING, "model.safetensors": None, "pytorch_model.bin": "x"},
    ],
)
def test_legal_models(tmp_path, weights, files):
    cli.check_model(ARGS, str(make_model(tmp_path / "model", files, weights)))
    for spec in (
        str(ROOT / "toy" / "base"),
        "Qwen/Qwen2-VL-7B-Instruct",
        "http://127.0.0.1:8000/v1#name",
        "https://example.org/v1#owner/name",
    ):
        cli.check_model(ARGS, spec)


def test_every_image_text_to_text_architecture_is_let_in_by_its_config():
    """Of transformers' own mapping; the exceptions are no image-text-to-text models."""
    transformers = pytest.importorskip("transformers")
    from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

    blind = set()
    for name in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        config = json.loads(transformers.CONFIG_MAPPING[name]().to_json_string(use_diff=False))
        if not cli.reads_images(config):
            blind.add(name)
    assert blind <= {"evolla", "mistral4", "pi0"}  # proteins, text, a robot
    assert not any(
        cli.reads_images(json.loads(transformers.CONFIG_MAPPING[name]().to_json_string(use_diff=False)))
        for name in ("qwen2", "llama", "gemma3_text", "gpt2")
    )


# ---------------------------------------------------------------- flags and settings


@pytest.mark.parametrize(
    "flags, words",
    [
        (["--samples", "0"], "argument --samples: 0: must be a whole number of at least 1"),
        (["--samples", "-3"], "argument --samples: -3: must be a whole number of at least 1"),
        (["--samples", "two"], "argument --samples: two: must be a whole number of at least 1"),
        (["--limit", "-1"], "argument --limit: -1: must be a whole number of at least 0"),
        (["--limit", "1.5"], "argument --limit: 1.5: must be a whole number"),
        (["--max-tokens", "0"], "argument --max-tokens: 0: must be"),
        (["--batch-size", "0"], "argument --batch-size: 0: must be"),
        (["--concurrency", "0"], "argument --concurrency: 0: must be"),
        (["--timeout", "0"], "argument --timeout: 0: must be a number above 0"),
        (["--temperature", "nan"], "argument --temperature: nan: must be a number of at least 0"),
        (["--temperature", "inf"], "argument --temperature: inf: must be a number"),
        (["--temperature", "-0.5"], "argument --temperature: -0.5: must be a number of at least 0"),
        (["--top-p", "0"], "argument --top-p: 0: must be a number above 0 and at most 1"),
        (["--top-p", "1.1"], "argument --top-p: 1.1: must be a number above 0 and at most 1"),
        (["--max-cost", "-1"], "argument --max-cost: -1: must be a number of at least 0"),
        (
            ["--seed", "9999999999999999999999"],
            "argument --seed: 9999999999999999999999: must be a whole number",
        ),
        (["--samples", "4"], "--samples: more than one at --temperature 0"),
        (["--sampels", "4"], "unrecognized arguments: --sampels 4"),
    ],
)
def test_bad_flags(folder, capsys, monkeypatch, stage, flags, words):
    write_rows(folder / "p.jsonl", [problem()])
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "01_sample.py",
            "--input",
            str(folder / "p.jsonl"),
            "--output",
            str(folder / "o.jsonl"),
            "--model",
            "none/such",
            *flags,
        ],
    )
    refused(capsys, stage("01_sample").main, words)


BAD_TRAINING_FLAGS = {
    "--epochs": "0",
    "--lr": "nan",
    "--warmup": "1.5",
    "--batch-size": "0",
    "--micro-batch": "0",
    "--max-length": "0",
    "--recompute": "2",
}


@pytest.mark.parametrize("flag", [*BAD_TRAINING_FLAGS, "--lr=0"])
def test_bad_flags_of_training(folder, capsys, monkeypatch, stage, flag):
    flags = [flag] if "=" in flag else [flag, BAD_TRAINING_FLAGS[flag]]
    command = ["04_finetune.py", "--input", "v.jsonl", "--output", str(folder / "m"), "--model", "none/such"]
    monkeypatch.setattr(sys, "argv", [*command, *flags])
    refused(capsys, stage("04_finetune").main, f"argument {flag.partition('=')[0]}: ", "must be a")


# A setting of run_rounds.sh -> wrong values, and the flag or setting that the one line names. Nothing is run.
BAD_SETTINGS = {
    "ROUNDS": (["0", "-1", "two", "1.5", "99999999999999999999"], "ROUNDS"),
    "SAMPLES": (["0", "x"], "SAMPLES"),
    "DISTILL": (["-5", "x"], "--draw"),
    "LIMIT": (["-1", "x"], "--limit"),
    "SEED": (["x"], "--seed"),
    "MAX_PIXELS": (["1e6"], "--max-pixels"),
    "ACCEPT": (["maybe"], "--accept"),
    "REFLECT_ACCEPT": (["x"], "--accept"),
    "REFLECT": (["1"], "REFLECT"),
    "INIT": (["x"], "--init"),
    "FIELDS": (["questoin=problem"], "questoin"),
    "SAMPLE_FLAGS": (["--max-tokens 0", "--temperature warm", "--sampels 3", "--top-p 1.5"], "--"),
    "VERIFY_FLAGS": (["--retry-undecided -1", "--orm-samples 3"], "--"),
    "EVALUATE_FLAGS": (["--judge no/such/judge", "--classify ./no"], "no such folder"),
    "FINETUNE_FLAGS": (["--epochs 0", "--lr 1e-5x", "--lora -1", "--batches x"], "--"),
    "DISTILL_FLAGS": (["--epochs x"], "--epochs"),
    "ORM_FLAGS": (["--lr 0"], "--lr"),
    "ORM_SAMPLE_FLAGS": (["--samples 0"], "--samples"),
    "ENDPOINT_FLAGS": (["--max-cost -1", "--concurrency 0", "--timeout x"], "--"),
    "DATA_FLAGS": (["--contaminated yes"], "--contaminated"),
    "RUN": (["a/b", "..", "."], "RUN"),
    "GPUS": (["0", "two"], "GPUS"),
    "MODEL": (["no/such/folder", "http://127.0.0.1:9/v1#m"], "--model"),
    "TEACHER": (["localhost:8000/v1#m"], "no such folder"),
    "REFLECTOR": (["http://host/v1"], "an endpoint is written"),  # it is used days later
    "ORM": (["./no"], "no such folder"),
    "TEST": (["toy/test.jsonl nobench:x", " "], ""),
    "DATA": (["no.jsonl"], "no.jsonl: no such file"),
}


@pytest.mark.parametrize("name", list(BAD_SETTINGS))
def test_a_wrong_setting_is_refused_before_anything_runs(run, toy_data, name):
    values, word = BAD_SETTINGS[name]
    others = {"DATA": "toy/train.jsonl", "TEST": "toy/test.jsonl"} if name == "MODEL" else {}
    for value in values:
        done = run("run_rounds.sh", **({"RUN": "test-bad"} | others | {name: value}))
        lines = done.stderr.splitlines()
        assert done.returncode == 2 and len(lines) == 1 and lines[0].startswith("error: "), (
            value,
            done.stderr,
        )
        assert word in lines[0] and not done.stdout, (value, done.stderr, done.stdout)
    assert not (ROOT / "runs" / "test-bad").exists()


# ---------------------------------------------------------------- every stage, as a user calls it


@pytest.mark.parametrize(
    "script, flags",
    [
        ("01_sample.py", ["--input", "FILE", "--model", "toy/base"]),
        ("02_verify.py", ["--input", "FILE", "--accept", "both", "--model", "toy/base"]),
        ("03_reflect.py", ["--input", "FILE", "--model", "toy/base"]),
        ("04_finetune.py", ["--input", "FILE", "--model", "toy/base"]),
        ("05_evaluate.py", ["--test", "FILE", "--model", "toy/base"]),
        ("-m", ["mathse.problems", "--input", "FILE"]),
        ("-m", ["mathse.problems", "--input", "toy/test.jsonl", "--test", "FILE"]),
    ],
)
def test_every_stage_ends_in_one_line(folder, run, script, flags):
    rows = [
        {"prompt": "Q", "sample": 0, "response": "It is 1.", "finish": "stop", "status": "wrong"}
        | problem(id="fine"),
        {"prompt": "Q", "sample": 0, "response": "1", "finish": "stop", "status": "wrong"}
        | problem(images="x.png"),
    ]
    path = write_rows(folder / "rows.jsonl", rows)
    done = run(script, *[path if flag == "FILE" else flag for flag in flags], "--output", folder / "out")
    lines = done.stderr.splitlines()
    assert (
        done.returncode == 2
        and len(lines) == 1
        and lines[0].startswith(f"error: {path}:2: images: must be a list of paths")
    ), done.stderr
    assert "kernels:" not in done.stdout  # nothing was loaded
    path.unlink()
    done = run(script, *[path if flag == "FILE" else flag for flag in flags], "--output", folder / "other")
    assert (
        done.returncode == 2
        and done.stderr.startswith(f"error: {path}: no such file")
        and len(done.stderr.splitlines()) == 1
    ), done.stderr
