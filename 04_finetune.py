"""Fine-tune a student on accepted paths, or (--orm) an outcome reward model on annotated ones.

Reads:  verified.jsonl   id, question, images, sample, response, status, finish, origin; with --orm also error_step, error_analysis
        (or a training file: rows with messages, images, id, sample, origin)
Writes: OUTPUT/          a model folder that `from_pretrained` loads, with train_log.jsonl (step, loss, lr, grad_norm, left_out: rows, tokens: those learnt,
                         tokens_per_second: all that passed through the model, mfu, null where the device's peak is not known; validation_loss after an epoch) and training.json
        train.jsonl      the rows trained on: messages and images as TRL, ms-swift and LLaMA-Factory read them, + id, sample, origin, and where the
                         response comes from: model, seed, verified_in (the verified.jsonl with its verdicts), of reflections draft_of (the draft's
                         verified_in, origin and sample); paths are relative to train.jsonl

    python 04_finetune.py --input verified.jsonl --output model --model toy/base --lr 1e-3 --batch-size 32
    accelerate launch --num_processes 8 04_finetune.py --input verified.jsonl --output model --model Qwen/Qwen2-VL-7B-Instruct --freeze vision
"""

import argparse
import importlib.util
import json
import math
import os
import time
from collections import defaultdict
from datetime import timedelta
from pathlib import Path
from typing import Iterable

from tqdm import tqdm

from batches import MicroBatches, TrainingRows, deal, plan_steps
from checkpoints import KEEP, remove_checkpoints, resume, save_checkpoint, save_model
from checks import check_flags, check_model, read_rows
from common import (
    MAX_PIXELS, balanced, fail, harmless, is_endpoint, judge_messages, load_model, load_processor, processes, relative_images, setup_kernels,
    solve_messages,
)  # fmt: skip
from output import disk_errors, fingerprint, finished, try_lock, write_json

# AdamW as in the paper (Table 6): weight decay 0.05, cosine decay, global batch 128; Qwen2-VL: 1e-5 with warm-up 0.1,
# CogVLM2: 2e-5 with 0.01, InternVL2.5: 2e-5 with 0.03.
BETAS, WEIGHT_DECAY, CLIP = (0.9, 0.95), 0.05, 1.0
FEATURES = 4  # what a frozen vision tower made of pictures may take up this part of the machine's free memory
HOW = {"input", "output", "train_file", "micro_batch", "workers", "save_steps", "recompute", "trust_remote_code"}  # flags that may change when an unfinished training goes on


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
    parser.add_argument("--freeze", choices=["vision"], help="train the language model only: the vision tower and its projector stay as they are, and see a picture once for all epochs (default: all is trained)")
    parser.add_argument("--lora", type=int, default=0, metavar="RANK", help="train adapters of this rank on the language model's layers, merged when saved; needs peft (default %(default)s: all weights)")
    parser.add_argument("--batches", choices=["packed", "padded"], default="packed", help="packed: no padding, a question once for all its rows; where a model does not allow it, padded (default %(default)s)")
    parser.add_argument("--recompute", type=float, metavar="SHARE", help="of the layers, whose activations are computed again in the backward pass instead of kept (default: 1 on a GPU, 0 on a CPU)")
    parser.add_argument("--hold-out", type=int, default=0, metavar="N", help="problems not trained on, by the seed: validation_loss after each epoch (default %(default)s)")
    parser.add_argument("--save-steps", type=int, default=200, help=f"checkpoint every N steps, the last {KEEP} are kept (default %(default)s, 0: none)")
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


# ---------------------------------------------------------------- training


def learning_rate(step: int, steps: int, peak: float, warmup: float) -> float:
    """Linear warm-up over the first share of the steps, then a cosine to zero."""
    rise = max(1, round(steps * warmup))
    if step < rise:
        return peak * (step + 1) / rise
    return peak * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, steps - rise)))


def make_optimizer(model, peak: float):
    """AdamW; norms and biases do not decay."""
    import torch

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    kinds = [([parameter for parameter in trained if parameter.ndim > 1], WEIGHT_DECAY), ([parameter for parameter in trained if parameter.ndim <= 1], 0.0)]
    return torch.optim.AdamW([{"params": parameters, "weight_decay": decay} for parameters, decay in kinds if parameters], lr=peak, betas=BETAS, fused=True)


def make_accelerator(log_with: str | None = None, folder: Path | None = None):
    """bf16 on GPUs; with several processes the model is sharded by FSDP2, set up here, not in a YAML file."""
    import logging

    import torch
    from accelerate import Accelerator, AutocastKwargs, DistributedDataParallelKwargs, FullyShardedDataParallelPlugin

    logging.getLogger("accelerate.utils.other").setLevel("ERROR")  # at every checkpoint it warns that tied weights are stored once
    plugin = None
    handlers = [DistributedDataParallelKwargs(find_unused_parameters=True)]  # LLaVA's vision tower has a layer that is not used
    handlers.append(AutocastKwargs(cache_enabled=False))  # else bf16 copies of all weights stay in memory, and all but the output layer are used once a pass
    if processes()[1] > 1 and torch.cuda.is_available():
        from torch.distributed.fsdp import MixedPrecisionPolicy

        # Computation in bf16, gradients reduced and master weights kept in fp32, as on a single GPU.
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
        plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=False, mixed_precision_policy=policy, state_dict_type="SHARDED_STATE_DICT"
        )
    return Accelerator(mixed_precision="bf16" if torch.cuda.is_available() else "no", fsdp_plugin=plugin, kwargs_handlers=handlers, log_with=log_with, project_dir=folder), plugin


def prepare_model(args: argparse.Namespace, spec: str, device: str, attention: str, sharded: bool):
    """The model to train: fp32 master weights, what is frozen or adapted, whose layers are recomputed."""
    import torch
    from transformers.modeling_layers import GradientCheckpointingLayer

    adapters_only = args.lora and device != "cpu" and not sharded  # what is not trained needs no master weights; shards want one type
    model = load_model(spec, "cpu" if sharded else device, torch.bfloat16 if adapters_only else torch.float32, attention, args.trust_remote_code).train()
    text = model.get_decoder()
    if args.freeze == "vision":
        trained = {id(parameter) for module in (text, model.get_input_embeddings(), model.get_output_embeddings()) for parameter in module.parameters()}
        for parameter in model.parameters():
            parameter.requires_grad = id(parameter) in trained
        if all(parameter.requires_grad for parameter in model.parameters()):
            fail("--freeze vision: this model's vision tower cannot be told from its language model; leave the flag out")
    share = (0.0 if device == "cpu" else 1.0) if args.recompute is None else args.recompute
    if share > 0:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        layers = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
        for index, layer in enumerate(layers):
            layer.gradient_checkpointing = int((index + 1) * share) > int(index * share)  # spread evenly
    if args.lora:
        from peft import LoraConfig, get_peft_model

        inside = {id(module) for module in text.modules()}
        names = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear) and id(module) in inside]
        model = get_peft_model(model, LoraConfig(r=args.lora, lora_alpha=2 * args.lora, target_modules=names))
    return model


def choose_batches(accelerator, packing, model, rows: TrainingRows, micro_batches: list[list[int]], processor, args: argparse.Namespace) -> bool:
    """Whether to pack: the loss of one micro-batch, packed and padded, tells if the model allows it. The same on every process.

    Without dropout: it would differ, and its random numbers are the training's.
    """
    import torch

    def count(value: int) -> int:
        return int(accelerator.reduce(torch.tensor(int(value), device=accelerator.device), "sum"))  # over all processes

    def encoded(numbers: list[int], kind: bool):
        return MicroBatches(rows, [numbers], processor, args, kind, accelerator.num_processes)[0][0]

    sharing = sorted(micro_batches, key=lambda numbers: len({rows.questions[number] for number in numbers}) - len(numbers))
    made = ((numbers, *(encoded(numbers, kind) for kind in (True, False))) for numbers in sharing)
    numbers, packed, padded = next((one for one in made if one[1]), ([], None, None))
    if not count(padded.labels if padded else 0):
        fail("no row of the first step can be used: all are longer than --max-length, or have pictures that cannot be read")
    model.eval()
    packing.whole = count(packing.changes_logits(model, padded)) > 0
    alone = next((batch for number in numbers if (batch := encoded([number], False)) and batch.labels), padded)
    why = packing.differs(model, packed, padded, alone, exact=accelerator.mixed_precision == "no") if args.batches == "packed" else "--batches"
    model.train()
    if count(bool(why)) == 0:
        packing.use(True)
        accelerator.print(f"batches: packed, a question once for its rows: {packed.tokens} tokens for {padded.inputs['input_ids'].numel()} padded ones; attention: {packing.attention}")
        return True
    packing.use(False)
    accelerator.print(f"batches: padded, rows of like length together ({why or 'another process cannot pack'})")
    return False


def train(args: argparse.Namespace, spec: str, rows: TrainingRows, part: Path) -> dict:
    """Train in `part`, from its last checkpoint if there is one; returns the summary that becomes training.json."""
    import torch
    from torch.utils.data import DataLoader
    from transformers.modeling_layers import GradientCheckpointingLayer

    from features import free_memory
    from packing import Packing, Speed

    device, _, attention = setup_kernels()
    torch.manual_seed(args.seed)
    accelerator, plugin = make_accelerator(args.log_with, part)
    if args.log_with:
        accelerator.init_trackers("tracker", config={name: value for name, value in vars(args).items() if isinstance(value, (int, float, str))})
    processor = load_processor(spec, args.trust_remote_code)
    model = prepare_model(args, spec, device, attention, bool(plugin))
    packing = Packing(model.get_base_model() if args.lora else model)
    if args.freeze and args.epochs > 1 and not plugin:  # of a sharded model all processes must pass the tower together
        packing.keep_features(free_memory(torch.device("cpu")) // FEATURES // accelerator.num_processes)
    speed = Speed(packing.model, args, device)
    if plugin:
        plugin.transformer_cls_names_to_wrap = sorted({type(module).__name__ for module in model.modules() if isinstance(module, GradientCheckpointingLayer)})
    model, optimizer = accelerator.prepare(model, make_optimizer(model, args.lr))

    world, rank = accelerator.num_processes, accelerator.process_index
    steps = plan_steps(rows, args, world)
    unused = part / "unused.json"
    if plugin and unused.exists():
        leave_out(model, optimizer, json.loads(unused.read_text()))
    first = resume(accelerator, part)
    packed = choose_batches(accelerator, packing, model, rows, steps[0][rank], processor, args)
    mine = [step[rank] for step in plan_steps(rows, args, world, packed)[first:]]

    def prepare(micro_batches: list[list[int]]):
        batches = MicroBatches(rows, micro_batches, processor, args, packed, world)
        generator = torch.Generator().manual_seed(args.seed)  # of its own: a resumed training draws the same dropout
        return iter(DataLoader(batches, batch_size=None, num_workers=args.workers, prefetch_factor=4 if args.workers else None, generator=generator))

    loader = prepare([micro for step in mine for micro in step])
    epoch_ends = {min(len(steps), math.ceil(len(steps) * (epoch + 1) / args.epochs)) for epoch in range(math.ceil(args.epochs))} if rows.held else set()
    log = (part / "train_log.jsonl").open("a", encoding="utf-8") if accelerator.is_main_process else None
    start = time.monotonic()
    bar = tqdm(total=len(steps), initial=first, desc="fine-tune", unit="step", disable=None if accelerator.is_main_process else True)
    for step, micro_batches in enumerate(mine, first):
        begun = time.monotonic()
        prepared = [next(loader) for _ in micro_batches]
        batches = [batch for batch, _ in prepared if batch]
        counts = [sum(batch.labels for batch in batches), sum(missing for _, missing in prepared), sum(batch.tokens for batch in batches), sum(map(speed.flops, batches))]
        label_tokens, missing, tokens, flops = accelerator.reduce(torch.tensor(counts, dtype=torch.double, device=accelerator.device), "sum").tolist()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, len(steps), args.lr, args.warmup)
        loss_sum = compute_gradients(accelerator, packing, model, batches, max(1, label_tokens), bool(plugin))
        if plugin and step == 0:
            names = [name for name, parameter in model.named_parameters() if parameter.requires_grad and parameter.grad is None]
            leave_out(model, optimizer, names)
            if accelerator.is_main_process:
                write_json(unused, names)
                print(f"weights without a gradient, not trained: {', '.join(names) or 'none'}", flush=True)
        norm = float(accelerator.clip_grad_norm_(model.parameters(), CLIP))
        loss_value = accelerator.reduce(loss_sum, "sum").item()
        if not (math.isfinite(loss_value) and math.isfinite(norm)):
            fail(f"step {step}: the loss is {loss_value}, the norm of its gradient {norm}; the last checkpoint in {part} is kept: look at the rows of this step, or remove it and start anew with a lower --lr")
        optimizer.step()
        optimizer.zero_grad()
        seconds = time.monotonic() - begun
        entry = {"step": step, "loss": loss_value, "lr": optimizer.param_groups[0]["lr"], "grad_norm": norm, "tokens": int(label_tokens), "left_out": int(missing)}
        entry |= {"tokens_per_second": round(tokens / seconds, 1), "mfu": round(flops / seconds / world / speed.peak, 4) if speed.peak else None}
        if step + 1 in epoch_ends:
            held = deal(rows, rows.held, args.micro_batch, world, packed)[rank]
            entry["validation_loss"] = validation_loss(accelerator, packing, model, (batch for batch, _ in prepare(held) if batch))
        if log:
            log.write(json.dumps(entry) + "\n")
            log.flush()
        if args.log_with:
            accelerator.log(entry, step=step)
        bar.set_postfix({"loss": f"{loss_value:.3f}", "tokens/s": f"{tokens / seconds:.0f}"} | ({"mfu": f"{entry['mfu']:.0%}"} if speed.peak else {}))
        bar.update()
        if args.save_steps and (step + 1) % args.save_steps == 0 and step + 1 < len(steps):
            save_checkpoint(accelerator, part, step + 1)
    bar.close()
    if args.log_with:
        accelerator.end_training()
    save_model(accelerator, model, spec, part)
    with (part / "train_log.jsonl").open(encoding="utf-8") as file:  # of all calls that it took
        done = [json.loads(line) for line in file]
    totals = {"label_tokens": sum(entry["tokens"] for entry in done), "rows_left_out": sum(entry.get("left_out", 0) for entry in done)}
    return {"rows": len(rows) - len(rows.held), "steps": len(steps), "loss": loss_value} | totals | {"seconds": round(time.monotonic() - start, 1), "init": spec}


def compute_gradients(accelerator, packing, model, batches: list, label_tokens: float, sharded: bool):
    """Of the cross-entropy a label token, over the micro-batches of all processes; this process' part of the loss."""
    import torch

    loss_sum = torch.zeros((), device=accelerator.device)
    for index, batch in enumerate(batches):
        # Under FSDP2 every micro-batch reduces its gradients: unsharded ones would not fit.
        with accelerator.no_sync(model) if index + 1 < len(batches) and not sharded else torch.enable_grad():
            loss = packing.losses(model, batch).sum() / label_tokens
            accelerator.backward(loss * accelerator.num_processes)  # gradients are averaged over processes
        loss_sum += loss.detach()
    return loss_sum


def leave_out(model, optimizer, names: list[str]) -> None:
    """Take weights that get no gradient (the last norm of LLaVA's vision tower) from the optimizer: a sharded checkpoint of it cannot be loaded without their state."""
    ids = {id(parameter) for name, parameter in model.named_parameters() if name in names}
    for group in optimizer.param_groups:
        group["params"] = [parameter for parameter in group["params"] if id(parameter) not in ids]


def validation_loss(accelerator, packing, model, batches: Iterable) -> float | None:
    """Cross-entropy a label token over all processes, None without labels; every process passes as many batches."""
    import torch

    loss, labels = torch.zeros((), dtype=torch.double, device=accelerator.device), 0
    model.eval()
    with torch.no_grad():
        for batch in batches:
            loss += packing.losses(model, batch).sum()
            labels += batch.labels
    model.train()
    loss, labels = accelerator.reduce(torch.stack([loss, torch.tensor(labels, dtype=torch.double, device=loss.device)]), "sum").tolist()
    return loss / labels if labels else None


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
    if args.lora and not importlib.util.find_spec("peft"):
        fail("--lora: peft is not installed here; pip install peft")
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

        everyone = PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(hours=2))
    if rank == 0:
        write_training_file(args, train_file)
        settings["rows"] = fingerprint(str(train_file))
        lock = begin(part, settings)
    if everyone:
        everyone.wait_for_everyone()
    summary = train(args, spec, TrainingRows(train_file, args.hold_out, args.seed), part)
    if rank == 0:
        write_json(part / "training.json", summary | {"settings": settings})
        os.sync()
        part.replace(args.output)
        remove_checkpoints(args.output)  # only now: a kill in between leaves a whole model
        lock.close()
        print(f"{args.output}: {summary['rows']} rows, {summary['steps']} steps, loss {summary['loss']:.3f}, {summary['rows_left_out']} rows left out, {summary['seconds']} s")
    if everyone:
        everyone.wait_for_everyone()
        everyone.destroy_process_group()  # left to the interpreter's end, its threads now and then abort the process


if __name__ == "__main__":
    with disk_errors():
        main()
