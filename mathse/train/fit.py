"""A fine-tuning around the loop in 04: the model on its devices (accelerate, FSDP2 set up in code), its log,
checkpoints and folder.
"""

import contextlib
import json
import logging
import os
import shutil
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from glob import escape
from pathlib import Path

import accelerate
import torch
from accelerate import Accelerator
from accelerate.tracking import get_available_trackers
from accelerate.utils import gather_object
from torch.distributed.fsdp import MixedPrecisionPolicy
from tqdm import tqdm
from transformers import GenerationConfig
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import cached_file

from mathse.chat import reply_ends
from mathse.jsonl import remove
from mathse.launch import DISK_ERRORS, launch, meet, processes, rank_count
from mathse.recipe import Recipe
from mathse.records import fail
from mathse.train.pack import ROUNDING, Batch, Packing, encode, prefetch, why_not
from mathse.train.plan import TrainingRows, plan_steps, remove_unneeded, write_training_file

TIMEOUT = timedelta(hours=2)  # that processes wait for each other
LEAST_ROWS = 4  # of a step for each process: a problem's rows share their prompt only within a process
MEMORY = 8  # bytes of a process for each of a bf16 file: fp32 weights, gradients, Adam's two averages
KEEP = 2  # checkpoints
HOPELESS = 20  # rows that cannot be used, one after the other: then they are not at fault
UNUSABLE = "they are longer than --max-length, or have images that cannot be read or the processor refuses"
MIN_FREE = 16 << 20  # bytes; with less, a failed write of weights is put down to a full disk
# What is copied of a model's folder: a processor's files, remote code, but for what is made anew.
COPIED = {".json", ".jinja", ".model", ".txt", ".py"}
MADE_ANEW = ("/config.json", "generation_config.json", "recipe.json", ".index.json")


class Session:
    """`args`: the flags of 04; `part`: the folder to train in.

    Master weights are fp32; where adapters alone are trained, the others are bf16.
    """

    def __init__(self, args: Namespace, rows: TrainingRows, part: Path, device: str):
        torch.manual_seed(args.seed)
        self.args = args
        self.rows = rows
        self.part = part
        self.device = device
        self.accelerator = make_accelerator(args.log_with, part)
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        self.sharded = self.accelerator.is_fsdp2
        self.dtype = torch.bfloat16 if args.lora and device != "cpu" else torch.float32  # of the weights

    def open(self, model, processor, make_optimizer: Callable, token_loss: Callable) -> None:
        """Make the loaded model ready and go on from the last checkpoint, if there is one.

        `make_optimizer`: model -> optimizer. `token_loss`: see Packing.
        """
        args = self.args
        self.processor = processor
        recompute = float(self.device != "cpu") if args.recompute is None else args.recompute
        model = set_up_model(model, args.freeze, args.lora, recompute)
        self.model, self.optimizer = prepare(self.accelerator, model, make_optimizer)
        inner = self.accelerator.unwrap_model(self.model)
        self.packing = Packing(inner.get_base_model() if args.lora else inner, token_loss)
        encoding = {"rows": self.rows, "processor": processor, "args": args, "world": self.world}
        self.encode = partial(encode, **encoding)
        self.plan = plan_steps(self.rows, args, args.micro_batch, self.world)
        packed, batch = self.choose_passes(self.plan[0])
        if not packed:
            self.plan = plan_steps(self.rows, args, 1, self.world)
        if self.sharded:
            self.freeze_unused(batch, make_optimizer)
        self.steps = len(self.plan)
        self.first = resume(self.accelerator, self.part)
        mine = [micro for step in self.plan[self.first :] for micro in step[self.rank]]
        self.loader = prefetch(mine, args.workers, args.seed, packed=packed, **encoding)
        self.log_file = (self.part / "train_log.jsonl").open("a", encoding="utf-8")
        self.useless = 0  # rows one after the other that could not be used
        if args.log_with:
            self.accelerator.init_trackers("tracker", {name: str(flag) for name, flag in vars(args).items()})

    def choose_passes(self, step: list[list[list[int]]]) -> tuple[bool, Batch]:
        """(whether rows can be packed, a batch), by the losses of the micro-batch whose rows share most: the
        same in all processes.
        """
        groups = self.rows.group_of
        micro_batches = [numbers for share in step for numbers in share]
        micro_batches.sort(key=lambda each: len({groups[number] for number in each}) - len(each))
        tries = ((numbers, self.encode(numbers)[0]) for numbers in micro_batches)
        found = next(((numbers, batch) for numbers, batch in tries if batch and len(batch.targets)), None)
        if not found:
            fail(f"no row of the first step can be used: {UNUSABLE}")
        numbers, batch = found
        made = (self.encode([number], packed=False)[0] for number in numbers)
        rows = [row for row in made if row and len(row.targets)]
        reasons = [reason for reason in gather_object([self.reason_not_to_pack(batch, rows)]) if reason]
        self.packing.use(not reasons)
        tokens = sum(row.tokens for row in rows)
        counts = f"{batch.tokens} tokens in place of {tokens}; attention: {self.packing.attention}"
        slower = f"about {tokens / batch.tokens:.1f} times slower than packed"
        packed = f"packed, a prompt once for its rows: {counts}"
        alone = f"one a forward pass, {slower}; they cannot be packed: {''.join(reasons[:1])}"
        self.accelerator.print("rows:", alone if reasons else packed)
        return not reasons, rows[0] if reasons else batch

    def reason_not_to_pack(self, batch: Batch, rows: list[Batch]) -> str:
        """why_not(), also of a model that computes on with its logits and raises then."""
        self.model.eval()  # without dropout, whose random numbers are the training's
        try:
            return why_not(self.packing, self.model, batch, rows, ROUNDING[self.accelerator.mixed_precision])
        except torch.OutOfMemoryError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
            if self.sharded:  # the others may wait for this one's shards
                fail(f"rows of this model cannot be packed: {reason}; train it on one GPU")
            return reason
        finally:
            self.model.train()

    def freeze_unused(self, batch: Batch, make_optimizer: Callable) -> None:
        """Freeze weights without a gradient, as the last norm of LLaVA's vision tower: a sharded checkpoint
        would hold no optimizer state of them, and could not be loaded.
        """
        self.backward(self.losses(batch).sum())
        for weight in self.model.parameters():
            weight.requires_grad_(weight.grad is not None)
        self.model.zero_grad()
        self.optimizer.optimizer = make_optimizer(self.model)

    def remaining(self) -> Iterator[int]:
        """The numbers of the steps to take, with a progress bar in the first process."""
        settings = {"desc": "fine-tune", "unit": "step", "disable": True if self.rank else None}
        with tqdm(total=self.steps, initial=self.first, **settings) as self.bar:
            for step in range(self.first, self.steps):
                self.begun = time.monotonic()
                yield step
                self.bar.update()

    def take(self, step: int) -> tuple[list[Batch], float]:
        """(this process's micro-batches, the sum of the weights of the labels of all processes)."""
        prepared = [next(self.loader) for _ in self.plan[step][self.rank]]
        batches = [batch for batch, _ in prepared if batch]
        counts = [(float(batch.weights.sum()), len(batch.targets), batch.tokens) for batch in batches]
        sums = *map(sum, zip(*counts, (0, 0, 0))), sum(left_out for _, left_out in prepared)
        weight, *self.counts = self.sum(torch.tensor(sums, dtype=torch.double)).tolist()
        self.useless = 0 if self.counts[0] else self.useless + self.counts[2]
        if self.useless >= HOPELESS:
            fail(f"step {step}: {self.useless:.0f} rows one after the other cannot be used: {UNUSABLE}", 1)
        return batches, weight or 1.0

    def sum(self, values) -> torch.Tensor:
        """Over all processes."""
        return self.accelerator.reduce(torch.as_tensor(values, device=self.accelerator.device), "sum")

    def accumulate(self, batches: list[Batch]) -> Iterator[Batch]:
        """The micro-batches; several processes exchange gradients in the last one's backward pass."""
        for index, batch in enumerate(batches):
            # Under FSDP2 every micro-batch reduces its gradients: unsharded ones would not fit.
            is_last = index + 1 == len(batches) or self.sharded
            with contextlib.nullcontext() if is_last else self.accelerator.no_sync(self.model):
                yield batch.to(self.accelerator.device)

    def losses(self, batch: Batch) -> torch.Tensor:
        """The loss (N) of each label."""
        return self.packing.losses(self.model, batch)

    def backward(self, loss: torch.Tensor) -> None:
        self.accelerator.backward(loss * self.world)  # gradients are averaged over processes

    def clip(self, norm: float) -> float:
        """Clip the gradient's norm; returns what it was."""
        return float(self.accelerator.clip_grad_norm_(self.model.parameters(), norm))

    def update(self, rate: float) -> None:
        """The optimizer's step with this learning rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()

    def finish_step(self, step: int, entry: dict) -> None:
        """Log a step and save a checkpoint after it, when it is time to."""
        labels, tokens, left_out = map(int, self.counts)
        speed = round(tokens / (time.monotonic() - self.begun), 1)
        entry |= {"tokens": labels, "left_out": left_out, "tokens_per_second": speed}
        if not self.rank:
            self.log_file.write(json.dumps(entry) + "\n")
            self.log_file.flush()
        if self.args.log_with:
            self.accelerator.log(entry, step=step)
        self.bar.set_postfix({"loss": f"{entry['loss']:.3f}", "tokens/s": f"{speed:.0f}"})
        every = self.args.save_steps
        if every and (step + 1) % every == 0 and step + 1 < self.steps:
            save_checkpoint(self.accelerator, self.part, step + 1)

    def save(self, spec: str) -> dict:
        """Write the model's folder, with the processor of `spec`; what the recipe tells of the training."""
        if self.args.log_with:
            self.accelerator.end_training()
        save_model(self.accelerator, self.model, self.processor, spec, self.part)
        self.log_file.close()
        entries = [json.loads(line) for line in (self.part / "train_log.jsonl").open(encoding="utf-8")]
        learnt, left_out = (sum(entry[name] for entry in entries) for name in ("tokens", "left_out"))
        summary = {"rows": len(self.rows), "steps": self.steps, "init": spec, "processes": self.world}
        return summary | {"loss": entries[-1]["loss"], "label_tokens": learnt, "rows_left_out": left_out}


def run(args: Namespace, spec: str, recipe: Recipe, choose: Callable, make: Callable, train: Callable):
    """Write the training file (see plan.py) and train on it, in so many processes as the machine has use for.
    It gets its name with the model: until then that of an earlier model stands.

    `train`: (rows, folder to train in) -> what the recipe tells of it.
    """
    file = args.train_file or Path(f"{args.output}.train.jsonl")
    part = Path(f"{file}.part")
    join_processes()
    written = write_training_file(file, args.input, args.limit, choose, make) if processes()[0] == 0 else None
    recipe.start()
    if written:  # only now: another call may be training on it
        written.replace(part)
        left = file.parent.glob(f"{escape(file.name)}.*.part")  # what killed calls have left
        remove(*(part for part in left if not Path(f"/proc/{part.suffixes[-2][1:]}").exists()))
    meet()

    def work() -> None:
        summary = train(TrainingRows(part), recipe.part)
        meet()  # the folder gets its final name
        if processes()[0] == 0:
            part.replace(file)
            recipe.complete(recipe.part, **summary)
            remove_unneeded(recipe.output)  # only now: a kill in between leaves a whole model
            counts = f"{summary['rows']} rows, {summary['steps']} steps, loss {summary['loss']:.3f}"
            counts += f", {summary['rows_left_out']} rows left out, {recipe.made['seconds']} s"
            print(f"{recipe.output}: {counts}")
        meet()

    launch(rank_count(args.processes, args.batch_size // LEAST_ROWS, spec, MEMORY), work)


# ---------------------------------------------------------------- devices


def join_processes() -> None:
    """Make the process group of this launch, before anything waits for others."""
    if processes()[1] > 1:
        accelerate.PartialState(cpu=not torch.cuda.is_available(), timeout=TIMEOUT)


def check_tracker(name: str) -> None:
    """End the command if this tracker cannot be used."""
    if name not in (known := sorted(map(str, get_available_trackers()))):
        found = f"there are: {', '.join(known) or 'none'}"
        fail(f"--log-with: {name}: not installed here, or not a tracker of accelerate; {found}")


def make_accelerator(log_with: str | None, folder: Path, sharded=False, bf16=False) -> Accelerator:
    """Computation in bf16 on GPUs (or if `bf16`); with several of them the model is sharded (FSDP2).

    Gradients are reduced and master weights kept in fp32, as on a single GPU.
    """
    join_processes()
    bf16 = bf16 or torch.cuda.is_available()
    sharded = sharded or (torch.cuda.is_available() and processes()[1] > 1)
    # At every checkpoint it warns that tied weights are stored once.
    logging.getLogger("accelerate.utils.other").setLevel("ERROR")
    # LLaVA's vision tower has an unused layer; bf16 copies of all weights would stay in memory
    handlers = [accelerate.DistributedDataParallelKwargs(find_unused_parameters=True)]
    handlers += [accelerate.AutocastKwargs(cache_enabled=False)]
    settings = {"mixed_precision": "bf16" if bf16 else "no", "kwargs_handlers": handlers}
    settings |= {"log_with": log_with, "project_dir": folder}
    return Accelerator(fsdp_plugin=shards(bf16) if sharded else None, **settings)


def shards(bf16: bool) -> accelerate.FullyShardedDataParallelPlugin:
    """The settings of FSDP2; the layers to shard are named in prepare()."""
    dtypes = {"param_dtype": torch.bfloat16 if bf16 else None, "reduce_dtype": torch.float32}
    return accelerate.FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        cpu_ram_efficient_loading=False,
        mixed_precision_policy=MixedPrecisionPolicy(**dtypes),
        state_dict_type="SHARDED_STATE_DICT",
    )


def prepare(accelerator: Accelerator, model, make_optimizer: Callable) -> tuple:
    """(model, optimizer), sharded where there are several GPUs. `make_optimizer`: model -> optimizer."""
    if accelerator.is_fsdp2:
        kinds = sorted({type(layer).__name__ for layer in checkpointed_layers(model)})
        accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap = kinds
    return accelerator.prepare(model, make_optimizer(model))


# ---------------------------------------------------------------- the model


def set_up_model(model, freeze: str | None, lora: int, recompute: float):
    """The model, or with `lora` > 0 the model with adapters of this rank on its language part's layers.

    `freeze`: "vision" trains the language part alone. `recompute`: share of layers to checkpoint, 0 to 1.
    """
    text = model.train().get_decoder()
    if freeze == "vision":
        parts = text, model.get_input_embeddings(), model.get_output_embeddings()
        trained = {parameter for part in parts for parameter in part.parameters()}
        if trained >= {*model.parameters()}:
            problem = "this model's vision tower cannot be told from its language model"
            fail(f"--freeze vision: {problem}; leave the flag out")
        for parameter in {*model.parameters()} - trained:
            parameter.requires_grad = False
    if recompute > 0:
        model.gradient_checkpointing_enable({"use_reentrant": False})
        for index, layer in enumerate(checkpointed_layers(model)):  # spread evenly
            layer.gradient_checkpointing = int((index + 1) * recompute) > int(index * recompute)
    if lora:
        from peft import LoraConfig, get_peft_model

        inside = {module for module in text.modules() if isinstance(module, torch.nn.Linear)}
        names = [name for name, module in model.named_modules() if module in inside]
        model = get_peft_model(model, LoraConfig(r=lora, lora_alpha=2 * lora, target_modules=names))
    return model


def checkpointed_layers(model) -> list:
    return [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]


# ---------------------------------------------------------------- the disk


@contextlib.contextmanager
def saving(part: Path) -> Iterator[None]:
    """Weights are written by libraries whose own errors do not say that the disk is full."""
    try:
        yield
    except Exception as error:
        free = shutil.disk_usage(part).free
        if getattr(error, "errno", None) not in DISK_ERRORS and free > MIN_FREE:
            raise
        problem = f"cannot be written ({str(error).splitlines()[0]}; {free >> 20} MB free)"
        fail(f"{part}: {problem}; the last checkpoint is kept: make room and call again to go on", 1)


def saved_steps(part: Path) -> list[int]:
    return sorted(int(folder.name.split("-")[1]) for folder in part.glob("checkpoint-*"))


def save_checkpoint(accelerator: Accelerator, part: Path, step: int) -> None:
    """A checkpoint folder gets its final name when it is complete, on the disk too."""
    with saving(part):
        accelerator.save_state(str(part / "checkpoint.part"))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        os.sync()
        (part / "checkpoint.part").rename(part / f"checkpoint-{step}")
        remove(*(part / f"checkpoint-{old}" for old in saved_steps(part)[:-KEEP]))
    accelerator.wait_for_everyone()


def resume(accelerator: Accelerator, part: Path) -> int:
    """Load the last checkpoint in `part` and cut the log back to it; the step to go on with."""
    if first := max(saved_steps(part), default=0):
        checkpoint = part / f"checkpoint-{first}"
        sharded = (checkpoint / "pytorch_model_fsdp_0").exists()
        if sharded != accelerator.is_fsdp2:
            saved, needed = ("several GPUs", "several") if sharded else ("one GPU", "one")
            fail(f"{checkpoint}: was saved by {saved}; go on with {needed}, or remove {part} to start anew")
        accelerator.load_state(str(checkpoint))
        accelerator.print(f"resumed at step {first}")
    log = part / "train_log.jsonl"
    if accelerator.is_main_process:
        remove(part / "checkpoint.part")
        if log.exists():
            log.write_text("".join(log.read_text().splitlines(keepends=True)[:first]))
    accelerator.wait_for_everyone()
    return first


def save_model(accelerator: Accelerator, model, processor, spec: str, part: Path) -> None:
    """Weights as safetensors (bf16 where the computation was), the processor's files copied as they are:
    saving a loaded one may change them.
    """
    state = accelerator.get_state_dict(model)
    if accelerator.is_main_process:
        model = accelerator.unwrap_model(model)
        if hasattr(model, "get_base_model"):
            state, model = merged(model, state), model.get_base_model()
        if accelerator.mixed_precision == "bf16":
            state = {
                name: part.bfloat16() if part.is_floating_point() else part for name, part in state.items()
            }
        for name in getattr(model, "all_tied_weights_keys", {}):  # stored once: the other name says where
            state.pop(name, None)
        with saving(part):
            write_model(model, state, processor, part)
            source = Path(cached_file(spec, "config.json")).parent
            for path in (*source.iterdir(), *source.glob("additional_chat_templates/*")):
                if path.suffix in COPIED and not str(path).endswith(MADE_ANEW):
                    target = part / path.relative_to(source)
                    target.parent.mkdir(exist_ok=True)
                    shutil.copy(path, target)
    accelerator.wait_for_everyone()


def write_model(model, state: dict, processor, part: Path) -> None:
    """The model's folder. Its generation_config names what ends a reply, and no sampling habits: what a
    request leaves out a server takes from there.
    """
    usual = model.generation_config
    ids = {"bos_token_id": usual.bos_token_id, "pad_token_id": usual.pad_token_id}
    model.generation_config = GenerationConfig(eos_token_id=reply_ends(processor, usual), **ids)
    model.save_pretrained(part, state_dict=state)
    dtype = next(tensor.dtype for tensor in state.values() if tensor.is_floating_point())
    for config in (model.config, *(getattr(model.config, name) for name in model.config.sub_configs)):
        config.dtype = dtype  # save_pretrained notes that of the master weights
    model.config.save_pretrained(part)


def merged(model, state: dict) -> dict:
    """The state of a model with adapters as one of the model itself: W + scaling * B A."""
    for layer, module in model.named_modules():
        if hasattr(module, "lora_A"):
            down, up = (state.pop(f"{layer}.lora_{side}.default.weight").float() for side in "AB")
            weight = state[f"{layer}.base_layer.weight"].float()
            state[f"{layer}.base_layer.weight"] = weight + module.scaling["default"] * (up @ down)
    names = {name: name.replace(".base_layer.", ".").removeprefix("base_model.model.") for name in state}
    return {names[name]: tensor for name, tensor in state.items()}
