"""Averaged weights: the closed form, evaluation and saving with them, and a resumed run that goes on with both."""

import pytest
import torch
from safetensors.torch import load_file
from stages import LORA, make_folders, stage_recipe, trainer_losses
from torch import nn
from transformers import AutoModel

from e2e_tts.trainers.averages import LEARNING_WEIGHTS, WeightAverages
from e2e_tts.trainers.recipe import RecipeError
from e2e_tts.trainers.train import build_trainer

FAST = {"learning_rate": 1e-2, "warmup_steps": 0, "lr_scheduler_type": "constant"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    return make_folders(tmp_path_factory.mktemp("averages"))


def test_averages_follow_the_closed_form():
    module = nn.Linear(2, 1, bias=False)
    with torch.no_grad():
        module.weight.fill_(1.0)
    averages = WeightAverages({"part": module}, {"part": 0.5})
    expected = 1.0
    for step, value in enumerate((3.0, -2.0, 5.0, 0.5)):
        with torch.no_grad():
            module.weight.fill_(value)
        averages.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * value
    with averages.applied():
        torch.testing.assert_close(module.weight, torch.full((1, 2), expected))
    assert torch.equal(module.weight, torch.full((1, 2), 0.5))


def test_frozen_weights_are_not_averaged():
    module = nn.Linear(2, 2)
    module.bias.requires_grad_(False)
    averages = WeightAverages({"part": module}, {"part": 0.9})
    assert set(averages.averages["part"]) == {"part.weight"}


def test_evaluation_and_saving_use_the_averages(folders, tmp_path):
    settings = {**FAST, "max_steps": 4, "save_steps": 4}
    trainer = build_trainer(stage_recipe("joint", folders, ema={"decoder": 0.9}, arguments=settings), str(tmp_path))
    trainer.train()
    learning = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    averaged = trainer.evaluate()["eval_loss_flow"]
    assert averaged != trainer.measure(trainer.eval_dataset)["loss_flow"]
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, learning[name]), name
    trainer.save_final(tmp_path / "final")
    for folder in ("final", "checkpoint-4"):
        saved = AutoModel.from_pretrained(tmp_path / folder).state_dict()
        differing = {name.split(".")[0] for name, value in saved.items() if not torch.equal(value, learning[name])}
        assert differing == {"decoder"}
        for name, value in trainer.averages.averages["decoder"].items():
            assert torch.equal(saved[name], value), name
    kept = load_file(tmp_path / "checkpoint-4" / LEARNING_WEIGHTS)
    assert all(torch.equal(value, learning[name]) for name, value in kept.items())
    assert not (tmp_path / "final" / LEARNING_WEIGHTS).exists()
    trainer.model.load_state_dict(AutoModel.from_pretrained(tmp_path / "final").state_dict())
    assert trainer.measure(trainer.eval_dataset)["loss_flow"] == averaged


def test_a_resumed_run_goes_on_with_both(folders, tmp_path):
    changes = {"ema": {"decoder": 0.9, "lm": 0.5}}
    whole = build_trainer(stage_recipe("joint", folders, **changes, arguments=FAST), str(tmp_path / "whole"))
    whole.train()
    resumed = build_trainer(stage_recipe("joint", folders, **changes, arguments=FAST), str(tmp_path / "resumed"))
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    assert trainer_losses(resumed) == trainer_losses(whole)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[name]), name
    for module, members in whole.averages.averages.items():
        for name, value in members.items():
            assert torch.equal(value, resumed.averages.averages[module][name]), name


@pytest.mark.parametrize("changes", [{}, LORA], ids=["whole", "LoRA"])
def test_the_best_model_is_one_checkpoint(changes, folders, tmp_path):
    best = {"load_best_model_at_end": True, "eval_strategy": "steps", "eval_steps": 2, "greater_is_better": True}
    # The first evaluation is the best one: the metric wanted is the highest loss.
    stage = "component" if changes else "joint"
    recipe = stage_recipe(stage, folders, ema={"decoder": 0.5}, **changes, arguments={**FAST, **best})
    trainer = build_trainer(recipe, str(tmp_path))
    trainer.train()
    found = trainer.state.best_model_checkpoint
    assert found != str(tmp_path / f"checkpoint-{trainer.state.global_step}")
    evaluated = {entry["step"]: entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry}
    assert trainer.evaluate()["eval_loss"] == pytest.approx(max(evaluated.values()), rel=1e-6)
    trainer.save_final(tmp_path / "final")
    for file in (tmp_path / "final").rglob("*.safetensors"):
        stored = load_file(f"{found}/{file.relative_to(tmp_path / 'final')}")
        assert all(torch.equal(value, stored[name]) for name, value in load_file(file).items()), file
    kept = load_file(f"{found}/{LEARNING_WEIGHTS}")
    assert all(torch.equal(value, trainer.averages.learning["decoder"][name]) for name, value in kept.items())


def test_averages_can_begin_with_a_resumed_run_but_not_be_dropped(folders, tmp_path):
    plain = {**FAST, "max_steps": 2}
    build_trainer(stage_recipe("joint", folders, arguments=plain), str(tmp_path / "plain")).train()
    later = {**FAST, "max_steps": 3, "save_steps": 3}
    averaged = build_trainer(
        stage_recipe("joint", folders, ema={"decoder": 0.9}, arguments=later), str(tmp_path / "averaged")
    )
    averaged.train(resume_from_checkpoint=str(tmp_path / "plain" / "checkpoint-2"))
    dropped = build_trainer(stage_recipe("joint", folders, arguments=FAST), str(tmp_path / "dropped"))
    with pytest.raises(RecipeError, match="averages of decoder, which this recipe's ema does not name"):
        dropped.train(resume_from_checkpoint=str(tmp_path / "averaged" / "checkpoint-3"))


@pytest.mark.parametrize(
    "ema, message", [({"vocoder": 0.9}, "does not learn"), ({"lm": 1.0}, "between 0 and 1"), ({"lmm": 0.9}, "mean lm")]
)
def test_mistakes_are_refused(ema, message, folders):
    with pytest.raises(RecipeError, match=message):
        stage_recipe("joint", folders, ema=ema)
