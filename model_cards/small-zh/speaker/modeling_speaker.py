"""A small x-vector network: the SPK teacher at small scale and the voice of the flow decoder."""

from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .auto_classes import register
from .configuration_e2e_tts import SpeakerEncoderConfig


@dataclass
class SpeakerEncoderOutput(ModelOutput):
    """
    loss (`torch.Tensor`, scalar): additive-margin softmax over the training speakers; None without labels.
    embedding (`torch.Tensor` of shape (B, embedding_size)): unit vectors.
    """

    loss: torch.Tensor | None = None
    embedding: torch.Tensor | None = None


class DilatedBlock(nn.Module):
    """Residual depthwise-separable dilated convolution; layer normalisation keeps it batch-invariant."""

    def __init__(self, size: int, kernel_size: int, dilation: int) -> None:
        super().__init__()
        padding = (kernel_size - 1) // 2 * dilation
        self.norm = nn.LayerNorm(size)
        self.depthwise = nn.Conv1d(size, size, kernel_size, padding=padding, dilation=dilation, groups=size)
        self.expand = nn.Linear(size, 2 * size)
        self.contract = nn.Linear(2 * size, size)

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        residual = hidden_states
        hidden_states = self.norm(hidden_states) * mask[..., None]
        hidden_states = self.depthwise(hidden_states.transpose(1, 2)).transpose(1, 2)
        return residual + self.contract(nn.functional.gelu(self.expand(hidden_states)))


class SpeakerEncoderModel(PreTrainedModel):
    """Log-mel (B, T, n_mels) -> unit speaker embedding (B, embedding_size), mean-normalised over the utterance."""

    config_class = SpeakerEncoderConfig
    base_model_prefix = "speaker"
    main_input_name = "input_features"

    def __init__(self, config: SpeakerEncoderConfig) -> None:
        super().__init__(config)
        size = config.hidden_size
        self.project_in = nn.Linear(config.mel["num_mel_bins"], size)
        self.blocks = nn.ModuleList(
            DilatedBlock(size, config.kernel_size, 2**index) for index in range(config.num_hidden_layers)
        )
        self.norm = nn.LayerNorm(size)
        self.attention = nn.Linear(size, size)
        self.project_out = nn.Linear(2 * size, config.embedding_size)
        self.classes = None
        if config.num_speakers:
            self.classes = nn.Linear(config.embedding_size, config.num_speakers, bias=False)
        self.post_init()

    def forward(
        self,
        input_features: torch.Tensor,
        feature_mask: torch.Tensor | None = None,
        labels: torch.LongTensor | None = None,
    ) -> SpeakerEncoderOutput:
        """labels (B,): speaker classes. Raises ValueError for labels without a classification head."""
        if feature_mask is None:
            feature_mask = input_features.new_ones(input_features.shape[:2], dtype=torch.bool)
        mask = feature_mask.bool()
        valid = mask[..., None]
        features = (input_features.float() - self.config.mel_mean) / self.config.mel_std
        # Subtracting the long-term mean halves the influence of microphone and room, keeping some of the timbre.
        mean = (features * valid).sum(dim=1, keepdim=True) / valid.sum(dim=1, keepdim=True).clamp_min(1)
        hidden_states = self.project_in(((features - 0.5 * mean) * valid).to(self.project_in.weight.dtype))
        for block in self.blocks:
            hidden_states = block(hidden_states, mask)
        hidden_states = self.norm(hidden_states)
        weights = self.attention(hidden_states).float().masked_fill(~valid, -torch.inf).softmax(dim=1).to(hidden_states)
        center = (weights * hidden_states).sum(dim=1)
        spread = (weights * (hidden_states - center[:, None]).square()).sum(dim=1)
        pooled = torch.cat([center, (spread + 1e-5).sqrt()], dim=-1)
        embedding = nn.functional.normalize(self.project_out(pooled).float(), dim=-1)
        loss = None
        if labels is not None:
            if self.classes is None:
                raise ValueError("labels need a classification head: set num_speakers in the configuration.")
            cosine = embedding @ nn.functional.normalize(self.classes.weight.float(), dim=-1).T
            margin = nn.functional.one_hot(labels, self.config.num_speakers) * self.config.margin
            loss = nn.functional.cross_entropy(self.config.scale * (cosine - margin), labels)
        return SpeakerEncoderOutput(loss=loss, embedding=embedding)


register(SpeakerEncoderConfig, AutoModel=SpeakerEncoderModel)
