"""One row of a corpus -> one row of the prepared dataset, or the reason why it is refused."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import soxr

from .speech_signal import clipped_share, encode_flac, frame_levels, normalise_loudness, read_recording, trim_silence
from .splits import normalise_text
from .text_tokens import PHONEMES, PROBES, load_processor, text_tokens

SILENCE_DBFS = -60.0
NO_TOKENIZER = "none"
# What a phoneme frontend speaks, and how the codes of these languages begin (cmn: ISO 639-3 for Mandarin).
SPOKEN = {"en": ("English", ("en",)), "zh": ("Mandarin and English", ("zh", "cmn", "en"))}


class RefusedRow(ValueError):
    """A row that is left out of the dataset; the message is the reason, `check` a short name to count by."""

    def __init__(self, check: str, reason: str) -> None:
        super().__init__(reason)
        self.check = check

    def __reduce__(self) -> tuple:
        return type(self), (self.check, str(self))  # exceptions pickle their message alone


@dataclass(frozen=True)
class RawRow:
    """A row as its corpus has it, in the terms of the dataset contract.

    file: what a reader of the report finds it by. audio: encoded bytes, or a path or URL; None where the corpus gives
    none, for the reason `problem` where it knows one. unaccepted: the corpus's own split where that holds recordings
    that it does not vouch for. start_seconds, seconds: the part of the recording that is the
    utterance. speaker: None where the corpus does not say who speaks, as opposed to "" where it should. split: where
    the corpus has splits of its own.
    """

    source: str
    id: str
    file: str
    audio: bytes | str | None
    text: str
    speaker: str | None = None
    emotion: str = ""
    language: str = ""
    speaker_embedding: Sequence[float] | None = None
    split: str | None = None
    start_seconds: float = 0.0
    seconds: float | None = None
    problem: str = ""
    unaccepted: str = ""


@dataclass(frozen=True)
class CheckSettings:
    """What a usable row is.

    sampling_rate: of the prepared audio in Hz. min_source_rate: lowest rate of a recording, since upsampling leaves
    the upper band empty; None allows 10 % less than `sampling_rate`. min_seconds, max_seconds: of the speech without
    the silence around it. max_clipped: highest share of samples at full scale. min_characters, max_characters: of text
    a second of speech, outside of which text and recording hardly belong together. tokenizer: see
    `text_tokens.load_processor`; "none" checks only that there are words.
    """

    sampling_rate: int = 16000
    min_source_rate: int | None = None
    min_seconds: float = 0.6
    max_seconds: float = 10.0
    max_clipped: float = 0.001
    min_characters: float = 1.0
    max_characters: float = 30.0
    tokenizer: str = PHONEMES

    def __post_init__(self) -> None:
        if self.sampling_rate <= 0:
            raise ValueError(f"The sampling rate must be positive, got {self.sampling_rate}.")
        for name in ("seconds", "characters"):
            low, high = getattr(self, f"min_{name}"), getattr(self, f"max_{name}")
            if not 0 <= low < high:
                raise ValueError(f"Need 0 <= min_{name} < max_{name}, got {low} and {high}.")

    @property
    def lowest_rate(self) -> float:
        return 0.9 * self.sampling_rate if self.min_source_rate is None else self.min_source_rate


class RowChecker:
    """RawRow -> row of the prepared dataset (without its split). Raises RefusedRow."""

    def __init__(self, settings: CheckSettings) -> None:
        self.settings = settings
        if settings.tokenizer != NO_TOKENIZER:
            # A wrong name or a missing package should fail at once, not in every row; forked workers share the lexicon.
            processor = load_processor(settings.tokenizer)
            text_tokens(processor, PROBES[processor.language])

    def __call__(self, row: RawRow) -> dict:
        if row.problem:
            raise RefusedRow("no audio", row.problem)
        if row.unaccepted:
            reason = f"in the corpus's split {row.unaccepted!r}; --columns split= reads rows whatever their split"
            raise RefusedRow("not accepted", reason)
        if row.speaker == "":
            raise RefusedRow("no speaker", "no speaker")
        self.check_text(row)
        self.check_embedding(row.speaker_embedding)
        samples = self.read(row)
        seconds = len(samples) / self.settings.sampling_rate
        self.check_pace(row.text, seconds)
        example = {
            "id": row.id,
            "audio": {"bytes": encode_flac(samples, self.settings.sampling_rate), "path": None},
            "text": unicodedata.normalize("NFC", row.text),
            # Nobody knows whether two of these are the same voice, so each is a voice of its own.
            "speaker": row.id if row.speaker is None else row.speaker,
            "emotion": row.emotion,
            "language": row.language,
            "source": row.source,
            "seconds": seconds,
        }
        if row.speaker_embedding is not None:
            example["speaker_embedding"] = list(row.speaker_embedding)
        return example

    def check_text(self, row: RawRow) -> None:
        if not normalise_text(row.text):
            raise RefusedRow("no text", "no text, or no words in it")
        if self.settings.tokenizer == NO_TOKENIZER:
            return
        processor = load_processor(self.settings.tokenizer)
        spoken, codes = SPOKEN[processor.language]
        if processor.frontend == PHONEMES and row.language and not row.language.lower().startswith(codes):
            raise RefusedRow(
                "alphabet", f"the phoneme frontend speaks {spoken}, not {row.language!r}; choose another --tokenizer"
            )
        try:
            _, labels = text_tokens(processor, row.text)
        except ValueError as error:
            raise RefusedRow("alphabet", str(error)) from error
        if not labels:
            raise RefusedRow("alphabet", "nothing in the text can be heard")

    @staticmethod
    def check_embedding(embedding: Sequence[float] | None) -> None:
        if embedding is not None and not (len(embedding) and np.isfinite(np.asarray(embedding, dtype=float)).all()):
            raise RefusedRow("speaker embedding", "the speaker embedding is empty or not finite")

    def check_pace(self, text: str, seconds: float) -> None:
        pace = len(text.strip()) / seconds
        if not self.settings.min_characters <= pace <= self.settings.max_characters:
            raise RefusedRow(
                "characters a second",
                f"{pace:.1f} characters a second, outside {self.settings.min_characters} to "
                f"{self.settings.max_characters}: text and recording hardly belong together",
            )

    def read(self, row: RawRow) -> np.ndarray:
        """Reads, checks, resamples, trims and levels one recording: float32 mono samples (L,)."""
        settings = self.settings
        if not row.audio:
            raise RefusedRow("no audio", "no recording")
        if isinstance(row.audio, str) and "://" not in row.audio and not Path(row.audio).is_file():
            raise RefusedRow("no audio", "file is missing")
        try:
            channels, rate = read_recording(row.audio, row.start_seconds, row.seconds)
        except (soundfile.LibsndfileError, OSError, RuntimeError) as error:
            if isinstance(error, OSError) and isinstance(row.audio, str) and "://" in row.audio:
                raise  # an outage says nothing about the recording
            raise RefusedRow("does not decode", f"does not decode: {error}") from error
        if not np.isfinite(channels).all():
            raise RefusedRow("not finite", "has samples that are not finite")
        if rate < settings.lowest_rate:
            raise RefusedRow(
                "sampling rate",
                f"recorded at {rate} Hz, below {settings.lowest_rate:.0f} Hz; --min-source-rate {rate} takes it",
            )
        if len(channels) < max(1, settings.min_seconds * rate):
            raise RefusedRow("length", f"shorter than {settings.min_seconds} s")
        share = clipped_share(channels)
        if share > settings.max_clipped:
            raise RefusedRow("clipping", f"clipped: {share:.2%} of its samples are at full scale")
        samples = channels.mean(axis=1)
        if rate != settings.sampling_rate:
            samples = soxr.resample(samples, rate, settings.sampling_rate, quality="VHQ")
        levels, _ = frame_levels(samples, settings.sampling_rate)
        if not len(levels) or np.percentile(levels, 95) < SILENCE_DBFS:
            raise RefusedRow("silence", "silent")
        samples = trim_silence(samples, settings.sampling_rate)
        seconds = len(samples) / settings.sampling_rate
        if not settings.min_seconds <= seconds <= settings.max_seconds:
            raise RefusedRow(
                "length", f"{seconds:.2f} s of speech, outside {settings.min_seconds} to {settings.max_seconds} s"
            )
        return normalise_loudness(samples, settings.sampling_rate).astype(np.float32)
