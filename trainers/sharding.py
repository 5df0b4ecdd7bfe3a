"""Sharded training: what accelerate's FSDP2 needs told so that a sharded step is the plain mixed-precision step."""

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, parse_flag_from_env
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy

from .recipe import Recipe, RecipeError

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


def refuse_sharded(recipe: Recipe, sharded: bool) -> None:
    """Raises RecipeError for what cannot be done where processes hold parts of the weights."""
    whole = {
        "ema": recipe.ema,
        "max_grad_norms": recipe.max_grad_norms,
        "samples.every": recipe.samples.every,
        # Evaluation and saving reach into the adapted model, past what gathers its parts.
        "lora": recipe.lora is not None,
    }
    for entry in [entry for entry, value in whole.items() if value and sharded]:
        raise RecipeError(
            f"{entry} needs the whole weights in every process: drop it under FSDP or DeepSpeed, or launch with "
            "trainers/accelerate_configs/ddp.yaml."
        )


def leave_precision_to_deepspeed(settings: dict[str, Any]) -> None:
    """Where the DeepSpeed configuration of the launch computes in half precision by itself (torch_autocast), takes that
    precision out of the arguments: transformers would have DeepSpeed hold the weights in it as well.

    Raises RecipeError where the arguments do not ask for the precision that the configuration has.
    """
    given = settings.get("deepspeed")
    if given is None and parse_flag_from_env("ACCELERATE_USE_DEEPSPEED"):
        given = os.environ.get("ACCELERATE_DEEPSPEED_CONFIG_FILE")
    if isinstance(given, str):
        # accelerate says so itself of a file that is not there.
        given = json.loads(Path(given).read_text(encoding="utf-8")) if Path(given).is_file() else None
    autocast = (given or {}).get("torch_autocast", {})
    if not autocast.get("enabled"):
        return
    precision = autocast.get("dtype", "bfloat16")
    name = "fp16" if precision == "float16" else "bf16"
    if not settings.get(name):
        raise RecipeError(
            f"The DeepSpeed configuration computes in {precision} (torch_autocast), the recipe does not: set "
            f"arguments.{name}=true, or torch_autocast.enabled to false in the DeepSpeed configuration."
        )
    settings[name] = False


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
