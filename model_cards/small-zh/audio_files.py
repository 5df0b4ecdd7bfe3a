"""Recordings in the forms that users have them. The file travels with checkpoints."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# Files of samples alone, whose rate and width nothing tells.
HEADERLESS_SUFFIXES = (".raw", ".pcm")
READABLE_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".aif", ".au", ".caf")


def read_audio(source: str | Path | bytes) -> tuple[Any, int]:
    """Samples (samples,) or (samples, channels), float32, and their rate in Hz, of a file or of its bytes.

    Raises ValueError for what cannot be read.
    """
    try:
        import soundfile
    except ImportError as error:
        raise ImportError("Reading a recording from a path needs soundfile: pip install soundfile") from error
    if isinstance(source, bytes):
        label, file = "the recording", io.BytesIO(source)
    else:
        label, file = str(source), source
        if not Path(source).is_file():
            raise ValueError(f"There is no recording {source}.")
    try:
        return soundfile.read(file, dtype="float32")
    except (RuntimeError, OSError, TypeError) as error:  # the last: of .raw it wants to be told the rate
        if Path(label).suffix.lower() in HEADERLESS_SUFFIXES:
            raise ValueError(f"{label} has no header: make a wav of it first.") from error
        hint = ""
        if not isinstance(source, bytes) and Path(label).suffix.lower() not in READABLE_SUFFIXES:
            formats = ", ".join(suffix[1:] for suffix in READABLE_SUFFIXES[:6])
            hint = f" Readable are {formats}; make one of it: ffmpeg -i {label} {Path(label).stem}.wav"
        raise ValueError(f"{label} cannot be read as audio: {error}{hint}") from error


def as_samples(audio: Any, sampling_rate: int | None) -> tuple[Any, int | None]:
    """A path, {"array", "sampling_rate"}, or samples with their sampling_rate -> samples and rate.

    Raises ValueError for what cannot be read, for a dictionary without these entries, and for files in other forms.
    """
    if isinstance(audio, str | Path):
        return read_audio(audio)
    if isinstance(audio, Mapping):
        missing = {"array", "sampling_rate"} - set(audio)
        if missing:
            raise ValueError(f"A recording given as a dictionary lacks {sorted(missing)}.")
        return audio["array"], audio["sampling_rate"]
    first = audio[0] if isinstance(audio, list | tuple) and audio else audio
    if isinstance(first, str | Path | Mapping | bytes | bytearray | memoryview) or hasattr(first, "read"):
        kind = type(first).__name__ if first is audio else f"{type(audio).__name__} of {type(first).__name__}"
        raise ValueError(
            f"A recording is a path, an array or {{array, sampling_rate}}; one reference a call. Got {kind}."
        )
    return audio, sampling_rate
