"""Recordings in the forms that users have them. The file travels with checkpoints."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def read_audio(path: str | Path) -> tuple[Any, int]:
    """Samples (samples,) or (samples, channels) and their rate in Hz. Raises ValueError for what cannot be read."""
    try:
        import soundfile
    except ImportError as error:
        raise ImportError("Reading a recording from a path needs soundfile: pip install soundfile") from error
    if not Path(path).is_file():
        raise ValueError(f"There is no recording {path}.")
    try:
        return soundfile.read(path, dtype="float32")
    except (RuntimeError, OSError) as error:
        raise ValueError(f"{path} cannot be read as audio: {error}") from error


def as_samples(audio: Any, sampling_rate: int | None) -> tuple[Any, int | None]:
    """A path, {"array", "sampling_rate"}, or samples with their sampling_rate -> samples and rate.

    Raises ValueError for what cannot be read, and for a dictionary without these entries.
    """
    if isinstance(audio, str | Path):
        return read_audio(audio)
    if isinstance(audio, Mapping):
        missing = {"array", "sampling_rate"} - set(audio)
        if missing:
            raise ValueError(f"A recording given as a dictionary lacks {sorted(missing)}.")
        return audio["array"], audio["sampling_rate"]
    return audio, sampling_rate
