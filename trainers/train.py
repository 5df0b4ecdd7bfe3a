"""Trains one stage, or the vocoder, from a recipe.

accelerate launch -m e2e_tts.trainers.train --recipe small_joint --output_dir DIR

A run that was stopped goes on from its last checkpoint when the same command is given again.
"""

import argparse
import sys

import torch
from transformers import AutoModel, TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from e2e_tts.modeling import E2ETTSConfig, E2ETTSModel, VocoderConfig, VocoderModel

from .recipe import Recipe, RecipeError, VocoderRecipe, load_recipe
from .speech_data import Collator, SpeechDataset, load_prepared
from .stage_trainers import TRAINERS, SpeechTrainer
from .vocoder_data import CropDataset
from .vocoder_trainer import VocoderTrainer


def build_model(recipe: Recipe) -> E2ETTSModel:
    """The composite that a recipe starts from: a folder, or a configuration, with single modules replaced."""
    if recipe.init is not None:
        model = AutoModel.from_pretrained(recipe.init)
    else:
        model = E2ETTSModel(E2ETTSConfig(**recipe.model))
    for name, folder in recipe.init_modules.items():
        model.replace_module(name, AutoModel.from_pretrained(folder))
    return model


def training_arguments(recipe: Recipe | VocoderRecipe, output_dir: str, max_steps: int | None) -> TrainingArguments:
    """The recipe's arguments; max_steps replaces the recipe's."""
    settings = dict(recipe.arguments)
    if max_steps is not None:
        settings["max_steps"] = max_steps
    if settings.get("max_steps", -1) <= 0:
        raise RecipeError("arguments.max_steps must be set: data is a stream, an epoch has no meaning.")
    settings.setdefault("use_cpu", not torch.cuda.is_available())
    settings.setdefault("report_to", "none")
    return TrainingArguments(output_dir, remove_unused_columns=False, **settings)


def build_vocoder_trainer(recipe: VocoderRecipe, output_dir: str, max_steps: int | None = None) -> VocoderTrainer:
    """Model, crops and trainer of a vocoder recipe."""
    arguments = training_arguments(recipe, output_dir, max_steps)
    set_seed(arguments.seed)
    config = VocoderConfig(**recipe.model)
    frames = max(1, round(recipe.crops.crop_seconds * config.sampling_rate / config.hop_length))

    def crops(split: str, size: int) -> CropDataset:
        return CropDataset(
            load_prepared(recipe.folders, split),
            size,
            frames * config.hop_length,
            config.sampling_rate,
            arguments.seed,
            recipe.crops.source_weights,
            recipe.crops.gain_db,
        )

    crops_per_step = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    return VocoderTrainer(
        model=VocoderModel(config),
        args=arguments,
        train_dataset=crops("train", arguments.max_steps * crops_per_step),
        eval_dataset=crops("dev", recipe.crops.eval_crops) if recipe.crops.eval_crops else None,
        loss_settings=recipe.losses,
        discriminator_settings=recipe.discriminator,
    )


def build_trainer(recipe: Recipe, output_dir: str, max_steps: int | None = None) -> SpeechTrainer:
    """Model, data and trainer of a stage recipe; max_steps replaces the recipe's."""
    arguments = training_arguments(recipe, output_dir, max_steps)
    set_seed(arguments.seed)
    model = build_model(recipe)
    collator = Collator.for_model(model.config)
    return TRAINERS[recipe.trainer](
        model,
        recipe,
        arguments,
        train_dataset=SpeechDataset(load_prepared(recipe.data.folders, "train"), collator.audio_spec),
        eval_dataset=SpeechDataset(load_prepared(recipe.data.folders, "dev"), collator.audio_spec),
        data_collator=collator,
    )


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--recipe", required=True, help="a YAML file, or the name of a shipped recipe")
    parser.add_argument("--output_dir", required=True, help="folder of the run; the final model goes to its final/")
    parser.add_argument("--max_steps", type=int, help="replaces arguments.max_steps")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE", help="e.g. data.seconds_per_batch=20")
    parser.add_argument("--fresh", action="store_true", help="ignore checkpoints in output_dir")
    options = parser.parse_args(arguments)
    try:
        recipe = load_recipe(options.recipe, options.set)
        build = build_vocoder_trainer if isinstance(recipe, VocoderRecipe) else build_trainer
        trainer = build(recipe, options.output_dir, options.max_steps)
    except (RecipeError, ValueError) as error:
        sys.exit(f"{options.recipe}: {error}")
    checkpoint = None if options.fresh else get_last_checkpoint(options.output_dir)
    trainer.train(resume_from_checkpoint=checkpoint)
    if trainer.eval_dataset is not None:
        trainer.evaluate()
    if trainer.is_world_process_zero():
        trainer.accelerator.unwrap_model(trainer.model).save_pretrained(f"{options.output_dir}/final")
        trainer.save_state()


if __name__ == "__main__":
    main()
