"""Speaks held-out sentences of prepared data with a checkpoint as training leaves it: no processor, no built-in voice.

python -m e2e_tts.pipelines.evaluation.held_out_speech --model runs/end_to_end/final --data runs/data/annotated \\
    --split dev --output DIR

Writes DIR/speech/ (from the text) and DIR/reconstruction/ (from the recording's own tokens), one wav a sentence, and
DIR/texts.tsv for e2e_tts.pipelines.evaluation.scoring; where asked for, also DIR/vocoder/ (from the recording's mel)
and DIR/recording/. A sentence is spoken in the voice and at the rate of its speaker's other clips. Speech that fails is
written as silence, which scoring counts as all words lost. What is there already is not spoken again: a killed run goes
on with the same command, and other checkpoints, sentences or settings are refused.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from tqdm.auto import tqdm

from e2e_tts.modeling import E2ETTSModel, SpeechGenerationError
from e2e_tts.modeling.modeling_flow_decoder import SOLVER_STEPS
from e2e_tts.trainers.command_line import CommandParser
from e2e_tts.trainers.data.devices import add_device_option
from e2e_tts.trainers.data.speech_data import Collator, SpeechDataset

from .audio_files import write_speech
from .held_out import Voices, composite_version, load_composite, select_rows
from .results_folder import ResultsFolder, fingerprint, write_text

CONDITIONS = ("recording", "vocoder", "reconstruction", "speech")
"""Renderings of a held-out row, each of which loses what the one before it lost and something more."""
SPOKEN = ("speech", "reconstruction")
SILENCE_SECONDS = 0.5


@dataclass
class HeldOutSpeaker:
    """Renders rows of annotated data, on the model's device. steps, guidance: of the decoder; sampling: of the LM; seed
    keys every draw."""

    model: E2ETTSModel
    steps: int = SOLVER_STEPS
    guidance: float = 0.7
    seed: int = 0
    sampling: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.model.eval()
        self.collate = Collator.for_model(self.model.config)
        self.token_rate = self.model.config.encoder_config.token_rate

    def _batch(self, item: dict) -> dict[str, torch.Tensor]:
        return {name: value.to(self.model.device) for name, value in self.collate([item]).items()}

    def recording(self, item: dict, voice: torch.Tensor, seconds_per_symbol: float) -> np.ndarray:
        """As it is: waveform (samples,)."""
        return item["waveform"]

    @torch.no_grad()
    def vocoder(self, item: dict, voice: torch.Tensor, seconds_per_symbol: float) -> np.ndarray:
        """From the recording's mel: waveform (samples,)."""
        batch = self._batch(item)
        return self.model.vocoder(batch.get("mel", batch["input_features"]))[0].cpu().numpy()

    @torch.no_grad()
    def speech(self, item: dict, voice: torch.Tensor, seconds_per_symbol: float) -> np.ndarray:
        """From the text: waveform (samples,). Raises SpeechGenerationError for speech that does not end."""
        device = self.model.device
        result = self.model.generate(
            torch.tensor([item["text_ids"]], device=device),
            speaker_embedding=voice[None].to(device),
            tokens_per_symbol=seconds_per_symbol * self.token_rate,
            seed=self.seed + item["index"],
            num_steps=self.steps,
            guidance=self.guidance,
            ctc_labels=torch.tensor([item["ctc_labels"]], device=device),
            **self.sampling,
        )
        return result["audio"][0, : int(result["audio_lengths"][0])].cpu().numpy()

    @torch.no_grad()
    def reconstruction(self, item: dict, voice: torch.Tensor, seconds_per_symbol: float) -> np.ndarray:
        """From the recording's own tokens, at its own rate: waveform (samples,)."""
        model, batch, voice = self.model, self._batch(item), voice[None].to(self.model.device)
        encoded = model.encoder(batch["input_features"], batch["feature_mask"])
        text = (batch["text_ids"], batch["text_mask"])
        source = model.decoder_source(encoded.codes, encoded.mask, *text, voice, batch["tokens_per_symbol"])
        mel = model.decoder.sample(
            source,
            encoded.mask,
            voice,
            seeds=torch.tensor([self.seed + item["index"]], device=model.device),
            num_steps=self.steps,
            guidance=self.guidance,
        )
        return model.vocoder(mel)[0].cpu().numpy()

    def write(
        self, rows: Dataset, voices: Voices, folder: Path, version: str, conditions: Sequence[str] = SPOKEN
    ) -> dict[str, list[str]]:
        """Writes what is missing; returns the sentences whose speech failed, by condition.

        version: of the checkpoint, as `composite_version` gives it. Raises ValueError for a folder with speech of
        another checkpoint, of other rows or settings.
        """
        texts = [" ".join(text.split()) for text in rows["text"][:]]
        settings = {
            "checkpoint": version,
            "rows": fingerprint([*rows["id"][:], *texts]),
            "voices": fingerprint(part.numpy().tobytes() for part in (voices.embedding, voices.seconds_per_symbol)),
            **{name: getattr(self, name) for name in ("steps", "guidance", "seed", "sampling")},
        }
        # Other kinds of devices draw other numbers from a seed.
        if self.model.device.type != "cpu":
            settings["device"] = self.model.device.type
        ResultsFolder(folder, settings)
        dataset = SpeechDataset(rows, self.collate.audio_spec)
        rate = self.model.sampling_rate
        failed: dict[str, list[str]] = {condition: [] for condition in conditions}
        for condition in conditions:
            (folder / condition).mkdir(parents=True, exist_ok=True)
            for index in tqdm(range(len(dataset)), desc=condition, disable=None):
                path = folder / condition / f"{index:04d}.wav"
                if path.is_file():
                    continue
                item = dataset[index]
                try:
                    audio = getattr(self, condition)(
                        item, voices.embedding[index], float(voices.seconds_per_symbol[index])
                    )
                except SpeechGenerationError:
                    failed[condition].append(item["text"])
                    audio = np.zeros(round(SILENCE_SECONDS * rate), dtype=np.float32)
                write_speech(path, audio, rate)
        write_text(folder / "texts.tsv", "".join(f"{index:04d}\t{text}\n" for index, text in enumerate(texts)))
        return failed


def add_rendering_options(parser: argparse.ArgumentParser) -> None:
    """Options that say how speech is rendered; `rendering_settings` reads them."""
    parser.add_argument("--steps", type=int, default=SOLVER_STEPS, help="of the decoder")
    parser.add_argument("--guidance", type=float, default=0.7)
    parser.add_argument("--temperature", type=float, help="of the LM, 0 is greedy; by default the checkpoint's")
    parser.add_argument("--top_k", type=int, help="by default the checkpoint's")
    parser.add_argument("--top_p", type=float, help="by default the checkpoint's")
    parser.add_argument("--text_guidance", type=float, help="by default the checkpoint's")
    parser.add_argument("--candidates", type=int, help="tries, of which the best is kept; by default the checkpoint's")
    parser.add_argument("--seed", type=int, default=0)


def rendering_settings(options: argparse.Namespace) -> dict[str, Any]:
    """The arguments of `HeldOutSpeaker` but the model."""
    names = ("temperature", "top_k", "top_p", "text_guidance", "candidates")
    sampling = {name: getattr(options, name) for name in names}
    given = {name: value for name, value in sampling.items() if value is not None}
    return {**{name: getattr(options, name) for name in ("steps", "guidance", "seed")}, "sampling": given}


def main(arguments: list[str] | None = None) -> None:
    parser = CommandParser(
        prog="python -m e2e_tts.pipelines.evaluation.held_out_speech",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--model", required=True, help="folder of a complete model")
    parser.add_argument(
        "--module", action="append", default=[], metavar="NAME=FOLDER", help="replace a module, lm say (repeatable)"
    )
    parser.add_argument("--data", nargs="+", required=True, help="folders of annotated speech")
    parser.add_argument("--split", default="dev")
    parser.add_argument("--sources", nargs="*", default=[], help="by default all")
    parser.add_argument("--limit", type=int, help="number of sentences, spread over the split; by default all")
    parser.add_argument("--conditions", nargs="+", default=list(SPOKEN), choices=CONDITIONS)
    add_rendering_options(parser)
    add_device_option(parser)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(arguments)
    try:
        rows = select_rows(options.data, options.split, options.sources, options.limit)
        voices = Voices.of_rows(rows, options.data)
        model = load_composite(options.model, options.module, options.device)
        speaker = HeldOutSpeaker(model, **rendering_settings(options))
        version = composite_version(options.model, options.module)
        failed = speaker.write(rows, voices, options.output, version, options.conditions)
    except (ValueError, OSError) as error:
        sys.exit(f"error: {error}")
    for condition, texts in failed.items():
        print(f"{condition}: {len(rows)} sentences in {options.output / condition}, {len(texts)} failed now")


if __name__ == "__main__":
    main()
