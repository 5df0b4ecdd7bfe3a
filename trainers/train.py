"""Trains one stage, or the vocoder, from a recipe.

accelerate launch -m e2e_tts.trainers.train --recipe small_joint --output_dir DIR

A run that was stopped, at any moment, goes on from its last whole checkpoint when the same command is given again.
"""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import AutoModel, TrainingArguments, set_seed
from transformers.integrations import get_available_reporting_integrations
from transformers.utils import logging

from e2e_tts.modeling import E2ETTSModel, VocoderConfig, VocoderModel

from .built_in_voices import add_voices
from .command_line import CommandParser
from .data.provenance import check_provenance, foreign_voices
from .data.speech_data import Collator, SpeechDataset, check_annotated, check_rate, load_prepared
from .data.style_labels import check_labels
from .data.vocoder_data import CropDataset, check_rates
from .decoded_mels import MelDecoder
from .memory_reuse import keep_freed_memory
from .recipe import Recipe, RecipeError, VocoderRecipe, add_override_option, load_recipe
from .run_folder import FINAL_FOLDER, check_recipe, last_whole_checkpoint, record_recipe, set_aside
from .sharding import leave_precision_to_deepspeed
from .stage_trainers import TRAINERS, SpeechTrainer
from .vocoder_trainer import VocoderTrainer

logger = logging.get_logger(__name__)

# Settings of a vocoder's second pass.
REFINEMENT = ("refine_layers", "refine_size", "refine_n_fft", "refine_hop_length")


def build_model(recipe: Recipe) -> E2ETTSModel:
    """The composite that a recipe starts from: a folder, or a configuration, with modules replaced and styles added."""
    if recipe.lora is not None and not recipe.lora.merged and (recipe.init is None or recipe.init_modules):
        raise RecipeError(
            "An adapter folder is loaded onto the checkpoint that init names, and here the model is another one: save "
            "the model with its modules first and name that folder in init, or set lora.merged=true."
        )
    with missing_starts_named(recipe):
        if recipe.init is None:
            model = E2ETTSModel(recipe.start_config())
        elif recipe.text_vocab_size is None:
            model = AutoModel.from_pretrained(recipe.init)
        else:
            model = AutoModel.from_pretrained(recipe.init, config=recipe.start_config(), ignore_mismatched_sizes=True)
        if not isinstance(model, E2ETTSModel):
            raise RecipeError(
                f"init: {recipe.init} holds a {type(model).__name__}, not a complete model; a single module goes into "
                "init_modules."
            )
        for name, folder in recipe.init_modules.items():
            model.replace_module(name, AutoModel.from_pretrained(folder))
    model.add_styles(recipe.styles, [name for name in ("lm", "decoder") if name in recipe.train])
    return model


@contextlib.contextmanager
def missing_starts_named(recipe: Recipe) -> Iterator[None]:
    """Raises RecipeError for an OSError about a folder to start from: a path that is not there looks like a name on the
    Hub, and transformers speaks of that alone."""
    try:
        yield
    except OSError as error:
        places = [place for place in (recipe.init, *recipe.init_modules.values()) if place is not None]
        missing = [place for place in places if not Path(place).is_dir()] or places
        raise RecipeError(
            f"init: {' or '.join(missing)} cannot be loaded. Is the stage before this one done, or the name right? "
            f"({str(error).splitlines()[0]})"
        ) from error


def training_arguments(recipe: Recipe | VocoderRecipe, output_dir: str, max_steps: int | None) -> TrainingArguments:
    """The recipe's arguments; max_steps replaces the recipe's."""
    settings = dict(recipe.arguments)
    if max_steps is not None:
        settings["max_steps"] = max_steps
    if settings.get("max_steps", -1) <= 0:
        raise RecipeError("arguments.max_steps must be set: data is a stream, an epoch has no meaning.")
    if "output_dir" in settings:
        raise RecipeError("The folder of a run is no part of its recipe: drop arguments.output_dir, give --output_dir.")
    settings.setdefault("use_cpu", not torch.cuda.is_available())
    for name in ("bf16", "fp16"):
        if settings.get(name) and settings["use_cpu"]:
            raise RecipeError(
                f"arguments.{name} needs a GPU: on a CPU half precision is slower than float32 and gives other losses. "
                f"Set arguments.{name}=false."
            )
    leave_precision_to_deepspeed(settings)
    if not settings["use_cpu"] and torch.cuda.device_count() > 1 and "LOCAL_RANK" not in os.environ:
        raise RecipeError(
            f"There are {torch.cuda.device_count()} GPUs and one process: start it with accelerate launch, or show it "
            "one GPU with CUDA_VISIBLE_DEVICES=0."
        )
    trackers = settings.setdefault("report_to", "none")
    for name in [trackers] if isinstance(trackers, str) else trackers:
        installed = get_available_reporting_integrations()
        if name not in ("none", "all", *installed):
            raise RecipeError(
                f"arguments.report_to: {name} is not installed, only {installed} are. TensorBoard comes with "
                "pip install 'e2e-tts[track]'."
            )
    return TrainingArguments(output_dir, remove_unused_columns=False, **settings)


def warn_of_intervals(arguments: TrainingArguments) -> None:
    """Says where a run that is stopped and goes on will log otherwise than one that was never stopped."""
    if arguments.save_strategy == "steps" and arguments.save_steps % arguments.logging_steps:
        logger.warning(
            f"arguments.save_steps={arguments.save_steps:g} is no multiple of logging_steps="
            f"{arguments.logging_steps:g}: a run that is stopped and goes on will once log a mean over fewer steps. "
            "What it learns is the same."
        )


def build_vocoder(recipe: VocoderRecipe) -> VocoderModel:
    """The vocoder that a recipe starts from: a folder, or a configuration. Raises RecipeError for two that differ.

    One difference is allowed: a vocoder without a second pass is given the one that the recipe asks for.
    """
    if recipe.init is None:
        return VocoderModel(VocoderConfig(**recipe.model))
    try:
        saved = VocoderConfig.from_pretrained(recipe.init)
        added = {} if saved.refine_layers else {name: recipe.model[name] for name in REFINEMENT if name in recipe.model}
        model = VocoderModel.from_pretrained(recipe.init, **added)
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise RecipeError(f"init: no vocoder can be loaded from {recipe.init}. ({reason})") from error
    asked, has = VocoderConfig(**recipe.model).to_dict(), model.config.to_dict()
    if different := [name for name in recipe.model if asked[name] != has[name]]:
        raise RecipeError(
            f"model: {recipe.init} has "
            + ", ".join(f"{name}={has[name]}, not {asked[name]}" for name in different)
            + ". Drop these entries, or drop init to train such a vocoder from scratch."
        )
    return model


def build_vocoder_trainer(recipe: VocoderRecipe, output_dir: str, max_steps: int | None = None) -> VocoderTrainer:
    """Model, crops and trainer of a vocoder recipe."""
    arguments = training_arguments(recipe, output_dir, max_steps)
    set_seed(arguments.seed)
    model = build_vocoder(recipe)
    config = model.config
    frames = max(1, round(recipe.crops.crop_seconds * config.sampling_rate / config.hop_length))
    decoder = MelDecoder(recipe.decoded, config, recipe.folders) if recipe.decoded.model else None
    if decoder is not None:
        frames += -frames % decoder.frames_per_token

    def crops(split: str, size: int) -> CropDataset:
        rows = load_prepared(recipe.folders, split, annotated=decoder is not None)
        if decoder is not None:
            check_annotated(rows)
        check_rates(rows, config.sampling_rate)
        weights = recipe.crops.source_weights
        if split != "train" and weights:
            # Teacher speech, say, is learned from and not held out.
            held_out = set(rows["source"][:])
            weights = {name: weight for name, weight in weights.items() if name in held_out}
        return CropDataset(
            rows,
            size,
            frames * config.hop_length,
            config.sampling_rate,
            arguments.seed,
            weights,
            recipe.crops.gain_db,
            voices=decoder is not None,
        )

    crops_per_step = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    return VocoderTrainer(
        model=model,
        args=arguments,
        train_dataset=crops("train", arguments.max_steps * crops_per_step),
        eval_dataset=crops("dev", recipe.crops.eval_crops) if recipe.crops.eval_crops else None,
        loss_settings=recipe.losses,
        discriminator_settings=recipe.discriminator,
        divergence_factor=recipe.divergence_factor,
        mel_decoder=decoder,
    )


def build_trainer(recipe: Recipe, output_dir: str, max_steps: int | None = None) -> SpeechTrainer:
    """Model, data and trainer of a stage recipe; max_steps replaces the recipe's."""
    arguments = training_arguments(recipe, output_dir, max_steps)
    set_seed(arguments.seed)
    model = build_model(recipe)
    check_provenance(recipe.data.folders, model)
    if foreign := foreign_voices(recipe.data.folders, model):
        logger.warning(foreign)
    collator = Collator.for_model(model.config)

    def speech(split: str) -> SpeechDataset:
        rows = load_prepared(recipe.data.folders, split)
        check_annotated(rows)
        check_rate(rows, collator.audio_spec.sampling_rate)
        return SpeechDataset(rows, collator.audio_spec)

    train_dataset = speech("train")
    check_labels(train_dataset.rows, recipe.styles)
    if recipe.voices:
        add_voices(model, train_dataset.rows, recipe.voices)
    return TRAINERS[recipe.trainer](
        model,
        recipe,
        arguments,
        train_dataset=train_dataset,
        eval_dataset=speech("dev") if recipe.data.eval_rows else None,
        data_collator=collator,
    )


def main(arguments: list[str] | None = None) -> None:
    parser = CommandParser(description=__doc__.split("\n")[0])
    parser.add_argument("--recipe", required=True, help="a YAML file, or the name of a shipped recipe")
    parser.add_argument("--output_dir", required=True, help="folder of the run; the final model goes to its final/")
    parser.add_argument("--max_steps", type=int, help="replaces arguments.max_steps")
    add_override_option(parser, "e.g. data.seconds_per_batch=20")
    parser.add_argument(
        "--fresh", action="store_true", help="start anew; what a run has left in output_dir moves aside"
    )
    options = parser.parse_args(arguments)
    keep_freed_memory()
    try:
        recipe = load_recipe(options.recipe, options.set)
        build = build_vocoder_trainer if isinstance(recipe, VocoderRecipe) else build_trainer
        trainer = build(recipe, options.output_dir, options.max_steps)
    except (RecipeError, ValueError) as error:
        sys.exit(f"{options.recipe}: {error}")
    warn_of_intervals(trainer.args)
    try:
        if options.fresh and trainer.is_world_process_zero():
            set_aside(options.output_dir)
        trainer.accelerator.wait_for_everyone()
        checkpoint = last_whole_checkpoint(options.output_dir)
        if checkpoint is not None:
            check_recipe(recipe, options.output_dir, trainer.args.world_size)
        trainer.accelerator.wait_for_everyone()
        if trainer.is_world_process_zero():
            if checkpoint is None or int(checkpoint.rpartition("-")[2]) < trainer.args.max_steps:
                # Should this run be stopped, an older result would be taken for its own.
                set_aside(options.output_dir, only=(FINAL_FOLDER,))
            record_recipe(recipe, options.output_dir, trainer.args.world_size)
        trainer.train(resume_from_checkpoint=checkpoint)
    except (RecipeError, FloatingPointError) as error:
        sys.exit(f"{options.recipe}: {error}")
    state = trainer.state
    if state.global_step < state.max_steps:
        # A final folder would be taken for a trained model by the stage after this one.
        sys.exit(
            f"{options.recipe}: stopped at step {state.global_step} of {state.max_steps} by a collapse alarm; the "
            f"weights are in the last checkpoint of {options.output_dir}, and there is no final/. Change the recipe as "
            "the alarm says and start with --fresh, or go on all the same with safety.stop_on_alarm=false."
        )
    if trainer.eval_dataset is not None:
        trainer.evaluate()
    if isinstance(trainer, SpeechTrainer):
        trainer.save_final(f"{options.output_dir}/{FINAL_FOLDER}")
    elif trainer.is_world_process_zero():
        trainer.accelerator.unwrap_model(trainer.model).save_pretrained(f"{options.output_dir}/{FINAL_FOLDER}")
    if trainer.is_world_process_zero():
        trainer.save_state()


if __name__ == "__main__":
    main()
