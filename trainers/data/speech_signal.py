"""Recordings as samples: reading, clipping, silence, loudness."""

import io
from pathlib import Path

import fsspec
import numpy as np
import soundfile

TARGET_RMS_DBFS = -23.0
PEAK_LIMIT = 0.95
FULL_SCALE = 0.985  # lossy coding moves the flat tops of a clipped wave a little


def read_recording(
    audio: bytes | str | Path, start_seconds: float = 0.0, seconds: float | None = None
) -> tuple[np.ndarray, int]:
    """Decodes encoded bytes, a file or an fsspec URL, or `seconds` of it from `start_seconds` on.

    Returns float32 samples (L, channels) and their rate in Hz. Raises soundfile.LibsndfileError, OSError.
    """
    if isinstance(audio, str) and "://" in audio:
        with fsspec.open(audio, "rb") as remote:
            audio = remote.read()
    with soundfile.SoundFile(io.BytesIO(audio) if isinstance(audio, bytes) else audio) as file:
        file.seek(min(file.frames, round(start_seconds * file.samplerate)))
        count = -1 if seconds is None else round(seconds * file.samplerate)
        return file.read(count, dtype="float32", always_2d=True), file.samplerate


def clipped_share(samples: np.ndarray) -> float:
    """The share of samples (of any shape) at full scale."""
    return float(np.mean(np.abs(samples) >= FULL_SCALE))


def frame_levels(samples: np.ndarray, sampling_rate: int) -> tuple[np.ndarray, int]:
    """RMS level in dBFS of every 10 ms frame of mono samples (L,), and the frame length in samples."""
    size = max(1, sampling_rate // 100)
    count = len(samples) // size
    frames = samples[: count * size].reshape(count, size)
    return 10 * np.log10(np.mean(frames.astype(np.float64) ** 2, axis=1) + 1e-12), size


def trim_silence(samples: np.ndarray, sampling_rate: int, keep_seconds: float = 0.1) -> np.ndarray:
    """Cuts leading and trailing silence of mono samples (L,) down to `keep_seconds` each.

    The threshold follows the recording: just above its noise floor, but between 45 and 30 dB below its loud parts, so
    that a noisy recording loses nothing rather than a quiet consonant. Sound counts from three frames in a row (30 ms),
    so a click does not stop the trimming.
    """
    levels, size = frame_levels(samples, sampling_rate)
    if len(levels) < 3:
        return samples
    loud, floor = np.percentile(levels, 95), np.percentile(levels, 5)
    threshold = np.clip(floor + 6, loud - 45, loud - 30)
    active = levels > threshold
    runs = np.flatnonzero(active[:-2] & active[1:-1] & active[2:])
    if not len(runs):
        return samples
    margin = round(keep_seconds * sampling_rate)
    return samples[max(0, runs[0] * size - margin) : (runs[-1] + 3) * size + margin]


def normalise_loudness(samples: np.ndarray, sampling_rate: int) -> np.ndarray:
    """Scales mono samples so that their spoken part has an RMS of -23 dBFS and no peak exceeds 0.95."""
    levels, _ = frame_levels(samples, sampling_rate)
    spoken = levels[levels > np.percentile(levels, 95) - 30]
    rms = np.sqrt(np.mean(10 ** (spoken / 10)))
    gain = 10 ** (TARGET_RMS_DBFS / 20) / rms
    return samples * min(gain, PEAK_LIMIT / float(np.max(np.abs(samples))))


def encode_flac(samples: np.ndarray, sampling_rate: int) -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, sampling_rate, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()
