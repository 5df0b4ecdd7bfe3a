"""Runs the recipes of a plan in this process, one of several that `accelerate launch` has started.

accelerate launch --config_file CONFIG sharded_run.py PLAN.json

accelerate shards over GPUs only and passes over FSDP on a CPU without a word. Here it is told that the CPU is an
accelerator; the sharding itself is PyTorch's, over gloo.
"""

import gc
import json
import os
import sys
from pathlib import Path

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from safetensors.torch import save_file
from torch.distributed.tensor import DTensor

from e2e_tts.trainers.recipe import parse_recipe
from e2e_tts.trainers.sharding import gathered
from e2e_tts.trainers.train import build_trainer


def speak(model: torch.nn.Module, embedding_size: int) -> dict[str, torch.Tensor]:
    """The same sentence at every call; with a sharded model to be called by every process."""
    voice = torch.linspace(-1.0, 1.0, embedding_size)[None]
    with gathered(model):
        speech = model.eval().generate(
            text_ids=torch.tensor([[5, 3, 8, 2]]), speaker_embedding=voice, tokens_per_symbol=2.0, seed=7, num_steps=2
        )
    return {name: speech[name].contiguous() for name in ("ids", "audio")}


def run(values: dict, output: str, plan: dict) -> None:
    os.environ["ACCELERATE_USE_FSDP"] = str(plan["sharded"]).lower()
    os.environ["ACCELERATE_MIXED_PRECISION"] = plan.get("precision", "no")
    values["arguments"]["use_cpu"] = not plan["sharded"]
    trainer = build_trainer(parse_recipe(values), output)
    trainer.train(resume_from_checkpoint=plan.get("resume"))
    result = {"history": trainer.state.log_history, "metrics": trainer.evaluate()}
    result["sharded"] = sum(isinstance(parameter, DTensor) for parameter in trainer.model.parameters())
    speech = None
    if plan.get("speak"):
        speech = speak(trainer.composite, trainer.composite.config.speaker_config.embedding_size)
    trainer.save_final(f"{output}/final")
    if trainer.is_world_process_zero():
        Path(output, "result.json").write_text(json.dumps(result))
        if speech is not None:
            save_file(speech, Path(output, "speech.safetensors"))


if __name__ == "__main__":
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    original = PartialState._prepare_backend

    def prepare_backend(self, cpu=False, *args, **kwargs):
        return original(self, cpu, *args, **kwargs) if cpu else ("gloo", DistributedType.MULTI_GPU)

    PartialState._prepare_backend = prepare_backend
    # As in conftest.py: the trainer's collections of garbage need not look through what is imported.
    gc.freeze()
    for entry in json.loads(Path(sys.argv[1]).read_text()):
        run(entry.pop("recipe"), entry.pop("output"), entry)
