"""Fine-tune a student on accepted paths, or (--orm) an outcome reward model on annotated ones.

Reads:  verified.jsonl   id, question, images, sample, response, status, finish, origin; with --orm also error_step, error_analysis
        (or a training file: rows with messages, images, id, sample, origin)
Writes: OUTPUT/          a model folder that `from_pretrained` loads, with train_log.jsonl (step, loss, lr, grad_norm, tokens) and training.json
        train.jsonl      the rows trained on: messages and images as TRL, ms-swift and LLaMA-Factory read them, + id, sample, origin, and where the
                         response comes from: model, seed, verified_in (the verified.jsonl with its verdicts), of reflections draft_of (the draft's
                         verified_in, origin and sample); paths are relative to train.jsonl

    python 04_finetune.py --input verified.jsonl --output model --model toy/base --lr 1e-3 --batch-size 32
    accelerate launch --num_processes 8 04_finetune.py --input verified.jsonl --output model --model Qwen/Qwen2-VL-7B-Instruct --freeze-vision
"""

import argparse
import contextlib
import json
import math
import os
import random
import re
import shutil
import time
from array import array
from collections import defaultdict
from datetime import timedelta
from pathlib import Path

from PIL import Image
from tqdm import tqdm

from checks import check_flags, check_model, read_rows
from common import (
    IMAGE, MAX_PIXELS, balanced, chat_parts, derive_seed, encode_prompts, fail, harmless, is_endpoint, judge_messages, load_model, load_processor, open_image,
    processes, relative_images, setup_kernels, solve_messages,
)  # fmt: skip
from output import DISK_ERRORS, disk_errors, fingerprint, finished, try_lock, write_json

# AdamW as in the paper (Table 6): weight decay 0.05, cosine decay, global batch 128; Qwen2-VL: 1e-5 with warm-up 0.1,
# CogVLM2: 2e-5 with 0.01, InternVL2.5: 2e-5 with 0.03.
BETAS, WEIGHT_DECAY, CLIP = (0.9, 0.95), 0.05, 1.0
KEEP_CHECKPOINTS = 2
HOW = {"input", "output", "train_file", "micro_batch", "workers", "save_steps", "trust_remote_code"}  # flags that may change when an unfinished training goes on
PROCESSOR_FILES = (
    "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json",
    "chat_template.jinja", "chat_template.json", "preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json",
)  # fmt: skip
IGNORE = -100
MIN_FREE = 16 << 20  # bytes; with less, a failed write of weights is put down to a full disk


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--input", nargs="+", required=True, help="verified.jsonl or train.jsonl files")
    parser.add_argument("--output", type=Path, required=True, help="model folder to write")
    parser.add_argument("--train-file", type=Path, help="training file to write (default OUTPUT.train.jsonl)")
    parser.add_argument("--model", required=True, help="the base: model folder or hub id")
    parser.add_argument("--previous", help="the model of the round before, for --init previous")
    parser.add_argument("--init", choices=["base", "previous"], default="base", help="weights to start from; the optimizer always starts anew (default %(default)s)")
    parser.add_argument("--orm", action="store_true", help="train a judge on correct and wrong paths instead of a student on correct ones")
    parser.add_argument("--binary", action="store_true", help="with --orm: learn the status alone, without step and analysis (ablation)")
    parser.add_argument("--show-answer", action="store_true", help="with --orm: the judge is shown the reference answer (ablation); use it in 02 too")
    parser.add_argument("--per-problem", type=int, default=4, help="different paths a problem, at most; with --orm of each kind (default %(default)s)")
    parser.add_argument("--epochs", type=float, default=1.0, help="passes over the training rows (default %(default)s)")
    parser.add_argument("--lr", type=float, default=1e-5, help="peak learning rate (default %(default)s)")
    parser.add_argument("--warmup", type=float, default=0.1, help="share of the steps (default %(default)s)")
    parser.add_argument("--batch-size", type=int, default=128, help="rows an optimizer step, over all processes (default %(default)s)")
    parser.add_argument("--micro-batch", type=int, default=4, help="rows a forward pass of one process, at most (default %(default)s)")
    parser.add_argument("--max-length", type=int, default=4096, help="tokens; longer rows are left out and counted (default %(default)s)")
    parser.add_argument("--max-pixels", type=int, default=MAX_PIXELS, help="as in sampling (default %(default)s)")
    parser.add_argument("--freeze-vision", action="store_true", help="train the language model and the projector only")
    parser.add_argument("--save-steps", type=int, default=200, help=f"checkpoint every N steps, the last {KEEP_CHECKPOINTS} are kept (default %(default)s, 0: none)")
    parser.add_argument("--log-with", help="tracker that accelerate knows, such as tensorboard or wandb, beside train_log.jsonl (default: none)")
    parser.add_argument("--workers", type=int, default=1, help="processes that prepare batches (default %(default)s, 0: none)")
    parser.add_argument("--limit", type=int, default=0, help="only the first N training rows (default %(default)s: all)")
    parser.add_argument("--trust-remote-code", action="store_true", help="run the Python code in the model's folder")
    parser.add_argument("--seed", type=int, default=0, help="of the order of the rows (default %(default)s)")
    return parser.parse_args()


# ---------------------------------------------------------------- which rows


def target(row: dict, args: argparse.Namespace) -> tuple[list[dict], str]:
    """(prompt messages, the reply to learn)"""
    if not args.orm:
        return solve_messages(row), harmless(row["response"])
    wrong = row["status"] == "wrong"
    reply = {"status": "WRONG" if wrong else "CORRECT"}
    if not args.binary:
        reply |= {name: row.get(name) if wrong else None for name in ("error_step", "error_analysis")}
    return judge_messages(row, args.show_answer), harmless(json.dumps(reply, ensure_ascii=False))


def pick_diverse(rows: list[tuple[str, str]], count: int) -> list[str]:
    """Keys of `count` of the (key, response) pairs: the first, then always the one least like those taken; no text twice.

    Likeness is the share of common word pairs (Jaccard). Numbers count as words: two ways to a result differ.
    """
    texts = {" ".join(response.split()): key for key, response in reversed(rows)}
    words = [(key, text.split()) for text, key in reversed(texts.items())]
    left = [(key, set(zip(text, text[1:]))) for key, text in words]
    taken = [left.pop(0)] if left else []
    while left and len(taken) < count:
        alike = [max(len(pairs & other) / (len(pairs | other) or 1) for _, other in taken) for _, pairs in left]
        taken.append(left.pop(alike.index(min(alike))))
    return [key for key, _ in taken]


def choose_rows(args: argparse.Namespace) -> set[tuple[str, str, int]]:
    """The (file, id, sample) to train on, whatever the order of the rows: that differs from call to call."""
    groups, subjects, labels = defaultdict(list), {}, ("correct", "wrong") if args.orm else ("correct",)
    for number, path in enumerate(args.input):
        for row in read_rows(path, ("id", "question", "sample", "response", "status"), may_be_empty=True):
            explained = row["status"] == "correct" or row.get("error_analysis")  # a judge cannot learn why from nothing
            if row["status"] in labels and explained and row.get("finish", "stop") == "stop" and row["response"].strip():
                groups[row["status"], row["id"]].append((number, row["sample"], row["response"]))
                subjects[row["id"]] = str(row.get("subject"))
    chosen = defaultdict(list)
    for (status, name), rows in sorted(groups.items()):
        texts = [((str(args.input[number]), name, sample), response) for number, sample, response in sorted(rows)]
        chosen[status, subjects[name]] += pick_diverse(texts, args.per_problem)
    return {*balanced(chosen, args.seed)} if args.orm else {key for keys in chosen.values() for key in keys}


def write_training_file(args: argparse.Namespace, path: Path) -> None:
    """The training rows in the order of the input files, or the rows of a training file as they are."""
    ready = "messages" in next(read_rows(args.input[0], check=False, may_be_empty=True), {})
    chosen = None if ready else choose_rows(args)
    part, count = Path(f"{path}.part"), 0
    path.parent.mkdir(parents=True, exist_ok=True)
    with part.open("w", encoding="utf-8") as file:
        for source in args.input:
            for row in read_rows(source, ("id", "messages", "images"), check=ready, may_be_empty=True):
                if not ready and (str(source), row["id"], row["sample"]) not in chosen or args.limit and count >= args.limit:
                    continue
                if not ready:
                    messages, reply = target(row, args)
                    origin = {"origin": row.get("origin", "sample")} | ({"status": row["status"]} if args.orm else {})
                    traced = provenance(row, Path(source), path.parent)
                    row = {"messages": [*messages, {"role": "assistant", "content": reply}], "images": row["images"], "id": row["id"], "sample": row["sample"]} | origin | traced
                file.write(json.dumps(relative_images(row, path.parent), ensure_ascii=False) + "\n")
                count += 1
    if not count:
        fail(f"{args.input[0]}: status: no row to train on; is anything verified as correct{' and as wrong' if args.orm else ''}?")
    part.replace(path)


def provenance(row: dict, source: Path, folder: Path) -> dict:
    """Who wrote a row's response with which seed, and the file of its verdicts; of a reflection also those of its draft. Paths are relative to `folder`."""
    traced = {"model": row.get("model"), "seed": row.get("seed"), "verified_in": os.path.relpath(source, folder)}
    if draft := row.get("draft_of"):
        traced["draft_of"] = draft | {"verified_in": os.path.relpath(source.parent / draft["verified_in"], folder)}
    return traced


class TrainingRows:
    """Random access to the rows of a training file: only byte offsets are kept in memory.

    Rows are numbered by their keys, not by their place in the file: an endpoint's replies arrive in any order.
    """

    def __init__(self, path: Path):
        rows, offset = [], 0
        with path.open("rb") as file:
            for line in file:
                row = json.loads(line)
                rows.append((derive_seed(row["id"], row.get("sample"), row.get("origin"), row.get("status")), offset, len(line)))
                offset += len(line)
        rows.sort()
        self.path, self.offsets, self.sizes = path, array("q", (row[1] for row in rows)), array("l", (row[2] for row in rows))

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, index: int) -> dict:
        with self.path.open("rb") as file:
            file.seek(self.offsets[index])
            row = json.loads(file.readline())
        return row | {"images": [str(self.path.parent / image) for image in row["images"]]}


# ---------------------------------------------------------------- batches


def plan_steps(rows: TrainingRows, args: argparse.Namespace, world: int) -> list[list[list[list[int]]]]:
    """steps[s][r]: the micro-batches (lists of row numbers) of process r in step s. The same on every process and on a rerun.

    Every epoch is a permutation by the seed. A step's rows are sorted by length, so that a micro-batch pads little,
    and dealt out so that all processes have as many micro-batches of nearly equal length (empty ones fill up).
    """
    order = []
    for epoch in range(math.ceil(args.epochs)):
        numbers = list(range(len(rows)))
        random.Random(f"{args.seed} {epoch}").shuffle(numbers)
        order += numbers[: round(len(rows) * min(1.0, args.epochs - epoch))]
    steps = []
    for start in range(0, len(order), args.batch_size):
        batch = sorted(order[start : start + args.batch_size], key=lambda number: (rows.sizes[number], number))
        size = min(args.micro_batch, math.ceil(len(batch) / world))
        micro = [batch[index : index + size] for index in range(0, len(batch), size)]
        micro += [[] for _ in range(-len(micro) % world)]
        steps.append([micro[rank::world] for rank in range(world)])
    return steps


class MicroBatches:
    """Dataset of prepared micro-batches: (B, T) tensors with labels on reply and end token only; None if no row is usable."""

    def __init__(self, rows: TrainingRows, micro_batches: list[list[int]], processor, args: argparse.Namespace, world: int = 1):
        self.rows, self.micro_batches, self.processor = rows, micro_batches, processor
        self.max_pixels, self.max_length, self.world = args.max_pixels, args.max_length, world

    def __len__(self) -> int:
        return len(self.micro_batches)

    def __getitem__(self, index: int) -> tuple[dict | None, int]:
        """(inputs, number of rows left out)"""
        chats, replies = [], []
        for number in self.micro_batches[index]:
            row = self.rows[number]
            try:
                images = [open_image(image, self.max_pixels) for image in row["images"]]
            except (OSError, ValueError):
                continue
            chats.append(chat_parts(row["messages"][:-1], images))
            replies.append(row["messages"][-1]["content"])
        inputs = encode_rows(self.processor, chats, replies, self.max_length) if chats else None
        if inputs is None and len(chats) > 1:  # leave out only what is too long
            kept = [pair for pair in zip(chats, replies) if encode_rows(self.processor, [pair[0]], [pair[1]], self.max_length)]
            chats, replies = [chat for chat, _ in kept], [reply for _, reply in kept]
            inputs = encode_rows(self.processor, chats, replies, 1 << 30) if kept else None
        missing = len(self.micro_batches[index]) - (len(chats) if inputs is not None else 0)
        if self.world > 1 and (inputs is None or "pixel_values" not in inputs):
            # Every process must pass through the vision tower, or those that do wait for ever: a blank picture without labels.
            kept = (chats, replies) if inputs is not None else ([], [])
            inputs = encode_rows(self.processor, [*kept[0], chat_parts([{"role": "user", "content": IMAGE}], [Image.new("RGB", (56, 56))])], [*kept[1], "-"], 1 << 30)
            inputs["labels"][-1] = IGNORE
        return inputs, missing


def encode_rows(processor, chats: list, replies: list[str], max_length: int) -> dict | None:
    """Prompts exactly as sampling renders them, replies appended: nothing in front of the labels differs from generation.

    None if a row is longer than `max_length` tokens.
    """
    import torch

    inputs = dict(encode_prompts(processor, chats))
    tokenizer = processor.tokenizer
    ends = []
    for chat, reply in zip(chats, replies):
        bare = [{"role": message["role"], "content": [{"type": part["type"]} | ({"text": part["text"]} if "text" in part else {}) for part in message["content"]]} for message in chat]
        head = processor.apply_chat_template(bare, add_generation_prompt=True)
        full = processor.apply_chat_template([*bare, {"role": "assistant", "content": [{"type": "text", "text": reply}]}])
        ends.append(full.removeprefix(head) if full.startswith(head) else reply + tokenizer.eos_token)
    encoded = tokenizer(ends, add_special_tokens=False, padding=True, padding_side="right", return_tensors="pt")
    mask = torch.cat([inputs["attention_mask"], encoded["attention_mask"]], 1)
    if int(mask.sum(1).max()) > max_length:
        return None
    labels = torch.cat([torch.full_like(inputs["input_ids"], IGNORE), encoded["input_ids"].masked_fill(encoded["attention_mask"] == 0, IGNORE)], 1)
    for name in ("mm_token_type_ids", "token_type_ids"):
        if name in inputs:
            inputs[name] = torch.cat([inputs[name], torch.zeros_like(encoded["input_ids"])], 1)
    return inputs | {"input_ids": torch.cat([inputs["input_ids"], encoded["input_ids"]], 1), "attention_mask": mask, "labels": labels}


# ---------------------------------------------------------------- training


def learning_rate(step: int, steps: int, peak: float, warmup: float) -> float:
    """Linear warm-up over the first share of the steps, then a cosine to zero."""
    rise = max(1, round(steps * warmup))
    if step < rise:
        return peak * (step + 1) / rise
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def sum_loss(model, inputs: dict, label_tokens: int):
    """Cross-entropy summed over this micro-batch's labels, divided by the whole step's.

    Prompts end and replies start in one column for all rows, so logits are needed for the last columns only.
    """
    import torch.nn.functional as F

    labels = inputs["labels"]  # (B, T)
    columns = min(labels.shape[1] - int((labels != IGNORE).any(0).int().argmax()), labels.shape[1] - 1)
    rest = {name: value for name, value in inputs.items() if name != "labels"}
    logits = model(**rest, logits_to_keep=columns + 1, use_cache=False).logits[:, :-1]  # (B, columns, V): each predicts the next token
    labels = labels[:, -columns:]
    keep = labels != IGNORE
    return F.cross_entropy(logits[keep].float(), labels[keep], reduction="sum") / label_tokens


def make_accelerator(log_with: str | None = None, folder: Path | None = None):
    """bf16 on GPUs; with several processes the model is sharded by FSDP2, set up here, not in a YAML file."""
    import logging

    import torch
    from accelerate import Accelerator, DistributedDataParallelKwargs, FullyShardedDataParallelPlugin

    logging.getLogger("accelerate.utils.other").setLevel("ERROR")  # at every checkpoint it warns that tied weights are stored once
    plugin, unused = None, DistributedDataParallelKwargs(find_unused_parameters=True)  # LLaVA's vision tower has a layer that is not used
    if processes()[1] > 1 and torch.cuda.is_available():
        from torch.distributed.fsdp import MixedPrecisionPolicy

        # Computation in bf16, gradients reduced and master weights kept in fp32, as on a single GPU.
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32, output_dtype=torch.bfloat16)
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=False, mixed_precision_policy=policy
        )
    return Accelerator(mixed_precision="bf16" if torch.cuda.is_available() else "no", fsdp_plugin=plugin, kwargs_handlers=[unused], log_with=log_with, project_dir=folder), plugin


def train(args: argparse.Namespace, spec: str, rows: TrainingRows, part: Path) -> dict:
    """Train in `part`, from its last checkpoint if there is one; returns the summary that becomes training.json."""
    import torch
    from torch.utils.data import DataLoader

    device, _, attention = setup_kernels()
    torch.manual_seed(args.seed)
    accelerator, plugin = make_accelerator(args.log_with, part)
    if args.log_with:
        accelerator.init_trackers("tracker", config={name: value for name, value in vars(args).items() if isinstance(value, (int, float, str))})
    processor = load_processor(spec, args.trust_remote_code)
    model = load_model(spec, "cpu" if plugin else device, torch.float32, attention, args.trust_remote_code).train()
    if args.freeze_vision:
        for name, parameter in model.named_parameters():
            parameter.requires_grad = not re.search(r"\b(visual|vision_tower|vision_model)\b(?!.*\bmerger\b)", name)
    if device != "cpu":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if plugin:
        from transformers.modeling_layers import GradientCheckpointingLayer

        plugin.transformer_cls_names_to_wrap = sorted({type(module).__name__ for module in model.modules() if isinstance(module, GradientCheckpointingLayer)})
    decay = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    plain = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": decay, "weight_decay": WEIGHT_DECAY}, {"params": plain, "weight_decay": 0.0}]
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(groups, lr=args.lr, betas=BETAS))

    steps = plan_steps(rows, args, accelerator.num_processes)
    first = resume(accelerator, part)
    mine = [step[accelerator.process_index] for step in steps[first:]]
    batches = MicroBatches(rows, [micro for step in mine for micro in step], processor, args, accelerator.num_processes)
    loader = iter(DataLoader(batches, batch_size=None, num_workers=args.workers, prefetch_factor=4 if args.workers else None))
    log = (part / "train_log.jsonl").open("a", encoding="utf-8") if accelerator.is_main_process else None
    start, total_tokens, left_out, loss_value = time.monotonic(), 0, 0, float("nan")
    bar = tqdm(total=len(steps), initial=first, desc="fine-tune", unit="step", disable=None if accelerator.is_main_process else True)
    for step, micro_batches in enumerate(mine, first):
        prepared = [next(loader) for _ in micro_batches]
        label_tokens = sum(int((inputs["labels"] != IGNORE).sum()) for inputs, _ in prepared if inputs is not None)
        counts = torch.tensor([label_tokens, sum(missing for _, missing in prepared)], device=accelerator.device)
        label_tokens, missing = accelerator.reduce(counts, "sum").tolist()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, len(steps), args.lr, args.warmup)
        loss_sum = torch.zeros((), device=accelerator.device)
        for index, (inputs, _) in enumerate(prepared):
            if inputs is None:
                continue
            inputs = {name: value.to(accelerator.device) for name, value in inputs.items()}
            # Under FSDP2 every micro-batch reduces its gradients: unsharded ones would not fit.
            with accelerator.no_sync(model) if index + 1 < len(prepared) and not plugin else torch.enable_grad():
                loss = sum_loss(model, inputs, max(1, label_tokens)) * accelerator.num_processes  # gradients are averaged over processes
                accelerator.backward(loss)
            loss_sum += loss.detach() / accelerator.num_processes
        norm = accelerator.clip_grad_norm_(model.parameters(), CLIP)
        loss_value = accelerator.reduce(loss_sum, "sum").item()
        if not math.isfinite(loss_value):
            fail(f"step {step}: the loss is {loss_value}; lower --lr, or look at the rows of this step; the last checkpoint in {part} is kept")
        optimizer.step()
        optimizer.zero_grad()
        total_tokens, left_out = total_tokens + label_tokens, left_out + missing
        entry = {"step": step, "loss": loss_value, "lr": optimizer.param_groups[0]["lr"], "grad_norm": float(norm), "tokens": label_tokens}
        if log:
            log.write(json.dumps(entry) + "\n")
            log.flush()
        if args.log_with:
            accelerator.log(entry, step=step)
        bar.set_postfix(loss=f"{loss_value:.3f}")
        bar.update()
        if args.save_steps and (step + 1) % args.save_steps == 0 and step + 1 < len(steps):
            save_checkpoint(accelerator, part, step + 1)
    bar.close()
    if args.log_with:
        accelerator.end_training()
    save_model(accelerator, model, spec, part)
    seconds = round(time.monotonic() - start, 1)
    return {"rows": len(rows), "steps": len(steps), "loss": loss_value, "label_tokens": total_tokens, "rows_left_out": left_out, "seconds": seconds, "init": spec}


@contextlib.contextmanager
def saving(part: Path):
    """Weights are written by libraries whose own errors do not say that the disk is full."""
    try:
        yield
    except Exception as error:
        if getattr(error, "errno", None) not in DISK_ERRORS and shutil.disk_usage(part).free > MIN_FREE:
            raise
        fail(f"{part}: cannot be written ({str(error).splitlines()[0]}; {shutil.disk_usage(part).free >> 20} MB free); the last checkpoint is kept: make room and call again to go on", 1)


def save_checkpoint(accelerator, part: Path, step: int) -> None:
    """A checkpoint folder gets its final name when it is complete, on the disk too."""
    with saving(part):
        accelerator.save_state(str(part / "checkpoint.part"))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        os.sync()
        (part / "checkpoint.part").rename(part / f"checkpoint-{step}")
        for old in sorted(part.glob("checkpoint-*"), key=lambda folder: int(folder.name.split("-")[1]))[:-KEEP_CHECKPOINTS]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def resume(accelerator, part: Path) -> int:
    """Load the last checkpoint in `part` and cut the log back to it; the step to go on with."""
    steps = sorted(int(folder.name.split("-")[1]) for folder in part.glob("checkpoint-*"))
    first = steps[-1] if steps else 0
    if first:
        accelerator.load_state(str(part / f"checkpoint-{first}"))
        accelerator.print(f"resumed at step {first}")
    log = part / "train_log.jsonl"
    if accelerator.is_main_process:
        shutil.rmtree(part / "checkpoint.part", ignore_errors=True)
        if log.exists():
            log.write_text("".join(line for line in log.read_text().splitlines(keepends=True)[:first]))
    accelerator.wait_for_everyone()
    return first


def save_model(accelerator, model, spec: str, part: Path) -> None:
    """Weights as safetensors (bf16 where the computation was), the processor's files copied as they are."""
    state = accelerator.get_state_dict(model)
    if accelerator.is_main_process:
        if accelerator.mixed_precision == "bf16":
            state = {name: tensor.bfloat16() if tensor.is_floating_point() else tensor for name, tensor in state.items()}
        model = accelerator.unwrap_model(model)
        for name in getattr(model, "all_tied_weights_keys", {}):  # stored once: the other name says where
            state.pop(name, None)
        with saving(part):
            model.save_pretrained(part, state_dict=state)
            copy_processor(spec, part)
    accelerator.wait_for_everyone()


def begin(part: Path, settings: dict):
    """Make the folder to train in; one that was begun with other settings, or is in use, is not gone on with. Returns what holds its lock."""
    part.mkdir(parents=True, exist_ok=True)
    lock, path = (part / "lock").open("a"), part / "training.json"
    if not try_lock(lock):
        fail(f"{part}: is being written by another process; wait for it or end it")
    before = json.loads(path.read_text(encoding="utf-8"))["settings"] if path.exists() else settings
    if changed := [f"{name} was {before.get(name)!r}, is {value!r}" for name, value in settings.items() if name not in HOW and before.get(name) != value]:
        fail(f"{part}: was begun with other settings: {'; '.join(changed)}; set them back, or remove it to start anew")
    write_json(path, {"settings": settings})
    return lock


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
    for checkpoint in folder.glob("checkpoint*"):
        shutil.rmtree(checkpoint)
    (folder / "lock").unlink(missing_ok=True)


def main() -> None:
    args = parse_args()
    check_flags(args)
    if args.init == "previous" and not args.previous:
        fail("--previous: needed for --init previous; name the model folder of the round before")
    spec = args.previous if args.init == "previous" else args.model
    if finished(args.output):
        remove_checkpoints(args.output)
        return
    check_model(spec)
    if is_endpoint(spec):
        fail(f"--model: {spec}: an endpoint cannot be fine-tuned; give a model folder or a hub id")
    if args.log_with:
        from accelerate.tracking import get_available_trackers

        if args.log_with not in (available := sorted(str(tracker) for tracker in get_available_trackers())):
            fail(f"--log-with: {args.log_with}: not installed here, or not a tracker of accelerate; there are: {', '.join(available) or 'none'}")
    train_file = args.train_file or Path(f"{args.output}.train.jsonl")
    rank, world = processes()
    part = Path(f"{args.output}.part")
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in vars(args).items() if name != "log_with"}
    everyone = None
    if world > 1:  # met before anything is done: if one ends, the others are told and do not wait for it
        import torch
        from accelerate import PartialState

        everyone = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(hours=12))
    if rank == 0:
        write_training_file(args, train_file)
        settings["rows"] = fingerprint(str(train_file))
        lock = begin(part, settings)
    if everyone:
        everyone.wait_for_everyone()
    summary = train(args, spec, TrainingRows(train_file), part)
    if rank == 0:
        write_json(part / "training.json", summary | {"settings": settings})
        os.sync()
        part.replace(args.output)
        remove_checkpoints(args.output)  # only now: a kill in between leaves a whole model
        lock.close()
        print(f"{args.output}: {summary['rows']} rows, {summary['steps']} steps, loss {summary['loss']:.3f}, {summary['rows_left_out']} rows left out, {summary['seconds']} s")


if __name__ == "__main__":
    with disk_errors():
        main()
