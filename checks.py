"""What a user can get wrong, told in one line before a model is loaded: rows, pictures, numbers, models. `read_rows` is how every
stage reads its files. Torch is not needed."""

import argparse
import codecs
import contextlib
import itertools
import json
import math
import re
import reprlib
import urllib.parse
import warnings
from functools import lru_cache
from pathlib import Path
from typing import Callable, Iterable, Iterator, NoReturn

from common import IMAGE, IMAGE_FORMATS, PLACEHOLDERS, fail, is_endpoint, row_key

MAX_LINE = 16 << 20  # bytes of a row; a longer line is refused unread
KNOWN_PICTURES = 1 << 14  # of a file, whose headers are not read again while its rows are checked
MAX_IMAGE_PIXELS = 100_000_000  # a picture beyond this is refused: it would decompress to gigabytes


# ---------------------------------------------------------------- rows


def json_lines(path: Path) -> Iterator[tuple[str, object]]:
    """(file:line, value) of every line that is not blank. A mark of UTF-8 at the start and Windows' line ends are fine; NaN and Infinity are not JSON."""

    def finite(text: str) -> float:
        if not math.isfinite(value := float(text)):
            raise ValueError(f"{text} is not a number that JSON has")
        return value

    decoder = json.JSONDecoder(parse_float=finite, parse_constant=finite)
    if not path.is_file():
        fail(f"{path}: " + ("not a plain file; a file that is read twice is needed, no folder and no pipe" if path.exists() else "no such file"))
    try:
        file = path.open("rb")
    except OSError as error:
        fail(f"{path}: cannot be read ({error.strerror}); look at its permissions")
    with file:
        for number in itertools.count(1):
            line, where = file.readline(MAX_LINE + 1), f"{path}:{number}"
            if not line:
                return
            if len(line) > MAX_LINE:
                fail(f"{where}: a line of more than {MAX_LINE >> 20} MB; write one JSON object a line, pictures as paths")
            if number == 1 and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                fail(f"{where}: not a JSON object in UTF-8 but UTF-16; save the file as UTF-8")
            line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
            if not line.strip():
                continue
            try:
                value = decoder.decode(line.decode("utf-8").strip())
            except (ValueError, RecursionError) as error:  # bad UTF-8, bad JSON, JSON nested without end
                fail(f"{where}: not a JSON object in UTF-8 ({error}); write one object a line: mend or remove this one")
            yield where, value


def read_rows(path: str | Path, required: Iterable[str] = ("id", "question"), check: bool = True, may_be_empty: bool = False) -> Iterator[dict]:
    """The rows of a problems, samples or verified file, in order, one in memory at a time; image paths come back absolute.

    Checked, any fault ends the command: file:line: field: what to do; (id, sample) must be unique. A second pass over
    the same file goes without: what breaks meanwhile becomes an error record where it is used.
    """
    path, keys, row = Path(path), {}, None
    problem_of = lru_cache(maxsize=KNOWN_PICTURES)(image_problem)  # the samples of a problem share its pictures
    for where, row in json_lines(path):
        if not isinstance(row, dict):
            fail(f"{where}: a {type(row).__name__} instead of a JSON object; write {{\"id\": ..., \"question\": ..., ...}}")
        if check:
            check_row(row, where, required, problem_of)
            if (key := hash(row_key(row))) in keys:
                fail(f"{where}: id: {shown(row['id'])}, sample {row.get('sample', '-')} stands already in line {keys[key]}; make it unique")
            keys[key] = int(where.rpartition(":")[2])
        row["images"] = [str(path.parent.absolute() / image) for image in row.get("images") or []]
        yield row
    if row is None and not may_be_empty:  # a round can have nothing left to sample; a problem file cannot be empty
        fail(f"{path}: the file is empty; write at least one row")


def check_row(row: dict, where: str, required: Iterable[str], problem_of: Callable[[Path], str | None]) -> None:
    """End the command if a row breaks the record table of the README. Pictures are checked by their header only, with `problem_of`."""

    def refuse(field: str, problem: str) -> NoReturn:
        fail(f"{where}: {field}: {problem}")

    for field in required:
        if field not in row:
            refuse(field, f"missing; this stage needs {', '.join(required)}")
    for field in ("id", "question", "response"):
        if field in row and (not isinstance(row[field], str) or (field != "response" and not row[field].strip())):
            refuse(field, f"{shown(row[field])} is not a string with text in it; write one")
    for field, names in (("finish", ("stop", "length", "error")), ("status", ("correct", "wrong", "undecided"))):
        if row.get(field, names[0]) not in names:
            refuse(field, f"{shown(row[field])} is none of {', '.join(names)}; is this a file of 01 or 02?")
    if not is_count(row.get("sample", 0)):
        refuse("sample", f"{shown(row['sample'])} is not a whole number from 0; number the samples of a problem")
    images, options, answer = row.get("images"), row.get("options"), row.get("answer")
    if images is not None and not (isinstance(images, list) and all(isinstance(image, str) for image in images)):
        refuse("images", f"must be a list of paths, not {shown(images)}; write [\"picture.png\"]")
    if options is not None and not (isinstance(options, list) and all(map(is_scalar, options))):
        refuse("options", f"must be a list of strings, not {shown(options)}; write [\"3\", \"4\"]")
    if answer is not None and not (is_scalar(answer) or (isinstance(answer, list) and answer and all(map(is_scalar, answer)))):
        refuse("answer", f"must be a string, a number, a list of them, or null, not {shown(answer)}")
    if isinstance(answer, str) and not answer.strip():
        refuse("answer", "is empty; write null if it is not known")
    for field, text in (("question", row.get("question", "")), *(("options", str(option)) for option in options or [])):
        if found := PLACEHOLDERS.search(text):
            refuse(field, f"holds the image placeholder {found.group()!r}; remove it: pictures are put in front of the question")
    for field, value in row.items():
        if re.search(r"[\ud800-\udfff]", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False) if isinstance(value, list) else ""):
            refuse(field, "holds half a surrogate pair, which is no character; write the text anew in UTF-8")
    if options and answer is not None:
        from answers import reference_letters

        if not reference_letters(row):
            refuse("answer", f"{shown(answer)} is not among the options {shown(options)}; write the letter or the text of one, or null if it is not known")
    if "messages" in row:
        check_messages(row, refuse)
    for image in images or []:
        if problem := problem_of(Path(where.rsplit(":", 1)[0]).parent / image):
            refuse("images", f"{shown(image) if len(image) > 200 else image}: {problem}")


def check_messages(row: dict, refuse: Callable[[str, str], NoReturn]) -> None:
    """The messages of a row to train on: prompt and reply as texts, with as many IMAGE marks as pictures."""
    messages = row["messages"]
    roles = [message.get("role") if isinstance(message, dict) and isinstance(message.get("content"), str) else None for message in messages] if isinstance(messages, list) else []
    if len(roles) < 2 or roles[-1] != "assistant" or not set(roles) <= {"system", "user", "assistant"}:
        refuse("messages", "must be a list of {\"role\", \"content\"} with texts, the last by the assistant")
    marks, pictures = sum(message["content"].count(IMAGE) for message in messages if message["role"] == "user"), len(row.get("images") or [])
    if marks != pictures:
        refuse("messages", f"{marks} {IMAGE} marks for {pictures} images; write one for each")


def is_scalar(value: object) -> bool:
    return isinstance(value, (str, int, float)) and not isinstance(value, bool)


def is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def shown(value: object) -> str:
    """A value as it stands in a message: cut short, on one line."""
    return reprlib.repr(value)


# ---------------------------------------------------------------- pictures


def image_problem(path: Path) -> str | None:
    """What is wrong with a picture, by its header, or None. It may lie anywhere, behind links too."""
    from PIL import Image, UnidentifiedImageError

    if re.search(r"(^|/)(https?|file|data):", str(path)):
        return "a picture is read from a file; download it and write its path"
    try:
        if not path.exists():
            return "no such file; write its path relative to the file that names it, or absolute"
        if not path.is_file():  # a pipe would be waited for
            return "not a picture but a folder or a device"
        if not path.stat().st_size:
            return "not a picture but an empty file; fetch it again"
        with warnings.catch_warnings(action="ignore"), Image.open(path, formats=IMAGE_FORMATS) as image:
            (width, height), mode = image.size, image.mode
    except UnidentifiedImageError:
        return f"not a picture that can be read; save it as one of {', '.join(IMAGE_FORMATS)}"
    except Image.DecompressionBombError:
        return f"more than {MAX_IMAGE_PIXELS} pixels; scale it down"
    except Exception as error:  # a hostile file can make Pillow raise anything, and so can a path with half a surrogate pair
        return f"not a picture that can be read ({type(error).__name__}); mend the file or its path"
    if mode in ("I", "F"):
        return "pixels of 32 bits, whose white is not known; save it with 8 or 16 bits"
    return None if width * height <= MAX_IMAGE_PIXELS else f"more than {MAX_IMAGE_PIXELS} pixels; scale it down"


# ---------------------------------------------------------------- numbers


def check_flags(args: argparse.Namespace) -> None:
    """End the command if a number makes no sense."""
    for name, value in vars(args).items():
        flag = f"--{name.replace('_', '-')}: {value}"
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            continue
        if value < 0 or not math.isfinite(value) or value >= 1 << 63:
            fail(f"{flag}: must not be negative" if value < 0 else f"{flag}: must be a number below 2^63")
        if name in {"samples", "max_tokens", "batch_size", "micro_batch", "concurrency", "timeout", "per_problem", "max_length", "drafts", "orm_samples"} and value == 0:
            fail(f"{flag.partition(':')[0]}: must be at least 1")
        if name in {"epochs", "lr"} and value == 0:
            fail(f"{flag}: must be above 0")
        if name in {"warmup", "orm_threshold", "recompute"} and value > 1:
            fail(f"{flag}: must lie in [0, 1]")
    if not 0 < getattr(args, "top_p", 1) <= 1:
        fail(f"--top-p: {args.top_p}: must lie in (0, 1]")


# ---------------------------------------------------------------- models


def check_model(spec: str, name: str = "--model") -> None:
    """End the command if the spec cannot be a model: checked before anything is loaded. What the hub holds is known only when it is loaded."""

    def refuse(problem: str) -> NoReturn:
        fail(f"{name}: {spec}: {problem}")

    if is_endpoint(spec):
        if "@" in spec.partition("#")[0]:  # the spec stands in records and messages
            fail(f"{name}: a name or key in an endpoint's address would be written to files; put the key into OPENAI_API_KEY")
        with contextlib.suppress(ValueError):  # a port that is no number, a broken IPv6 address
            parts = urllib.parse.urlsplit(spec)
            if parts.hostname and parts.fragment and (parts.port or True):
                return
        refuse("an endpoint is written http://host:port/v1#model-name")
    folder = Path(spec)
    if not folder.is_dir():
        if folder.exists() or not re.fullmatch(r"\w[\w.-]*/[\w.-]+", spec):
            refuse("no such folder; give a model folder, a hub id (owner/name) or http://host:port/v1#model-name")
        return  # a hub id
    if not (folder / "config.json").is_file():
        refuse("no config.json in it; is it a model folder?")
    config = read_object(folder / "config.json", refuse)
    if not reads_pictures(config):
        refuse(f"a {(config.get('architectures') or ['model'])[0]} that reads no pictures, by its config.json; give an image-text-to-text model")
    shards = sorted(folder.glob("*.safetensors"))
    if not shards:
        pickles = next(iter([*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth")]), None)
        refuse("no *.safetensors weights in it; " + (f"pickled ones ({pickles.name}) are never loaded: convert them" if pickles else "is the download complete?"))
    if (index := folder / "model.safetensors.index.json").is_file():
        names = set(dict(read_object(index, refuse).get("weight_map") or {}).values())
        if missing := sorted(names - {shard.name for shard in shards}):
            refuse(f"{missing[0]}: missing, and {len(missing) - 1} more of the {len(names)} files in {index.name}; download them")
    for shard in shards:
        if problem := weights_problem(shard):
            refuse(f"{shard.name}: {problem}; download it again")


def reads_pictures(config: dict) -> bool:
    """Whether a model's config.json speaks of pictures, or of remote code, which may see without saying so."""
    return "auto_map" in config or any(re.search(r"vision|visual|image|patch|vit_|vq_", name) for name in (*config, str(config.get("model_type"))))


def read_object(path: Path, refuse: Callable[[str], NoReturn]) -> dict:
    """A JSON file with an object in it."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        refuse(f"{path.name}: not JSON ({error}); download it again")
    return content if isinstance(content, dict) else refuse(f"{path.name}: not a JSON object; download it again")


def weights_problem(path: Path) -> str | None:
    """What is wrong with a safetensors file, by its header and size, or None."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy"):
            return None
    except (SafetensorError, OSError) as error:
        with path.open("rb") as file:
            pointer = file.read(7) == b"version"
        return "a Git LFS pointer, not the weights (git lfs pull)" if pointer else f"broken or cut off ({error})"
