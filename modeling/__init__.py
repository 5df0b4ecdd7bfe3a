"""Models, configurations and processors. Importing any of them registers all with transformers' Auto classes."""

from .configuration_e2e_tts import (
    E2ETTSConfig,
    FlowDecoderConfig,
    RewardModelConfig,
    SpeakerEncoderConfig,
    SpeechEncoderConfig,
    SpeechLMConfig,
)
from .configuration_vocoder import VocoderConfig
from .feature_extraction_e2e_tts import TextToSpeechFeatureExtractor
from .modeling_e2e_tts import E2ETTSModel
from .modeling_flow_decoder import FlowDecoderModel
from .modeling_reward import RewardModel
from .modeling_speaker import SpeakerEncoderModel
from .modeling_speech_encoder import SpeechEncoderModel
from .modeling_speech_lm import SpeechLM
from .modeling_vocoder import VocoderModel
from .processing_e2e_tts import TextToSpeechProcessor
from .speech_generation import SpeechGenerationError
from .streaming import Chunking
from .voices import Voice

__all__ = [
    "Chunking",
    "E2ETTSConfig",
    "E2ETTSModel",
    "FlowDecoderConfig",
    "FlowDecoderModel",
    "RewardModel",
    "RewardModelConfig",
    "SpeakerEncoderConfig",
    "SpeakerEncoderModel",
    "SpeechEncoderConfig",
    "SpeechEncoderModel",
    "SpeechGenerationError",
    "SpeechLM",
    "SpeechLMConfig",
    "TextToSpeechFeatureExtractor",
    "TextToSpeechProcessor",
    "VocoderConfig",
    "VocoderModel",
    "Voice",
]
