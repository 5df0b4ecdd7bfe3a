"""Training objectives of the vocoder: spectral losses, and discriminators with their adversarial losses."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from .audio_features import MelSpec, MelSpectrogram

Features = list[torch.Tensor]
Adversarial = Literal["lsgan", "hinge"]


def complex_spectrogram(waveform: torch.Tensor, n_fft: int, hop_length: int) -> torch.Tensor:
    """Waveform (B, L) -> Hann-windowed complex spectrogram (B, n_fft / 2 + 1, frames), zero-padded at both ends."""
    window = torch.hann_window(n_fft, device=waveform.device)
    return torch.stft(
        waveform.float(), n_fft, hop_length, window=window, center=True, pad_mode="constant", return_complex=True
    )


class SpectralLoss(nn.Module):
    """Multi-resolution STFT loss and mel L1 between two batches of waveforms.

    Small windows matter as much as large ones: without them nothing ties the phases of neighbouring harmonics
    together, and voiced speech turns hoarse.
    """

    def __init__(self, spec: MelSpec, fft_sizes: Sequence[int] = (128, 256, 512, 1024, 2048)) -> None:
        super().__init__()
        self.mel_spectrogram = MelSpectrogram(spec)
        self.fft_sizes = tuple(fft_sizes)

    def forward(self, prediction: torch.Tensor, target: torch.Tensor) -> dict[str, torch.Tensor]:
        """Waveforms (B, L) with L a multiple of the mel hop -> scalars log_magnitude, convergence and mel.

        log_magnitude: mean absolute difference of natural-log magnitudes, averaged over resolutions; convergence:
        norm of the magnitude difference relative to the target's norm, likewise; mel: mean absolute difference of
        natural-log mels.
        """
        log_magnitude, convergence = [], []
        for n_fft in self.fft_sizes:
            ours = self._magnitude(prediction, n_fft)
            theirs = self._magnitude(target, n_fft)
            log_magnitude.append(F.l1_loss(ours.log(), theirs.log()))
            convergence.append((theirs - ours).norm() / theirs.norm())
        return {
            "log_magnitude": torch.stack(log_magnitude).mean(),
            "convergence": torch.stack(convergence).mean(),
            "mel": F.l1_loss(self.mel_spectrogram(prediction), self.mel_spectrogram(target)),
        }

    @staticmethod
    def _magnitude(waveform: torch.Tensor, n_fft: int) -> torch.Tensor:
        spectrum = torch.view_as_real(complex_spectrogram(waveform, n_fft, n_fft // 4))
        # The floor grows with the window as noise does (about -90 dB full scale): log ratios below it are inaudible.
        return spectrum.square().sum(-1).add(1e-8 * n_fft / 4).sqrt()


class PeriodDiscriminator(nn.Module):
    """Judges a waveform folded at one period. Folded columns go to the batch, so plain 1-D convolutions do."""

    def __init__(self, period: int, channels: Sequence[int]) -> None:
        super().__init__()
        self.period = period
        sizes = [1, *channels]
        self.convolutions = nn.ModuleList(
            weight_norm(nn.Conv1d(sizes[i], sizes[i + 1], 5, stride=3, padding=2)) for i in range(len(channels))
        )
        self.output = weight_norm(nn.Conv1d(sizes[-1], 1, 3, padding=1))

    def forward(self, waveform: torch.Tensor) -> tuple[torch.Tensor, Features]:
        """(B, L) -> scores and the feature maps below them."""
        waveform = F.pad(waveform, (0, -waveform.shape[-1] % self.period))
        hidden = waveform.unflatten(-1, (-1, self.period)).transpose(1, 2).flatten(0, 1)[:, None]
        features = []
        for convolution in self.convolutions:
            hidden = F.leaky_relu(convolution(hidden), 0.1)
            features.append(hidden)
        return self.output(hidden), features


class SpectrogramDiscriminator(nn.Module):
    """Judges the complex spectrogram of a waveform at one resolution."""

    def __init__(self, n_fft: int, channels: Sequence[int]) -> None:
        super().__init__()
        self.n_fft = n_fft
        sizes = [2, *channels]
        self.convolutions = nn.ModuleList(
            weight_norm(nn.Conv2d(sizes[i], sizes[i + 1], (7, 3), stride=(3, 1), padding=(3, 1)))
            for i in range(len(channels))
        )
        self.output = weight_norm(nn.Conv2d(sizes[-1], 1, 3, padding=1))

    def forward(self, waveform: torch.Tensor) -> tuple[torch.Tensor, Features]:
        """(B, L) -> scores and the feature maps below them."""
        spectrum = complex_spectrogram(waveform, self.n_fft, self.n_fft // 4)
        # Compressing the magnitude (power 0.3, phase kept) lets the quiet upper bands count.
        scale = (spectrum.real.square() + spectrum.imag.square() + 1e-6).pow(-0.35)
        hidden = torch.stack([spectrum.real * scale, spectrum.imag * scale], dim=1)
        features = []
        for convolution in self.convolutions:
            hidden = F.leaky_relu(convolution(hidden), 0.1)
            features.append(hidden)
        return self.output(hidden), features


class VocoderDiscriminator(nn.Module):
    """A set of period and spectrogram discriminators.

    Args:
        periods: folding periods in samples; empty for none.
        period_channels: channels of the layers of each of them.
        fft_sizes: windows in samples of the spectrogram discriminators; empty for none.
        spectrogram_channels: channels of the layers of each of them.
    """

    def __init__(
        self,
        periods: Sequence[int] = (2, 3, 5, 7, 11),
        period_channels: Sequence[int] = (16, 32, 64, 64),
        fft_sizes: Sequence[int] = (256, 512, 1024),
        spectrogram_channels: Sequence[int] = (8, 16, 16, 16),
    ) -> None:
        super().__init__()
        parts = [PeriodDiscriminator(period, period_channels) for period in periods]
        parts += [SpectrogramDiscriminator(n_fft, spectrogram_channels) for n_fft in fft_sizes]
        if not parts:
            raise ValueError("A discriminator needs at least one entry in periods or fft_sizes.")
        self.parts = nn.ModuleList(parts)

    def forward(self, waveform: torch.Tensor) -> list[tuple[torch.Tensor, Features]]:
        """(B, L) -> for every part its scores and feature maps."""
        return [part(waveform) for part in self.parts]


def discriminator_loss(
    real: list[tuple[torch.Tensor, Features]], fake: list[tuple[torch.Tensor, Features]], kind: Adversarial = "lsgan"
) -> torch.Tensor:
    """The discriminator's scalar loss, averaged over its parts. Raises ValueError for an unknown kind."""
    losses = []
    for (real_scores, _), (fake_scores, _) in zip(real, fake, strict=True):
        if kind == "lsgan":
            losses.append((1 - real_scores).square().mean() + fake_scores.square().mean())
        elif kind == "hinge":
            losses.append(F.relu(1 - real_scores).mean() + F.relu(1 + fake_scores).mean())
        else:
            raise ValueError(f"Unknown adversarial loss {kind!r}; use 'lsgan' or 'hinge'.")
    return torch.stack(losses).mean()


def generator_losses(
    real: list[tuple[torch.Tensor, Features]], fake: list[tuple[torch.Tensor, Features]], kind: Adversarial = "lsgan"
) -> dict[str, torch.Tensor]:
    """The vocoder's scalar losses adversarial and feature_matching, averaged over the discriminator's parts.

    Feature matching is relative to the mean size of the real features, so layers of any scale count alike. Raises
    ValueError for an unknown kind.
    """
    adversarial, matching = [], []
    for (_, real_features), (fake_scores, fake_features) in zip(real, fake, strict=True):
        if kind == "lsgan":
            adversarial.append((1 - fake_scores).square().mean())
        elif kind == "hinge":
            adversarial.append(-fake_scores.mean())
        else:
            raise ValueError(f"Unknown adversarial loss {kind!r}; use 'lsgan' or 'hinge'.")
        for ours, theirs in zip(fake_features, real_features, strict=True):
            theirs = theirs.detach()
            matching.append(F.l1_loss(ours, theirs) / theirs.abs().mean().clamp_min(1e-6))
    return {"adversarial": torch.stack(adversarial).mean(), "feature_matching": torch.stack(matching).mean()}
