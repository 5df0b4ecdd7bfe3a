"""Sharded launches: what they cannot do is refused before the run, and DeepSpeed's precision is the recipe's."""

import json
from pathlib import Path

import pytest
from accelerate.utils.deepspeed import HfDeepSpeedConfig
from stages import LORA, make_folders, stage_recipe
from transformers import Trainer
from transformers.integrations import deepspeed

from e2e_tts.trainers import sharding, train
from e2e_tts.trainers.recipe import RecipeError, load_recipe

STAGES = ("joint", "refine_lm", "refine_decoder", "refine_reward", "end_to_end")
CONFIGS = Path(sharding.__file__).parent / "accelerate_configs"


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    return make_folders(tmp_path_factory.mktemp("sharding"))


class TrainerConfig(deepspeed.HfTrainerDeepSpeedConfig, HfDeepSpeedConfig):
    """As transformers defines it where DeepSpeed is installed."""


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("zero", [2, 3])
def test_recipes_of_the_paper_agree_with_the_deepspeed_configurations(zero, stage, monkeypatch, tmp_path):
    file = CONFIGS / f"deepspeed_zero{zero}.json"
    monkeypatch.setattr(deepspeed, "dep_version_check", lambda name: None)
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(file))
    made = {}
    # Only the arguments: transformers' own class asks for DeepSpeed, which is not installed.
    monkeypatch.setattr(train, "TrainingArguments", lambda output, **settings: made.update(settings))
    train.training_arguments(load_recipe(f"paper_{stage}", ["arguments.use_cpu=false"]), str(tmp_path), None)
    monkeypatch.undo()
    monkeypatch.setattr(deepspeed, "dep_version_check", lambda name: None)
    arguments = train.TrainingArguments(str(tmp_path), **(made | {"use_cpu": True}))
    config = TrainerConfig(json.loads(file.read_text()))
    config.trainer_config_process(arguments)
    config.trainer_config_finalize(arguments, None, 10)
    assert config.mismatches == [] and config.is_true("torch_autocast.enabled") and config.is_false("bf16.enabled")


def test_deepspeed_computes_as_the_recipe_says(tmp_path, monkeypatch):
    autocast = {"torch_autocast": {"enabled": True, "dtype": "bfloat16"}}
    file = tmp_path / "zero.json"
    file.write_text(json.dumps(autocast))
    for given in (autocast, str(file)):
        settings = {"bf16": True, "deepspeed": given}
        sharding.leave_precision_to_deepspeed(settings)
        assert settings["bf16"] is False
        with pytest.raises(RecipeError, match=r"computes in bfloat16 .*arguments\.bf16=true"):
            sharding.leave_precision_to_deepspeed({"deepspeed": given})
    monkeypatch.setenv("ACCELERATE_DEEPSPEED_CONFIG_FILE", str(file))  # of a launch without DeepSpeed
    for settings in ({"bf16": True}, {"bf16": True, "deepspeed": {"bf16": {"enabled": "auto"}}}):
        sharding.leave_precision_to_deepspeed(settings)
        assert settings["bf16"] is True


@pytest.mark.parametrize("attribute", ["is_fsdp_enabled", "is_deepspeed_enabled"])
@pytest.mark.parametrize("entry, changes", [("lora", LORA), ("ema", {"ema": {"lm": 0.9}})])
def test_what_needs_whole_weights_is_refused(entry, changes, attribute, folders, monkeypatch, tmp_path):
    original = Trainer.create_accelerator_and_postprocess

    def pretend(self: Trainer) -> None:
        original(self)
        setattr(self, attribute, True)

    monkeypatch.setattr(Trainer, "create_accelerator_and_postprocess", pretend)
    with pytest.raises(RecipeError, match=rf"{entry} needs the whole weights.*ddp\.yaml"):
        train.build_trainer(stage_recipe("component", folders, **changes), str(tmp_path))
