"""Tiny modules, batches and data sets for the tests: width 32, one or two layers, everything seeded."""

import io

import numpy as np
import soundfile
import torch
from datasets import Dataset
from transformers import PreTrainedModel

from e2e_tts.modeling import (
    E2ETTSConfig,
    E2ETTSModel,
    FlowDecoderConfig,
    FlowDecoderModel,
    RewardModel,
    RewardModelConfig,
    SpeakerEncoderConfig,
    SpeakerEncoderModel,
    SpeechEncoderConfig,
    SpeechEncoderModel,
    SpeechLM,
    SpeechLMConfig,
)

LEVELS = [4, 3, 3]
WIDTH, SPEAKER_DIM, TEXT_VOCAB, CTC_VOCAB, EMOTIONS = 32, 16, 20, 12, 4


def conformer_settings(**changes) -> dict:
    return {
        "hidden_size": WIDTH,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "conv_kernel_size": 5,
        "subsampling_factor": 2,
        "subsampling_conv_channels": 4,
        "dropout": 0.0,
        "layerdrop": 0.0,
        "activation_dropout": 0.0,
        "attention_dropout": 0.0,
        **changes,
    }


def text_settings(**changes) -> dict:
    return {
        "vocab_size": TEXT_VOCAB,
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
        "intermediate_size": 64,
        "pad_token_id": 0,
        "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        **changes,
    }


def encoder_settings(**changes) -> dict:
    return {"levels": LEVELS, "encoder_config": conformer_settings(), **changes}


def reward_settings(**changes) -> dict:
    return {
        "levels": LEVELS,
        "encoder_config": conformer_settings(),
        "ctc_vocab_size": CTC_VOCAB,
        "speaker_dim": SPEAKER_DIM,
        "num_emotions": EMOTIONS,
        **changes,
    }


def lm_settings(**changes) -> dict:
    return {
        "levels": LEVELS,
        "text_config": text_settings(),
        "output_adapter_size": 32,
        "speaker_dim": SPEAKER_DIM,
        **changes,
    }


def decoder_settings(**changes) -> dict:
    return {
        "levels": LEVELS,
        "hidden_size": WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 64,
        "condition_layers": 1,
        "conv_kernel_size": 5,
        "speaker_dim": SPEAKER_DIM,
        **changes,
    }


def speaker_settings(**changes) -> dict:
    return {"hidden_size": WIDTH, "num_hidden_layers": 2, "embedding_size": SPEAKER_DIM, **changes}


def vocoder_settings(**changes) -> dict:
    return {"hidden_size": 16, "num_layers": 1, "intermediate_size": 32, "istft_n_fft": 640, **changes}


def composite_settings(**changes) -> dict:
    """Fields of `E2ETTSConfig`, one entry a module; a change replaces a whole entry."""
    return {
        "encoder_config": encoder_settings(),
        "reward_config": reward_settings(),
        "lm_config": lm_settings(),
        "decoder_config": decoder_settings(),
        "speaker_config": speaker_settings(),
        "vocoder_config": vocoder_settings(),
        **changes,
    }


def shaken(model: PreTrainedModel, seed: int = 0, scale: float = 0.1) -> PreTrainedModel:
    """Adds noise to every parameter: behind zero gates and tiny weights a leak between utterances goes unseen."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data.add_(scale * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def make_encoder(**changes) -> SpeechEncoderModel:
    torch.manual_seed(0)
    return SpeechEncoderModel(SpeechEncoderConfig(**encoder_settings(**changes))).eval()


def make_reward(**changes) -> RewardModel:
    torch.manual_seed(0)
    return shaken(RewardModel(RewardModelConfig(**reward_settings(**changes))))


def make_lm(**changes) -> SpeechLM:
    torch.manual_seed(0)
    return SpeechLM(SpeechLMConfig(**lm_settings(**changes))).eval()


def make_decoder(**changes) -> FlowDecoderModel:
    torch.manual_seed(0)
    return shaken(FlowDecoderModel(FlowDecoderConfig(**decoder_settings(**changes))))


def make_speaker(**changes) -> SpeakerEncoderModel:
    torch.manual_seed(0)
    return shaken(SpeakerEncoderModel(SpeakerEncoderConfig(**speaker_settings(**changes))))


def make_composite(**changes) -> E2ETTSModel:
    torch.manual_seed(0)
    model = E2ETTSModel(E2ETTSConfig(**composite_settings(**changes)))
    shaken(model.decoder)
    return model.eval()


def random_ids(*shape: int, high: int = 36, low: int = 0, seed: int = 0) -> torch.LongTensor:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(seed))


def random_tensor(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def random_mel(*shape: int, seed: int = 0) -> torch.Tensor:
    """Natural-log mel values in the usual range, shape (B, T, n_mels)."""
    return random_tensor(*shape, seed=seed) * 2.5 - 5.0


def lengths_mask(lengths: list[int]) -> torch.BoolTensor:
    return torch.arange(max(lengths))[None] < torch.tensor(lengths)[:, None]


def training_batch(lengths: tuple[int, ...] = (12, 9), texts: tuple[int, ...] = (5, 3), seed: int = 0) -> dict:
    """Inputs of the composite's forward for utterances of so many tokens and symbols; padding holds zeros."""
    rows = len(lengths)
    feature_mask = lengths_mask([2 * length for length in lengths])
    text_mask = lengths_mask(list(texts))
    return {
        "input_features": random_mel(rows, feature_mask.shape[1], 80, seed=seed) * feature_mask[..., None],
        "feature_mask": feature_mask,
        "text_ids": random_ids(*text_mask.shape, low=1, high=TEXT_VOCAB, seed=seed) * text_mask,
        "text_mask": text_mask,
        "ctc_labels": random_ids(*text_mask.shape, low=1, high=CTC_VOCAB, seed=seed).masked_fill(~text_mask, -100),
        "speaker_target": random_tensor(rows, SPEAKER_DIM, seed=seed + 1),
        "speaker_embedding": torch.nn.functional.normalize(random_tensor(rows, SPEAKER_DIM, seed=seed + 2), dim=-1),
        "emotion_labels": torch.arange(rows) % EMOTIONS,
        "tokens_per_symbol": torch.tensor(lengths) / torch.tensor(texts),
        "seeds": torch.arange(rows) + 100 + seed,
    }


def take_rows(batch: dict, rows: list[int]) -> dict:
    """Some rows of a training batch, cut to the longest of them."""
    picked = {key: value[rows] for key, value in batch.items()}
    frames = int(picked["feature_mask"].sum(dim=1).max())
    symbols = int(picked["text_mask"].sum(dim=1).max())
    for key in ("input_features", "feature_mask"):
        picked[key] = picked[key][:, :frames]
    for key in ("text_ids", "text_mask", "ctc_labels"):
        picked[key] = picked[key][:, :symbols]
    return picked


def make_clip(seconds: float, seed: int, sampling_rate: int = 16000) -> np.ndarray:
    """A mixture of a few sines and some noise, float32 (samples,)."""
    random = np.random.default_rng(seed)
    time = np.arange(int(seconds * sampling_rate)) / sampling_rate
    waves = [np.sin(2 * np.pi * random.uniform(100, 3000) * time + random.uniform(0, 6)) for _ in range(4)]
    return (0.1 * sum(waves) + 0.005 * random.standard_normal(len(time))).astype(np.float32)


def make_rows(count: int = 12, split: str = "train", seed: int = 0, sampling_rate: int = 16000) -> list[dict]:
    """Rows of an annotated data set (see e2e_tts.trainers.data.annotate), two sources and three speakers."""
    random = np.random.default_rng(seed)
    rows = []
    for index in range(count):
        clip = make_clip(random.uniform(0.3, 0.9), 1000 * seed + index, sampling_rate)
        file = io.BytesIO()
        soundfile.write(file, clip, sampling_rate, format="FLAC", subtype="PCM_16")
        symbols = int(random.integers(2, 7))
        rows.append(
            {
                "id": f"{split}-{index}",
                "audio": {"bytes": file.getvalue(), "path": None},
                "text": "a text",
                "speaker": f"speaker{index % 3}",
                "source": ("first", "second")[index % 2],
                "seconds": len(clip) / sampling_rate,
                "split": split,
                "text_ids": random.integers(1, TEXT_VOCAB, symbols).tolist(),
                "ctc_labels": random.integers(1, CTC_VOCAB, symbols).tolist(),
                "speaker_embedding": random.standard_normal(SPEAKER_DIM).tolist(),
            }
        )
    return rows


def make_dataset(folder: str) -> str:
    """Writes a tiny annotated data set with a train and a dev split; returns its folder."""
    Dataset.from_list(make_rows(12) + make_rows(3, split="dev", seed=1)).save_to_disk(folder)
    return folder
