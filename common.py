"""What two or more stages must share: records on disk, prompts that sampling and training must render alike, seeds,
pictures, the kernel set-up and the loading of models. Nothing happens at import; torch is imported where it is needed."""

import argparse
import codecs
import contextlib
import hashlib
import io
import itertools
import json
import math
import os
import random
import re
import reprlib
import sys
import urllib.parse
import warnings
from pathlib import Path
from typing import Callable, Iterable, Iterator, NoReturn

# The prompt of teacher, student and evaluation (01, 04, 05), and the prompt of the ORM (02, 04). Image and question
# come first in both, so that what is computed for them can serve every sample and every candidate of a question.
SOLVE_PROMPT = """Problem: {question}

You are an expert mathematics teacher. Say what the image shows, then solve the problem step by step, in detail. \
End with "The answer to this problem is" and the final result (of choices, the letter)."""

JUDGE_PROMPT = """Problem: {question}

Solution:
{response}

Check every step of the solution against the image and the problem. Reply with JSON only: \
{"status": "CORRECT" or "WRONG", "error_step": the first wrong step or null, "error_analysis": why it is wrong or null}"""

SUBJECT_RATIO = 2  # see balanced()

IMAGE = "<image>"  # stands for one picture in a message's text, as in the training files of TRL, ms-swift and LLaMA-Factory
PLACEHOLDERS = re.compile(r"<image>|<\|image_pad\|>|<\|vision_start\|>|<\|vision_end\|>|<IMG_CONTEXT>|<fake_token_around_image>|<video>|<\|im_start\|>|<\|im_end\|>")
MAX_PIXELS = 1280 * 28 * 28  # 1280 visual tokens of Qwen2-VL; larger pictures are scaled down
MAX_IMAGE_PIXELS = 100_000_000  # a picture beyond this is refused: it would decompress to gigabytes
IMAGE_FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM")  # others are refused: of some, opening starts another program
MAX_LINE = 16 << 20  # bytes of a row; a longer line is refused unread


def fail(message: str, code: int = 2) -> NoReturn:
    """End the command with one line on stderr. Exit code 2: a mistake that the user can mend; 1: a fault of the machine."""
    message = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in " ".join(message.splitlines()))  # data may steer a terminal
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


# ---------------------------------------------------------------- records


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
    for where, row in json_lines(path):
        if not isinstance(row, dict):
            fail(f"{where}: a {type(row).__name__} instead of a JSON object; write {{\"id\": ..., \"question\": ..., ...}}")
        if check:
            check_row(row, where, required)
            if (key := hash(row_key(row))) in keys:
                fail(f"{where}: id: {shown(row['id'])}, sample {row.get('sample', '-')} stands already in line {keys[key]}; make it unique")
            keys[key] = int(where.rpartition(":")[2])
        row["images"] = [str(path.parent.absolute() / image) for image in row.get("images") or []]
        yield row
    if row is None and not may_be_empty:  # a round can have nothing left to sample; a problem file cannot be empty
        fail(f"{path}: the file is empty; write at least one row")


def shown(value: object) -> str:
    """A value as it stands in a message: cut short, on one line."""
    return reprlib.repr(value)


def check_row(row: dict, where: str, required: Iterable[str]) -> None:
    """End the command if a row breaks the record table of the README. Pictures are checked by their header only."""

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
        if problem := image_problem(Path(where.rsplit(":", 1)[0]).parent / image):
            refuse("images", f"{shown(image) if len(image) > 200 else image}: {problem}")


def is_scalar(value: object) -> bool:
    return isinstance(value, (str, int, float)) and not isinstance(value, bool)


def is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def check_messages(row: dict, refuse: Callable[[str, str], NoReturn]) -> None:
    """The messages of a row to train on: prompt and reply as texts, with as many IMAGE marks as pictures."""
    messages = row["messages"]
    roles = [message.get("role") if isinstance(message, dict) and isinstance(message.get("content"), str) else None for message in messages] if isinstance(messages, list) else []
    if len(roles) < 2 or roles[-1] != "assistant" or not set(roles) <= {"system", "user", "assistant"}:
        refuse("messages", "must be a list of {\"role\", \"content\"} with texts, the last by the assistant")
    marks, pictures = sum(message["content"].count(IMAGE) for message in messages if message["role"] == "user"), len(row.get("images") or [])
    if marks != pictures:
        refuse("messages", f"{marks} {IMAGE} marks for {pictures} images; write one for each")


def row_key(row: dict) -> str:
    """What is unique in a file: problem and sample; in predictions also the benchmark, in training files the origin."""
    return json.dumps([row["id"], row.get("sample", 0), row.get("origin") if "messages" in row else row.get("benchmark")])


def relative_images(row: dict, folder: Path) -> dict:
    """The row with its image paths written relative to `folder`, where its new file lies."""
    folder = os.path.realpath(folder)  # a run folder may be a link to another disk
    return row | {"images": [os.path.relpath(os.path.realpath(image), folder) for image in row.get("images", [])]}


def processes() -> tuple[int, int]:
    """(rank, number of processes) as `accelerate launch` and `torchrun` tell them."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def derive_seed(*parts: object) -> int:
    """A seed of 31 bits from names, not from order: (run seed, round, problem id, sample)."""
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode()).digest()[:4], "big") >> 1


def balanced(keys: dict[tuple[str, str], list], seed: int) -> list:
    """As many correct paths as wrong ones to train an ORM on, drawn by the seed from {(status, subject): keys}.

    Within a subject at most SUBJECT_RATIO of one kind for each of the other: else the ORM learns which subjects are hard,
    and calls every path of theirs wrong.
    """
    rng, chosen = random.Random(seed), {"correct": [], "wrong": []}
    for subject in sorted({subject for _, subject in keys}):
        found = {status: keys.get((status, subject), []) for status in chosen}
        most = SUBJECT_RATIO * max(1, min(map(len, found.values())))
        for status, group in found.items():
            chosen[status] += rng.sample(group, min(most, len(group)))
    count = min(map(len, chosen.values()))
    return [key for group in chosen.values() for key in rng.sample(group, count)]


# ---------------------------------------------------------------- prompts


def fill(prompt: str, **fields: object) -> str:
    """Put fields into a prompt in one pass: braces in questions, responses and JSON examples stay as they are."""
    return re.sub(r"\{(\w+)\}", lambda match: harmless(str(fields[match[1]])) if match[1] in fields else match[0], prompt)


def harmless(text: str) -> str:
    """Text of a model in which no special token or placeholder is left whole: a space is put into each."""
    return PLACEHOLDERS.sub(lambda match: match[0][0] + " " + match[0][1:], text)


def question_text(problem: dict) -> str:
    """Question and lettered choices; options that bring their own letters keep them."""
    text, options = problem["question"].strip(), [str(option) for option in problem.get("options") or []]
    letters = [chr(65 + index) for index in range(len(options))]
    if not options or options == letters:
        return text
    lettered = all(re.match(rf"\(?{letter}[).:]", option) for letter, option in zip(letters, options))
    return text + "\nChoices:\n" + "\n".join(option if lettered else f"{letter}. {option}" for letter, option in zip(letters, options))


def user_message(prompt: str, images: list) -> list[dict]:
    return [{"role": "user", "content": IMAGE * len(images) + prompt}]


def solve_messages(problem: dict) -> list[dict]:
    return user_message(fill(SOLVE_PROMPT, question=question_text(problem)), problem["images"])


def judge_messages(row: dict, show_answer: bool = False) -> list[dict]:
    """The ORM's prompt; `show_answer` adds the reference answer (an ablation: train and judge with the same setting)."""
    question = question_text(row) + (f"\n\nStandard answer: {row['answer']}" if show_answer else "")
    return user_message(fill(JUDGE_PROMPT, question=question, response=row["response"]), row["images"])


def add_model_flags(parser: argparse.ArgumentParser, max_tokens: int) -> None:
    """The flags of every stage that generates text."""
    group = parser.add_argument_group("model")
    group.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (default %(default)s)")
    group.add_argument("--top-p", type=float, default=1.0, help="keep the likeliest tokens of this total probability (default %(default)s: all)")
    group.add_argument("--top-k", type=int, default=0, help="keep the k likeliest tokens (default %(default)s: all)")
    group.add_argument("--max-tokens", type=int, default=max_tokens, help="new tokens a reply, at most (default %(default)s)")
    group.add_argument("--max-pixels", type=int, default=MAX_PIXELS, help="larger pictures are scaled down to it (default %(default)s)")
    group.add_argument("--batch-size", type=int, default=64, help="replies decoded together, local models (default %(default)s)")
    group.add_argument("--retry-errors", action="store_true", help="of a complete output, try the rows again that failed")
    group.add_argument("--trust-remote-code", action="store_true", help="run the Python code in the model's folder")
    group.add_argument("--seed", type=int, default=0, help="the run's seed (default %(default)s)")
    group = parser.add_argument_group("endpoint")
    group.add_argument("--concurrency", type=int, default=32, help="requests in flight (default %(default)s)")
    group.add_argument("--timeout", type=float, default=600.0, help="seconds for one reply; a request with all its tries takes three times as long at most (default %(default)s)")
    group.add_argument("--max-requests", type=int, default=0, help="stop cleanly after N requests, tries included; exit code 3 (default %(default)s: no limit)")
    group.add_argument("--max-cost", type=float, default=0.0, help="stop cleanly once that much is spent, by PRICE_IN and PRICE_OUT of the environment, a million tokens; exit code 3 (default %(default)s: no limit)")
    group.add_argument("--spent", help="file in which several calls add up requests and tokens: the limits hold for their sum (default: for this call)")


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
        if name in {"warmup", "orm_threshold"} and value > 1:
            fail(f"{flag}: must lie in [0, 1]")
    if not 0 < getattr(args, "top_p", 1) <= 1:
        fail(f"--top-p: {args.top_p}: must lie in (0, 1]")


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


def open_image(path: str | io.BytesIO, max_pixels: int):
    """A picture as RGB: the first frame, turned as its EXIF says, transparency on white, scaled down to at most `max_pixels`. Raises OSError."""
    try:
        return decode_image(path, max_pixels)
    except OSError:
        raise
    except Exception as error:  # a hostile file can make Pillow raise anything
        raise OSError(f"{type(error).__name__}: {error}") from error


def decode_image(path: str | io.BytesIO, max_pixels: int):
    from PIL import Image, ImageOps

    with warnings.catch_warnings(action="ignore"), Image.open(path, formats=IMAGE_FORMATS) as image:
        if image.format == "JPEG" and max_pixels:  # decode large photographs at a fraction of their size
            scale = max(1.0, (image.width * image.height / max_pixels) ** 0.5)
            image.draft("RGB", (int(image.width / scale), int(image.height / scale)))
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16"):  # convert() would cut off at 255
            image = image.convert("I").point(lambda value: value * (1 / 257) + 0.5).convert("L")
        if "A" in image.getbands() or "transparency" in image.info:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
        image = image.convert("RGB")
    if max_pixels and image.width * image.height > max_pixels:
        scale = (max_pixels / (image.width * image.height)) ** 0.5
        image = image.resize((max(1, int(image.width * scale)), max(1, int(image.height * scale))), Image.Resampling.BICUBIC)
    return image


# ---------------------------------------------------------------- models


def is_endpoint(spec: str) -> bool:
    return spec.startswith(("http://", "https://"))


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


def setup_kernels(threads: int = 0) -> tuple[str, object, str]:
    """Choose device, compute type and attention by what is installed, and say so in one line: (device, dtype, attention)."""
    import importlib.util

    import torch

    torch.set_float32_matmul_precision("high")  # TF32 in what stays in fp32
    if threads:
        torch.set_num_threads(threads)
    if torch.cuda.is_available():
        device, dtype = f"cuda:{os.environ.get('LOCAL_RANK', 0)}", torch.bfloat16
        if int(os.environ.get("LOCAL_RANK", 0)) >= torch.cuda.device_count():
            fail(f"more processes than the {torch.cuda.device_count()} GPUs of this machine; start fewer (GPUS)")
        torch.cuda.set_device(device)
        attention = "flash_attention_2" if importlib.util.find_spec("flash_attn") else "sdpa"
        name = torch.cuda.get_device_name()
    else:
        device, dtype, attention, name = "cpu", torch.float32, "sdpa", f"{torch.get_num_threads()} threads"
    if processes()[0] == 0:
        print(f"kernels: {device} ({name}), {str(dtype).removeprefix('torch.')}, attention {attention}, torch {torch.__version__}", flush=True)
    return device, dtype, attention


def load_processor(spec: str, trust_remote_code: bool = False):
    """Any image-text-to-text model's processor, left-padding. Without torchvision the video part, which needs it, is left out."""
    from transformers import AutoProcessor, processing_utils
    from transformers.utils import is_torchvision_available, logging

    if not is_torchvision_available():
        logging.get_logger("transformers").setLevel("ERROR")  # one warning a load about the slower image processors
        processing_utils.MODALITY_TO_BASE_CLASS_MAPPING["video_processor"] = "ImageProcessingMixin"
        names = processing_utils._LazyAutoProcessorMapping._MAPPING_NAMES
        names["video_processor"] = names["image_processor"]
    try:
        processor = AutoProcessor.from_pretrained(spec, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        fail(f"--model: {spec}: its processor cannot be loaded: {str(error).splitlines()[0]}")
    processor.tokenizer.padding_side = "left"
    if processor.tokenizer.pad_token is None:
        processor.tokenizer.pad_token = processor.tokenizer.eos_token
    return processor


def load_model(spec: str, device: str, dtype, attention: str = "sdpa", trust_remote_code: bool = False):
    """Any image-text-to-text model, from safetensors only. An attention that it lacks falls back to transformers' own choice."""
    from transformers import AutoModelForImageTextToText
    from transformers.utils import logging

    logging.disable_progress_bar()
    for implementation in (attention, None):
        try:
            return AutoModelForImageTextToText.from_pretrained(
                spec, dtype=dtype, attn_implementation=implementation, use_safetensors=True, trust_remote_code=trust_remote_code
            ).to(device)
        except (ImportError, ValueError, OSError) as error:
            if implementation is None or isinstance(error, OSError) or "AutoModel" in str(error):
                fail(f"--model: {spec}: cannot be loaded as an image-text-to-text model: {str(error).splitlines()[0]}")


def chat_parts(messages: list[dict], images: list | None = None) -> list[dict]:
    """Messages with IMAGE marks -> the content lists that chat templates (and, given data URLs, endpoints) read."""
    pictures, chat = iter(images or []), []
    for message in messages:
        parts = []
        for index, text in enumerate(message["content"].split(IMAGE) if message["role"] == "user" else [message["content"]]):
            if index:
                parts.append({"type": "image"} | ({"image": next(pictures)} if images else {}))
            if text:
                parts.append({"type": "text", "text": text})
        chat.append({"role": message["role"], "content": parts})
    return chat


def encode_prompts(processor, chats: list[list[dict]]) -> dict:
    """Chats with pictures -> left-padded tensors (B, T) with what the vision tower needs: the one rendering for sampling and training."""
    return processor.apply_chat_template(
        chats, tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="pt", processor_kwargs={"padding": True}
    )
