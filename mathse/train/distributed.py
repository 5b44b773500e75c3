"""Training on several devices: accelerate, and FSDP2 set up in code instead of a YAML file."""

import json
import logging
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import (
    Accelerator,
    AutocastKwargs,
    DistributedDataParallelKwargs,
    FullyShardedDataParallelPlugin,
    PartialState,
    init_empty_weights,
)
from accelerate.tracking import get_available_trackers
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import AutoConfig, AutoModelForImageTextToText

from mathse.jsonl import write_json
from mathse.launch import processes
from mathse.records import fail
from mathse.train.checkpoints import UNUSED
from mathse.train.model import checkpointed_layers

TIMEOUT = timedelta(hours=2)  # that processes wait for each other


def join_processes() -> None:
    """Make the process group of this launch, before anything waits for others."""
    PartialState(cpu=not torch.cuda.is_available(), timeout=TIMEOUT)


def check_tracker(name: str) -> None:
    """End the command if this tracker cannot be used."""
    if name not in (known := sorted(map(str, get_available_trackers()))):
        found = f"there are: {', '.join(known) or 'none'}"
        fail(f"--log-with: {name}: not installed here, or not a tracker of accelerate; {found}")


def make_accelerator(
    log_with: str | None = None,
    folder: Path | None = None,
    sharded: bool | None = None,
    bf16: bool | None = None,
) -> Accelerator:
    """Computation in bf16 on GPUs; with several of them the model is sharded (FSDP2).

    Gradients are reduced and master weights kept in fp32, as on a single GPU. `sharded`, `bf16`: None chooses
    by the devices.
    """
    on_gpu = torch.cuda.is_available()
    bf16 = on_gpu if bf16 is None else bf16
    sharded = on_gpu and processes()[1] > 1 if sharded is None else sharded
    # At every checkpoint it warns that tied weights are stored once.
    logging.getLogger("accelerate.utils.other").setLevel("ERROR")
    handlers = [
        # LLaVA's vision tower has an unused layer
        DistributedDataParallelKwargs(find_unused_parameters=True),
        AutocastKwargs(cache_enabled=False),  # else bf16 copies of all weights stay in memory
    ]
    return Accelerator(
        mixed_precision="bf16" if bf16 else "no",
        fsdp_plugin=shards(bf16) if sharded else None,
        kwargs_handlers=handlers,
        log_with=log_with,
        project_dir=folder,
    )


def shards(bf16: bool) -> FullyShardedDataParallelPlugin:
    """The settings of FSDP2; the layers to shard are named in prepare()."""
    dtypes = {"param_dtype": torch.bfloat16 if bf16 else None, "reduce_dtype": torch.float32}
    return FullyShardedDataParallelPlugin(
        fsdp_version=2,
        auto_wrap_policy="transformer_based_wrap",
        cpu_ram_efficient_loading=True,  # the first process sends the others their part, see empty_model()
        mixed_precision_policy=MixedPrecisionPolicy(**dtypes),
        state_dict_type="SHARDED_STATE_DICT",
    )


def empty_model(spec: str, attention: str, trust_remote_code: bool):
    """A model without weights, for processes that get theirs from the first: the host holds one copy."""
    config = AutoConfig.from_pretrained(spec, trust_remote_code=trust_remote_code)
    settings = {"dtype": torch.float32, "trust_remote_code": trust_remote_code}
    with init_empty_weights(include_buffers=False):  # buffers are not sent
        return AutoModelForImageTextToText.from_config(config, attn_implementation=attention, **settings)


def prepare(accelerator: Accelerator, model, make_optimizer: Callable) -> tuple:
    """(model, optimizer) on their device, or sharded. `make_optimizer`: model -> optimizer."""
    if not accelerator.is_fsdp2:
        return accelerator.prepare(model, make_optimizer(model))
    kinds = {type(layer).__name__ for layer in checkpointed_layers(model)}
    accelerator.state.fsdp_plugin.transformer_cls_names_to_wrap = sorted(kinds)
    # accelerate finds an optimizer's weights again by their addresses, and weights that only another process
    # has loaded have none: so the optimizer is made of the sharded weights, in place of a stand-in.
    model, optimizer = accelerator.prepare(model, torch.optim.SGD(model.parameters()))
    optimizer.optimizer = make_optimizer(model)
    return model, optimizer


def find_unused(accelerator: Accelerator, model, optimizer, folder: Path) -> None:
    """After a backward pass: leave weights without a gradient out of a sharded training, and note them.

    Such is the last norm of LLaVA's vision tower.
    """
    weights = model.named_parameters()
    names = [name for name, weight in weights if weight.requires_grad and weight.grad is None]
    if accelerator.is_main_process:
        write_json(folder / UNUSED, names)
        print(f"weights without a gradient, not trained: {', '.join(names) or 'none'}", flush=True)
    drop_weights(model, optimizer, names)


def leave_out_unused(model, optimizer, folder: Path) -> None:
    """Before a sharded checkpoint is loaded: of weights without a gradient it has no optimizer state."""
    if (folder / UNUSED).exists():
        drop_weights(model, optimizer, json.loads((folder / UNUSED).read_text(encoding="utf-8")))


def drop_weights(model, optimizer, names: list[str]) -> None:
    ids = {id(weight) for name, weight in model.named_parameters() if name in names}
    for group in optimizer.param_groups:
        group["params"] = [weight for weight in group["params"] if id(weight) not in ids]
