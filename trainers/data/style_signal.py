"""What a recording says of its style: pitch, its range, energy, vocal effort and speaking rate, from the signal."""

from dataclasses import dataclass

import numpy as np

from .speech_signal import frame_levels

SAMPLING_RATE = 16000  # of the analysis
PITCH_RANGE_HZ = (60.0, 400.0)
WINDOW_SECONDS, HOP_SECONDS = 0.05, 0.02  # three periods of the lowest pitch
VOICING = 0.5  # least normalised autocorrelation of a voiced frame
OCTAVE_COST = 0.01  # an octave lower must be stronger by this much; Boersma's value
OCTAVE_ERRORS = 0.75  # octaves from the clip's median beyond which a pitch is taken for an error
LOUD_RANGE_DB = 30.0  # frames as far below the loud ones are silence
PAUSE_FRAMES = 20  # of 10 ms; shorter silences belong to speech, a plosive's closure for instance
EFFORT_BANDS_HZ = ((50.0, 1000.0), (1000.0, 5000.0))


@dataclass
class StyleMeasures:
    """Measures of one clip; None where it has no voiced frame, or no text for the rate.

    pitch: mean of log2 F0 over voiced frames, as a frequency in Hz. pitch_range: standard deviation of F0 in semitones.
    energy: RMS level of the frames with speech in dBFS. effort: level of 1 to 5 kHz against that of 50 to 1000 Hz in
    voiced frames, in dB (the alpha ratio of eGeMAPS); it grows with vocal effort and does not depend on the gain.
    rate: symbols of the text a second of speech, pauses not counted.
    """

    pitch: float | None = None
    pitch_range: float | None = None
    energy: float | None = None
    effort: float | None = None
    rate: float | None = None


def speech_frames(samples: np.ndarray, sampling_rate: int) -> tuple[np.ndarray, np.ndarray]:
    """Levels in dBFS (F,) of 10 ms frames and which of them hold sound. Digital silence has none."""
    levels, _ = frame_levels(samples, sampling_rate)
    if not len(levels):
        return levels, np.zeros(0, dtype=bool)
    loud = np.percentile(levels, 95)
    return levels, (levels > loud - LOUD_RANGE_DB) & (levels > -100.0)


def spoken_seconds(sounding: np.ndarray) -> float:
    """Seconds of speech in 10 ms frames (F,): pauses are left out, shorter silences are not."""
    gaps = np.diff(np.flatnonzero(sounding))
    if not sounding.any():
        return 0.0
    # Each run of speech has one frame more than the steps inside it.
    return 0.01 * float(1 + np.where(gaps <= PAUSE_FRAMES, gaps, 1).sum())


def windowed_frames(samples: np.ndarray, sampling_rate: int) -> np.ndarray:
    """Overlapping frames (F, W) without their means; a clip shorter than one is padded with zeros."""
    size, hop = round(WINDOW_SECONDS * sampling_rate), round(HOP_SECONDS * sampling_rate)
    samples = np.pad(samples.astype(np.float64), (0, max(0, size - len(samples))))
    frames = np.lib.stride_tricks.sliding_window_view(samples, size)[::hop]
    return frames - frames.mean(axis=1, keepdims=True)


def track_pitch(samples: np.ndarray, sampling_rate: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mono samples (L,) -> F0 in Hz (F,) every 20 ms, whether it is voiced (F,), and power spectra (F, K).

    The autocorrelation of a windowed frame divided by that of the window (Boersma 1993, "Accurate short-term analysis
    of the fundamental frequency"), a frame at a time, without a path search: for a mean over the clip a few errors do
    no harm.
    """
    frames = windowed_frames(samples, sampling_rate)
    size = frames.shape[1]
    window = np.hanning(size)
    padded = 1 << (2 * size - 1).bit_length()
    spectra = np.abs(np.fft.rfft(frames * window, padded)) ** 2
    correlation = np.fft.irfft(spectra)[:, :size]
    of_window = np.fft.irfft(np.abs(np.fft.rfft(window, padded)) ** 2)[:size]
    lowest, highest = PITCH_RANGE_HZ
    lags = np.arange(int(sampling_rate / highest), int(np.ceil(sampling_rate / lowest)) + 1)
    energy = correlation[:, :1]
    # One lag more on either side, for the interpolation of the peak.
    wide = np.arange(lags[0] - 1, lags[-1] + 2)
    strength = correlation[:, wide] / np.maximum(energy, 1e-12) * (of_window[0] / of_window[wide])
    peaks = (strength[:, 1:-1] >= strength[:, :-2]) & (strength[:, 1:-1] > strength[:, 2:])
    favoured = np.where(peaks, strength[:, 1:-1] - OCTAVE_COST * np.log2(lags), -np.inf)
    best = favoured.argmax(axis=1)
    rows = np.arange(len(frames))
    left, middle, right = (strength[rows, best + shift] for shift in (0, 1, 2))
    curvature = left - 2 * middle + right
    shift = np.where(curvature < 0, 0.5 * (left - right) / np.minimum(curvature, -1e-12), 0.0)
    levels = 10 * np.log10(energy[:, 0] + 1e-12)
    loud = levels > np.percentile(levels, 95) - LOUD_RANGE_DB
    voiced = peaks.any(axis=1) & (middle > VOICING) & loud & (energy[:, 0] > 1e-8)
    return sampling_rate / (lags[best] + shift), voiced, spectra


def band_level_difference(spectra: np.ndarray, sampling_rate: int) -> np.ndarray:
    """Power spectra (F, K) -> level of the higher of `EFFORT_BANDS_HZ` minus that of the lower in dB (F,)."""
    frequencies = np.linspace(0, sampling_rate / 2, spectra.shape[1])
    low, high = (spectra[:, (frequencies >= start) & (frequencies < end)].sum(axis=1) for start, end in EFFORT_BANDS_HZ)
    return 10 * np.log10((high + 1e-12) / (low + 1e-12))


def measure_style(samples: np.ndarray, sampling_rate: int, symbols: int | None = None) -> StyleMeasures:
    """Measures mono samples (L,) that say `symbols` symbols."""
    levels, sounding = speech_frames(samples, sampling_rate)
    if not sounding.any():
        return StyleMeasures()
    measures = StyleMeasures(energy=float(10 * np.log10(np.mean(10 ** (levels[sounding] / 10)))))
    if symbols:
        measures.rate = symbols / spoken_seconds(sounding)
    pitches, voiced, spectra = track_pitch(samples, sampling_rate)
    if voiced.any():
        octaves = np.log2(pitches[voiced])
        octaves = octaves[np.abs(octaves - np.median(octaves)) < OCTAVE_ERRORS]
        measures.pitch, measures.pitch_range = float(2 ** octaves.mean()), float(12 * octaves.std())
        measures.effort = float(band_level_difference(spectra[voiced], sampling_rate).mean())
    return measures
