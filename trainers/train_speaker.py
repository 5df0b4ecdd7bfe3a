"""Trains the small x-vector network on prepared speech: `python -m e2e_tts.trainers.train_speaker --help`.

It is the SPK teacher and the voice encoder of a recipe's model, and is frozen before stage 1.
"""

import argparse
import hashlib
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from e2e_tts.modeling.audio_features import MelSpec, MelSpectrogram
from e2e_tts.modeling.configuration_e2e_tts import SpeakerEncoderConfig
from e2e_tts.modeling.modeling_speaker import SpeakerEncoderModel

from .command_line import CommandParser
from .data.columns import positions_by_number
from .data.speech_data import SpeechDataset, load_prepared, speaker_numbers
from .data.vocoder_data import check_rates, read_audio
from .memory_reuse import keep_freed_memory
from .recipe import RecipeError, load_recipe
from .run_folder import last_whole_checkpoint

SETTINGS_FILE = "speaker_settings.json"


class ResampledSpeech(SpeechDataset):
    """Speech that was prepared at any rate, at that of `spec`: decoders often want a higher one than this network."""

    def __getitem__(self, index: int) -> dict:
        row = self.rows[int(index)]
        return {**row, "index": int(index), "waveform": read_audio(row["audio"], self.spec.sampling_rate)}


class SpeakerBatches(torch.utils.data.Sampler[list[int]]):
    """Batches with speakers drawn evenly, so that a voice with an hour does not drown one with ten seconds."""

    def __init__(self, speakers: np.ndarray, num_batches: int, batch_size: int, seed: int) -> None:
        self.members = [members for members in positions_by_number(speakers) if len(members)]
        self.num_batches, self.batch_size, self.seed = num_batches, batch_size, seed

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self):
        for number in range(self.num_batches):
            random = np.random.default_rng((self.seed, number))
            groups = random.choice(len(self.members), self.batch_size)
            yield [int(random.choice(self.members[group])) for group in groups]


class CropCollator:
    """Random crops of `seconds` (shorter clips repeat) with a random gain, keyed by the rows of the batch."""

    def __init__(self, spec: MelSpec, seconds: float, labels: np.ndarray) -> None:
        self.mel = MelSpectrogram(spec)
        self.length = int(seconds * spec.sampling_rate) // spec.hop_length * spec.hop_length
        self.labels = labels

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        random = np.random.default_rng([row["index"] for row in rows])
        crops = []
        for row in rows:
            audio = row["waveform"]
            if len(audio) < self.length:
                audio = np.tile(audio, -(-self.length // len(audio)))
            start = random.integers(len(audio) - self.length + 1)
            crops.append(audio[start : start + self.length] * 10 ** random.uniform(-0.5, 0.2))
        features = self.mel(torch.from_numpy(np.stack(crops)).float())
        return {"input_features": features, "labels": torch.from_numpy(self.labels[[row["index"] for row in rows]])}


class SpeakerTrainer(Trainer):
    """Trainer over a batch sampler; the loss is the model's own. Raises FloatingPointError where it is not finite."""

    def __init__(self, *args, batches: SpeakerBatches, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.batches = batches

    def get_train_dataloader(self) -> DataLoader:
        loader = DataLoader(self.train_dataset, batch_sampler=self.batches, collate_fn=self.data_collator)
        return self.accelerator.prepare(loader)

    def compute_loss(self, model: nn.Module, inputs: dict[str, torch.Tensor], *args: Any, **kwargs: Any) -> Any:
        result = super().compute_loss(model, inputs, *args, **kwargs)
        loss = result[0] if isinstance(result, tuple) else result
        if not torch.isfinite(loss.detach()):
            raise FloatingPointError(
                f"The loss is not finite at step {self.state.global_step}. Lower --learning_rate, and go on from the "
                "last checkpoint in another --output_dir."
            )
        return result


def speaker_settings(recipe: str | None) -> dict[str, Any]:
    """The settings of the network: those of a recipe's model, or none. Raises ValueError if the recipe has none."""
    if recipe is None:
        return {}
    settings = (load_recipe(recipe).model or {}).get("speaker_config")
    if settings is None:
        raise ValueError(f"{recipe} describes no speaker encoder (model.speaker_config)")
    return settings


def check_speakers(labels: np.ndarray) -> None:
    """Raises ValueError for fewer than two speakers: with one class the loss is 0, and nothing would be learned."""
    if len(np.unique(labels)) < 2:
        raise ValueError(
            "The training rows are all of one speaker, and the network learns to tell speakers apart. Give it speech "
            "of several (dozens make a useful one) with --data, and name them in the column speaker; or let annotate "
            "take a trained encoder: --speaker_encoder microsoft/wavlm-base-plus-sv, or speaker/ of a checkpoint."
        )


def run_settings(
    options: argparse.Namespace, config: SpeakerEncoderConfig, labels: np.ndarray, seconds: np.ndarray
) -> dict[str, Any]:
    """What a run must keep to go on: all but its length. The data are told by what is in them, not by their folder."""
    names = ("batch_size", "crop_seconds", "learning_rate", "seed")
    digest = hashlib.sha256(np.asarray(labels, np.int64).tobytes() + np.asarray(seconds, np.float32).tobytes())
    network = {name: value for name, value in config.to_diff_dict().items() if name != "transformers_version"}
    return {name: getattr(options, name) for name in names} | {
        "data": f"{len(labels)} rows of {len(np.unique(labels))} speakers ({digest.hexdigest()[:12]})",
        "network": json.loads(json.dumps(network)),
    }


def check_settings(settings: dict[str, Any], output_dir: str) -> None:
    """Raises ValueError where the run in a folder was started with other data or settings, which its checkpoint would
    mix with these."""
    file = Path(output_dir) / SETTINGS_FILE
    if not file.is_file():
        return
    before = json.loads(file.read_text(encoding="utf-8"))
    changed = [name for name in sorted({*before, *settings}) if before.get(name) != settings.get(name)]
    if changed:
        differences = "; ".join(f"{name} is {settings.get(name)}, was {before.get(name)}" for name in changed)
        raise ValueError(
            f"The run in {output_dir} was started with other data or settings: {differences}. Go on with those, or "
            "name another --output_dir."
        )


def main(arguments: list[str] | None = None) -> None:
    parser = CommandParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", nargs="+", required=True, help="folders written by e2e_tts.trainers.data.prepare")
    parser.add_argument("--output_dir", required=True)
    parser.add_argument("--recipe", help="stage 1's, whose model says what the network reads and how large it is")
    parser.add_argument("--max_steps", type=int, default=1000)
    parser.add_argument("--batch_size", type=int, default=48)
    parser.add_argument("--crop_seconds", type=float, default=1.6)
    parser.add_argument("--learning_rate", type=float, default=2e-3)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    keep_freed_memory()
    try:
        network = speaker_settings(options.recipe)
        rows = load_prepared(options.data, "train", annotated=False)
        labels = speaker_numbers(rows)
        check_speakers(labels)
        check_rates(rows, MelSpec.from_dict(SpeakerEncoderConfig(**network).mel).sampling_rate)
        config = SpeakerEncoderConfig(**network, num_speakers=int(labels.max()) + 1)
        settings = run_settings(options, config, labels, rows["seconds"][:])
        checkpoint = last_whole_checkpoint(options.output_dir)
        if checkpoint is not None:
            check_settings(settings, options.output_dir)
    except (RecipeError, ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    torch.manual_seed(options.seed)
    model = SpeakerEncoderModel(config)
    spec = MelSpec.from_dict(config.mel)
    training = TrainingArguments(
        options.output_dir,
        max_steps=options.max_steps,
        learning_rate=options.learning_rate,
        weight_decay=0.02,
        lr_scheduler_type="cosine",
        warmup_steps=50,
        logging_steps=25,
        save_steps=250,
        save_total_limit=1,
        use_cpu=not torch.cuda.is_available(),
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
        seed=options.seed,
    )
    trainer = SpeakerTrainer(
        model,
        training,
        train_dataset=ResampledSpeech(rows, spec),
        data_collator=CropCollator(spec, options.crop_seconds, labels),
        batches=SpeakerBatches(labels, options.max_steps * training.world_size, options.batch_size, options.seed),
    )
    if trainer.is_world_process_zero():
        Path(options.output_dir).mkdir(parents=True, exist_ok=True)
        text = json.dumps(settings, indent=1) + "\n"
        (Path(options.output_dir) / SETTINGS_FILE).write_text(text, encoding="utf-8")
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except FloatingPointError as error:
        sys.exit(f"error: {error}")
    if not trainer.is_world_process_zero():
        return
    # What ships is the embedding network: the class weights name training speakers and serve nobody else.
    config.num_speakers = 0
    model.classes = None
    model.save_pretrained(f"{options.output_dir}/final")


if __name__ == "__main__":
    main()
