"""Sharded training: what accelerate's FSDP2 needs told so that a sharded step is the plain mixed-precision step."""

import contextlib
from collections.abc import Iterator

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, parse_flag_from_env
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy

from .recipe import RecipeError

REQUESTS = {"ACCELERATE_USE_FSDP": DistributedType.FSDP, "ACCELERATE_USE_DEEPSPEED": DistributedType.DEEPSPEED}


def prepare_sharding(accelerator: Accelerator) -> None:
    """To be called before the model is prepared.

    Under FSDP2 with bfloat16 weights travel and compute in bfloat16 while gradients are summed, and inputs and losses
    stay, in float32: accelerate's own policy would round log-mels, targets and losses as well.

    Raises RecipeError if the launch asks for FSDP or DeepSpeed and accelerate has passed over that, as it does without
    a word on CPUs.
    """
    for variable, kind in REQUESTS.items():
        if parse_flag_from_env(variable) and accelerator.distributed_type != kind:
            raise RecipeError(
                f"The launch configuration asks for {kind.value}, which needs GPUs; here processes would train whole "
                "copies of the model. Launch with trainers/accelerate_configs/cpu_two_processes.yaml, or ddp.yaml."
            )
    if accelerator.is_fsdp2 and accelerator.mixed_precision == "bf16":
        accelerator.state.fsdp_plugin.mixed_precision_policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16, reduce_dtype=torch.float32, cast_forward_inputs=False
        )


@contextlib.contextmanager
def gathered(model: nn.Module) -> Iterator[None]:
    """Inside, parts of an FSDP2 model can be called by themselves and their weights read, by all processes alike.

    FSDP2 gathers a block's weights for calls of the block, and what belongs to no block for calls of the whole model
    only. Other models are left as they are.
    """
    sharded = [module for module in model.modules() if isinstance(module, FSDPModule)]
    for module in sharded:
        module.set_reshard_after_forward(False, recurse=False)  # a call inside must not scatter them again
        module.unshard()
    try:
        yield
    finally:
        for module in sharded:
            module.set_reshard_after_forward(AcceleratorState().fsdp_plugin.reshard_after_forward, recurse=False)
            module.reshard()
