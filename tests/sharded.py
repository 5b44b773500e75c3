"""04_finetune.py on CPU processes, with the model sharded by FSDP2 as on several GPUs; accelerate itself keeps that for GPUs.

    BF16=1 STOP_AFTER=1 torchrun --nproc_per_node 2 tests/sharded.py FLAGS-OF-04      # computation in bf16; end after that many checkpoints
"""

import importlib
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))


def make_accelerator(log_with=None, folder=None):
    """What 04's own makes where there are GPUs."""
    import torch
    from accelerate import Accelerator, FullyShardedDataParallelPlugin
    from accelerate.state import AcceleratorState, PartialState
    from accelerate.utils import DistributedType
    from torch.distributed.fsdp import MixedPrecisionPolicy

    bf16 = os.environ.get("BF16") == "1"
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16 if bf16 else None, reduce_dtype=torch.float32)
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=False, mixed_precision_policy=policy, state_dict_type="SHARDED_STATE_DICT"
    )
    os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    accelerator = Accelerator(mixed_precision="bf16" if bf16 else "no", fsdp_plugin=plugin)
    for state in (AcceleratorState, PartialState):
        state._shared_state["distributed_type"] = DistributedType.FSDP
    AcceleratorState._shared_state["fsdp_plugin"] = plugin
    assert accelerator.is_fsdp2
    return accelerator, plugin


def main() -> None:
    module = importlib.import_module("04_finetune")
    left, save = int(os.environ.get("STOP_AFTER", 0)), module.save_checkpoint

    def save_and_stop(*arguments):
        nonlocal left
        save(*arguments)
        left -= 1
        if left == 0:
            os._exit(3)

    module.make_accelerator, module.save_checkpoint = make_accelerator, save_and_stop
    module.main()


if __name__ == "__main__":
    main()
