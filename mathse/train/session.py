"""A fine-tuning: the model on its devices, its micro-batches, log and checkpoints. The loop is 04's."""

import contextlib
import json
import math
import time
from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from tqdm import tqdm

from mathse.train.checkpoints import resume, save_checkpoint, save_model
from mathse.train.data import MicroBatch, MicroBatches, prefetch_batches
from mathse.train.distributed import empty_model, find_unused, leave_out_unused, make_accelerator, prepare
from mathse.train.model import flops_per_token, peak_flops, set_up_model
from mathse.train.packing import Packing, check_losses
from mathse.train.rows import TrainingRows, deal, plan_steps
from mathse.train.vision_cache import free_memory

CACHE_SHARE = 4  # features of a frozen vision tower may take this part of the machine's free memory


class Session:
    """`args`: the flags of 04; `part`: the folder to train in.

    Master weights are fp32; where adapters alone are trained, the others are bf16.
    """

    def __init__(self, args: Namespace, rows: TrainingRows, part: Path, device: str):
        torch.manual_seed(args.seed)
        self.args = args
        self.rows = rows
        self.part = part
        self.accelerator = make_accelerator(args.log_with, part)
        self.rank, self.world = self.accelerator.process_index, self.accelerator.num_processes
        self.sharded = self.accelerator.is_fsdp2
        self.packed = args.batches == "packed"
        adapters_only = args.lora and device != "cpu" and not self.sharded  # shards want one type
        self.dtype = torch.bfloat16 if adapters_only else torch.float32
        self.device = "cpu" if self.sharded else device
        self.recompute = float(device != "cpu") if args.recompute is None else args.recompute
        if args.log_with:
            flags = {
                name: value for name, value in vars(args).items() if isinstance(value, (int, float, str))
            }
            self.accelerator.init_trackers("tracker", config=flags)

    def load_weights(self, spec: str, load_model: Callable, attention: str):
        """The model; of one that is sharded, the weights in the first process alone."""
        if self.sharded and self.rank:
            return empty_model(spec, attention, self.args.trust_remote_code)
        return load_model(spec, self.device, self.dtype, attention, self.args.trust_remote_code)

    def open(self, model, processor, make_optimizer: Callable, token_loss: Callable) -> None:
        """Make the loaded model ready and go on from the last checkpoint, if there is one.

        `make_optimizer`: model -> optimizer. `token_loss`: see LabelLoss.
        """
        args, accelerator = self.args, self.accelerator
        self.processor = processor
        model = set_up_model(model, args.freeze, args.lora, self.recompute)
        self.model, self.optimizer = prepare(accelerator, model, make_optimizer)
        inner = accelerator.unwrap_model(self.model)
        self.packing = Packing(inner.get_base_model() if args.lora else inner, token_loss)
        if args.freeze and args.epochs > 1 and not self.sharded:  # sharded, all pass the tower together
            self.packing.keep_features(free_memory() // CACHE_SHARE // self.world)
        self.flops, self.peak = flops_per_token(self.packing.model), peak_flops()
        self.plan = plan_steps(self.rows, args, self.world, self.packed)
        self.steps = len(self.plan)
        if self.sharded:
            leave_out_unused(self.model, self.optimizer, self.part)
        self.first = resume(accelerator, self.part)
        mine = [step[self.rank] for step in self.plan]
        check_losses(accelerator, self.packing, self.model, self.rows, mine[0], processor, args)
        self.loader = self.load([micro for step in mine[self.first :] for micro in step])
        self.log_file = (self.part / "train_log.jsonl").open("a", encoding="utf-8")

    def load(self, micro_batches: list[list[int]]) -> Iterator[tuple[MicroBatch | None, int]]:
        processor, world = self.processor, self.world
        dataset = MicroBatches(self.rows, micro_batches, processor, self.args, self.packed, world)
        return prefetch_batches(dataset, self.args.workers, self.args.seed)

    def remaining(self) -> Iterator[int]:
        """The numbers of the steps to take, with a progress bar in the first process."""
        quiet = None if self.accelerator.is_main_process else True
        settings = {"desc": "fine-tune", "unit": "step", "disable": quiet}
        with tqdm(total=self.steps, initial=self.first, **settings) as self.bar:
            for step in range(self.first, self.steps):
                self.begun = time.monotonic()
                yield step
                self.bar.update()

    def take(self, step: int) -> tuple[list[MicroBatch], float]:
        """(this process's micro-batches, number of labels in those of all processes, at least 1)."""
        prepared = [next(self.loader) for _ in self.plan[step][self.rank]]
        batches = [batch for batch, _ in prepared if batch]
        left_out = sum(count for _, count in prepared)
        counts = sum(batch.labels for batch in batches), sum(batch.tokens for batch in batches), left_out
        self.labels, self.tokens, self.left_out = self.sum(torch.tensor(counts, dtype=torch.double)).tolist()
        return batches, max(1, self.labels)

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Over all processes."""
        return self.accelerator.reduce(values.to(self.accelerator.device), "sum")

    def zero(self) -> torch.Tensor:
        return torch.zeros((), device=self.accelerator.device)

    def accumulate(self, batches: list[MicroBatch]) -> Iterator[MicroBatch]:
        """The micro-batches; several processes exchange gradients in the last one's backward pass."""
        for index, batch in enumerate(batches):
            # Under FSDP2 every micro-batch reduces its gradients: unsharded ones would not fit.
            is_last = index + 1 == len(batches) or self.sharded
            with contextlib.nullcontext() if is_last else self.accelerator.no_sync(self.model):
                yield batch

    def losses(self, batch: MicroBatch) -> torch.Tensor:
        """The loss (N) of each label."""
        return self.packing.losses(self.model, batch)

    def backward(self, loss: torch.Tensor) -> None:
        self.accelerator.backward(loss * self.world)  # gradients are averaged over processes

    def clip(self, norm: float) -> float:
        """Clip the gradient's norm; returns what it was."""
        return float(self.accelerator.clip_grad_norm_(self.model.parameters(), norm))

    def update(self, step: int, rate: float) -> None:
        """The optimizer's step with this learning rate."""
        if self.sharded and step == 0:
            find_unused(self.accelerator, self.model, self.optimizer, self.part)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad()

    def finish_step(self, step: int, entry: dict) -> None:
        """Log a step and save a checkpoint after it, when it is time to."""
        speed = self.tokens / (time.monotonic() - self.begun)
        mfu = round(self.flops * speed / self.world / self.peak, 4) if self.peak else None
        entry |= {"tokens": int(self.labels), "left_out": int(self.left_out)}
        entry |= {"tokens_per_second": round(speed, 1), "mfu": mfu}
        ends = (len(self.plan) * epoch / self.args.epochs for epoch in range(1, math.ceil(self.args.epochs)))
        if self.rows.held and step + 1 in {self.steps, *map(math.ceil, ends)}:
            entry["validation_loss"] = self.validation_loss()
        if self.accelerator.is_main_process:
            self.log_file.write(json.dumps(entry) + "\n")
            self.log_file.flush()
        if self.args.log_with:
            self.accelerator.log(entry, step=step)
        self.bar.set_postfix({"loss": f"{entry['loss']:.3f}", "tokens/s": f"{speed:.0f}"})
        every = self.args.save_steps
        if every and (step + 1) % every == 0 and step + 1 < self.steps:
            save_checkpoint(self.accelerator, self.part, step + 1)

    @torch.no_grad()
    def validation_loss(self) -> float | None:
        """The loss a label of the held-out rows, None without labels."""
        held = deal(self.rows, self.rows.held, self.args.micro_batch, self.world, self.packed)[self.rank]
        sums = torch.zeros(2, dtype=torch.double)  # loss, labels
        self.model.eval()
        for batch, _ in self.load(held):
            if batch:
                sums += torch.tensor([self.losses(batch).sum().item(), batch.labels])
        self.model.train()
        loss, labels = self.sum(sums).tolist()
        return loss / labels if labels else None

    def save(self, spec: str) -> dict:
        """Write the model's folder, with the processor of `spec`; what the recipe tells of the training."""
        if self.args.log_with:
            self.accelerator.end_training()
        save_model(self.accelerator, self.model, spec, self.part)
        self.log_file.close()
        with (self.part / "train_log.jsonl").open(encoding="utf-8") as file:
            entries = [json.loads(line) for line in file]
        learnt, left_out = (sum(entry[name] for entry in entries) for name in ("tokens", "left_out"))
        summary = {"rows": len(self.rows) - len(self.rows.held), "steps": self.steps, "init": spec}
        summary |= {"processes": self.world}
        self.accelerator.wait_for_everyone()  # the folder gets its final name now
        return summary | {"loss": entries[-1]["loss"], "label_tokens": learnt, "rows_left_out": left_out}
