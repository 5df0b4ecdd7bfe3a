"""A masked stack of transformers' Parakeet (Fast Conformer) blocks, shared by the speech tokenizer and reward model."""

import torch
from torch import nn
from transformers.models.parakeet.configuration_parakeet import ParakeetEncoderConfig
from transformers.models.parakeet.modeling_parakeet import (
    ParakeetEncoderBlock,
    ParakeetEncoderRelPositionalEncoding,
    ParakeetEncoderSubsamplingConv2D,
)


class ChannelLayerNorm(nn.LayerNorm):
    """Layer normalisation over the channels of (B, C, T), in place of batch normalisation, which would let
    the rows of a batch change each other."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return super().forward(hidden_states.transpose(1, 2)).transpose(1, 2)


class FrozenBatchNorm(nn.BatchNorm1d):
    """Batch normalisation of (B, C, T) that keeps a pretrained model's statistics, in training too.

    It computes in float32, in whatever type weights and statistics come: FSDP gathers the former in bfloat16 and keeps
    the latter as they are, which no kernel takes.
    """

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        statistics = (self.running_mean.float(), self.running_var.float())
        affine = (self.weight.float(), self.bias.float())
        normalised = nn.functional.batch_norm(hidden_states.float(), *statistics, *affine, training=False, eps=self.eps)
        return normalised.to(hidden_states.dtype)


class ConformerStack(nn.Module):
    """Hidden states (B, T, d) and mask (B, T) -> hidden states (B, T, d), zero in padding."""

    def __init__(self, config: ParakeetEncoderConfig, conv_norm: str = "layer") -> None:
        super().__init__()
        self.dropout = config.dropout
        self.positions = ParakeetEncoderRelPositionalEncoding(config)
        self.layers = nn.ModuleList(ParakeetEncoderBlock(config, index) for index in range(config.num_hidden_layers))
        norm = ChannelLayerNorm if conv_norm == "layer" else FrozenBatchNorm
        for layer in self.layers:
            layer.conv.norm = norm(config.hidden_size)

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        position_embeddings = self.positions(hidden_states[:1]).expand(hidden_states.shape[0], -1, -1)
        attention_mask = (mask[:, None, :] & mask[:, :, None])[:, None]
        hidden_states = nn.functional.dropout(hidden_states, self.dropout, self.training)
        for layer in self.layers:
            hidden_states = layer(hidden_states, attention_mask=attention_mask, position_embeddings=position_embeddings)
        return hidden_states * mask[..., None]


class Subsampling(ParakeetEncoderSubsamplingConv2D):
    """Parakeet's convolutional subsampling with a chosen stride in time; the frequency axis always halves.

    Features (B, T, n_mels), mask (B, T) -> hidden states (B, T / prod(time_strides), d).
    """

    def __init__(self, config: ParakeetEncoderConfig, time_strides: list[int]) -> None:
        super().__init__(config)
        strided = [layer for layer in self.layers if isinstance(layer, nn.Conv2d) and layer.kernel_size != (1, 1)]
        for layer, stride in zip(strided, time_strides, strict=True):
            layer.stride = (stride, config.subsampling_conv_stride)
