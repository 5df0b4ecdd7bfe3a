"""A checkpoint loaded in bfloat16 or float16, or moved there, does everything that it does in float32."""

from pathlib import Path

import numpy as np
import pytest
import torch
from factories import composite_settings, make_composite, training_batch
from transformers import AutoModel

from e2e_tts.modeling import E2ETTSModel, SpeechEncoderConfig, SpeechEncoderModel
from e2e_tts.modeling.audio_features import MelSpec
from e2e_tts.modeling.griffin_lim import griffin_lim_spectrum
from e2e_tts.pipelines import TextToSpeechPipeline

CLIP = 0.1 * np.random.default_rng(0).standard_normal(16000).astype(np.float32)
TEXT = "The birds sang in the morning."
SETTINGS = {"seed": 0, "num_steps": 2}


@pytest.fixture(scope="module")
def folder(tiny_model, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("half")
    tiny_model().save_pretrained(path)
    return path


def loaded(folder: Path, dtype: torch.dtype) -> E2ETTSModel:
    return AutoModel.from_pretrained(folder, dtype=dtype).eval()


def moved(folder: Path, dtype: torch.dtype) -> E2ETTSModel:
    return AutoModel.from_pretrained(folder).to(dtype).eval()


@pytest.mark.parametrize("make", [loaded, moved])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_all_that_a_pipeline_does(folder, processor, make, dtype) -> None:
    model = make(folder, dtype)
    assert model.dtype == dtype and model.lm.quantizer.codebook.dtype == torch.float32
    pipe = TextToSpeechPipeline(model=model, processor=processor)
    voice = pipe.clone(CLIP, text="A clip.", sampling_rate=16000)
    tokens = pipe.tokenize(CLIP, sampling_rate=16000)
    spoken = [
        pipe(TEXT, **SETTINGS),
        pipe(TEXT, candidates=3, text_guidance=1.5, **SETTINGS),
        pipe(TEXT, voice=voice, speed=1.5, **SETTINGS),
        pipe.convert(CLIP, sampling_rate=16000, **SETTINGS),
        pipe.detokenize(tokens, **SETTINGS),
        *pipe.stream(TEXT, voice=voice, **SETTINGS),
    ]
    for speech in spoken:
        assert speech["audio"].dtype == np.float32 and np.isfinite(speech["audio"]).all() and speech["audio"].size
    assert model.reward.transcribe(model.encoder(model_features(pipe)).codes)


def model_features(pipe: TextToSpeechPipeline) -> torch.Tensor:
    return pipe.processor(audio=CLIP, sampling_rate=16000)["reference_features"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_tokens_are_those_of_the_same_weights_in_float32(folder, dtype) -> None:
    """The grid itself stays exact: only the rounding of activations may move a token to a neighbour."""
    half = loaded(folder, dtype)
    whole = loaded(folder, dtype).float()
    waveform = torch.from_numpy(CLIP)[None]
    found, expected = half.encoder.encode(waveform), whole.encoder.encode(waveform)
    assert found.ids.shape == expected.ids.shape and float((found.ids == expected.ids).float().mean()) > 0.6
    assert torch.equal(half.lm.quantizer.indices_to_codes(found.ids), found.codes)


def test_the_model_and_its_parts_take_what_the_processor_gives(folder, processor) -> None:
    """Called without the pipeline, which casts: features and mels are float32."""
    model = loaded(folder, torch.bfloat16)
    inputs = processor(text=TEXT, audio=CLIP, sampling_rate=16000)
    assert torch.isfinite(model.generate(**inputs, **SETTINGS)["audio"].float()).all()
    assert model.speaker(inputs["reference_features"]).embedding.shape[0] == 1
    mel = torch.zeros(1, 8, model.config.vocoder_config.mel["num_mel_bins"])
    assert torch.isfinite(model.vocoder(mel).float()).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_losses_of_a_model_in_half_precision(dtype) -> None:
    batch = training_batch()
    names = ("lm", "flow", "prior")
    with torch.no_grad():
        half = make_composite().to(dtype)(**batch, true_losses=names)
        whole = make_composite().to(dtype).float()(**batch, true_losses=names)
    for name in names:
        loss = getattr(half, f"loss_{name}")
        torch.testing.assert_close(loss.float(), getattr(whole, f"loss_{name}"), rtol=0.05, atol=0.05)


def test_autocast_leaves_the_phase_prior_alone() -> None:
    mel = torch.full((1, 4, 80), -9.0)
    expected = griffin_lim_spectrum(mel, MelSpec(), 960, 3)
    with torch.autocast("cpu", torch.float16):
        assert torch.equal(griffin_lim_spectrum(mel, MelSpec(), 960, 3), expected)


def test_a_long_utterance_does_not_overflow() -> None:
    """2,400 frames, half of them 11 below the others: their squares add up to more than float16 holds."""
    settings = composite_settings()["encoder_config"] | {"mel_normalization": "utterance"}
    encoder = SpeechEncoderModel(SpeechEncoderConfig(**settings))
    features = torch.full((1, 2400, 80), -0.5, dtype=torch.float16)
    features[:, ::2] = -11.5
    normalised = encoder.normalise(features, torch.ones(1, 2400, 1, dtype=torch.bool))
    torch.testing.assert_close(normalised.abs().float(), torch.ones(1, 2400, 80), rtol=0.01, atol=0.01)
