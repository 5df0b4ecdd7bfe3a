"""The reward model: FSQ codes, hard or soft -> recognition, speaker and emotion losses (PAPER section 2, L_RM)."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from .auto_classes import register
from .configuration_e2e_tts import RewardModelConfig
from .conformer import ConformerStack
from .modeling_speech_encoder import init_conformer_weights


def mean_of_labelled(losses: torch.Tensor, labelled: torch.Tensor) -> torch.Tensor:
    """Mean of per-utterance losses (B,) over the rows that carry a label (B,) bool; zero, with graph, if none does."""
    return (losses * labelled).sum() / labelled.sum().clamp_min(1)


@dataclass
class RewardModelOutput(ModelOutput):
    """
    loss_asr, loss_spk, loss_ser (`torch.Tensor`, scalars): means over labelled utterances; None without labels.
    ctc_logits (`torch.Tensor` of shape (B, T * ctc_upsampling, vocab)): None if the head is absent.
    speaker_embedding (`torch.Tensor` of shape (B, speaker_dim)): unit vectors.
    emotion_logits (`torch.Tensor` of shape (B, num_emotions)).
    too_short (`torch.BoolTensor` of shape (B,)): rows with fewer frames than their CTC labels need; not in the loss.
    """

    loss_asr: torch.Tensor | None = None
    loss_spk: torch.Tensor | None = None
    loss_ser: torch.Tensor | None = None
    ctc_logits: torch.Tensor | None = None
    speaker_embedding: torch.Tensor | None = None
    emotion_logits: torch.Tensor | None = None
    too_short: torch.BoolTensor | None = None


class AttentivePooling(nn.Module):
    """Masked attentive mean and standard deviation: (B, T, d), mask (B, T) -> (B, 2d)."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.score = nn.Linear(hidden_size, 1)

    def forward(self, hidden_states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        scores = self.score(hidden_states).float().masked_fill(~mask[..., None], -torch.inf)
        weights = scores.softmax(dim=1).to(hidden_states.dtype)
        mean = (weights * hidden_states).sum(dim=1)
        variance = (weights * (hidden_states - mean[:, None]).square()).sum(dim=1)
        return torch.cat([mean, (variance + 1e-5).sqrt()], dim=-1)


class RewardModel(PreTrainedModel):
    """Codes (B, T, D) -> L_ASR (CTC), L_SPK (cosine distance to a teacher's embedding) and L_SER (cross-entropy)."""

    config_class = RewardModelConfig
    base_model_prefix = "reward"
    main_input_name = "codes"
    _no_split_modules = ("ParakeetEncoderBlock",)
    _supports_sdpa = True
    supports_gradient_checkpointing = True

    def __init__(self, config: RewardModelConfig) -> None:
        super().__init__(config)
        config.encoder_config._attn_implementation = config._attn_implementation
        size = config.encoder_config.hidden_size
        self.from_code = nn.Linear(len(config.levels), size)
        self.conformer = ConformerStack(config.encoder_config, config.conv_norm)
        labels = config.ctc_vocab_size * config.ctc_upsampling
        self.ctc_head = nn.Linear(size, labels) if labels else None
        self.pooling = AttentivePooling(size) if config.speaker_dim or config.num_emotions else None
        self.speaker_head = nn.Linear(2 * size, config.speaker_dim) if config.speaker_dim else None
        self.emotion_head = nn.Linear(2 * size, config.num_emotions) if config.num_emotions else None
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        init_conformer_weights(module, self.config.encoder_config.initializer_range)

    def forward(
        self,
        codes: torch.Tensor,
        mask: torch.Tensor | None = None,
        ctc_labels: torch.LongTensor | None = None,
        speaker_target: torch.Tensor | None = None,
        emotion_labels: torch.LongTensor | None = None,
    ) -> RewardModelOutput:
        """
        codes (B, T, D): hard or soft; mask (B, T): true on valid tokens.
        ctc_labels (B, N): alphabet indices, -100 in padding; a row of -100 is unlabelled.
        speaker_target (B, speaker_dim): teacher embeddings; a row with NaN is unlabelled.
        emotion_labels (B,): classes, -100 where unlabelled.
        """
        mask = codes.new_ones(codes.shape[:2], dtype=torch.bool) if mask is None else mask.bool()
        hidden_states = self.from_code(codes.to(self.from_code.weight.dtype))
        hidden_states = self.conformer(hidden_states * mask[..., None], mask)
        output = RewardModelOutput()
        if self.ctc_head is not None:
            batch, tokens = mask.shape
            output.ctc_logits = self.ctc_head(hidden_states).view(batch, tokens * self.config.ctc_upsampling, -1)
            if ctc_labels is not None:
                frames = mask.sum(dim=1) * self.config.ctc_upsampling
                output.loss_asr, output.too_short = self._ctc_loss(output.ctc_logits, frames, ctc_labels)
        pooled = self.pooling(hidden_states, mask) if self.pooling is not None else None
        if self.speaker_head is not None:
            output.speaker_embedding = nn.functional.normalize(self.speaker_head(pooled).float(), dim=-1)
            if speaker_target is not None:
                labelled = ~speaker_target.isnan().any(dim=-1)
                target = nn.functional.normalize(speaker_target.nan_to_num().float(), dim=-1)
                distance = 1.0 - (output.speaker_embedding * target).sum(dim=-1)
                output.loss_spk = mean_of_labelled(distance, labelled)
        if self.emotion_head is not None:
            output.emotion_logits = self.emotion_head(pooled)
            if emotion_labels is not None:
                losses = nn.functional.cross_entropy(
                    output.emotion_logits.float(), emotion_labels, ignore_index=-100, reduction="none"
                )
                output.loss_ser = mean_of_labelled(losses, emotion_labels != -100)
        return output

    def _ctc_losses(
        self, logits: torch.Tensor, frames: torch.Tensor, labels: torch.LongTensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.BoolTensor]:
        """Nats a label (B,), 0 where there are none to be found, numbers of labels (B,), and which rows are too short
        for theirs."""
        valid = labels != -100
        label_lengths = valid.sum(dim=1)
        # Two equal labels in a row need a blank between them, hence one more frame.
        repeats = ((labels[:, 1:] == labels[:, :-1]) & valid[:, 1:]).sum(dim=1)
        too_short = frames < label_lengths + repeats
        losses = nn.functional.ctc_loss(
            logits.float().log_softmax(dim=-1).transpose(0, 1),
            labels.masked_fill(~valid, 0),
            frames,
            label_lengths.clamp_min(1),
            blank=0,
            reduction="none",
            zero_infinity=True,
        )
        # A row without labels has been scored as one that should say nothing.
        losses = losses.masked_fill(label_lengths == 0, 0.0)
        return losses / label_lengths.clamp_min(1), label_lengths, too_short

    def _ctc_loss(
        self, logits: torch.Tensor, frames: torch.Tensor, labels: torch.LongTensor
    ) -> tuple[torch.Tensor, torch.BoolTensor]:
        losses, label_lengths, too_short = self._ctc_losses(logits, frames, labels)
        return mean_of_labelled(losses, (label_lengths > 0) & ~too_short), too_short

    def _recognise(
        self, codes: torch.Tensor, mask: torch.Tensor | None, purpose: str
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """CTC logits (B, T * ctc_upsampling, vocab) of codes (B, T, D), and the number of frames of each row (B,)."""
        if self.ctc_head is None:
            raise ValueError(f"This reward model has no CTC head (ctc_vocab_size is 0), so it cannot {purpose}.")
        mask = codes.new_ones(codes.shape[:2], dtype=torch.bool) if mask is None else mask.bool()
        return self(codes, mask).ctc_logits, mask.sum(dim=1) * self.config.ctc_upsampling

    @torch.no_grad()
    def recognition_losses(
        self, codes: torch.Tensor, mask: torch.Tensor | None, ctc_labels: torch.LongTensor
    ) -> torch.Tensor:
        """How far speech is from saying its text: the CTC loss in nats a label (B,) of codes (B, T, D), infinite where
        the speech is too short for its labels (B, N), which are padded with -100."""
        logits, frames = self._recognise(codes, mask, "tell how well speech is understood")
        losses, _, too_short = self._ctc_losses(logits, frames, ctc_labels)
        return losses.masked_fill(too_short, torch.inf)

    @torch.no_grad()
    def compare(
        self,
        codes: torch.Tensor,
        mask: torch.Tensor,
        ctc_labels: torch.LongTensor,
        speaker_target: torch.Tensor | None,
        weights: Mapping[str, float],
    ) -> dict[str, torch.Tensor]:
        """The losses named in weights ("asr", "spk") of each utterance by itself (B,), arguments as in forward, and
        "all", their weighted sum: infinite where speech is too short for its labels."""
        output = self(codes, mask)
        losses = {}
        if weights.get("asr"):
            frames = mask.sum(dim=1) * self.config.ctc_upsampling
            losses["asr"], _, too_short = self._ctc_losses(output.ctc_logits, frames, ctc_labels)
        if weights.get("spk"):
            target = nn.functional.normalize(speaker_target.float(), dim=-1)
            losses["spk"] = 1.0 - (output.speaker_embedding * target).sum(dim=-1)
        losses["all"] = sum(weights[name] * value for name, value in losses.items())
        if "asr" in losses:
            losses["all"] = losses["all"].masked_fill(too_short, torch.inf)
        return losses

    @torch.no_grad()
    def transcribe(self, codes: torch.Tensor, mask: torch.Tensor | None = None) -> list[list[int]]:
        """Greedy CTC decoding: codes (B, T, D) -> alphabet indices of each utterance, blanks and repeats removed."""
        logits, frames = self._recognise(codes, mask, "transcribe")
        return [
            [label for label in torch.unique_consecutive(row[:count]).tolist() if label]
            for row, count in zip(logits.argmax(dim=-1), frames.tolist(), strict=True)
        ]


register(RewardModelConfig, AutoModel=RewardModel)
