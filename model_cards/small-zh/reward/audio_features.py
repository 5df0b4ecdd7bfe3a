"""Log-mel features with exact lengths: L samples give L / hop_length frames, alone or padded in a batch."""

import math
from dataclasses import asdict, dataclass, fields

import torch
from torch import nn


@dataclass(frozen=True)
class MelSpec:
    """The definition of a mel spectrogram. Modules that exchange mels must agree on every field.

    Frequencies are in Hz, lengths in samples. `frames_per_second` is `sampling_rate / hop_length`.
    """

    sampling_rate: int = 16000
    n_fft: int = 1024
    win_length: int = 1024
    hop_length: int = 320
    num_mel_bins: int = 80
    f_min: float = 0.0
    f_max: float = 8000.0
    log_floor: float = 1e-5

    @property
    def frames_per_second(self) -> float:
        return self.sampling_rate / self.hop_length

    @classmethod
    def from_dict(cls, values: "dict | MelSpec | None") -> "MelSpec":
        """Builds a specification from a configuration entry. Raises ValueError for unknown keys."""
        if isinstance(values, MelSpec):
            return values
        values = dict(values or {})
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(values) - known)
        if unknown:
            raise ValueError(f"Unknown mel settings {unknown}; the known ones are {sorted(known)}.")
        return cls(**values)

    def to_dict(self) -> dict:
        return asdict(self)

    def differences(self, other: "MelSpec") -> str:
        """Names every field in which two specifications differ, with both values; empty if they agree."""
        return ", ".join(
            f"{field.name}: {getattr(self, field.name)} vs {getattr(other, field.name)}"
            for field in fields(self)
            if getattr(self, field.name) != getattr(other, field.name)
        )


def mel_filterbank(spec: MelSpec) -> torch.Tensor:
    """Slaney-scaled, area-normalised triangular filters, shape (n_fft // 2 + 1, num_mel_bins)."""
    from transformers.audio_utils import mel_filter_bank

    filters = mel_filter_bank(
        num_frequency_bins=spec.n_fft // 2 + 1,
        num_mel_filters=spec.num_mel_bins,
        min_frequency=spec.f_min,
        max_frequency=spec.f_max,
        sampling_rate=spec.sampling_rate,
        norm="slaney",
        mel_scale="slaney",
    )
    return torch.from_numpy(filters).float()


class MelSpectrogram(nn.Module):
    """Waveform (B, L) with L a multiple of `hop_length` -> natural-log mel (B, L / hop_length, num_mel_bins).

    The signal is padded with zeros on both sides by (n_fft - hop_length) / 2, so every frame is centred in its hop and
    an utterance has the same features whether it stands alone or is followed by padding zeros. It has no parameters
    and is never part of a saved model: it is rebuilt from the `MelSpec`.
    """

    def __init__(self, spec: MelSpec) -> None:
        super().__init__()
        if (spec.n_fft - spec.hop_length) % 2:
            raise ValueError(f"n_fft - hop_length must be even, got {spec.n_fft} - {spec.hop_length}.")
        self.spec = spec
        self.register_buffer("window", torch.hann_window(spec.win_length), persistent=False)
        self.register_buffer("filters", mel_filterbank(spec), persistent=False)

    def forward(self, waveform: torch.Tensor) -> torch.Tensor:
        spec = self.spec
        if waveform.dim() != 2 or waveform.shape[-1] % spec.hop_length:
            raise ValueError(
                f"Expected a waveform (batch, samples) with samples a multiple of {spec.hop_length}, "
                f"got shape {tuple(waveform.shape)}."
            )
        pad = (spec.n_fft - spec.hop_length) // 2
        waveform = nn.functional.pad(waveform.float(), (pad, pad))
        spectrum = torch.stft(
            waveform,
            spec.n_fft,
            hop_length=spec.hop_length,
            win_length=spec.win_length,
            window=self.window,
            center=False,
            return_complex=True,
        )
        # The tiny offset keeps the gradient of the magnitude finite in digital silence.
        magnitude = torch.sqrt(spectrum.real.square() + spectrum.imag.square() + 1e-9)
        mel = magnitude.transpose(1, 2) @ self.filters
        return mel.clamp_min(spec.log_floor).log()


def padded_length(samples: int, multiple: int) -> int:
    """The number of samples after padding up to a whole number of speech tokens."""
    return max(1, math.ceil(samples / multiple)) * multiple


def length_mask(lengths: torch.Tensor, max_length: int | None = None) -> torch.Tensor:
    """Lengths (B,) -> boolean mask (B, T), true on valid positions."""
    size = int(lengths.max()) if max_length is None else max_length
    return torch.arange(size, device=lengths.device)[None, :] < lengths[:, None]
