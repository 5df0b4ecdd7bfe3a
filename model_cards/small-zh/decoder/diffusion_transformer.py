"""Blocks of the diffusion transformer: masked convolutions, rotary attention, adaptive layer normalisation."""

import math

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer


def rotary_tables(length: int, head_dim: int, theta: float, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines (length, head_dim / 2) of the rotary position embedding."""
    frequencies = theta ** (-torch.arange(0, head_dim, 2, device=device, dtype=torch.float32) / head_dim)
    angles = torch.arange(length, device=device, dtype=torch.float32)[:, None] * frequencies
    return angles.cos(), angles.sin()


def rotate(x: torch.Tensor, tables: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Rotates the halves of the last axis of x (..., T, head_dim)."""
    cos, sin = (table.to(x.dtype) for table in tables)
    first, second = x.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


class TimeEmbedding(nn.Module):
    """Flow time (B,) in [0, 1] -> embedding (B, d)."""

    def __init__(self, hidden_size: int, frequency_size: int = 128) -> None:
        super().__init__()
        self.frequency_size = frequency_size
        self.mlp = nn.Sequential(nn.Linear(frequency_size, hidden_size), nn.SiLU(), nn.Linear(hidden_size, hidden_size))

    def forward(self, time: torch.Tensor) -> torch.Tensor:
        half = self.frequency_size // 2
        frequencies = torch.exp(-math.log(10000.0) * torch.arange(half, device=time.device) / half)
        angles = 1000.0 * time.float()[:, None] * frequencies
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1).to(self.mlp[0].weight.dtype))


class MaskedConvBlock(GradientCheckpointingLayer):
    """Residual depthwise convolution and MLP on (B, T, d) that never sees padding."""

    def __init__(self, hidden_size: int, kernel_size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size)
        self.depthwise = nn.Conv1d(hidden_size, hidden_size, kernel_size, padding=kernel_size // 2, groups=hidden_size)
        self.expand = nn.Linear(hidden_size, 2 * hidden_size)
        self.contract = nn.Linear(2 * hidden_size, hidden_size)

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        update = self.norm(hidden_states) * mask[..., None]
        update = self.depthwise(update.transpose(1, 2)).transpose(1, 2)
        return hidden_states + self.contract(nn.functional.gelu(self.expand(update)))


class DiTBlock(GradientCheckpointingLayer):
    """Self-attention and a convolutional feed-forward, both scaled, shifted and gated by the time embedding."""

    def __init__(self, hidden_size: int, num_heads: int, intermediate_size: int, kernel_size: int, dropout: float):
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.modulation = nn.Linear(hidden_size, 6 * hidden_size)
        self.norm_attention = nn.LayerNorm(hidden_size, elementwise_affine=False)
        self.qkv = nn.Linear(hidden_size, 3 * hidden_size)
        self.attention_out = nn.Linear(hidden_size, hidden_size)
        self.norm_feed_forward = nn.LayerNorm(hidden_size, elementwise_affine=False)
        self.depthwise = nn.Conv1d(hidden_size, hidden_size, kernel_size, padding=kernel_size // 2, groups=hidden_size)
        self.expand = nn.Linear(hidden_size, intermediate_size)
        self.contract = nn.Linear(intermediate_size, hidden_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        embedding: torch.Tensor,
        mask: torch.Tensor,
        attention_mask: torch.Tensor,
        tables: tuple[torch.Tensor, torch.Tensor],
    ) -> torch.Tensor:
        modulation = self.modulation(nn.functional.silu(embedding))[:, None]
        shift_a, scale_a, gate_a, shift_f, scale_f, gate_f = modulation.chunk(6, dim=-1)
        batch, length, size = hidden_states.shape
        update = self.norm_attention(hidden_states) * (1 + scale_a) + shift_a
        qkv = self.qkv(update).view(batch, length, 3, self.num_heads, size // self.num_heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        update = nn.functional.scaled_dot_product_attention(
            rotate(query, tables),
            rotate(key, tables),
            value,
            attn_mask=attention_mask,
            dropout_p=self.dropout if self.training else 0.0,
        )
        update = self.attention_out(update.transpose(1, 2).reshape(batch, length, size))
        hidden_states = hidden_states + gate_a * update
        update = (self.norm_feed_forward(hidden_states) * (1 + scale_f) + shift_f) * mask[..., None]
        update = update + self.depthwise(update.transpose(1, 2)).transpose(1, 2)
        update = self.contract(nn.functional.gelu(self.expand(update), approximate="tanh"))
        return hidden_states + gate_f * nn.functional.dropout(update, self.dropout, self.training)
