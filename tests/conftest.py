"""A tiny random composite for tests: every module, a few thousand weights, speech that begins, ends and is audible."""

import gc
import os
from collections.abc import Callable
from pathlib import Path

import pytest

if workers := int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", 0)):
    # Before torch is imported: processes side by side that each take all cores slow one another many times over.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // workers)))

import torch

from e2e_tts.modeling import E2ETTSConfig, E2ETTSModel, TextToSpeechProcessor

TESTS = Path(__file__).parent


# Files that stay in one process: the Space's servers look for free ports, and trainings of several processes or of many
# steps would slow one another many times over. Those begin first, because nothing else takes as long.
TRAININGS = {"test_overfit.py", "trainers/test_distributed_scale.py", "trainers/test_processes.py"}


def xdist_group(item: pytest.Item) -> str:
    """What --dist loadgroup keeps in one process: mostly a file's tests, so that its fixtures are made once."""
    file = item.path.relative_to(TESTS).as_posix()
    return "trainings" if file in TRAININGS else "space" if file.startswith("space/") else file


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        item.add_marker(pytest.mark.xdist_group(xdist_group(item)))
    items.sort(key=lambda item: xdist_group(item) != "trainings")


def pytest_collection_finish() -> None:
    """What is imported stays: the trainer collects garbage often, and would look through all of it each time."""
    gc.collect()
    gc.freeze()


def build_tiny_config(**changes: dict) -> E2ETTSConfig:
    """The configuration of the tiny model; `changes` go into module configurations: lm_config={"token_rate": 50.0}."""
    levels = [3, 3, 3]
    conformer = {
        "hidden_size": 32,
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
    }
    text = {
        "vocab_size": 79,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "intermediate_size": 64,
        "attention_dropout": 0.0,
        "pad_token_id": 0,
    }
    modules = {
        "encoder_config": {"levels": levels, "encoder_config": conformer},
        "reward_config": {"levels": levels, "encoder_config": conformer, "ctc_vocab_size": 79, "speaker_dim": 32},
        "lm_config": {
            "levels": levels,
            "output_adapter_size": 32,
            "speaker_dim": 32,
            "text_positions": "aligned",
            "text_config": text,
        },
        "decoder_config": {
            "levels": levels,
            "hidden_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "speaker_dim": 32,
        },
        "speaker_config": {"hidden_size": 32, "num_hidden_layers": 1, "embedding_size": 32, "num_speakers": 5},
        "vocoder_config": {"hidden_size": 32, "num_layers": 1, "intermediate_size": 64},
    }
    modules = {name: settings | changes.pop(name, {}) for name, settings in modules.items()}
    return E2ETTSConfig(**modules, **changes)


def build_tiny_model(**changes: dict) -> E2ETTSModel:
    """The tiny model with random weights and the voices "anna" and "ben"; the same weights at every call."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = E2ETTSModel(build_tiny_config(**changes)).eval()
        voices = {"anna": torch.randn(32), "ben": torch.randn(32)}
    with torch.no_grad():
        # Codes of clearly different scores, so that sampling settings matter.
        for layer in (model.lm.code_keys.inner, model.lm.code_keys.outer):
            layer.weight.normal_(std=layer.in_features**-0.5, generator=torch.Generator().manual_seed(0))
        # An untrained LM hardly ever ends: a chance of about a tenth at each step makes lengths differ and stay short.
        model.lm.end_head.weight.zero_()
        model.lm.end_head.bias.fill_(2.0)
        # An untrained vocoder puts all energy on the first sample of a frame, which its window removes.
        model.vocoder.vocoder.head.weight.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
        # An untrained flow decoder is the identity: its gates and its output start at zero.
        for weight in model.decoder.parameters():
            if not weight.any():
                weight.normal_(std=0.1, generator=torch.Generator().manual_seed(0))
    model.set_voices(voices, {"anna": 2.0, "ben": 2.5})
    return model


@pytest.fixture(scope="session")
def tiny_config() -> Callable[..., E2ETTSConfig]:
    return build_tiny_config


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., E2ETTSModel]:
    return build_tiny_model


@pytest.fixture(scope="session")
def processor() -> TextToSpeechProcessor:
    return TextToSpeechProcessor.build()
