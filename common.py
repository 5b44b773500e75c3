"""What two or more stages must share: prompts that sampling and training must render alike, keys and seeds, pictures, the kernel
set-up and the loading of models. Nothing happens at import; torch is imported where it is needed."""

import argparse
import hashlib
import io
import json
import os
import random
import re
import sys
import warnings
from pathlib import Path
from typing import NoReturn

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
PLACEHOLDERS = re.compile(r"<image>|<\|image_pad\|>|<\|vision_start\|>|<\|vision_end\|>|<IMG_CONTEXT>|<fake_token_around_image>|<video>|<\|video_pad\|>|<\|im_start\|>|<\|im_end\|>")
MAX_PIXELS = 1280 * 28 * 28  # 1280 visual tokens of Qwen2-VL; larger pictures are scaled down
IMAGE_FORMATS = ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM")  # others are refused: of some, opening starts another program


def fail(message: str, code: int = 2) -> NoReturn:
    """End the command with one line on stderr. Exit code 2: a mistake that the user can mend; 1: a fault of the machine."""
    message = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in " ".join(message.splitlines()))  # data may steer a terminal
    print(f"error: {message}", file=sys.stderr)
    sys.exit(code)


# ---------------------------------------------------------------- records


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


# ---------------------------------------------------------------- pictures


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
    if not hasattr(processor, "tokenizer"):
        fail(f"--model: {spec}: has a {type(processor).__name__} alone, no processor of pictures and texts, and cannot be run here; give a checkpoint in transformers' own form, or an endpoint that serves it")
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


def set_text_attention(model, name: str) -> None:
    """Let a model's language part, not its vision tower, attend by this entry of transformers' table."""
    text = model.config.get_text_config()
    part = next((part for part in model.config.sub_configs if getattr(model.config, part) is text), "")
    model.set_attn_implementation({part: name})


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


def other_prompts(processor, messages: list[list[dict]], first: list[int]) -> list[list[int]] | None:
    """Token ids of prompts with the same pictures, of which the first is known: only the text behind the pictures is tokenized again.

    None if that cannot be done: this tokenizer or template joins the text with what stands in front of it.
    """
    texts = processor.apply_chat_template([chat_parts(message) for message in messages], add_generation_prompt=True)
    start = texts[0].find(messages[0][-1]["content"].rpartition(IMAGE)[2])
    if start < 0 or any(text[:start] != texts[0][:start] for text in texts):
        return None
    tails = processor.tokenizer([text[start:] for text in texts], add_special_tokens=False)["input_ids"]
    if first[-len(tails[0]) :] != tails[0]:
        return None
    return [first[: -len(tails[0])] + tail for tail in tails]
