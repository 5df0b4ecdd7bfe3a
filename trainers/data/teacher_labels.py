"""Frozen teachers that label recordings before training: speaker embeddings and pseudo emotions."""

from typing import Any

import numpy as np
import torch
from transformers import (
    MODEL_FOR_AUDIO_XVECTOR_MAPPING,
    AutoConfig,
    AutoFeatureExtractor,
    AutoModel,
    AutoModelForAudioXVector,
    PreTrainedModel,
    pipeline,
)

from e2e_tts.modeling.audio_features import MelSpec, MelSpectrogram, padded_length
from e2e_tts.modeling.configuration_e2e_tts import SpeakerEncoderConfig


class SpeakerTeacher:
    """Recording -> unit speaker embedding.

    model: the small `SpeakerEncoderModel`, or a model with an x-vector head such as WavLMForXVector. feature_extractor:
    of the latter. `sampling_rate` is the one it wants, in Hz.
    """

    def __init__(self, model: PreTrainedModel, feature_extractor: Any = None) -> None:
        self.model, self.feature_extractor = model.eval(), feature_extractor
        if feature_extractor is None:
            self.spec = MelSpec.from_dict(model.config.mel)
            self.mel = MelSpectrogram(self.spec)
        self.sampling_rate = self.spec.sampling_rate if feature_extractor is None else feature_extractor.sampling_rate

    @classmethod
    def from_pretrained(cls, name: str, device: str = "cpu") -> "SpeakerTeacher":
        """Loads a folder or Hub name. Raises OSError if there is none, ValueError for any other kind of model."""
        config = AutoConfig.from_pretrained(name)
        if isinstance(config, SpeakerEncoderConfig):
            return cls(AutoModel.from_pretrained(name).to(device))
        if type(config) not in MODEL_FOR_AUDIO_XVECTOR_MAPPING:
            raise ValueError(
                f"{name} is a {config.model_type}, which gives no speaker embedding. Use a folder written by "
                "e2e_tts.trainers.train_speaker, or a model with an x-vector head such as microsoft/wavlm-base-plus-sv."
            )
        model = AutoModelForAudioXVector.from_pretrained(name).to(device)
        return cls(model, AutoFeatureExtractor.from_pretrained(name))

    @torch.no_grad()
    def __call__(self, samples: np.ndarray) -> list[float]:
        """Mono samples (L,) at `sampling_rate` -> embedding of unit length."""
        if self.feature_extractor is None:
            padding = padded_length(len(samples), self.spec.hop_length) - len(samples)
            audio = torch.nn.functional.pad(torch.from_numpy(samples), (0, padding))
            return self.model(self.mel(audio[None]).to(self.model.device)).embedding[0].tolist()
        inputs = self.feature_extractor(samples, sampling_rate=self.sampling_rate, return_tensors="pt")
        embedding = self.model(**inputs.to(self.model.device)).embeddings[0]
        return torch.nn.functional.normalize(embedding.float(), dim=0).tolist()


class EmotionTeacher:
    """Recording -> pseudo label of an audio-classification model, or "" where the model is unsure.

    name: folder or Hub name. threshold: least probability of a label that counts. Raises OSError or ValueError if the
    model cannot be loaded.
    """

    def __init__(self, name: str, threshold: float = 0.5, device: str = "cpu") -> None:
        if not 0 <= threshold < 1:
            raise ValueError(f"The threshold of a probability lies in [0, 1), got {threshold}.")
        self.classifier = pipeline("audio-classification", model=name, device=device)
        self.sampling_rate: int = self.classifier.feature_extractor.sampling_rate
        self.threshold = threshold

    def __call__(self, samples: np.ndarray) -> str:
        """Mono samples (L,) at `sampling_rate` -> label."""
        (best,) = self.classifier(samples, top_k=1)
        return best["label"] if best["score"] >= self.threshold else ""
