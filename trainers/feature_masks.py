"""Masks over what the tokenizer hears, so that recognition leans on context (SpecAugment, arXiv 1904.08779)."""

from dataclasses import dataclass

import numpy as np
import torch


@dataclass
class FeatureMasks:
    """How much of each utterance the tokenizer does not hear in training; 0 masks is none.

    times stretches of up to time_frames mel frames, and bands ranges of up to band_bins mel bins, take the mean value
    of the utterance. No more than time_share of an utterance is masked in time. What the decoder is to learn stays
    whole.
    """

    times: int = 0
    time_frames: int = 6
    time_share: float = 0.2
    bands: int = 0
    band_bins: int = 8

    def __post_init__(self) -> None:
        if min(self.times, self.bands) < 0 or min(self.time_frames, self.band_bins) < 1:
            raise ValueError(f"Masks have a number of 0 or more and a size of 1 or more, got {self}.")
        if not 0.0 < self.time_share < 1.0:
            raise ValueError(f"time_share is the largest part of an utterance, 0.2 for example; got {self.time_share}.")

    def __bool__(self) -> bool:
        return bool(self.times or self.bands)

    def apply(self, features: torch.Tensor, mask: torch.Tensor, sources: list[np.random.Generator]) -> torch.Tensor:
        """Features (B, T_mel, n_mels), with mask (B, T_mel) -> a copy with masks drawn from one source an utterance."""
        features = features.clone()
        lengths = mask.sum(dim=1).tolist()
        for row, length, random in zip(features, lengths, sources, strict=True):
            # Taken before anything is masked; a view of the copy, so that it is written in place.
            mean = row[:length].mean()
            longest = min(self.time_frames, int(length * self.time_share / max(1, self.times)))
            for _ in range(self.times):
                size = int(random.integers(longest + 1))
                start = int(random.integers(length - size + 1))
                row[start : start + size] = mean
            for _ in range(self.bands):
                size = int(random.integers(min(self.band_bins, row.shape[1]) + 1))
                start = int(random.integers(row.shape[1] - size + 1))
                row[:length, start : start + size] = mean
        return features
