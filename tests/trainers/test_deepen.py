"""Deeper modules: the new layers change nothing at first (in a Conformer they normalise once more), and they learn."""

import json

import pytest
import torch
from factories import SPEAKER_DIM, make_composite, random_mel, shaken, training_batch
from transformers import AutoModel

from e2e_tts.modeling import E2ETTSModel
from e2e_tts.trainers.deepen import deepen, deepen_module, main

TEXT = torch.tensor([[3, 5, 7, 2]])
VOICE = torch.nn.functional.normalize(torch.ones(1, SPEAKER_DIM), dim=-1)


@pytest.fixture
def model() -> E2ETTSModel:
    return shaken(make_composite())


def spoken(model: E2ETTSModel) -> torch.Tensor:
    """Tokens, drawn step by step with the cache, which knows each layer by its number."""
    return model.lm.generate_codes(TEXT, speaker_embedding=VOICE, generator=torch.Generator().manual_seed(0)).ids


def test_language_model_and_decoder_compute_as_before(model) -> None:
    batch = training_batch()
    losses, tokens = model(**batch), spoken(model)
    assert tokens.shape[1] > 4
    deepen(model, {"lm": 5, "decoder": 4})
    assert (len(model.lm.model.layers), len(model.decoder.blocks)) == (5, 4)
    torch.testing.assert_close(model(**batch).loss_lm, losses.loss_lm)
    torch.testing.assert_close(model(**batch).loss_flow, losses.loss_flow)
    assert torch.equal(spoken(model), tokens)


def test_a_conformer_normalises_once_more(model) -> None:
    mel, mask = random_mel(2, 24, 80), torch.ones(2, 24, dtype=torch.bool)
    hidden: list[torch.Tensor] = []

    def encode(encoder: torch.nn.Module) -> torch.Tensor:
        handle = encoder.conformer.register_forward_hook(lambda *call: hidden.append(call[-1]))
        encoder(mel, mask)
        handle.remove()
        return hidden[-1]

    before = encode(model.encoder)
    deeper = deepen_module(model.encoder, "encoder", 2).eval()
    torch.testing.assert_close(encode(deeper), model.encoder.conformer.layers[-1].norm_out(before))


@pytest.mark.parametrize("name", ["encoder", "reward", "lm", "decoder"])
def test_every_branch_of_a_new_layer_learns(model, name) -> None:
    deepen(model, {name: 3})
    output = model.train()(**training_batch())
    sum(value for key, value in output.items() if key.startswith("loss")).backward()
    layers = {"lm": lambda: model.lm.model.layers, "decoder": lambda: model.decoder.blocks}
    new = layers.get(name, lambda: getattr(model, name).conformer.layers)()[-1]
    silent = [key for key, weight in new.named_parameters() if key.endswith("weight") and not weight.any()]
    assert len(silent) == (2 if name in layers else 4)
    assert all(new.get_parameter(key).grad.abs().sum() > 0 for key in silent)


def test_the_command_writes_a_checkpoint(model, processor, tmp_path, capsys) -> None:
    model.save_pretrained(tmp_path / "small")
    processor.save_pretrained(tmp_path / "small")
    main(["--model", str(tmp_path / "small"), "--layers", "lm=3", "encoder=2", "--output", str(tmp_path / "deep")])
    assert "M parameters" in capsys.readouterr().out
    deeper = AutoModel.from_pretrained(tmp_path / "deep").eval()
    assert deeper.config.encoder_config.encoder_config.num_hidden_layers == 2
    assert deeper(**training_batch()).loss_lm.isfinite()
    assert torch.equal(spoken(deeper), spoken(model))
    # transformers alone finds the pipeline with its settings, as in a release.
    assert "custom_pipelines" in json.loads((tmp_path / "deep" / "config.json").read_text())
    assert (tmp_path / "deep" / "text_to_speech.py").is_file()


def test_mistakes_are_named(model, tmp_path, capsys) -> None:
    with pytest.raises(ValueError, match="lm has 2 layers already"):
        deepen_module(model.lm, "lm", 2)
    with pytest.raises(ValueError, match="vocoder has no layers to add to"):
        deepen(model, {"vocoder": 3})
    with pytest.raises(SystemExit):
        main(["--model", str(tmp_path), "--layers", "lm=deep", "--output", str(tmp_path / "out")])
    assert "give MODULE=NUMBER" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="has no config"):
        main(["--model", str(tmp_path), "--layers", "lm=3", "--output", str(tmp_path / "out")])
