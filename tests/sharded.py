"""04_finetune.py on CPU processes with the model sharded by FSDP2, by the settings that ship for GPUs.

    BF16=1 STOP=1 torchrun --nproc_per_node 2 tests/sharded.py FLAGS-OF-04

BF16=1: computation in bf16. STOP=1: end behind a checkpoint.
"""

import importlib
import os
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))


def make_accelerator(fit, made, log_with, folder):
    """accelerate keeps FSDP2 for GPUs: once 04's own accelerator is made, its state is told otherwise."""
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    bf16 = os.environ.get("BF16") == "1"
    accelerator = made(log_with, folder, sharded=True, bf16=bf16)
    for state in (AcceleratorState, PartialState):
        state._shared_state["distributed_type"] = DistributedType.FSDP
    AcceleratorState._shared_state["fsdp_plugin"] = fit.shards(bf16)
    assert accelerator.is_fsdp2
    return accelerator


def save_and_stop(save, *arguments):
    save(*arguments)
    os._exit(3)


def main() -> None:
    module = importlib.import_module("04_finetune")
    from mathse.train import fit

    fit.make_accelerator = partial(make_accelerator, fit, fit.make_accelerator)
    if os.environ.get("STOP") == "1":
        fit.save_checkpoint = partial(save_and_stop, fit.save_checkpoint)
    module.main()


if __name__ == "__main__":
    main()
