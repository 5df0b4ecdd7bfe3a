"""Training data of the vocoder: seeded random crops, and the audio decoding they need."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
import soxr
import torch
from torch.utils.data import Dataset

from ..recipe_parts import RecipeError, check_positive
from .speech_data import SEED_STRIDE
from .speech_signal import read_recording


def read_audio(
    audio: Mapping[str, Any], sampling_rate: int, start_seconds: float = 0.0, seconds: float | None = None
) -> np.ndarray:
    """Decodes one undecoded `datasets` audio entry, or a part of it, to mono float32 at `sampling_rate` Hz.

    Args:
        audio: {"bytes": encoded file or None, "path": file used where bytes is None}.
        sampling_rate: of the result in Hz; other rates are resampled.
        start_seconds, seconds: the part to decode; by default everything.
    """
    channels, rate = read_recording(audio.get("bytes") or audio["path"], start_seconds, seconds)
    samples = channels.mean(axis=1)
    return samples if rate == sampling_rate else soxr.resample(samples, rate, sampling_rate).astype(np.float32)


def check_rates(rows: datasets.Dataset, sampling_rate: int) -> None:
    """Raises ValueError where a source was prepared at a lower rate than `sampling_rate` Hz: read at that rate its
    upper bands are empty, and a network learns that they are. The first row of each source is looked at."""
    sources = np.asarray(rows["source"][:])
    for source in np.unique(sources):
        audio = rows[int(np.flatnonzero(sources == source)[0])]["audio"]
        rate = read_recording(audio.get("bytes") or audio["path"], seconds=0.0)[1]
        if rate < sampling_rate:
            raise ValueError(
                f"Source {str(source)!r} was prepared at {rate} Hz and is to be learned at {sampling_rate} Hz: prepare "
                f"it with --sampling-rate {sampling_rate}, from recordings of that rate or a higher one."
            )


@dataclass
class CropSettings:
    """Which crops to train on.

    crop_seconds: length of a crop, rounded to whole mel frames. source_weights: share of the crops by source, None
    for all data by duration. gain_db: random level change, see `CropDataset`. eval_crops: size of the fixed
    evaluation set, of the dev split; 0 for none.
    """

    crop_seconds: float = 0.8
    source_weights: dict[str, float] | None = None
    gain_db: float = 6.0
    eval_crops: int = 0

    def __post_init__(self) -> None:
        check_positive("crops", crop_seconds=self.crop_seconds)
        if self.gain_db < 0 or self.eval_crops < 0:
            raise RecipeError(
                f"crops.gain_db and crops.eval_crops cannot be below 0, got {self.gain_db} and {self.eval_crops}."
            )


class CropDataset(Dataset):
    """Random crops of a `datasets` dataset; crop `i` depends on the seed and `i` alone, whatever came before.

    A crop picks a source (column `source`) by weight, an utterance of it by duration, then a start. Utterances
    shorter than a crop are padded with zeros at the end.

    Args:
        dataset: columns audio ({"bytes", "path"}, undecoded), seconds, and source where weights are given.
        size: number of crops; steps times batch for a run.
        crop_samples: length of a crop.
        sampling_rate: Hz.
        seed: of everything random.
        source_weights: share of the crops by source; sources not named are left out. None: all data by duration.
        gain_db: a crop's level is changed by up to this much either way, but never into clipping.
        voices: crops have their speaker's embedding, and a seed, too.

    Raises ValueError if no utterance is left for a source, or a column is missing.
    """

    def __init__(
        self,
        dataset: Any,
        size: int,
        crop_samples: int,
        sampling_rate: int,
        seed: int,
        source_weights: Mapping[str, float] | None = None,
        gain_db: float = 0.0,
        voices: bool = False,
    ) -> None:
        needed = {"audio", "seconds"} | ({"source"} if source_weights else set())
        needed |= {"speaker_embedding"} if voices else set()
        if missing := sorted(needed - set(dataset.column_names)):
            raise ValueError(f"The dataset lacks the columns {missing}; it has {sorted(dataset.column_names)}.")
        self.rows = dataset.select_columns(["audio", "speaker_embedding"] if voices else ["audio"])
        self.voices = voices
        self.size = size
        self.crop_samples = crop_samples
        self.sampling_rate = sampling_rate
        self.seed = seed
        self.gain_db = gain_db
        seconds = np.asarray(dataset["seconds"], dtype=np.float64)
        if not source_weights:
            groups, weights = [np.arange(len(seconds))], [1.0]
        else:
            sources = np.asarray(dataset["source"])
            groups = [np.flatnonzero(sources == name) for name in source_weights]
            weights = list(source_weights.values())
            empty = [name for name, group in zip(source_weights, groups, strict=True) if not len(group)]
            if empty:
                raise ValueError(
                    f"No utterance of {empty} in the dataset; its sources are {sorted(set(sources.tolist()))}. Give "
                    "weights to those, or crops.source_weights={} to take all seconds alike."
                )
        self.seconds = seconds
        self.groups = [(group, np.cumsum(seconds[group])) for group in groups]
        self.weights = np.cumsum(weights) / np.sum(weights)

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Returns {"waveform": (crop_samples,)}, with voices also {"speaker_embedding": (S,), "seeds": ()}."""
        random = np.random.default_rng([self.seed, index])
        group, ends = self.groups[int(np.searchsorted(self.weights, random.random()))]
        # The last cumulative sum is a valid upper end: random() stays below 1.
        row = int(group[min(np.searchsorted(ends, random.random() * ends[-1]), len(group) - 1)])
        crop_seconds = self.crop_samples / self.sampling_rate
        start = random.random() * max(0.0, self.seconds[row] - crop_seconds)
        chosen = self.rows[row]
        samples = read_audio(chosen["audio"], self.sampling_rate, start, crop_seconds)[: self.crop_samples]
        gain = 10 ** (random.uniform(-self.gain_db, self.gain_db) / 20)
        gain = min(gain, 0.99 / max(1e-3, float(np.abs(samples).max(initial=0.0))))
        waveform = np.zeros(self.crop_samples, dtype=np.float32)
        waveform[: len(samples)] = samples * gain
        crop = {"waveform": torch.from_numpy(waveform)}
        if self.voices:
            crop["speaker_embedding"] = torch.tensor(chosen["speaker_embedding"], dtype=torch.float32)
            crop["seeds"] = torch.tensor(self.seed * SEED_STRIDE + index)
        return crop
