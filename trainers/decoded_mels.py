"""Mels as a trained decoder makes them, from which the vocoder learns beside those of recordings."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from transformers import AutoModel

from ..modeling import E2ETTSModel
from ..modeling.audio_features import MelSpec, MelSpectrogram
from ..modeling.configuration_vocoder import VocoderConfig
from ..modeling.randomness import seeded_uniform
from .data.provenance import foreign_voices
from .recipe_parts import RecipeError, check_positive

SHARE, TIME = 11, 12  # salts of a crop's random streams, apart from the decoder's own


@dataclass
class DecodedSettings:
    """Crops whose mel has been through tokenizer and decoder of a checkpoint, off unless `model` is its folder.

    A decoder's mel is smoother than a recording's, and a vocoder that has learned from recordings alone makes it
    rough. Decoded from noise it would have another pitch and level than the waveform that is to come out; so decoding
    starts from the true mel, mixed with noise as at a flow time between the two of `from_time` (nothing is left of it
    from 0, all from 1). share: of the crops, the others keep their own mel. num_steps: of the solver. The folders have
    to be annotated with the checkpoint's speaker encoder.
    """

    model: str | None = None
    share: float = 0.5
    from_time: list[float] = field(default_factory=lambda: [0.2, 0.7])
    num_steps: int = 3

    def __post_init__(self) -> None:
        check_positive("decoded", num_steps=self.num_steps)
        if not 0 <= self.share <= 1:
            raise RecipeError(f"decoded.share must be between 0 and 1, got {self.share}.")
        if len(self.from_time) != 2 or not 0 <= self.from_time[0] <= self.from_time[1] < 1:
            raise RecipeError(f"decoded.from_time are two times, [0.2, 0.7] for example; got {self.from_time}.")


class MelDecoder(nn.Module):
    """Mels of crops -> the same as a checkpoint's decoder would have them, for a share of the crops.

    Raises RecipeError for no checkpoint, one whose mel is not the vocoder's, and folders of another speaker encoder.
    """

    def __init__(self, settings: DecodedSettings, vocoder: VocoderConfig, folders: Sequence[str]) -> None:
        super().__init__()
        try:
            model = AutoModel.from_pretrained(settings.model).eval().requires_grad_(False)
        except OSError as error:
            reason = str(error).splitlines()[0]
            message = f"decoded.model: no checkpoint can be loaded from {settings.model}. ({reason})"
            raise RecipeError(message) from error
        if not isinstance(model, E2ETTSModel):
            raise RecipeError(f"decoded.model: {settings.model} is one module; give the folder of a whole checkpoint.")
        specs = [MelSpec.from_dict(mel) for mel in (model.decoder.config.mel, vocoder.mel)]
        if difference := specs[0].differences(specs[1]):
            raise RecipeError(f"decoded.model: its decoder's mel and the vocoder's differ ({difference}).")
        if problem := foreign_voices(folders, model):
            raise RecipeError(f"decoded.model: {problem}")
        self.settings, self.encoder, self.decoder = settings, model.encoder, model.decoder
        self.features = MelSpectrogram(MelSpec.from_dict(model.encoder.config.mel))
        self.frames_per_token = model.decoder.config.frames_per_token

    @torch.no_grad()
    def forward(
        self, mel: torch.Tensor, waveform: torch.Tensor, speaker_embedding: torch.Tensor, seeds: torch.LongTensor
    ) -> torch.Tensor:
        """mel (B, T, n_mels), T a multiple of frames_per_token, waveform (B, T * hop), speaker_embedding (B, S); seeds
        (B,) say which crops are decoded and with what noise. The flow time is one for the batch, by its first seed."""
        settings = self.settings
        chosen = seeded_uniform(seeds, SHARE, mel.device) < settings.share
        if not bool(chosen.any()):
            return mel
        features = self.features(waveform[chosen])
        encoded = self.encoder(features, torch.ones(features.shape[:2], dtype=torch.bool, device=mel.device))
        earliest, latest = settings.from_time
        time = earliest + (latest - earliest) * float(seeded_uniform(seeds[:1], TIME))
        decoded = mel.clone()
        decoded[chosen] = self.decoder.sample(
            encoded.codes,
            encoded.mask,
            speaker_embedding[chosen],
            seeds=seeds[chosen],
            num_steps=settings.num_steps,
            start_mel=mel[chosen],
            start_time=time,
        ).to(mel.dtype)
        return decoded
