"""What a fine-tuning leaves on the disk: checkpoints that survive a kill, at last the model's folder."""

import contextlib
import os
import shutil
from pathlib import Path

from mathse.jsonl import remove
from mathse.launch import DISK_ERRORS
from mathse.records import fail

KEEP = 2  # checkpoints
MIN_FREE = 16 << 20  # bytes; with less, a failed write of weights is put down to a full disk
LOCK = "lock"
UNUSED = "unused.json"  # names of weights without a gradient, of a sharded training
TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
PROCESSOR_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "merges.txt",
    "added_tokens.json", "special_tokens_map.json", "chat_template.jinja", "chat_template.json",
    "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json",
)  # fmt: skip


@contextlib.contextmanager
def saving(part: Path):
    """Weights are written by libraries whose own errors do not say that the disk is full."""
    try:
        yield
    except Exception as error:
        free = shutil.disk_usage(part).free
        if getattr(error, "errno", None) not in DISK_ERRORS and free > MIN_FREE:
            raise
        problem = f"cannot be written ({str(error).splitlines()[0]}; {free >> 20} MB free)"
        remedy = "the last checkpoint is kept: make room and call again to go on"
        fail(f"{part}: {problem}; {remedy}", 1)


def saved_steps(part: Path) -> list[int]:
    return sorted(int(folder.name.split("-")[1]) for folder in part.glob("checkpoint-*"))


def save_checkpoint(accelerator, part: Path, step: int) -> None:
    """A checkpoint folder gets its final name when it is complete, on the disk too."""
    with saving(part):
        accelerator.save_state(str(part / "checkpoint.part"))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        os.sync()
        (part / "checkpoint.part").rename(part / f"checkpoint-{step}")
        remove(*(part / f"checkpoint-{old}" for old in saved_steps(part)[:-KEEP]))
    accelerator.wait_for_everyone()


def resume(accelerator, part: Path) -> int:
    """Load the last checkpoint in `part` and cut the log back to it; the step to go on with."""
    first = max(saved_steps(part), default=0)
    if first:
        checkpoint = part / f"checkpoint-{first}"
        sharded = (checkpoint / "pytorch_model_fsdp_0").exists()
        if sharded != accelerator.is_fsdp2:
            saved, needed = ("several GPUs", "several") if sharded else ("one GPU", "one")
            remedy = f"go on with {needed}, or remove {part} to start anew"
            fail(f"{checkpoint}: was saved by {saved}; {remedy}")
        accelerator.load_state(str(checkpoint))
        accelerator.print(f"resumed at step {first}")
    log = part / "train_log.jsonl"
    if accelerator.is_main_process:
        remove(part / "checkpoint.part")
        if log.exists():
            log.write_text("".join(log.read_text().splitlines(keepends=True)[:first]))
    accelerator.wait_for_everyone()
    return first


def save_model(accelerator, model, spec: str, part: Path) -> None:
    """Weights as safetensors (bf16 where the computation was), the processor's files copied as they are."""
    state = accelerator.get_state_dict(model)
    if accelerator.is_main_process:
        model = accelerator.unwrap_model(model)
        if hasattr(model, "get_base_model"):
            state, model = merged(model, state), model.get_base_model()
        if accelerator.mixed_precision == "bf16":
            state = {
                name: tensor.bfloat16() if tensor.is_floating_point() else tensor
                for name, tensor in state.items()
            }
        for name in getattr(model, "all_tied_weights_keys", {}):  # stored once: the other name says where
            state.pop(name, None)
        with saving(part):
            write_model(model, state, part)
            copy_processor(spec, part)
    accelerator.wait_for_everyone()


def write_model(model, state: dict, part: Path) -> None:
    """The model's folder without sampling habits: what a request leaves out a server takes from there."""
    from transformers import GenerationConfig

    ids = {name: getattr(model.generation_config, name, None) for name in TOKEN_IDS}
    model.generation_config = GenerationConfig(**ids)
    model.save_pretrained(part, state_dict=state)
    dtype = next(tensor.dtype for tensor in state.values() if tensor.is_floating_point())
    for config in (model.config, *(getattr(model.config, name) for name in model.config.sub_configs)):
        config.dtype = dtype  # save_pretrained notes that of the master weights
    model.config.save_pretrained(part)


def merged(model, state: dict) -> dict:
    """The state of a model with adapters as one of the model itself: W + scaling * B A."""
    adapted = {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}
    plain = {}
    for name, tensor in state.items():
        layer, is_base, rest = name.partition(".base_layer.")
        if is_base and rest == "weight":
            down, up = (state[f"{layer}.lora_{side}.default.weight"].float() for side in "AB")
            tensor = tensor.float() + adapted[layer].scaling["default"] * (up @ down)
        if ".lora_" not in name:
            plain[name.replace(".base_layer.", ".").removeprefix("base_model.model.")] = tensor
    return plain


def copy_processor(spec: str, folder: Path) -> None:
    """The processor's files as they are: saving a loaded processor again can change them."""
    from transformers.utils import cached_file

    for name in PROCESSOR_FILES:
        source = cached_file(spec, name, _raise_exceptions_for_missing_entries=False)
        if source:
            shutil.copy(source, folder / name)
    for code in Path(spec).glob("*.py"):
        shutil.copy(code, folder / code.name)


def remove_checkpoints(folder: Path) -> None:
    """What only an unfinished training needs."""
    remove(*folder.glob("checkpoint*"), folder / LOCK, folder / UNUSED)
