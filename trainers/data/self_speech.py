"""Speaks sentences with a checkpoint and keeps what its reward model understands: rejection sampling for the LM.

python -m e2e_tts.trainers.data.self_speech --model model_cards/small-en --sentences sentences.txt --candidates 8 \\
    --output data/self

Of every sentence the LM draws several times, the best is kept if the reward model's CTC loss a label is at most
--max_loss. The rows are annotated and hold the drawn tokens in the column speech_ids, from which `refine_lm` learns
beside real speech (give the folder in data.folders and its source, "self", a weight in data.weights): more sentences
than the corpus has, in the voices of the corpus, without what the LM gets wrong. Text guidance is learnt with them.
What is left out is listed in refused.csv. A run that was stopped goes on when it is started again.

Voices take turns. With --shared each sentence is drawn in all --voices, and the best draw of all becomes a row of every
built-in voice and, with --speakers, of a training speaker of annotated data: tokens hold hardly anything of a speaker,
so voices of few or noisy recordings, and clones, learn to speak what another voice says clearly.
"""

import argparse
import csv
import hashlib
import io
import json
import logging
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from datasets import Dataset, Features, List, Value, disable_progress_bars
from torch import nn
from transformers import AutoModel, AutoProcessor, BatchFeature

from e2e_tts.modeling import E2ETTSModel
from e2e_tts.modeling.processing_e2e_tts import TextToSpeechProcessor
from e2e_tts.modeling.reranking import generate_best

from ..command_line import CommandParser
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
    foreign_voices,
    tokenizer_fingerprint,
    weights_fingerprint,
)
from .speech_data import load_prepared

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
    whether the best draw is of all voices and a row of each built-in one, or voices take turns."""

    candidates: int = 8
    max_loss: float = 1.0
    batch_texts: int = 8
    seed: int = 0
    shared: bool = False


@dataclass(frozen=True)
class Speaker:
    """Of whom a row is: name and embedding (S,)."""

    name: str
    embedding: torch.Tensor


@dataclass(frozen=True)
class Draw:
    """Tokens (T,), the reward model's loss for them, infinite if it is of no use, and whether speech came to an end."""

    ids: torch.LongTensor
    loss: float
    finished: bool


class SelfSpeaker:
    """Sentences -> rows, drawn on the model's device; `rows_each` of them for a sentence.

    voices: the built-in ones that draw; speakers: others, of whom a shared draw becomes a row of one.
    """

    def __init__(
        self,
        model: E2ETTSModel,
        processor: TextToSpeechProcessor,
        voices: Sequence[str],
        drawing: Drawing,
        speakers: Sequence[Speaker] = (),
    ):
        self.model, self.processor, self.voices, self.drawing = model, processor, list(voices), drawing
        embeddings = model.voice_embeddings.float()
        self.built_in = [Speaker(name, row) for name, row in zip(model.config.voices, embeddings, strict=True)]
        self.speakers = list(speakers)
        self.rows_each = len(self.built_in) + bool(self.speakers) if drawing.shared else 1

    def fingerprints(self) -> dict[str, str]:
        """Of what the tokens and embeddings of the rows are made by."""
        return {
            TEXT_TOKENIZER: tokenizer_fingerprint(self.processor),
            SPEAKER_ENCODER: weights_fingerprint(self.model.speaker),
            SPEECH_TOKENIZER: weights_fingerprint(self.model.encoder),
        }

    @torch.no_grad()
    def __call__(self, sentences: Sequence[str], number: int) -> list[dict]:
        """Rows of a batch of sentences of which the first has this number, which keys the draws and the speakers."""
        rows, speakable = {}, []
        for index, sentence in enumerate(sentences):
            try:
                self.processor(text=sentence)
                speakable.append(index)
            except ValueError as error:
                speakers, reason = self._speakers(number + index), str(error)
                rows[index] = [self._row(number + index, speaker, sentence, refused=reason) for speaker in speakers]
        if speakable:
            inputs = self.processor(text=[sentences[index] for index in speakable]).to(self.model.device)
            # Rounds over the texts: of the voices that draw, and of the speakers who then say the best draws.
            voices = zip(*(self._voices(number + index) for index in speakable), strict=True)
            drawn = zip(*(self._draw(inputs, names, number) for names in voices), strict=True)
            best = [min(draws, key=lambda draw: draw.loss) for draws in drawn]
            speakers = zip(*(self._speakers(number + index) for index in speakable), strict=True)
            spoken = zip(*(self._spoken(inputs, best, each, number) for each in speakers), strict=True)
            for index, versions in zip(speakable, spoken, strict=True):
                rows[index] = [self._row(number + index, text=sentences[index], **values) for values in versions]
        return [row for index in range(len(sentences)) for row in rows[index]]

    def _draw(self, inputs: BatchFeature, voices: Sequence[str], number: int) -> list[Draw]:
        """The best draw of each text, in its voice."""
        model = self.model
        arguments = {
            "text_ids": inputs["text_ids"],
            "text_mask": inputs["text_mask"],
            "speaker_embedding": model.voice_embeddings[[list(model.config.voices).index(name) for name in voices]],
            "tokens_per_symbol": torch.tensor([model.config.voices[name] for name in voices], device=model.device),
            "generator": torch.Generator(model.device).manual_seed(self.drawing.seed + number),
            **model.config.sampling,
        }
        drawn, losses = generate_best(model.lm, model.reward, arguments, inputs["ctc_labels"], self.drawing.candidates)
        rows = zip(drawn.ids, drawn.mask, losses.tolist(), drawn.finished.tolist(), strict=True)
        return [Draw(ids[mask], loss, finished) for ids, mask, loss, finished in rows]

    def _spoken(
        self, inputs: BatchFeature, draws: list[Draw], speakers: Sequence[Speaker], number: int
    ) -> Iterator[dict]:
        """What a row of each text has to hold, for draws that these speakers say."""
        reasons = [self._refusal(draw) for draw in draws]
        kept = [place for place, reason in enumerate(reasons) if not reason]
        audio = self._decode([draws[place] for place in kept], [speakers[place] for place in kept], number)
        spoken = dict(zip(kept, audio, strict=True))
        for place, draw in enumerate(draws):
            yield {
                "speaker": speakers[place],
                "samples": spoken.get(place),
                "reward_loss": draw.loss,
                "refused": reasons[place],
                "speech_ids": draw.ids.tolist(),
                "text_ids": inputs["text_ids"][place][inputs["text_mask"][place]].tolist(),
                "ctc_labels": [label for label in inputs["ctc_labels"][place].tolist() if label > 0],
            }

    def _refusal(self, draw: Draw) -> str:
        """Why a draw is not learned from, empty if it is."""
        if not draw.finished:
            return "No draw came to an end within the length limit."
        return "" if draw.loss <= self.drawing.max_loss else f"The reward model's loss is {draw.loss:.2f}."

    def _decode(self, draws: Sequence[Draw], speakers: Sequence[Speaker], number: int) -> list[np.ndarray]:
        """Samples of each draw, in its speaker's voice."""
        if not draws:
            return []
        ids = nn.utils.rnn.pad_sequence([draw.ids for draw in draws], batch_first=True)
        mask = nn.utils.rnn.pad_sequence([torch.ones_like(draw.ids) for draw in draws], batch_first=True).bool()
        embeddings = torch.stack([speaker.embedding for speaker in speakers])
        decoded = self.model.decode(ids, mask, voice=embeddings, seed=self.drawing.seed + number)
        audio = zip(decoded["audio"], decoded["audio_lengths"].tolist(), strict=True)
        return [samples[:length].float().cpu().numpy() for samples, length in audio]

    def _voices(self, number: int) -> list[str]:
        return self.voices if self.drawing.shared else [self.voices[number % len(self.voices)]]

    def _speakers(self, number: int) -> list[Speaker]:
        if not self.drawing.shared:
            (name,) = self._voices(number)
            return [speaker for speaker in self.built_in if speaker.name == name]
        turns = random.Random(f"{self.drawing.seed} {number}")
        return self.built_in + ([turns.choice(self.speakers)] if self.speakers else [])

    def _row(
        self,
        number: int,
        speaker: Speaker,
        text: str,
        samples: np.ndarray | None = None,
        refused: str = "",
        **values: Any,
    ) -> dict:
        rate, audio = self.model.sampling_rate, io.BytesIO()
        samples = np.zeros(0, np.float32) if samples is None else samples
        soundfile.write(audio, samples.clip(-1.0, 1.0), rate, format="FLAC", subtype="PCM_16")
        lists = {name: values.get(name, []) for name in ("text_ids", "ctc_labels", "speech_ids")}
        name = f"{SOURCE}_{number:06d}" + (f"_{speaker.name}" if self.drawing.shared else "")
        return lists | {
            "id": name,
            "audio": {"bytes": audio.getvalue(), "path": f"{name}.flac"},
            "text": text,
            "speaker": speaker.name,
            "speaker_embedding": speaker.embedding.tolist(),
            "emotion": "",
            "language": self.processor.language,
            "source": SOURCE,
            "seconds": len(samples) / rate,
            "split": "train",
            "reward_loss": values.get("reward_loss", float("inf")),
            "refused": refused,
        }


def training_speakers(folders: Sequence[str], model: E2ETTSModel) -> list[Speaker]:
    """Each training speaker of annotated data, the built-in voices aside, as heard in one utterance, like a clone.

    Raises ValueError for data that is not annotated, or not by a speaker encoder of this width, or has no such speaker.
    """
    if problem := foreign_voices(folders, model):
        raise ValueError(problem)
    found, width = {}, model.voice_embeddings.shape[1]
    for folder in folders:
        rows = load_prepared([folder], "train")
        if "speaker_embedding" not in rows.column_names:
            raise ValueError(f"{folder} has no speaker_embedding: e2e_tts.trainers.data.annotate adds it.")
        for row in rows.select_columns(["speaker", "speaker_embedding"]):
            if len(row["speaker_embedding"]) != width:
                raise ValueError(
                    f"{folder}: speaker embeddings have {len(row['speaker_embedding'])} values, the model's {width}; "
                    "annotate it with the model's own speaker encoder."
                )
            if row["speaker"] not in {*found, *model.config.voices}:
                embedding = torch.tensor(row["speaker_embedding"], dtype=torch.float32, device=model.device)
                found[row["speaker"]] = Speaker(row["speaker"], embedding)
    if folders and not found:
        raise ValueError(f"{', '.join(folders)}: no training speaker but the built-in voices; leave --speakers out.")
    return list(found.values())


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
    parser = CommandParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a released checkpoint with built-in voices")
    parser.add_argument("--sentences", type=Path, required=True, help="text file, one sentence a line")
    parser.add_argument("--voices", nargs="+", help="built-in voices that draw; by default all")
    parser.add_argument("--candidates", type=int, default=Drawing.candidates, help="draws of each sentence, in a voice")
    parser.add_argument(
        "--shared",
        action="store_true",
        help="draw each sentence in all --voices; the best draw is a row of every built-in voice",
    )
    parser.add_argument(
        "--speakers",
        nargs="+",
        default=[],
        metavar="DATA",
        help="with --shared: annotated data; the best draw is also a row of one of its training speakers",
    )
    parser.add_argument("--max_loss", type=float, default=Drawing.max_loss, help="nats a label that are still kept")
    parser.add_argument("--batch_texts", type=int, default=Drawing.batch_texts, help="sentences drawn at a time")
    parser.add_argument("--seed", type=int, default=0)
    add_device_option(parser)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output, or begin anew")
    options = parser.parse_args(arguments)
    if options.speakers and not options.shared:
        parser.error("--speakers needs --shared")
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
        names = ("model", "candidates", "max_loss", "batch_texts", "seed", "shared", "speakers")
        digest = hashlib.sha256("\n".join(sentences).encode()).hexdigest()
        settings = {name: getattr(options, name) for name in names} | {"voices": voices, "sentences": digest}
        if model.device.type != "cpu":
            settings["device"] = model.device.type  # draws other numbers from a seed
        speaker = SelfSpeaker(model, processor, voices, drawing, training_speakers(options.speakers, model))
        rows = speak_all(sentences, speaker, options.output, settings, options.overwrite)
    except (OSError, ValueError) as error:
        parser.exit(1, f"{error}\n")
    print(f"{len(rows)} of {len(sentences) * speaker.rows_each} rows kept -> {options.output}")


if __name__ == "__main__":
    main()
