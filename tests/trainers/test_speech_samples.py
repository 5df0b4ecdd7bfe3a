"""Samples while a stage trains: files, the same ones for the same weights, and a training that does not notice."""

from importlib.util import find_spec

import numpy as np
import pytest
import soundfile
import torch
from factories import make_lm, random_ids, random_tensor
from stages import make_folders, stage_recipe, trainer_losses

from e2e_tts.trainers.recipe import RecipeError
from e2e_tts.trainers.speech_samples import text_attention, write_samples
from e2e_tts.trainers.train import build_trainer


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    return make_folders(tmp_path_factory.mktemp("samples"))


def test_attention_to_the_text():
    lm = make_lm(text_positions="aligned")
    implementation = lm.model.config._attn_implementation
    codes = lm.quantizer.codebook[random_ids(1, 7)]
    inputs = (random_ids(1, 4, low=1, high=20), codes, random_tensor(1, 16), torch.tensor([2.0]))
    attention = text_attention(lm, *inputs)
    assert attention.shape == (8, 4) and bool((attention >= 0).all()) and bool((attention.sum(dim=1) < 1).all())
    assert lm.model.config._attn_implementation == implementation
    assert not any(layer.self_attn._forward_hooks for layer in lm.model.layers)
    # Attention is causal: a later code changes no earlier row.
    changed = codes.clone()
    changed[:, -1] = lm.quantizer.codebook[0]
    later = text_attention(lm, inputs[0], changed, *inputs[2:])
    assert torch.equal(later[:-1], attention[:-1])


def test_attention_is_the_share_of_the_text():
    """Without any preference attention is even: every visible position gets the same."""
    lm = make_lm(text_positions="sequential")
    with torch.no_grad():
        for layer in lm.model.layers:
            layer.self_attn.q_proj.weight.zero_()
    attention = text_attention(
        lm, random_ids(1, 4, low=1, high=20), lm.quantizer.codebook[random_ids(1, 3)], random_tensor(1, 16), None
    )
    # The state that predicts code t sees speaker, start, 4 symbols, task and t codes.
    expected = torch.tensor([1 / (7 + t) for t in range(4)])[:, None].expand(4, 4)
    torch.testing.assert_close(attention, expected)


def test_samples_are_written_and_training_does_not_notice(folders, tmp_path):
    settings = {"max_steps": 4, "save_strategy": "no"}
    plain = build_trainer(stage_recipe("joint", folders, arguments=settings), str(tmp_path / "plain"))
    plain.train()
    samples = {"every": 2, "count": 2}
    trainer = build_trainer(
        stage_recipe("joint", folders, samples=samples, ema={"decoder": 0.9}, arguments=settings), str(tmp_path / "run")
    )
    trainer.train()
    assert trainer_losses(trainer) == trainer_losses(plain)  # dropout is on: the random state is as it was
    folder = tmp_path / "run" / "samples"
    assert sorted(path.name for path in folder.iterdir()) == ["step-2", "step-4"]
    for index in range(2):
        length = len(trainer.eval_dataset[index]["waveform"])
        recording, rate = soundfile.read(folder / "step-4" / f"{index}-recording.wav")
        assert rate == trainer.composite.sampling_rate and len(recording) == length
        reconstruction, _ = soundfile.read(folder / "step-4" / f"{index}-reconstruction.wav")
        # Whole tokens: the recording's length, rounded up.
        assert 0 <= len(reconstruction) - length < 640 and np.abs(reconstruction).max() > 0
        if find_spec("matplotlib"):
            assert (folder / "step-4" / f"{index}.png").read_bytes().startswith(b"\x89PNG")


def test_samples_depend_on_weights_and_seed_alone(folders, tmp_path):
    trainer = build_trainer(stage_recipe("joint", folders), str(tmp_path))
    for name, noise in (("first", 0), ("second", 1)):
        torch.manual_seed(noise)
        write_samples(trainer.composite, trainer.eval_dataset, trainer.data_collator, tmp_path / name, 1, seed=3)
    assert trainer.composite.training is False
    for file in (tmp_path / "first").iterdir():
        assert file.read_bytes() == (tmp_path / "second" / file.name).read_bytes(), file.name


def test_samples_need_held_out_rows(folders, tmp_path):
    recipe = stage_recipe("joint", folders, samples={"every": 2})
    recipe.data.eval_rows = 0
    with pytest.raises(RecipeError, match="held-out rows"):
        build_trainer(recipe, str(tmp_path))
