"""The paper's sizes, from the shipped recipe, on the meta device: nothing is allocated."""

import pytest
import torch

from e2e_tts.modeling import E2ETTSConfig, E2ETTSModel
from e2e_tts.trainers.recipe import load_recipe


@pytest.fixture(scope="module")
def recipe():
    return load_recipe("paper_joint")


@pytest.fixture(scope="module")
def model(recipe) -> E2ETTSModel:
    with torch.device("meta"):
        return E2ETTSModel(E2ETTSConfig(**recipe.model))


@pytest.mark.parametrize(
    "modules, billions", [(("encoder", "reward"), 0.6), (("lm",), 0.6), (("decoder",), 0.5)], ids=["RM", "LM", "FM"]
)
def test_parameter_counts(model, modules, billions):
    count = sum(parameter.numel() for name in modules for parameter in getattr(model, name).parameters())
    assert count / 1e9 == pytest.approx(billions, rel=0.1)


def test_rates_and_codes(model):
    config = model.config
    assert config.encoder_config.token_rate == 25.0
    assert config.encoder_config.frames_per_token == 4
    assert config.lm_config.num_codes == 6561 and config.lm_config.vocab_size == 6565
    assert config.sampling_rate == 24000
    decoder = config.decoder_config
    assert decoder.mel == config.vocoder_config.mel
    assert (decoder.mel["n_fft"] - decoder.mel["hop_length"]) % 2 == 0
    assert (config.encoder_config.mel["n_fft"] - config.encoder_config.mel["hop_length"]) % 2 == 0


def test_settings_of_the_paper(recipe):
    losses = recipe.losses
    assert (losses.lm, losses.asr, losses.spk, losses.ser, losses.flow) == (0.1, 1.0, 1.0, 1.0, 1.0)
    assert recipe.train == ["encoder", "reward", "lm", "decoder"]
    arguments = recipe.arguments
    assert arguments["learning_rate"] == 1e-4 and arguments["warmup_steps"] == 25000
    assert arguments["optim"].startswith("adamw") and arguments["bf16"] is True


def test_shapes_of_a_forward_pass(model):
    with torch.device("meta"):
        encoded = model.encoder(torch.zeros(2, 400, 80), torch.ones(2, 400, dtype=torch.bool))
        assert encoded.codes.shape == (2, 100, 8) and encoded.ids.shape == encoded.mask.shape == (2, 100)
        reward = model.reward(encoded.codes, encoded.mask)
        assert reward.ctc_logits.shape == (2, 200, 257) and reward.speaker_embedding.shape == (2, 512)
        condition, prior, voice = model.decoder.condition(encoded.codes, encoded.mask, torch.zeros(2, 512))
        assert condition.shape == (2, 200, 1280) and prior is None and voice.shape == (2, 1280)
        mel = torch.zeros(2, 200, 80)
        frame_mask = torch.ones(2, 200, dtype=torch.bool)
        velocity = model.decoder.velocity(mel, torch.zeros(2), condition, None, voice, mel, torch.ones(2), frame_mask)
        assert velocity.shape == mel.shape


def test_targets_of_another_mel_must_be_given():
    """With a 16 kHz tokenizer and a 24 kHz decoder the tokenizer's features are no target."""
    from factories import composite_settings, training_batch

    settings = composite_settings()
    other = {"sampling_rate": 24000, "n_fft": 1920, "win_length": 1920, "hop_length": 480, "f_max": 12000.0}
    settings["decoder_config"]["mel"] = other
    settings["vocoder_config"] |= {"mel": other, "istft_n_fft": 960}
    model = E2ETTSModel(E2ETTSConfig(**settings)).eval()
    batch = training_batch()
    with pytest.raises(ValueError, match=r"sampling_rate: 24000 vs 16000.*pass mel"):
        model(**batch)
    assert torch.isfinite(model(**batch, mel=batch["input_features"]).loss_flow)


def test_mel_bins_of_tokenizer_and_conformer_must_agree(recipe):
    from e2e_tts.modeling import SpeechEncoderConfig

    settings = recipe.model["encoder_config"]
    wrong = {**settings, "encoder_config": {**settings["encoder_config"], "num_mel_bins": 128}}
    with pytest.raises(ValueError, match=r"num_mel_bins.*128.*80"):
        SpeechEncoderConfig(**wrong)
