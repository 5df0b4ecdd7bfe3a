"""Folders of recordings for the tests of data preparation."""

import csv
from pathlib import Path

import numpy as np

from e2e_tts.trainers.data.corpus_files import COLUMNS, read_metadata

CLIPS = Path(__file__).parent / "fixtures" / "clips"


def noise(seconds: float, sampling_rate: int = 16000, channels: int = 1) -> np.ndarray:
    """Audible noise, float32 (samples, channels)."""
    random = np.random.default_rng(0)
    return (0.1 * random.standard_normal((int(seconds * sampling_rate), channels))).astype(np.float32)


def write_metadata(folder: Path, rows: list[tuple[str, str, str]]) -> Path:
    """metadata.csv of (file, text, speaker); returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "metadata.csv").open("w", encoding="utf-8", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(COLUMNS)
        writer.writerows((*row, "neutral", "en", "1.5") for row in rows)
    return folder


def real_clips(count: int) -> list[dict[str, str]]:
    """The metadata of some recordings of the two voices in the fixtures, in turn."""
    rows = read_metadata(CLIPS)
    by_speaker = [[row for row in rows if row["speaker"] == name] for name in sorted({r["speaker"] for r in rows})]
    return [row for pair in zip(*by_speaker, strict=False) for row in pair][:count]


def read_refused(folder: Path) -> list[dict[str, str]]:
    with (folder / "refused.csv").open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))
