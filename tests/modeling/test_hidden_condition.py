"""The ablation in which the decoder reads the LM's hidden states instead of codes."""

import pytest
import torch
from factories import LEVELS, WIDTH, decoder_settings, make_composite, take_rows, training_batch
from transformers import AutoModel

from e2e_tts.modeling import E2ETTSModel


@pytest.fixture(scope="module")
def model() -> E2ETTSModel:
    model = make_composite(decoder_config=decoder_settings(hidden_condition_size=WIDTH))
    with torch.no_grad():
        # An untrained LM hardly ever ends.
        model.lm.end_head.bias.fill_(3.0)
    return model


def text_of(batch: dict) -> tuple[torch.Tensor, ...]:
    return tuple(batch[name] for name in ("text_ids", "text_mask", "speaker_embedding", "tokens_per_symbol"))


@torch.no_grad()
def test_the_source_is_the_state_that_predicted_the_code(model):
    batch = training_batch()
    encoded = model.encoder(batch["input_features"], batch["feature_mask"])
    source = model.decoder_source(encoded.codes, encoded.mask, *text_of(batch))
    assert source.shape == (*encoded.ids.shape, WIDTH)
    text, voice, rate = text_of(batch)[:2], batch["speaker_embedding"], batch["tokens_per_symbol"]
    logits = model.lm(*text, encoded.codes, encoded.mask, None, voice, rate).logits
    torch.testing.assert_close(model.lm.score(source), logits[:, :-1])
    alone = take_rows(batch, [1])
    encoded = model.encoder(alone["input_features"], alone["feature_mask"])
    states = model.decoder_source(encoded.codes, encoded.mask, *text_of(alone))
    torch.testing.assert_close(states[0], source[1, : states.shape[1]], atol=1e-5, rtol=1e-4)
    by_code = make_composite()
    assert by_code.decoder_source(encoded.codes, encoded.mask, *text_of(alone)) is encoded.codes


def test_it_speaks(model):
    batch = training_batch()
    settings = {"speaker_embedding": batch["speaker_embedding"], "tokens_per_symbol": 2.0, "num_steps": 2}
    spoken = model.generate(batch["text_ids"], batch["text_mask"], seed=1, **settings)
    frames = spoken["mask"].sum(dim=1) * 2
    assert spoken["mel"].isfinite().all() and (spoken["audio_lengths"] == frames * 320).all()


def test_a_composite_that_does_not_fit_is_refused(model):
    with pytest.raises(ValueError, match=f"width 7 .*but the LM's have {WIDTH}"):
        make_composite(decoder_config=decoder_settings(hidden_condition_size=7))
    for composite, predict_from in ((model, "codes"), (make_composite(), "hidden")):
        with pytest.raises(ValueError, match=f"predict_from is '{predict_from}'"):
            composite(**training_batch(), true_losses=("flow",), predict_from=predict_from)
    with pytest.raises(ValueError, match="need a text"):
        model.decode(torch.zeros(1, 4, dtype=torch.long), voice=training_batch()["speaker_embedding"][:1])


def test_a_trained_decoder_is_rebuilt_for_states(tmp_path):
    decoder = make_composite().decoder
    decoder.save_pretrained(tmp_path)
    rebuilt = AutoModel.from_pretrained(tmp_path, hidden_condition_size=WIDTH, ignore_mismatched_sizes=True)
    assert rebuilt.from_code[0].weight.shape == (WIDTH, WIDTH) and decoder.from_code[0].in_features == len(LEVELS)
    assert float(rebuilt.from_code[0].weight.detach().std()) == pytest.approx(WIDTH**-0.5, rel=0.2)
    for name, value in decoder.state_dict().items():
        assert name == "from_code.0.weight" or torch.equal(value, rebuilt.state_dict()[name]), name
