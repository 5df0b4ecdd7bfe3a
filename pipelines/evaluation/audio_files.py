"""Recordings of any common format, wherever they lie; speech as wavs."""

import os
from pathlib import Path

import numpy as np

from ..audio_files import read_audio

AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3")


def read_recording(source: str | Path | bytes) -> tuple[np.ndarray, int]:
    """Reads a file, or its bytes, as mono float32 of shape (samples,), and its rate in Hz.

    Raises ValueError, naming the file, if it does not exist, cannot be decoded, or has samples that are not finite.
    """
    label = "the recording" if isinstance(source, bytes) else str(source)
    if not isinstance(source, bytes) and not Path(source).is_file():
        raise ValueError(f"there is no file {label}")
    samples, sampling_rate = read_audio(source)
    waveform = samples.mean(axis=1) if samples.ndim == 2 else samples
    if not np.isfinite(waveform).all():
        raise ValueError(f"{label} has samples that are NaN or infinite")
    return waveform, sampling_rate


def list_recordings(folder: Path) -> list[Path]:
    """The recordings of a folder, by name; none if there is no such folder."""
    return sorted(path for path in folder.glob("*") if path.suffix.lower() in AUDIO_SUFFIXES)


def find_recording(folder: Path, name: str) -> Path | None:
    """The file of a folder that is called `name`, its suffix optional; None if there is none."""
    candidates = [folder / name, *(folder / f"{name}{suffix}" for suffix in AUDIO_SUFFIXES)]
    return next((candidate for candidate in candidates if candidate.is_file()), None)


def write_speech(path: Path, waveform: np.ndarray, sampling_rate: int) -> None:
    """Writes a waveform (samples,) as 16-bit wav, aside and renamed: a file that exists is taken for done."""
    import soundfile

    aside = path.with_suffix(".part")
    soundfile.write(aside, waveform.clip(-1.0, 1.0), sampling_rate, format="WAV", subtype="PCM_16")
    os.replace(aside, path)
