"""The speech tokenizer: log-mel -> Conformer -> FSQ -> codes and ids (PAPER section 2)."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.models.parakeet.modeling_parakeet import (
    ParakeetEncoderAttention,
    ParakeetEncoderRelPositionalEncoding,
)
from transformers.utils import ModelOutput

from .audio_features import MelSpec, MelSpectrogram, length_mask, padded_length
from .auto_classes import register
from .configuration_e2e_tts import SpeechEncoderConfig
from .conformer import ConformerStack, Subsampling
from .fsq import FiniteScalarQuantizer


def init_conformer_weights(module: nn.Module, std: float) -> None:
    """What Parakeet's own `_init_weights` adds to the generic initialisation, and the FSQ grid."""
    if isinstance(module, ParakeetEncoderAttention):
        init.normal_(module.bias_u, mean=0.0, std=std)
        init.normal_(module.bias_v, mean=0.0, std=std)
    elif isinstance(module, ParakeetEncoderRelPositionalEncoding):
        init.copy_(module.inv_freq, module.compute_default_relative_positional_parameters(module.config))
    elif isinstance(module, FiniteScalarQuantizer):
        module.fill_buffers()


@dataclass
class SpeechEncoderOutput(ModelOutput):
    """
    codes (`torch.Tensor` of shape (B, T, D)): FSQ code vectors with a straight-through gradient.
    ids (`torch.LongTensor` of shape (B, T)): their indices; 0 in padding, see `mask`.
    mask (`torch.BoolTensor` of shape (B, T)): true on tokens of the utterance.
    """

    codes: torch.Tensor | None = None
    ids: torch.LongTensor | None = None
    mask: torch.BoolTensor | None = None


class SpeechEncoderModel(PreTrainedModel):
    """Speech -> discrete codes. Features are (B, T_mel, n_mels) with T_mel a multiple of `frames_per_token`."""

    config_class = SpeechEncoderConfig
    base_model_prefix = "encoder"
    main_input_name = "input_features"
    _no_split_modules = ("ParakeetEncoderBlock",)
    _supports_sdpa = True
    supports_gradient_checkpointing = True

    def __init__(self, config: SpeechEncoderConfig) -> None:
        super().__init__(config)
        encoder = config.encoder_config
        encoder._attn_implementation = config._attn_implementation
        self.subsampling = Subsampling(encoder, config.subsampling_time_strides)
        self.conformer = ConformerStack(encoder, config.conv_norm)
        self.to_code = nn.Linear(encoder.hidden_size, len(config.levels))
        self.quantizer = FiniteScalarQuantizer(config.levels, config.bounding)
        self.input_scale = encoder.hidden_size**0.5 if encoder.scale_input else 1.0
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        init_conformer_weights(module, self.config.encoder_config.initializer_range)
        if module is self.to_code:
            # Spread the first codes over the grid: at the generic small scale all would fall on the middle level.
            init.normal_(module.weight, mean=0.0, std=module.in_features**-0.5)

    @property
    def samples_per_token(self) -> int:
        return self.config.mel["hop_length"] * self.config.frames_per_token

    def normalise(self, features: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Features (B, T_mel, n_mels) and mask (B, T_mel, 1) -> normalised features, zero in padding."""
        features = features.float()  # sums over an utterance overflow in float16
        if self.config.mel_normalization == "fixed":
            return (features - self.config.mel_mean) / self.config.mel_std * mask
        frames = mask.sum(dim=1, keepdim=True)
        centred = (features - (features * mask).sum(dim=1, keepdim=True) / frames.clamp_min(1)) * mask
        variance = centred.square().sum(dim=1, keepdim=True) / (frames - 1).clamp_min(1)
        return centred / (variance.sqrt() + 1e-5)

    def forward(self, input_features: torch.Tensor, feature_mask: torch.Tensor | None = None) -> SpeechEncoderOutput:
        """Features (B, T_mel, n_mels), optional mask (B, T_mel) -> codes (B, T_mel / frames_per_token, D)."""
        frames = self.config.frames_per_token
        if input_features.dim() != 3 or input_features.shape[1] % frames:
            raise ValueError(
                f"input_features must be (batch, frames, mels) with frames a multiple of {frames}, got "
                f"{tuple(input_features.shape)}; pad the waveform to a multiple of {self.samples_per_token} samples."
            )
        if feature_mask is None:
            feature_mask = input_features.new_ones(input_features.shape[:2], dtype=torch.bool)
        feature_mask = feature_mask.bool()
        features = self.normalise(input_features, feature_mask[..., None]).to(self.to_code.weight.dtype)
        mask = feature_mask[:, ::frames]
        hidden_states = self.subsampling(features, feature_mask) * self.input_scale
        hidden_states = self.conformer(hidden_states, mask)
        codes, ids = self.quantizer(self.to_code(hidden_states))
        return SpeechEncoderOutput(codes=codes * mask[..., None], ids=ids * mask, mask=mask)

    @torch.no_grad()
    def encode(self, audio: torch.Tensor, lengths: torch.Tensor | None = None) -> SpeechEncoderOutput:
        """Waveform (B, samples) at the configured rate, or features (B, T_mel, n_mels) -> codes, ids, mask.

        lengths (B,) counts valid samples or frames; without it every row is taken whole. Waveforms, floating point in
        [-1, 1], are padded with zeros to whole tokens.

        Raises ValueError for integers, whose scale is not known.
        """
        if not audio.is_floating_point():
            raise ValueError(
                f"A waveform is floating point in [-1, 1], got {audio.dtype}: divide by the largest value of its type, "
                "or take the processor's features."
            )
        spec = MelSpec.from_dict(self.config.mel)
        if audio.dim() == 2:
            if lengths is None:
                lengths = torch.full((audio.shape[0],), audio.shape[1], device=audio.device)
            valid = length_mask(lengths, audio.shape[1])
            audio = nn.functional.pad(
                audio * valid, (0, padded_length(audio.shape[1], self.samples_per_token) - audio.shape[1])
            )
            audio = MelSpectrogram(spec).to(audio.device)(audio)
            lengths = -(-lengths // self.samples_per_token) * self.config.frames_per_token
        mask = None if lengths is None else length_mask(lengths, audio.shape[1])
        return self(audio, mask)


register(SpeechEncoderConfig, AutoModel=SpeechEncoderModel)
