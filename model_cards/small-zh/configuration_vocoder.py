"""Configuration of the vocoder."""

import math
from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig, SpeechT5HifiGanConfig

from .audio_features import MelSpec

# A vocoder of this size for the default hop of 320 samples; transformers' own defaults fit a hop of 256.
HIFIGAN_DEFAULTS = {
    "upsample_initial_channel": 256,
    "upsample_rates": [8, 5, 4, 2],
    "upsample_kernel_sizes": [16, 11, 8, 4],
}


@strict
class VocoderConfig(PreTrainedConfig):
    r"""
    Configuration of the vocoder: natural-log mel (as `MelSpectrogram` gives it, not normalised) -> waveform.

    architecture (`str`): "istft" predicts magnitude and phase of a short-time spectrum at the frame rate, "hifigan"
        upsamples in the time domain with transformers' `SpeechT5HifiGan`.
    mel (`dict`): the features it reads (fields of `MelSpec`).
    hidden_size, num_layers, intermediate_size, kernel_size (`int`): the ConvNeXt backbone of "istft". The kernel is
        odd and counts mel frames.
    istft_n_fft (`int`): window of the synthesis in samples, a multiple of `istft_hop_length`.
    istft_hop_length (`int`, *optional*): hop of the synthesis in samples; by default that of the mel. A divisor of it
        makes the head predict several shorter frames per mel frame.
    max_log_magnitude (`float`): upper clip of the predicted log magnitude.
    phase_prior_iterations (`int`): iterations of the Griffin-Lim algorithm whose spectrum the network corrects; 0 lets
        the network predict the whole spectrum. A prior learns in a small fraction of the steps. No gradient flows
        through it. It is that of the synthesis frames, the mel interpolated between its own: at an `istft_hop_length`
        of 5 ms it is much better than at 20 ms (small-en's card has the figures), at about twice the cost.
    refine_layers (`int`): ConvNeXt layers of a second pass of "istft" over the waveform of the first, in shorter frames
        (`WaveformRefiner`); 0 for none. A trained vocoder can be given one, which then starts by changing nothing.
    refine_size, refine_n_fft, refine_hop_length (`int`): its hidden size, and window and hop in samples. The hop
        divides the mel's.
    hifigan (`dict`, *optional*): fields of `SpeechT5HifiGanConfig`; the product of `upsample_rates` is the mel's hop.

    Raises ValueError where these do not fit together.
    """

    model_type = "e2e_tts_vocoder"

    architecture: Literal["istft", "hifigan"] = "istft"
    mel: dict | None = None
    hidden_size: int = 256
    num_layers: int = 8
    intermediate_size: int = 768
    kernel_size: int = 7
    istft_n_fft: int = 1280
    istft_hop_length: int | None = None
    max_log_magnitude: float | int = 7.0
    phase_prior_iterations: int = 0
    refine_layers: int = 0
    refine_size: int = 128
    refine_n_fft: int = 320
    refine_hop_length: int = 80
    hifigan: dict | None = None
    initializer_range: float | int = 0.02

    def __post_init__(self, **kwargs):
        self.mel = MelSpec.from_dict(self.mel).to_dict()
        super().__post_init__(**kwargs)
        if self.istft_hop_length is None:
            self.istft_hop_length = self.hop_length
        if self.architecture == "hifigan":
            self.hifigan = {**HIFIGAN_DEFAULTS, **(self.hifigan or {})}
        self.check_settings()

    def check_settings(self) -> None:
        """Raises ValueError, naming the values, for settings that do not fit together."""
        if self.architecture == "istft":
            self._check_istft()
        else:
            self._check_hifigan()

    @property
    def hop_length(self) -> int:
        """Samples per mel frame."""
        return self.mel["hop_length"]

    @property
    def sampling_rate(self) -> int:
        """Hz, of the mel and of the waveform."""
        return self.mel["sampling_rate"]

    @property
    def frames_per_mel_frame(self) -> int:
        """Synthesis frames of "istft" per mel frame."""
        return self.hop_length // self.istft_hop_length

    def hifigan_config(self) -> SpeechT5HifiGanConfig:
        """The configuration of the wrapped `SpeechT5HifiGan`, reading the mel as it is."""
        settings = {
            **self.hifigan,
            "model_in_dim": self.mel["num_mel_bins"],
            "sampling_rate": self.sampling_rate,
            "normalize_before": False,
        }
        return SpeechT5HifiGanConfig(**settings)

    def _check_istft(self) -> None:
        self._check_frames("istft_n_fft", "istft_hop_length")
        if self.refine_layers:
            self._check_frames("refine_n_fft", "refine_hop_length")
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {self.kernel_size}.")

    def _check_frames(self, window: str, hop: str) -> None:
        """Raises ValueError where a window and a hop, by the names of their settings, cannot be synthesised with."""
        n_fft, hop_length = getattr(self, window), getattr(self, hop)
        if self.hop_length % hop_length:
            raise ValueError(f"{hop} {hop_length} must divide the mel's hop_length {self.hop_length}.")
        if n_fft % hop_length or (n_fft - hop_length) % 2:
            raise ValueError(
                f"{window} {n_fft} must be a multiple of {hop} {hop_length}, and their difference even, so that T "
                "frames give exactly T hops."
            )
        if n_fft < 2 * hop_length:
            raise ValueError(f"{window} {n_fft} must be at least twice {hop} {hop_length}: windows have to overlap.")

    def _check_hifigan(self) -> None:
        rates, kernels = self.hifigan["upsample_rates"], self.hifigan["upsample_kernel_sizes"]
        if math.prod(rates) != self.hop_length:
            raise ValueError(
                f"The product of hifigan upsample_rates {list(rates)} is {math.prod(rates)}, but the mel's "
                f"hop_length is {self.hop_length}: they must be equal."
            )
        if len(rates) != len(kernels) or any(k < r or (k - r) % 2 for r, k in zip(rates, kernels, strict=False)):
            raise ValueError(
                f"hifigan upsample_kernel_sizes {list(kernels)} must have one entry for each of upsample_rates "
                f"{list(rates)}, not below it and differing from it by an even number."
            )
