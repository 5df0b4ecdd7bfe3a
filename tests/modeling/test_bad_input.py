"""What cannot be used is refused by name, at once, and leaves models as they were."""

import pytest
import torch
from factories import (
    SPEAKER_DIM,
    decoder_settings,
    make_composite,
    make_encoder,
    make_lm,
    random_ids,
    random_mel,
    random_tensor,
)
from huggingface_hub.errors import StrictDataclassFieldValidationError
from peft import LoraConfig

from e2e_tts.modeling import FlowDecoderConfig, SpeechEncoderConfig, SpeechLMConfig, VocoderConfig

TEXT = torch.tensor([[5, 9, 14, 2]])


@pytest.fixture(scope="module")
def model():
    return make_composite(text_positions="aligned")


@pytest.mark.parametrize(
    "config, field, value",
    [
        (SpeechEncoderConfig, "conv_norm", "Layer"),
        (SpeechEncoderConfig, "mel_normalization", "per_utterance"),
        (SpeechLMConfig, "text_positions", "align"),
        (FlowDecoderConfig, "hidden_size", "256"),
        (VocoderConfig, "architecture", "hifi-gan"),
    ],
)
def test_values_of_configurations_are_checked(config, field, value):
    with pytest.raises(StrictDataclassFieldValidationError, match=field):
        config(**{field: value})


def test_numbers_and_sequences_of_configurations_may_be_written_either_way():
    config = SpeechLMConfig(levels=(8, 5), token_rate=25)
    assert config.levels == [8, 5] and config.num_codes == 40


@pytest.mark.parametrize("changes, words", [({"conv_kernel_size": 4}, "odd"), ({"num_attention_heads": 3}, "pairs")])
def test_a_decoder_that_could_not_run_is_not_configured(changes, words):
    with pytest.raises(ValueError, match=words):
        FlowDecoderConfig(**{**decoder_settings(), **changes})


@pytest.mark.parametrize("name", ["type", "items"])
def test_a_style_cannot_have_a_name_of_torch(name):
    with pytest.raises(ValueError, match=name):
        SpeechLMConfig(styles={name: 3})


def test_integers_are_no_waveform():
    with pytest.raises(ValueError, match="int16"):
        make_encoder().encode(torch.zeros(1, 3200, dtype=torch.int16))


@pytest.mark.parametrize("rate", [0.0, -1.0, float("nan"), float("inf")])
def test_a_rate_is_above_zero(model, rate):
    with pytest.raises(ValueError, match="tokens_per_symbol"):
        model.generate(TEXT, speaker_embedding=random_tensor(1, SPEAKER_DIM), tokens_per_symbol=rate)


@pytest.mark.parametrize("shape", [(2, SPEAKER_DIM), (1, SPEAKER_DIM + 1), (1, 1, SPEAKER_DIM)])
def test_a_voice_has_one_row_a_text(model, shape):
    with pytest.raises(ValueError, match=rf"\(1, {SPEAKER_DIM}\)"):
        model.generate(TEXT, speaker_embedding=random_tensor(*shape))


def test_streams_take_what_generate_takes_and_refuse_the_rest_at_once(model):
    model.lm.end_head.bias.data.fill_(1e4)  # ends where it may
    clip = {"reference_features": random_mel(1, 24, 80), "reference_mask": torch.ones(1, 24, dtype=torch.bool)}
    settings = {"seed": 1, "num_steps": 1, "chunking": {"first": 3}, "min_tokens_per_symbol": 2.0}
    chunks = list(model.generate_stream(TEXT, **clip, **settings))
    whole = model.generate(TEXT, **clip, **settings)
    assert torch.equal(torch.cat([chunk["audio"] for chunk in chunks], dim=1), whole["audio"])
    for speak in (model.generate, model.generate_stream):
        with pytest.raises(ValueError, match="temprature"):
            speak(TEXT, **clip, temprature=0.5)
        with pytest.raises(ValueError, match="voice and speaker_embedding"):
            speak(TEXT, voice="lj", speaker_embedding=random_tensor(1, SPEAKER_DIM))


def test_masked_tokens_may_be_anything(model):
    ids, mask = random_ids(1, 6, high=20), torch.tensor([[True] * 4 + [False] * 2])
    settings = {"voice": random_tensor(1, SPEAKER_DIM), "num_steps": 1}
    decoded = [model.decode(ids.masked_fill(~mask, padding), mask, **settings)["audio"] for padding in (0, -100)]
    assert torch.equal(*decoded)


def test_a_language_model_says_what_it_lacks():
    lm = make_lm()
    with pytest.raises(ValueError, match="Nothing to read"):
        lm()
    with pytest.raises(ValueError, match="give codes too"):
        lm(input_ids=random_ids(1, 5), labels=random_ids(1, 5))


def test_freezing_leaves_adapters_alone_and_can_be_undone():
    model = make_composite()
    model.freeze(["encoder"])
    model.lm.add_adapter(LoraConfig(target_modules=["q_proj"], r=2))
    learning = [name for name, weight in model.lm.named_parameters() if weight.requires_grad]
    model.freeze(["reward"])
    assert [name for name, weight in model.lm.named_parameters() if weight.requires_grad] == learning
    assert all("lora" in name for name in learning)
    assert all(weight.requires_grad for weight in model.encoder.parameters())
    assert not any(weight.requires_grad for weight in model.reward.parameters())


def test_an_adapter_of_one_module_is_not_saved_as_if_it_were_the_model(tmp_path):
    model = make_composite()
    model.lm.add_adapter(LoraConfig(target_modules=["q_proj"], r=2))
    with pytest.raises(ValueError, match="lm alone has an adapter"):
        model.save_pretrained(tmp_path)


def test_styles_are_added_to_all_modules_or_none():
    model = make_composite()
    model.add_styles({"mood": 3}, ["decoder"])
    with pytest.raises(ValueError, match="mood"):
        model.add_styles({"mood": 4})
    assert "mood" not in model.lm.config.styles and not len(model.lm.style_embeddings)
    model.freeze(["lm"])
    model.add_styles({"mood": 3})
    assert not any(weight.requires_grad for weight in model.lm.parameters())


def test_text_embeddings_of_the_composite_can_grow():
    model = make_composite()
    before = model.get_input_embeddings().weight.detach().clone()
    model.set_input_embeddings(torch.nn.Embedding(before.shape[0] + 4, before.shape[1]))
    assert model.lm.model.embed_tokens.weight.shape[0] == before.shape[0] + 4
