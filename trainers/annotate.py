"""Adds what training reads to prepared speech: `python -m e2e_tts.trainers.annotate --help`.

Columns added: text_ids (text tokens for the LM), ctc_labels (what a recogniser should find) and speaker_embedding
(of the frozen speaker encoder). Rows whose text cannot be spoken are listed in refused.csv and left out.
"""

import argparse
import csv
from pathlib import Path

import torch
from datasets import Dataset, load_from_disk
from transformers import AutoModel, PreTrainedModel

from e2e_tts.modeling.audio_features import MelSpec, MelSpectrogram, padded_length
from e2e_tts.modeling.text_frontend import TextFrontend, build_phoneme_tokenizer

from .vocoder_data import read_audio


class Annotator:
    """Row of a prepared data set -> the added columns, or {"refused": reason}."""

    def __init__(self, speaker_encoder: PreTrainedModel) -> None:
        self.frontend = TextFrontend("phonemes")
        self.tokenizer = build_phoneme_tokenizer()
        self.speaker_encoder = speaker_encoder.eval()
        self.spec = MelSpec.from_dict(speaker_encoder.config.mel)
        self.mel = MelSpectrogram(self.spec)

    @torch.no_grad()
    def __call__(self, row: dict) -> dict:
        empty = {"text_ids": [], "ctc_labels": [], "speaker_embedding": [], "refused": ""}
        try:
            symbols = self.frontend(row["text"])
            audio = torch.from_numpy(read_audio(row["audio"], self.spec.sampling_rate))
        except (ValueError, RuntimeError) as error:
            return empty | {"refused": str(error)}
        length = padded_length(len(audio), self.spec.hop_length)
        features = self.mel(torch.nn.functional.pad(audio, (0, length - len(audio)))[None])
        return {
            "text_ids": self.tokenizer(symbols)["input_ids"],
            "ctc_labels": self.tokenizer(self.frontend.recognition_symbols(symbols))["input_ids"],
            "speaker_embedding": self.speaker_encoder(features).embedding[0].tolist(),
            "refused": "",
        }


def annotate(rows: Dataset, annotator: Annotator) -> tuple[Dataset, list[tuple[str, str]]]:
    """Returns the annotated rows and the refused ones as (id, reason)."""
    rows = rows.map(annotator, desc="annotating")
    reasons = rows["refused"][:]
    refused = [(row_id, reason) for row_id, reason in zip(rows["id"][:], reasons, strict=True) if reason]
    kept = [index for index, reason in enumerate(reasons) if not reason]
    return rows.select(kept).remove_columns("refused"), refused


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", required=True, help="folder written by e2e_tts.trainers.prepare")
    parser.add_argument("--speaker_encoder", required=True, help="folder of a trained speaker encoder")
    parser.add_argument("--output", required=True)
    options = parser.parse_args(arguments)
    annotator = Annotator(AutoModel.from_pretrained(options.speaker_encoder))
    rows, refused = annotate(load_from_disk(options.data), annotator)
    rows.save_to_disk(options.output)
    with (Path(options.output) / "refused.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("id", "reason"), *refused])
    print(f"{len(rows)} rows annotated, {len(refused)} refused (see refused.csv) -> {options.output}")


if __name__ == "__main__":
    main()
