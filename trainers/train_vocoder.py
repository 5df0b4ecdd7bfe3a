"""Entry point: python -m e2e_tts.trainers.train_vocoder --recipe FILE --data DIR --output_dir DIR [--resume]."""

import argparse
import difflib
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
import yaml
from datasets import Audio, Dataset, load_from_disk
from transformers import TrainingArguments, set_seed
from transformers.trainer_utils import get_last_checkpoint

from ..modeling.configuration_vocoder import VocoderConfig
from ..modeling.modeling_vocoder import VocoderModel
from .vocoder_data import CropDataset
from .vocoder_trainer import DiscriminatorSettings, VocoderLossSettings, VocoderTrainer


@dataclass
class CropSettings:
    """Which crops to train on.

    crop_seconds: length of a crop, rounded to whole mel frames. source_weights: share of the crops by source, None
    for all data by duration. gain_db: random level change, see `CropDataset`. train_split, eval_split: values of the
    column split. eval_crops: size of the fixed evaluation set; 0 for none.
    """

    crop_seconds: float = 0.8
    source_weights: dict[str, float] | None = None
    gain_db: float = 6.0
    train_split: str = "train"
    eval_split: str = "dev"
    eval_crops: int = 0


@dataclass
class VocoderRecipe:
    """A training run as a file of plain values; `training` holds fields of `TrainingArguments`."""

    model: VocoderConfig = field(default_factory=VocoderConfig)
    loss: VocoderLossSettings = field(default_factory=VocoderLossSettings)
    discriminator: DiscriminatorSettings = field(default_factory=DiscriminatorSettings)
    crops: CropSettings = field(default_factory=CropSettings)
    training: dict[str, Any] = field(default_factory=dict)


def _checked(section: str, values: dict[str, Any] | None, known: set[str]) -> dict[str, Any]:
    values = values or {}
    for key in values:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=3) or sorted(known)
            raise ValueError(f"Unknown key {key!r} in {section}; did you mean one of {near}?")
    return values


def read_recipe(path: str | Path) -> VocoderRecipe:
    """Reads a recipe. Raises ValueError for unknown keys, naming the nearest known ones."""
    sections = {
        "model": VocoderConfig,
        "loss": VocoderLossSettings,
        "discriminator": DiscriminatorSettings,
        "crops": CropSettings,
        "training": TrainingArguments,
    }
    content = _checked("the recipe", yaml.safe_load(Path(path).read_text()), set(sections))
    values: dict[str, Any] = {}
    for section, kind in sections.items():
        entries = _checked(f"section {section!r}", content.get(section), {f.name for f in fields(kind)})
        values[section] = entries if kind is TrainingArguments else kind(**entries)
    return VocoderRecipe(**values)


def make_crops(recipe: VocoderRecipe, dataset: Dataset, split: str, size: int, seed: int) -> CropDataset:
    """The crops of one split. Raises ValueError if the split is empty."""
    rows = [i for i, value in enumerate(dataset["split"]) if value == split]
    if not rows:
        raise ValueError(f"The dataset has no rows with split {split!r}; it has {sorted(set(dataset['split']))}.")
    frames = max(1, round(recipe.crops.crop_seconds * recipe.model.sampling_rate / recipe.model.hop_length))
    return CropDataset(
        dataset.select(rows),
        size,
        frames * recipe.model.hop_length,
        recipe.model.sampling_rate,
        seed,
        recipe.crops.source_weights,
        recipe.crops.gain_db,
    )


def build_trainer(recipe: VocoderRecipe, dataset: Dataset, output_dir: str) -> VocoderTrainer:
    """The trainer of a recipe on a dataset with the columns audio, seconds, split and, for weights, source."""
    arguments = TrainingArguments(output_dir=output_dir, remove_unused_columns=False, **recipe.training)
    if arguments.max_steps <= 0:
        raise ValueError("Crops have no end: give training.max_steps in the recipe.")
    dataset = dataset.cast_column("audio", Audio(decode=False))
    crops_per_step = arguments.train_batch_size * arguments.gradient_accumulation_steps * arguments.world_size
    train = make_crops(recipe, dataset, recipe.crops.train_split, arguments.max_steps * crops_per_step, arguments.seed)
    evaluation = None
    if recipe.crops.eval_crops:
        evaluation = make_crops(recipe, dataset, recipe.crops.eval_split, recipe.crops.eval_crops, arguments.seed)
    set_seed(arguments.seed)
    return VocoderTrainer(
        model=VocoderModel(recipe.model),
        args=arguments,
        train_dataset=train,
        eval_dataset=evaluation,
        loss_settings=recipe.loss,
        discriminator_settings=recipe.discriminator,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--recipe", required=True, help="YAML file, e.g. trainers/recipes/small_vocoder.yaml")
    parser.add_argument("--data", required=True, help="folder of datasets.Dataset.save_to_disk")
    parser.add_argument("--output_dir", required=True, help="folder for checkpoints and the final model")
    parser.add_argument("--resume", action="store_true", help="go on from the newest checkpoint in output_dir, if any")
    options = parser.parse_args()
    trainer = build_trainer(read_recipe(options.recipe), load_from_disk(options.data), options.output_dir)
    checkpoint = None
    if options.resume and Path(options.output_dir).is_dir():
        checkpoint = get_last_checkpoint(options.output_dir)
    trainer.train(resume_from_checkpoint=checkpoint)
    trainer.save_model()


if __name__ == "__main__":
    # More threads than cores of this process slow small convolutions down; torch reads OMP_NUM_THREADS itself.
    torch.set_float32_matmul_precision("high")
    main()
