"""When speech has failed: silence, a sound far too long for its text, a lost end, repeated words."""

import math
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SILENCE, OVER_LONG, EMPTY_TRANSCRIPT, CUT_OFF, REPETITION, ERROR = (
    "silence",
    "over_long",
    "empty_transcript",
    "cut_off",
    "repetition",
    "error",
)
FAILURES = (ERROR, SILENCE, EMPTY_TRANSCRIPT, OVER_LONG, CUT_OFF, REPETITION)
"""Every kind of failure, the worst first. "error" is a clip that is missing or cannot be read."""


@dataclass(frozen=True)
class FailureLimits:
    """When a clip counts as failed. The defaults let almost all natural recordings of read speech pass.

    A clip is silent if its peak is below `silence_peak` or its root mean square below `silence_rms` (full scale is 1).
    It is over-long if it lasts more than `base_seconds` plus `seconds_per_letter` for each letter or digit of its text,
    or `seconds_per_syllable` where a character is a syllable (Han, kana, Hangul).
    It is cut off if the last word that was heard is right, and at least `cut_off_words` words after it were not heard.
    It repeats itself if at least `repeated_words` more words than in the text merely repeat what was just said. A
    recogniser drops or doubles single words of good speech too, which is why one word does not count.
    """

    silence_peak: float = 3e-3
    silence_rms: float = 3e-4
    base_seconds: float = 3.0
    seconds_per_letter: float = 0.15
    seconds_per_syllable: float = 0.4
    cut_off_words: int = 2
    repeated_words: int = 3

    def flags(self, waveform: np.ndarray, sampling_rate: int, text: str) -> list[str]:
        """Failures that a mono waveform of shape (samples,), at `sampling_rate` Hz, shows beside its text."""
        return self.sound_flags(*loudness(waveform), waveform.size / sampling_rate, text)

    def sound_flags(self, peak: float, rms: float, seconds: float, text: str) -> list[str]:
        """The same from what `loudness` returns and the duration in seconds."""
        flags = [SILENCE] if self.is_silent(peak, rms) else []
        letters = [character for character in text if character.isalnum()]
        # East Asian scripts are the wide ones ("W"); full-width Latin letters ("F") remain letters.
        syllables = sum(unicodedata.east_asian_width(character) == "W" for character in letters)
        expected = self.seconds_per_letter * (len(letters) - syllables) + self.seconds_per_syllable * syllables
        if seconds > self.base_seconds + expected:
            flags.append(OVER_LONG)
        return flags

    def is_silent(self, peak: float, rms: float) -> bool:
        """Whether a clip with what `loudness` returned is silent."""
        return peak < self.silence_peak or rms < self.silence_rms

    def transcript_flags(self, reference: Sequence[str], heard: Sequence[str], lost_at_end: int) -> list[str]:
        """Failures that the normalised words heard show; `lost_at_end` counts the words after the last one heard."""
        if not heard:
            return [EMPTY_TRANSCRIPT]
        flags = []
        if lost_at_end >= self.cut_off_words:
            flags.append(CUT_OFF)
        if repeated_words(heard) - repeated_words(reference) >= self.repeated_words:
            flags.append(REPETITION)
        return flags


def loudness(waveform: np.ndarray) -> tuple[float, float]:
    """Peak and root mean square of a waveform of shape (samples,); zeros for an empty one."""
    if not waveform.size:
        return 0.0, 0.0
    return float(np.abs(waveform).max()), math.sqrt(float(np.square(waveform, dtype=np.float64).mean()))


def repeated_words(words: Sequence[str]) -> int:
    """How many words merely repeat the phrase right before them: 3 in "we went home we went home", 2 in "no no no"."""
    count, position = 0, 0
    while position < len(words):
        longest = min(position, len(words) - position)
        for length in range(longest, 0, -1):
            if words[position - length : position] == words[position : position + length]:
                count += length
                position += length
                break
        else:
            position += 1
    return count
