"""The vocoder: log-mel frames to a waveform of exactly hop_length samples a frame, alone or padded in a batch."""

import torch
import transformers.initialization as init
from torch import nn
from torch.nn import functional as F
from transformers import PreTrainedModel, SpeechT5HifiGan

from .audio_features import MelSpec
from .auto_classes import register
from .configuration_vocoder import VocoderConfig
from .griffin_lim import analyse, griffin_lim_spectrum, overlap_add


class ConvNeXtBlock(nn.Module):
    """Depthwise convolution over time and a pointwise MLP on a residual branch; (B, T, C) -> (B, T, C)."""

    def __init__(self, size: int, intermediate_size: int, kernel_size: int, num_layers: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv1d(size, size, kernel_size, padding=(kernel_size - 1) // 2, groups=size)
        self.norm = nn.LayerNorm(size, eps=1e-6)
        self.expand = nn.Linear(size, intermediate_size)
        self.reduce = nn.Linear(intermediate_size, size)
        self.num_layers = num_layers
        self.branch_scale = nn.Parameter(torch.full((size,), 1.0 / num_layers))

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        branch = hidden if mask is None else hidden * mask
        branch = self.depthwise(branch.transpose(1, 2)).transpose(1, 2)
        branch = self.reduce(F.gelu(self.expand(self.norm(branch))))
        return hidden + self.branch_scale * branch


class WaveformRefiner(nn.Module):
    """A second pass over a waveform, in short frames that follow every period of a voice.

    The first pass decides at the mel's frame rate, of which a frame holds several periods: what goes wrong between
    these sounds rough. Here every frame of `refine_hop_length` is corrected in magnitude and phase by what its
    neighbours and the first pass's hidden states say. Untrained, it gives the waveform back as it is.
    """

    def __init__(self, config: VocoderConfig) -> None:
        super().__init__()
        size = config.refine_size
        self.n_fft, self.hop_length = config.refine_n_fft, config.refine_hop_length
        self.frames_per_mel_frame = config.hop_length // config.refine_hop_length
        self.max_log_magnitude = config.max_log_magnitude
        self.embed = nn.Linear(self.n_fft + 2, size)
        self.embed_hidden = nn.Linear(config.hidden_size, size)
        self.embed_norm = nn.LayerNorm(size, eps=1e-6)
        self.blocks = nn.ModuleList(
            ConvNeXtBlock(size, 3 * size, config.kernel_size, config.refine_layers) for _ in range(config.refine_layers)
        )
        self.final_norm = nn.LayerNorm(size, eps=1e-6)
        self.head = nn.Linear(size, self.n_fft + 2)

    def forward(self, waveform: torch.Tensor, hidden: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Waveform (B, T * mel hop) in float32, hidden states (B, T, C) and an optional (B, T) mask -> (B, T * mel
        hop)."""
        window = torch.hann_window(self.n_fft, device=waveform.device)
        if mask is not None:
            mask = mask.repeat_interleave(self.frames_per_mel_frame, dim=1)
        spectrum = analyse(waveform, window, self.hop_length)
        context = self.embed_hidden(hidden).repeat_interleave(self.frames_per_mel_frame, dim=1)
        refined = self.embed_norm(self.embed(_compressed(spectrum).to(hidden.dtype)) + context)
        for block in self.blocks:
            refined = block(refined, None if mask is None else mask[..., None].to(hidden.dtype))
        log_gain, turn = self.head(self.final_norm(refined)).float().chunk(2, dim=-1)
        spectrum = spectrum * torch.polar(log_gain.clamp(max=self.max_log_magnitude).exp(), turn)
        return overlap_add(torch.fft.irfft(spectrum, n=self.n_fft, dim=-1), window, self.hop_length, mask)


class SpectralVocoder(nn.Module):
    """ConvNeXt backbone at the mel's frame rate, then magnitude and phase of short frames, then overlap-add.

    With a phase prior the network sees the Griffin-Lim spectrum of these frames and predicts its correction; without
    one it predicts the spectrum itself. Absolute phase is hard for a convolutional network at a hop of 20 ms, where
    tones turn many times between frames, so the prior saves most of the training.
    """

    def __init__(self, config: VocoderConfig) -> None:
        super().__init__()
        size = config.hidden_size
        self.mel_spec = MelSpec.from_dict(config.mel)
        self.n_fft = config.istft_n_fft
        self.hop_length = config.istft_hop_length
        self.frames_per_mel_frame = config.frames_per_mel_frame
        self.max_log_magnitude = config.max_log_magnitude
        self.phase_prior_iterations = config.phase_prior_iterations
        self.embed = nn.Conv1d(
            config.mel["num_mel_bins"], size, config.kernel_size, padding=(config.kernel_size - 1) // 2
        )
        if self.phase_prior_iterations:
            self.embed_prior = nn.Linear(self.frames_per_mel_frame * (self.n_fft + 2), size)
        self.embed_norm = nn.LayerNorm(size, eps=1e-6)
        self.blocks = nn.ModuleList(
            ConvNeXtBlock(size, config.intermediate_size, config.kernel_size, config.num_layers)
            for _ in range(config.num_layers)
        )
        self.final_norm = nn.LayerNorm(size, eps=1e-6)
        self.head = nn.Linear(size, self.frames_per_mel_frame * (self.n_fft + 2))
        self.refiner = WaveformRefiner(config) if config.refine_layers else None

    def forward(self, mel: torch.Tensor, mask: torch.Tensor | None, first_frame: int = 0) -> torch.Tensor:
        """(B, T, n_mels) and an optional (B, T) mask -> (B, T * mel hop), zero where masked."""
        mel = mel.to(self.embed.weight.dtype)
        frame_mask = None if mask is None else mask[..., None].to(mel.dtype)
        if frame_mask is not None:
            mel = mel * frame_mask
        hidden = self.embed(mel.transpose(1, 2)).transpose(1, 2)
        prior = None
        if self.phase_prior_iterations:
            prior = griffin_lim_spectrum(
                mel, self.mel_spec, self.n_fft, self.phase_prior_iterations, mask, first_frame, self.hop_length
            )
            frames = _compressed(prior).to(mel.dtype).unflatten(1, (-1, self.frames_per_mel_frame))
            hidden = hidden + self.embed_prior(frames.flatten(2))
        hidden = self.embed_norm(hidden)
        for block in self.blocks:
            hidden = block(hidden, frame_mask)
        # FFTs exist in single precision only on most devices.
        hidden = self.final_norm(hidden)
        prediction = self.head(hidden).float().unflatten(-1, (self.frames_per_mel_frame, -1))
        log_magnitude, phase = prediction.flatten(1, 2).chunk(2, dim=-1)
        # The phase angle itself is never compared with a target, so it needs no wrapping: cos and sin do that.
        spectrum = torch.polar(log_magnitude.clamp(max=self.max_log_magnitude).exp(), phase)
        if prior is not None:
            spectrum = spectrum * prior
        frames_mask = None if mask is None else mask.repeat_interleave(self.frames_per_mel_frame, dim=1)
        # The window is rebuilt, not a buffer: buffers that are not saved load as garbage.
        window = torch.hann_window(self.n_fft, device=mel.device)
        frames = torch.fft.irfft(spectrum, n=self.n_fft, dim=-1)
        waveform = overlap_add(frames, window, self.hop_length, frames_mask)
        if self.refiner is not None:
            waveform = self.refiner(waveform, hidden, mask)
        return waveform.to(mel.dtype)


def _compressed(spectrum: torch.Tensor) -> torch.Tensor:
    """Complex (B, N, F) -> real and imaginary parts (B, N, 2 F) with magnitudes to the power 0.3, phases kept."""
    scale = (spectrum.real.square() + spectrum.imag.square() + 1e-8).pow(-0.35)
    return torch.cat([spectrum.real * scale, spectrum.imag * scale], dim=-1)


class TimeDomainVocoder(nn.Module):
    """transformers' HiFi-GAN generator, run with padding silenced before every convolution."""

    def __init__(self, config: VocoderConfig) -> None:
        super().__init__()
        self.generator = SpeechT5HifiGan(config.hifigan_config())

    def forward(self, mel: torch.Tensor, mask: torch.Tensor | None, first_frame: int = 0) -> torch.Tensor:
        """(B, T, n_mels) and an optional (B, T) mask -> (B, T * mel hop), zero where masked; convolutions do not ask
        where in its utterance the mel begins."""
        generator = self.generator
        mel = mel.to(generator.conv_pre.weight.dtype)
        if mask is None:
            return generator(mel)
        slope = generator.config.leaky_relu_slope
        mask = mask[:, None].to(mel.dtype)
        hidden = generator.conv_pre(mel.transpose(1, 2) * mask)
        for stage, upsample in enumerate(generator.upsampler):
            # A leaky ReLU keeps zeros, so masking may come before or after it.
            hidden = upsample(F.leaky_relu(hidden, slope) * mask)
            mask = mask.repeat_interleave(upsample.stride[0], dim=-1)
            blocks = generator.resblocks[stage * generator.num_kernels : (stage + 1) * generator.num_kernels]
            hidden = sum(self._residual_block(block, hidden, mask) for block in blocks) / generator.num_kernels
        waveform = torch.tanh(generator.conv_post(F.leaky_relu(hidden) * mask))
        return (waveform * mask).squeeze(1)

    @staticmethod
    def _residual_block(block: nn.Module, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        for first, second in zip(block.convs1, block.convs2, strict=True):
            branch = first(F.leaky_relu(hidden, block.leaky_relu_slope) * mask)
            hidden = hidden + second(F.leaky_relu(branch, block.leaky_relu_slope) * mask)
        return hidden


class VocoderModel(PreTrainedModel):
    """Log-mel to waveform behind one interface for both architectures of `VocoderConfig`."""

    config_class = VocoderConfig
    base_model_prefix = "vocoder"
    main_input_name = "mel"

    def __init__(self, config: VocoderConfig) -> None:
        super().__init__(config)
        config.check_settings()  # again: what from_pretrained is given beside the folder is set without checks
        self.vocoder = SpectralVocoder(config) if config.architecture == "istft" else TimeDomainVocoder(config)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear | nn.Conv1d | nn.ConvTranspose1d):
            init.trunc_normal_(module.weight, std=self.config.initializer_range)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, ConvNeXtBlock):
            init.constant_(module.branch_scale, 1.0 / module.num_layers)
        refiner = getattr(self.vocoder, "refiner", None)
        if refiner is not None and module is refiner.head:
            init.zeros_(module.weight)

    def forward(self, mel: torch.Tensor, mask: torch.Tensor | None = None, first_frame: int = 0) -> torch.Tensor:
        """Synthesises a waveform.

        Args:
            mel: natural-log mel (B, T, num_mel_bins) as `MelSpectrogram(MelSpec.from_dict(config.mel))` gives it.
            mask: (B, T) boolean, true on valid frames; padding comes last. Without it every frame is valid.
            first_frame: where in its utterance the mel begins. Parts synthesised apart then fit together, where they
                have the frames around them in common.

        Returns:
            The waveform (B, T * hop_length) at `config.sampling_rate`, nominally in [-1, 1]; exactly zero in padding.

        Raises:
            ValueError: if a shape does not fit the configuration.
        """
        bins = self.config.mel["num_mel_bins"]
        if mel.dim() != 3 or mel.shape[-1] != bins:
            raise ValueError(f"Expected a mel (batch, frames, {bins}), got shape {tuple(mel.shape)}.")
        if mask is not None and mask.shape != mel.shape[:2]:
            raise ValueError(f"Expected a mask of shape {tuple(mel.shape[:2])} like the mel, got {tuple(mask.shape)}.")
        return self.vocoder(mel, None if mask is None else mask.bool(), first_frame)


register(VocoderConfig, AutoModel=VocoderModel)
