"""Judges and a speaker whose answers are known, and clips that they tell apart."""

from pathlib import Path

import numpy as np
import soundfile

RATE = 16000
SAMPLES_PER_WORD = 800


class KnowingRecogniser:
    """Says what its table holds for the duration of a clip in samples; what it does not know, it refuses."""

    name, version = "knowing", "1"

    def __init__(self, transcripts: dict[int, str]) -> None:
        self.transcripts = transcripts
        self.heard: list[int] = []

    def transcribe(self, waveform: np.ndarray, sampling_rate: int) -> str:
        assert waveform.dtype == np.float32 and waveform.ndim == 1
        self.heard.append(waveform.size)
        return self.transcripts[waveform.size]


class SpectrumJudge:
    """Takes the spectrum for the speaker: the same sound has cosine 1, sounds of other frequencies next to 0."""

    name, version = "spectrum", "1"

    def embed(self, waveform: np.ndarray, sampling_rate: int) -> np.ndarray:
        edges = np.abs(np.fft.rfft(waveform[: RATE // 2], RATE // 2))
        bands = edges[: 128 * 30].reshape(128, 30).sum(axis=1)
        return (bands / np.linalg.norm(bands)).astype(np.float32)


class LevelJudge:
    """Takes the peak for the quality."""

    name, version = "level", "1"

    def score(self, waveform: np.ndarray, sampling_rate: int) -> dict[str, float]:
        return {"overall": 1 + 4 * float(np.abs(waveform).max())}


class ToneSpeaker:
    """Called like the pipeline: a tone, a little longer for each word; its pitch and level come from the seed.

    It stops with KeyboardInterrupt, as if killed, at the call of number `killed_at`, and cannot speak `unspeakable`.
    """

    def __init__(self, killed_at: int | None = None, unspeakable: str | None = None) -> None:
        self.calls: list[list[str]] = []
        self.arguments: list[dict] = []
        self.killed_at, self.unspeakable = killed_at, unspeakable

    def __call__(self, texts: list[str], batch_size: int, seed: int, **settings: object) -> list[dict]:
        if self.killed_at == len(self.calls):
            raise KeyboardInterrupt
        self.calls.append(texts)
        self.arguments.append(settings)
        if self.unspeakable in texts:
            raise RuntimeError("It did not end.")
        return [
            {"audio": tone(SAMPLES_PER_WORD * len(text.split()), 200 + seed + len(texts)), "sampling_rate": RATE}
            for text in texts
        ]


def tone(samples: int, frequency: float = 220, level: float = 0.3) -> np.ndarray:
    return (level * np.sin(2 * np.pi * frequency * np.arange(samples) / RATE)).astype(np.float32)


def write(path: Path, waveform: np.ndarray) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, waveform, RATE)
    return path.name
