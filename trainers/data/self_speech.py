"""Speaks sentences with a checkpoint and keeps what its reward model understands: rejection sampling for the LM.

python -m e2e_tts.trainers.data.self_speech --model model_cards/small-en --sentences sentences.txt --candidates 8 \\
    --output data/self

Of every sentence the LM draws several times, the best is kept if the reward model's CTC loss a label is at most
--max_loss. The rows are annotated and hold the drawn tokens in the column speech_ids, from which `refine_lm` learns
beside real speech (give the folder in data.folders and its source, "self", a weight in data.weights): more sentences
than the corpus has, in the voices of the corpus, without what the LM gets wrong. Text guidance is learnt with them.
What is left out is listed in refused.csv. A run that was stopped goes on when it is started again.

Voices take turns. With --shared each sentence is drawn in every voice, and the best draw of all becomes a row of each
voice: tokens hold hardly anything of a speaker, so a voice of few recordings learns from one of more.
"""

import argparse
import csv
import hashlib
import io
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from datasets import Dataset, Features, List, Value, disable_progress_bars
from torch import nn
from transformers import AutoModel, AutoProcessor, BatchFeature

from e2e_tts.modeling import E2ETTSModel
from e2e_tts.modeling.processing_e2e_tts import TextToSpeechProcessor
from e2e_tts.modeling.reranking import generate_best

from .corpus_files import read_sentences
from .devices import add_device_option, on_device
from .part_store import Pace, PartStore
from .prepare import FEATURES as PREPARED
from .provenance import (
    KEY,
    SELF_SPEECH,
    SPEAKER_ENCODER,
    SPEECH_TOKENIZER,
    TEXT_TOKENIZER,
    tokenizer_fingerprint,
    weights_fingerprint,
)

logger = logging.getLogger(__name__)

SOURCE = "self"
FEATURES = PREPARED | {
    "text_ids": List(Value("int64")),
    "ctc_labels": List(Value("int64")),
    "speaker_embedding": List(Value("float64")),
    "speech_ids": List(Value("int64")),
    "reward_loss": Value("float32"),
    "refused": Value("string"),
}


@dataclass(frozen=True)
class Drawing:
    """How sentences are drawn: how often in a voice, the largest loss that is kept, sentences a batch, the seed, and
    whether the best draw is of all voices and serves each of them, or they take turns."""

    candidates: int = 8
    max_loss: float = 1.0
    batch_texts: int = 8
    seed: int = 0
    shared: bool = False


@dataclass(frozen=True)
class Draw:
    """Tokens (T,), the reward model's loss for them, infinite if it is of no use, and whether speech came to an end."""

    ids: torch.LongTensor
    loss: float
    finished: bool


class SelfSpeaker:
    """Sentences -> rows, drawn on the model's device; `rows_each` of them for a sentence."""

    def __init__(self, model: E2ETTSModel, processor: TextToSpeechProcessor, voices: Sequence[str], drawing: Drawing):
        self.model, self.processor, self.voices, self.drawing = model, processor, list(voices), drawing
        self.rows_each = len(self.voices) if drawing.shared else 1

    def fingerprints(self) -> dict[str, str]:
        """Of what the tokens and embeddings of the rows are made by."""
        return {
            TEXT_TOKENIZER: tokenizer_fingerprint(self.processor),
            SPEAKER_ENCODER: weights_fingerprint(self.model.speaker),
            SPEECH_TOKENIZER: weights_fingerprint(self.model.encoder),
        }

    @torch.no_grad()
    def __call__(self, sentences: Sequence[str], number: int) -> list[dict]:
        """Rows of a batch of sentences of which the first has this number, which keys the draws and the voices."""
        rows, speakable = {}, []
        for index, sentence in enumerate(sentences):
            try:
                self.processor(text=sentence)
                speakable.append(index)
            except ValueError as error:
                voices = self._voices(number + index)
                rows[index] = [self._row(number + index, voice, sentence, refused=str(error)) for voice in voices]
        if speakable:
            inputs = self.processor(text=[sentences[index] for index in speakable]).to(self.model.device)
            # One voice a text, or as many rounds as there are voices.
            rounds = list(zip(*(self._voices(number + index) for index in speakable), strict=True))
            drawn = zip(*(self._draw(inputs, voices, number) for voices in rounds), strict=True)
            best = [min(draws, key=lambda draw: draw.loss) for draws in drawn]
            spoken = zip(*(self._spoken(inputs, best, voices, number) for voices in rounds), strict=True)
            for index, versions in zip(speakable, spoken, strict=True):
                rows[index] = [self._row(number + index, text=sentences[index], **values) for values in versions]
        return [row for index in range(len(sentences)) for row in rows[index]]

    def _draw(self, inputs: BatchFeature, voices: Sequence[str], number: int) -> list[Draw]:
        """The best draw of each text, in its voice."""
        model = self.model
        arguments = {
            "text_ids": inputs["text_ids"],
            "text_mask": inputs["text_mask"],
            "speaker_embedding": self._embeddings(voices),
            "tokens_per_symbol": torch.tensor([model.config.voices[voice] for voice in voices], device=model.device),
            "generator": torch.Generator(model.device).manual_seed(self.drawing.seed + number),
            **model.config.sampling,
        }
        drawn, losses = generate_best(model.lm, model.reward, arguments, inputs["ctc_labels"], self.drawing.candidates)
        rows = zip(drawn.ids, drawn.mask, losses.tolist(), drawn.finished.tolist(), strict=True)
        return [Draw(ids[mask], loss, finished) for ids, mask, loss, finished in rows]

    def _spoken(self, inputs: BatchFeature, draws: list[Draw], voices: Sequence[str], number: int) -> Iterator[dict]:
        """What a row of each text has to hold, for draws in these voices."""
        ids = nn.utils.rnn.pad_sequence([draw.ids for draw in draws], batch_first=True)
        mask = nn.utils.rnn.pad_sequence([torch.ones_like(draw.ids) for draw in draws], batch_first=True).bool()
        decoded = self.model.decode(ids, mask, voice=voices, seed=self.drawing.seed + number)
        embeddings = self._embeddings(voices).tolist()
        for place, draw in enumerate(draws):
            refused = "" if draw.loss <= self.drawing.max_loss else f"The reward model's loss is {draw.loss:.2f}."
            if not draw.finished:
                refused = "No draw came to an end within the length limit."
            yield {
                "voice": voices[place],
                "samples": decoded["audio"][place, : int(decoded["audio_lengths"][place])].float().cpu().numpy(),
                "reward_loss": draw.loss,
                "refused": refused,
                "speech_ids": draw.ids.tolist(),
                "text_ids": inputs["text_ids"][place][inputs["text_mask"][place]].tolist(),
                "ctc_labels": [label for label in inputs["ctc_labels"][place].tolist() if label > 0],
                "speaker_embedding": embeddings[place],
            }

    def _voices(self, number: int) -> list[str]:
        return self.voices if self.drawing.shared else [self.voices[number % len(self.voices)]]

    def _embeddings(self, voices: Sequence[str]) -> torch.Tensor:
        known = list(self.model.config.voices)
        return self.model.voice_embeddings[[known.index(voice) for voice in voices]].float()

    def _row(
        self, number: int, voice: str, text: str, samples: np.ndarray | None = None, refused: str = "", **values
    ) -> dict:
        rate, audio = self.model.sampling_rate, io.BytesIO()
        samples = np.zeros(0, np.float32) if samples is None or refused else samples
        soundfile.write(audio, samples.clip(-1.0, 1.0), rate, format="FLAC", subtype="PCM_16")
        lists = {name: values.get(name, []) for name in ("text_ids", "ctc_labels", "speaker_embedding", "speech_ids")}
        name = f"{SOURCE}_{number:06d}" + (f"_{voice}" if self.drawing.shared else "")
        return lists | {
            "id": name,
            "audio": {"bytes": audio.getvalue(), "path": f"{name}.flac"},
            "text": text,
            "speaker": voice,
            "emotion": "",
            "language": self.processor.language,
            "source": SOURCE,
            "seconds": len(samples) / rate,
            "split": "train",
            "reward_loss": values.get("reward_loss", float("inf")),
            "refused": refused,
        }


def batches(sentences: Sequence[str], size: int) -> Iterator[tuple[int, Sequence[str]]]:
    """The number of the first and the sentences of each batch."""
    for start in range(0, len(sentences), size):
        yield start, sentences[start : start + size]


def speak_all(sentences: Sequence[str], speaker: SelfSpeaker, output: Path, settings: dict, overwrite: bool) -> Dataset:
    """Writes the kept rows to `output`, with refused.csv and self_speech.json (the settings and fingerprints), and
    returns them.

    Raises FileExistsError (see `PartStore`), ValueError if no sentence is kept.
    """
    settings = {**settings, KEY: speaker.fingerprints()}
    store = PartStore(output, settings, Features(FEATURES), overwrite)
    done = sum(note["rows"] for note in store.notes) // speaker.rows_each
    pace = Pace(done, len(sentences))
    for number, batch in batches(sentences, speaker.drawing.batch_texts):
        if number >= done:
            store.add(speaker(batch, number), {})
            logger.info("%s", pace(number + len(batch)))
    rows = store.rows()
    if rows is None:
        raise ValueError("There are no sentences.")
    reasons = rows["refused"][:]
    kept = [index for index, reason in enumerate(reasons) if not reason]
    if not kept:
        store.discard()
        raise ValueError(f"No sentence was spoken well enough; of the first: {reasons[0]} Raise --max_loss.")
    listed = io.StringIO()
    csv.writer(listed).writerows(
        [("id", "text", "reason"), *((row["id"], row["text"], row["refused"]) for row in
         rows.select_columns(["id", "text", "refused"]) if row["refused"])]
    )  # fmt: skip
    files = {"refused.csv": listed.getvalue(), SELF_SPEECH: json.dumps(settings, indent=1)}
    chosen = rows.select(kept).remove_columns("refused")
    store.finish(chosen, files)
    return chosen


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a released checkpoint with built-in voices")
    parser.add_argument("--sentences", type=Path, required=True, help="text file, one sentence a line")
    parser.add_argument("--voices", nargs="+", help="built-in voices, in turns; by default all")
    parser.add_argument("--candidates", type=int, default=Drawing.candidates, help="draws of each sentence, in a voice")
    parser.add_argument(
        "--shared", action="store_true", help="draw each sentence in every voice; the best draw is a row of each voice"
    )
    parser.add_argument("--max_loss", type=float, default=Drawing.max_loss, help="nats a label that are still kept")
    parser.add_argument("--batch_texts", type=int, default=Drawing.batch_texts, help="sentences drawn at a time")
    parser.add_argument("--seed", type=int, default=0)
    add_device_option(parser)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output, or begin anew")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    disable_progress_bars()
    try:
        sentences = read_sentences(options.sentences)
        model, processor = AutoModel.from_pretrained(options.model).eval(), AutoProcessor.from_pretrained(options.model)
        model = on_device(model, options.device)
        known = list(model.config.voices)
        if not known:
            raise ValueError(f"{options.model} has no built-in voice; e2e_tts.pipelines.release --voice gives it one.")
        voices = options.voices or known
        if unknown := sorted(set(voices) - set(known)):
            raise ValueError(f"The model has the built-in voices {known}, not {unknown}.")
        drawing = Drawing(options.candidates, options.max_loss, options.batch_texts, options.seed, options.shared)
        names = ("model", "candidates", "max_loss", "batch_texts", "seed", "shared")
        digest = hashlib.sha256("\n".join(sentences).encode()).hexdigest()
        settings = {name: getattr(options, name) for name in names} | {"voices": voices, "sentences": digest}
        if model.device.type != "cpu":
            settings["device"] = model.device.type  # draws other numbers from a seed
        speaker = SelfSpeaker(model, processor, voices, drawing)
        rows = speak_all(sentences, speaker, options.output, settings, options.overwrite)
    except (OSError, ValueError) as error:
        parser.exit(1, f"{error}\n")
    print(f"{len(rows)} of {len(sentences) * speaker.rows_each} rows kept -> {options.output}")


if __name__ == "__main__":
    main()
