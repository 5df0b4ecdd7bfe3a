"""Trains one stage from a recipe: `accelerate launch -m e2e_tts.trainers.train --recipe small_joint --output_dir DIR`.

A run that was stopped goes on from its last checkpoint when the same command is given again.
"""

import argparse
import sys

import torch
from transformers import AutoModel, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from e2e_tts.modeling.audio_features import MelSpec
from e2e_tts.modeling.configuration_e2e_tts import E2ETTSConfig
from e2e_tts.modeling.modeling_e2e_tts import E2ETTSModel

from .recipe import Recipe, RecipeError, load_recipe
from .speech_data import Collator, SpeechDataset, load_prepared
from .stage_trainers import TRAINERS


def build_model(recipe: Recipe) -> E2ETTSModel:
    """The composite that a recipe starts from: a folder, or a configuration, with single modules replaced."""
    if recipe.init is not None:
        model = AutoModel.from_pretrained(recipe.init)
    else:
        model = E2ETTSModel(E2ETTSConfig(**recipe.model))
    for name, folder in recipe.init_modules.items():
        module = AutoModel.from_pretrained(folder)
        setattr(model, name, module)
        setattr(model.config, f"{name}_config", module.config)
    model.config.check_composition()
    return model


def build_trainer(recipe: Recipe, output_dir: str, max_steps: int | None = None):
    """Model, data and trainer of a recipe; max_steps replaces the recipe's."""
    settings = dict(recipe.arguments)
    if max_steps is not None:
        settings["max_steps"] = max_steps
    if settings.get("max_steps", -1) <= 0:
        raise RecipeError("arguments.max_steps must be set: data is a stream, an epoch has no meaning.")
    settings.setdefault("use_cpu", not torch.cuda.is_available())
    arguments = TrainingArguments(output_dir, remove_unused_columns=False, report_to="none", **settings)
    set_seed(arguments.seed)
    model = build_model(recipe)
    spec = MelSpec.from_dict(model.config.encoder_config.mel)
    return TRAINERS[recipe.trainer](
        model,
        recipe,
        arguments,
        train_dataset=SpeechDataset(load_prepared(recipe.data.folders, "train"), spec),
        eval_dataset=SpeechDataset(load_prepared(recipe.data.folders, "dev"), spec),
        data_collator=Collator(spec, model.config.encoder_config.frames_per_token),
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--recipe", required=True, help="a YAML file, or the name of a shipped recipe")
    parser.add_argument("--output_dir", required=True, help="checkpoints go here; the final model to <output_dir>/final")
    parser.add_argument("--max_steps", type=int, help="replaces arguments.max_steps")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="e.g. data.seconds_per_batch=20")
    parser.add_argument("--fresh", action="store_true", help="ignore checkpoints in output_dir")
    options = parser.parse_args(arguments)
    try:
        trainer = build_trainer(load_recipe(options.recipe, options.set), options.output_dir, options.max_steps)
    except (RecipeError, ValueError) as error:
        sys.exit(f"{options.recipe}: {error}")
    checkpoint = None if options.fresh else get_last_checkpoint(options.output_dir)
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.evaluate()
    if trainer.is_world_process_zero():
        trainer.accelerator.unwrap_model(trainer.model).save_pretrained(f"{options.output_dir}/final")
        trainer.save_state()


if __name__ == "__main__":
    main()
