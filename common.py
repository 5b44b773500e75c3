"""What two stages must share: the solve prompt, which sampling and training must render alike, the kernel
set-up and the loading of models. Torch is imported where it is needed.
"""

import importlib.util
import os

from mathse.chat import fill, prepare, question_text
from mathse.launch import end_if_device_failed, processes
from mathse.records import fail

# How a response states its answer: prompts ask for it, the answer check and the toy teacher know it.
CLOSING = "The answer to this problem is"

# The prompt of teacher, student and evaluation (01, 05). 01 writes it into each row, and 04 trains on what
# stands there. Image and question come first, so that what is computed for them serves every sample of a
# problem.
SOLVE_PROMPT = f"""Problem: {{question}}

You are an expert mathematics teacher. Say what the image shows, then solve the problem step by step, \
in detail. End with "{CLOSING}" and the final result (of choices, the letter)."""

# The ORM's prompt: 02 asks it, 04 teaches it. Here, too, what all candidates of a problem share comes first.
JUDGE_PROMPT = """Problem: {question}

Solution:
{response}

Check every step of the solution against the image and the problem. Reply with JSON only: \
{"status": "CORRECT" or "WRONG", "error_step": the first wrong step or null, "error_analysis": why it is \
wrong or null}"""


def solve_prompt(problem: dict) -> str:
    """SOLVE_PROMPT with the problem's question and options."""
    return fill(SOLVE_PROMPT, question=question_text(problem))


def judge_prompt(row: dict) -> str:
    """JUDGE_PROMPT with the row's question, options and response."""
    return fill(JUDGE_PROMPT, question=question_text(row), response=row["response"])


# ---------------------------------------------------------------- models


def setup_kernels() -> tuple[str, object, str]:
    """Choose device, compute type and attention by what is installed, and print them: (device, dtype,
    attention).
    """
    import torch

    torch.set_float32_matmul_precision("high")  # TF32 in what stays in fp32
    device, dtype, attention, name = "cpu", torch.float32, "sdpa", f"{torch.get_num_threads()} threads"
    if torch.cuda.is_available():
        number = int(os.environ.get("LOCAL_RANK", 0))
        if number >= torch.cuda.device_count():
            count = torch.cuda.device_count()
            fail(f"more processes than the {count} GPUs of this machine; start fewer (--processes)")
        torch.cuda.set_device(number)
        device, dtype, name = f"cuda:{number}", torch.bfloat16, torch.cuda.get_device_name()
        attention = "flash_attention_2" if importlib.util.find_spec("flash_attn") else "sdpa"
    if processes()[0] == 0:
        kind, version = str(dtype).removeprefix("torch."), torch.__version__
        print(f"kernels: {device} ({name}), {kind}, attention {attention}, torch {version}", flush=True)
    return device, dtype, attention


def load_processor(spec: str, trust_remote_code: bool = False):
    """Any image-text-to-text model's processor. Without torchvision its video part is left out."""
    from transformers import AutoProcessor, processing_utils
    from transformers.utils import is_torchvision_available, logging

    if not is_torchvision_available():
        # one warning a load about slower image processors
        logging.get_logger("transformers").setLevel("ERROR")
        processing_utils.MODALITY_TO_BASE_CLASS_MAPPING["video_processor"] = "ImageProcessingMixin"
        names = processing_utils._LazyAutoProcessorMapping._MAPPING_NAMES
        names["video_processor"] = names["image_processor"]
    try:
        processor = AutoProcessor.from_pretrained(spec, trust_remote_code=trust_remote_code)
    except Exception as error:  # remote code may raise anything
        what = "its processor" if os.path.isdir(spec) else "no such folder; as a hub id its processor"
        fail(f"--model: {spec}: {what} cannot be loaded: {' '.join(str(error).split())[:300]}")
    if not hasattr(processor, "tokenizer"):
        found = f"has a {type(processor).__name__} alone, no processor of images and texts"
        remedy = "give a checkpoint in transformers' own form, or an endpoint that serves it"
        fail(f"--model: {spec}: {found}; {remedy}")
    if problem := prepare(processor):
        fail(f"--model: {spec}: {problem}")
    return processor


def load_model(spec: str, device: str, dtype, attention: str = "sdpa", trust_remote_code: bool = False):
    """Any image-text-to-text model, from safetensors only.

    An attention it lacks falls back to transformers' choice.
    """
    from transformers import AutoModelForImageTextToText
    from transformers.utils import logging

    logging.disable_progress_bar()
    settings = {"dtype": dtype, "use_safetensors": True, "trust_remote_code": trust_remote_code}
    settings["device_map"] = device  # else all ranks of a machine hold the weights in its memory first
    auto = AutoModelForImageTextToText
    try:
        try:
            return auto.from_pretrained(spec, attn_implementation=attention, **settings)
        except (ImportError, ValueError) as error:
            if "AutoModel" in str(error):
                raise
            return auto.from_pretrained(spec, **settings)
    except Exception as error:  # a config that is not that of the weights makes transformers raise anything
        end_if_device_failed(error)
        reason = " ".join(str(error).split())[:300]
        fail(f"--model: {spec}: cannot be loaded as an image-text-to-text model: {reason}")


def load(spec: str, trust_remote_code: bool = False):
    """(model in evaluation mode, processor) on the best device: what mathse.generate.open_model asks for."""
    device, dtype, attention = setup_kernels()
    processor = load_processor(spec, trust_remote_code)
    return load_model(spec, device, dtype, attention, trust_remote_code).eval(), processor
