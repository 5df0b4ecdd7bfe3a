"""Recordings to log-mel features: resampled, checked, and padded to whole speech tokens."""

from collections.abc import Mapping
from functools import lru_cache
from os import PathLike
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature, SequenceFeatureExtractor

from .audio_features import MelSpec, MelSpectrogram, padded_length

# An array with two dimensions is one clip with several channels if one of the dimensions is at most this.
_MAX_CHANNELS = 8


@lru_cache(maxsize=8)
def _spectrogram(spec: MelSpec) -> MelSpectrogram:
    return MelSpectrogram(spec)


class TextToSpeechFeatureExtractor(SequenceFeatureExtractor):
    r"""
    Turns recordings of any rate into the log-mel features of the models.

    An utterance of L samples (at the rate of `mel`) becomes ceil(L / samples_per_token) * frames_per_token frames,
    whatever it is batched with; frames after its end are 0 and masked.

    mel (`dict`, *optional*): the features (fields of `MelSpec`).
    frames_per_token (`int`): mel frames in a speech token.
    min_seconds, max_seconds (`float`): clips outside are refused.
    silence_peak (`float`): clips whose largest absolute sample is below are refused as silent (full scale is 1).
    """

    model_input_names = ["input_features", "feature_mask"]  # noqa: RUF012 - transformers reads a list

    def __init__(
        self,
        mel: dict | None = None,
        frames_per_token: int = 2,
        min_seconds: float = 0.4,
        max_seconds: float = 30.0,
        silence_peak: float = 1e-4,
        **kwargs: Any,
    ) -> None:
        spec = MelSpec.from_dict(mel)
        for name, value in (
            ("feature_size", spec.num_mel_bins),
            ("sampling_rate", spec.sampling_rate),
            ("padding_value", 0.0),
        ):
            if kwargs.pop(name, value) != value:
                raise ValueError(f"{name} follows from the mel settings and must be {value}; change `mel` instead.")
        if frames_per_token < 1:
            raise ValueError(f"frames_per_token must be at least 1, got {frames_per_token}.")
        if not 0 < min_seconds < max_seconds:
            raise ValueError(f"Need 0 < min_seconds < max_seconds, got {min_seconds} and {max_seconds}.")
        super().__init__(feature_size=spec.num_mel_bins, sampling_rate=spec.sampling_rate, padding_value=0.0, **kwargs)
        self.mel = spec.to_dict()
        self.frames_per_token = frames_per_token
        self.min_seconds = min_seconds
        self.max_seconds = max_seconds
        self.silence_peak = silence_peak

    @property
    def spec(self) -> MelSpec:
        return MelSpec.from_dict(self.mel)

    @property
    def samples_per_token(self) -> int:
        return self.spec.hop_length * self.frames_per_token

    def prepare_waveform(self, audio: Any, sampling_rate: int | None) -> torch.Tensor:
        """One clip -> mono float32 waveform (samples,) at the rate of `mel`, zero-padded to whole speech tokens.

        audio: numpy array, tensor or list of samples; (samples,), (channels, samples) or (samples, channels). Integer
        samples are scaled to -1 .. 1.

        Raises ValueError for a missing or wrong sampling_rate, wrong shapes, non-finite samples, silence, and clips
        that are too short or too long.
        """
        first = audio[0] if isinstance(audio, list | tuple) and len(audio) else audio
        if isinstance(first, str | bytes | bytearray | PathLike | Mapping) or hasattr(first, "read"):
            raise ValueError(
                "Expected samples (array, tensor or list of numbers) with their sampling_rate, got "
                f"{type(first).__name__}: read files first, with soundfile.read say. The pipeline takes a path, an "
                "array or {array, sampling_rate}."
            )
        if sampling_rate is None:
            raise ValueError(
                "Pass the sampling_rate (Hz) of the audio, for example the second value that soundfile.read returns; "
                f"it is resampled to {self.sampling_rate} Hz."
            )
        if not sampling_rate > 0:
            raise ValueError(f"sampling_rate must be a positive number of Hz, got {sampling_rate}.")
        samples = _mono(audio)
        if not np.isfinite(samples).all():
            raise ValueError("The audio contains samples that are not finite (nan or inf); repair or drop the clip.")
        seconds = len(samples) / sampling_rate
        if seconds < self.min_seconds:
            raise ValueError(f"The clip is too short: {seconds:.2f} s, at least {self.min_seconds} s are needed.")
        if seconds > self.max_seconds:
            raise ValueError(f"The clip is too long: {seconds:.1f} s, at most {self.max_seconds} s; cut it.")
        if np.abs(samples).max() < self.silence_peak:
            raise ValueError(f"The clip is silent (no sample above {self.silence_peak}); pass a recording of speech.")
        if sampling_rate != self.sampling_rate:
            try:
                import soxr
            except ImportError as error:
                raise ImportError(
                    f"Resampling from {sampling_rate} to {self.sampling_rate} Hz needs soxr: pip install soxr"
                ) from error
            samples = soxr.resample(samples, sampling_rate, self.sampling_rate)
        waveform = torch.from_numpy(np.ascontiguousarray(samples, dtype=np.float32))
        target = padded_length(len(waveform), self.samples_per_token)
        return torch.nn.functional.pad(waveform, (0, target - len(waveform)))

    def __call__(self, audio: Any, sampling_rate: int | None = None, return_tensors: str | None = None) -> BatchFeature:
        """One clip or a list of clips (see `prepare_waveform`), all at `sampling_rate` Hz.

        Returns input_features (B, T_mel, num_mel_bins) float32 and feature_mask (B, T_mel) bool, as tensors or, with
        return_tensors="np", as numpy arrays.
        """
        if return_tensors not in (None, "pt", "np"):
            raise ValueError(f"return_tensors must be 'pt' or 'np', got {return_tensors!r}.")
        clips = list(audio) if _is_batch(audio) else [audio]
        if not clips:
            raise ValueError("Got an empty list of clips.")
        # One by one, so that a clip's features do not depend on the others in any bit.
        with torch.no_grad():
            mels = [_spectrogram(self.spec)(self.prepare_waveform(clip, sampling_rate)[None])[0] for clip in clips]
        features = torch.nn.utils.rnn.pad_sequence(mels, batch_first=True)
        lengths = torch.tensor([len(mel) for mel in mels])
        data = {"input_features": features, "feature_mask": torch.arange(features.shape[1])[None] < lengths[:, None]}
        return BatchFeature(data if return_tensors != "np" else {name: value.numpy() for name, value in data.items()})


def _is_batch(audio: Any) -> bool:
    """A list or tuple of clips, as opposed to one clip given as a list of numbers."""
    return isinstance(audio, list | tuple) and not (len(audio) > 0 and np.ndim(audio[0]) == 0)


def _mono(audio: Any) -> np.ndarray:
    samples = audio.detach().cpu().numpy() if isinstance(audio, torch.Tensor) else np.asarray(audio)
    if samples.size == 0:
        raise ValueError("The audio is empty: it has no samples; pass a recording of speech.")
    if np.issubdtype(samples.dtype, np.signedinteger):
        # 64 bits mean that the type was lost on the way (a list of Python integers): 16-bit samples, as in most files.
        bits = 16 if samples.dtype.itemsize == 8 else 8 * samples.dtype.itemsize
        samples = samples.astype(np.float32) / 2 ** (bits - 1)
    if not np.issubdtype(samples.dtype, np.floating):
        raise ValueError(f"Audio must be floating point or signed integer samples, got {samples.dtype}; convert it.")
    samples = samples.astype(np.float32)
    if samples.ndim == 2 and min(samples.shape) <= _MAX_CHANNELS:
        samples = samples.mean(axis=int(np.argmin(samples.shape)))
    if samples.ndim != 1:
        raise ValueError(
            f"Expected one clip (samples,) or (channels, samples), got shape {samples.shape}. "
            "Pass several clips as a list of arrays."
        )
    return samples


TextToSpeechFeatureExtractor.register_for_auto_class("AutoFeatureExtractor")
