"""04_finetune.py on CPU processes with the model sharded by FSDP2, by the settings that ship for GPUs.

    BF16=1 STOP_AFTER=1 torchrun --nproc_per_node 2 tests/sharded.py FLAGS-OF-04

BF16=1: computation in bf16. STOP_AFTER: end after so many checkpoints.
"""

import importlib
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))


def shard_on_cpus(session, distributed) -> None:
    """accelerate keeps FSDP2 for GPUs: once 04's own accelerator is made, its state is told otherwise."""
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType

    bf16 = os.environ.get("BF16") == "1"

    def make_accelerator(log_with=None, folder=None):
        accelerator = distributed.make_accelerator(log_with, folder, sharded=True, bf16=bf16)
        for state in (AcceleratorState, PartialState):
            state._shared_state["distributed_type"] = DistributedType.FSDP
        AcceleratorState._shared_state["fsdp_plugin"] = distributed.shards(bf16)
        assert accelerator.is_fsdp2
        return accelerator

    def prepare(accelerator, model, make_optimizer):
        unloaded = any(weight.is_meta for weight in model.parameters())
        assert unloaded == (os.environ["RANK"] != "0"), "one process loads the weights, the others get them"
        return distributed.prepare(accelerator, model, make_optimizer)

    session.make_accelerator, session.prepare = make_accelerator, prepare


def main() -> None:
    module = importlib.import_module("04_finetune")
    from mathse.train import distributed, session

    left, save = int(os.environ.get("STOP_AFTER", 0)), session.save_checkpoint

    def save_and_stop(*arguments):
        nonlocal left
        save(*arguments)
        left -= 1
        if left == 0:
            os._exit(3)

    shard_on_cpus(session, distributed)
    session.save_checkpoint = save_and_stop
    module.main()


if __name__ == "__main__":
    main()
