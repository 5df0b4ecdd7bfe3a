"""What a judge is: its protocols, the waveforms it takes, and how it asks for the package it needs.

A judge only measures: nothing in training, filtering or model selection may use one, otherwise the reported figures
would come from a model that the system has been fitted to.
"""

from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Protocol

import numpy as np

JUDGE_SAMPLING_RATE = 16000
"""Every judge here listens at this rate, in Hz; waveforms at other rates are resampled."""


class NoSpeechError(ValueError):
    """A speaker judge hears no voice in a clip: what fails is the clip, not the judge."""


class Judge(Protocol):
    """A model that measures speech. `version` tells two releases of the same name apart, for the report."""

    name: str
    version: str


class Recogniser(Judge, Protocol):
    """Anything with a name, a version and a `transcribe` can judge, an object of your own as well."""

    def transcribe(self, waveform: np.ndarray, sampling_rate: int) -> str:
        """Turns a mono waveform, float32 of shape (samples,) in [-1, 1], into text. No sample gives the empty text."""
        ...


class SpeakerJudge(Judge, Protocol):
    """Maps speech to a speaker vector; the cosine of two vectors says how alike the voices are."""

    def embed(self, waveform: np.ndarray, sampling_rate: int) -> np.ndarray:
        """Maps a mono waveform, float32 of shape (samples,), to a float32 vector of shape (dimensions,), length 1.

        Raises NoSpeechError where it hears no voice.
        """
        ...


class QualityJudge(Judge, Protocol):
    """Predicts how listeners would rate a recording, on one or several scales."""

    def score(self, waveform: np.ndarray, sampling_rate: int) -> dict[str, float]:
        """Mean opinion scores of a mono waveform, float32 of shape (samples,), by the name of their scale."""
        ...


def prepare_waveform(waveform: np.ndarray, sampling_rate: int) -> np.ndarray:
    """Checks a mono waveform of shape (samples,) and resamples it to 16 kHz float32.

    Raises ValueError for another number of dimensions, samples that are not finite, or a rate that is not positive.
    """
    waveform = np.asarray(waveform, dtype=np.float32)
    if waveform.ndim != 1:
        raise ValueError(
            f"Expected a mono waveform of shape (samples,), got shape {waveform.shape}; mix it down first."
        )
    if sampling_rate <= 0:
        raise ValueError(f"The sampling rate must be positive, got {sampling_rate}.")
    if not np.isfinite(waveform).all():
        raise ValueError("The waveform has samples that are NaN or infinite; check what wrote it.")
    if sampling_rate != JUDGE_SAMPLING_RATE and waveform.size:
        import soxr

        waveform = soxr.resample(waveform, sampling_rate, JUDGE_SAMPLING_RATE)
    return np.ascontiguousarray(waveform, dtype=np.float32)


def require(module: str, package: str, purpose: str) -> Any:
    """Imports an optional module, or says which package to install. A broken installation is reported as such."""
    try:
        return import_module(module)
    except ImportError as error:
        if isinstance(error, ModuleNotFoundError) and error.name == module.partition(".")[0]:
            raise ImportError(f"{purpose} needs the package {package}: pip install {package}") from error
        raise ImportError(
            f"{purpose} needs the package {package}, which is installed but cannot be imported ({error}). "
            f"Install what it misses, or reinstall it with its dependencies: pip install --force-reinstall {package}"
        ) from error


def package_versions(*packages: str) -> str:
    """The installed versions, as "faster-whisper 1.2.1, ctranslate2 4.6.0"; "?" where a package does not tell."""
    parts = []
    for package in packages:
        try:
            parts.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            parts.append(f"{package} ?")
    return ", ".join(parts)


def hub_version(name: str, config: Any) -> str:
    """The version of a transformers model: its commit on the Hub, or "local folder", and that of transformers."""
    commit = getattr(config, "_commit_hash", None)
    return f"{'commit ' + commit[:12] if commit else 'local folder ' + name}, {package_versions('transformers')}"
