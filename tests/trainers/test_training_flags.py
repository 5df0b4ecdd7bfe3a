"""Flags of TrainingArguments that the recipes pass on: they run, and change memory or speed, not the losses."""

import pytest
import torch
from stages import LORA, make_folders, stage_recipe, trainer_losses
from transformers import AutoModel
from transformers.modeling_layers import GradientCheckpointingLayer

from e2e_tts.trainers.recipe import RecipeError
from e2e_tts.trainers.stage_trainers import SpeechTrainer
from e2e_tts.trainers.train import build_trainer

QUICK = {"max_steps": 2, "save_strategy": "no"}
EVERY_LAYER = {"encoder": "ParakeetEncoderBlock", "reward": "ParakeetEncoderBlock", "lm": "Qwen3DecoderLayer",
               "decoder": "DiTBlock"}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    return make_folders(tmp_path_factory.mktemp("flags"))


def trained(stage: str, folders: dict[str, str], output: str, arguments: dict, **changes) -> SpeechTrainer:
    recipe = stage_recipe(stage, folders, **changes, arguments={**QUICK, **arguments})
    trainer = build_trainer(recipe, output)
    trainer.train()
    return trainer


@pytest.mark.parametrize(
    "stage, changes", [("joint", {}), ("end_to_end", {}), ("component", LORA)], ids=["joint", "end_to_end", "LoRA"]
)
def test_gradient_checkpointing_gives_equal_losses(stage, changes, folders, tmp_path):
    plain = trained(stage, folders, str(tmp_path / "plain"), {}, **changes)
    flag = {"activation_checkpointing": True}
    checkpointed = trained(stage, folders, str(tmp_path / "checkpointed"), flag, **changes)
    # Dropout is on: layers that are computed again must draw the same.
    assert trainer_losses(checkpointed) == trainer_losses(plain)
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, checkpointed.model.state_dict()[name]), name
    blocks = {
        (name.split(".")[0], type(layer).__name__)
        for name, layer in checkpointed.composite.named_modules()
        if isinstance(layer, GradientCheckpointingLayer) and layer.gradient_checkpointing
    }
    assert set(EVERY_LAYER.items()) <= blocks


def test_gradient_checkpointing_keeps_fewer_tensors(folders, tmp_path):
    saved = {}
    for checkpointing in (False, True):
        recipe = stage_recipe("joint", folders, arguments=QUICK)
        trainer = build_trainer(recipe, str(tmp_path / str(checkpointing)))
        if checkpointing:
            trainer.model.activation_checkpointing_enable()
        batch = trainer.data_collator([trainer.train_dataset[index] for index in range(3)])
        sizes: list[int] = []

        def keep(tensor: torch.Tensor, sizes: list[int] = sizes) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            trainer.compute_loss(trainer.model.train(), batch)
        saved[checkpointing] = sum(sizes)
    assert saved[True] < 0.7 * saved[False]


def test_compiled_models_train_to_the_same_losses(folders, tmp_path):
    lm = {"train": ["lm"], "losses": {"lm": 1.0}}
    plain = trained("component", folders, str(tmp_path / "plain"), {"max_steps": 1}, **lm)
    # This backend traces the graphs as any other does, and then runs them without a compiler.
    flags = {"max_steps": 1, "torch_compile": True, "torch_compile_backend": "eager"}
    compiled = trained("component", folders, str(tmp_path / "compiled"), flags, **lm)
    for step, losses in trainer_losses(plain).items():
        assert trainer_losses(compiled)[step] == pytest.approx(losses, rel=1e-4, abs=1e-4), step
    compiled.save_final(tmp_path / "final")
    saved = AutoModel.from_pretrained(tmp_path / "final").state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in compiled.composite.state_dict().items())


@pytest.mark.parametrize("flag", ["bf16", "fp16"])
def test_half_precision_is_refused_on_a_cpu(flag, folders, tmp_path):
    with pytest.raises(RecipeError, match=f"arguments.{flag} needs a GPU.*arguments.{flag}=false"):
        build_trainer(stage_recipe("joint", folders, arguments={flag: True}), str(tmp_path))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="bfloat16 training needs a GPU")
def test_bfloat16_on_a_gpu_stays_near_float32(folders, tmp_path):
    plain = trained("joint", folders, str(tmp_path / "plain"), {"use_cpu": False})
    half = trained("joint", folders, str(tmp_path / "half"), {"use_cpu": False, "bf16": True})
    for step, losses in trainer_losses(plain).items():
        assert trainer_losses(half)[step]["loss"] == pytest.approx(losses["loss"], rel=0.05)
