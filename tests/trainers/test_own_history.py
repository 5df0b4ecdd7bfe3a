"""Stage 3 with the LM's own history: it trains, resumes to the same losses, and says what does not fit."""

import pytest
import torch
from stages import Stop, make_folders, stage_recipe, trainer_losses

from e2e_tts.modeling import modeling_e2e_tts
from e2e_tts.modeling.own_history import policy_loss
from e2e_tts.trainers.recipe import RecipeError
from e2e_tts.trainers.train import build_trainer

OWN = {"draws": 3, "reward": {"asr": 1.0, "spk": 0.5}, "temperature": 0.8, "top_k": 10, "text_guidance": 1.5}
OWN["voices"] = {"ann": 1.0, "bob": 3.0}
VOICES = {"ann": "first", "bob": "second"}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    folders = make_folders(tmp_path_factory.mktemp("own_history"))
    stage_2 = build_trainer(
        stage_recipe("component", folders, train=["lm"], losses={"lm": 1.0}, voices=VOICES, arguments={"max_steps": 1}),
        f"{folders['start']}_stage_2",
    )
    stage_2.save_final(f"{folders['start']}_voices")
    return folders | {"start": f"{folders['start']}_voices"}


LOSSES = {"policy": 1.0, "asr": 0.5, "spk": 0.1, "flow": 1.0}


def trainer_of(folders: dict[str, str], output: str, **changes):
    changes = {"own_history": OWN, "predicted_losses": LOSSES, **changes}
    return build_trainer(stage_recipe("end_to_end", folders, **changes), output)


def drawn_inputs(trainer, inputs: dict, step: int) -> dict:
    return trainer.with_draws(inputs, trainer.draw_inputs(inputs, step))


def test_it_trains_and_resumes_to_the_same_losses(folders, tmp_path):
    whole = trainer_of(folders, str(tmp_path / "whole"), arguments={"max_steps": 4})
    whole.train()
    stopped = trainer_of(folders, str(tmp_path / "part"), arguments={"max_steps": 4})
    stopped.add_callback(Stop(3))
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    resumed = trainer_of(folders, str(tmp_path / "part"), arguments={"max_steps": 4})
    resumed.train(resume_from_checkpoint=True)
    expected, got = trainer_losses(whole), trainer_losses(resumed)
    assert got == expected
    logged = {"loss_kl", "loss_lm", *(f"predicted_loss_{name}" for name in LOSSES)}
    assert logged <= set(expected[4]) and expected[4]["loss_kl"] > 0.0


def test_the_lm_speaks_in_the_voices_of_the_recipe(folders, tmp_path):
    trainer = trainer_of(folders, str(tmp_path))
    model = trainer.composite.train()
    rows = [trainer.train_dataset[index] for index in range(8)]
    inputs = trainer.data_collator(rows)
    drawn = drawn_inputs(trainer, inputs, 0)
    own = drawn["own_history"]
    is_ann = [torch.equal(voice, model.voice_embeddings[0]) for voice in own.speaker_embedding]
    is_bob = [torch.equal(voice, model.voice_embeddings[1]) for voice in own.speaker_embedding]
    assert all(ann != bob for ann, bob in zip(is_ann, is_bob)) and any(is_bob)
    assert is_bob == [each for each in is_bob[:: OWN["draws"]] for _ in range(OWN["draws"])]
    assert torch.equal(own.speaker_target, own.speaker_embedding)
    assert torch.equal(own.text_mask, inputs["text_mask"].repeat_interleave(OWN["draws"], dim=0))
    assert bool(own.mask.any(dim=1).all()) and model.lm.training
    again = drawn_inputs(trainer, inputs, 0)["own_history"]
    assert torch.equal(own.ids, again.ids) and torch.equal(own.speaker_embedding, again.speaker_embedding)
    assert not torch.equal(own.ids[:, :5], drawn_inputs(trainer, inputs, 1)["own_history"].ids[:, :5])


def test_an_end_that_the_lm_was_helped_to_is_not_taught(folders, tmp_path, monkeypatch):
    trainer = trainer_of(folders, str(tmp_path), own_history=OWN | {"longest": 8.0})
    model, taught = trainer.composite, []

    def watched(logits, ids, mask, ended, *others):
        taught.append(ended)
        return policy_loss(logits, ids, mask, ended, *others)

    monkeypatch.setattr(modeling_e2e_tts, "policy_loss", watched)
    model.lm.end_head.weight.data.zero_()
    inputs = trainer.data_collator([trainer.train_dataset[index] for index in range(4)])
    for bias, by_itself in ((5.0, True), (-5.0, False)):
        model.lm.end_head.bias.data.fill_(bias)
        drawn = drawn_inputs(trainer, inputs, 0)
        model(**drawn, true_losses=(), predicted_losses=("policy",))
        assert drawn["own_history"].finished.all() and taught[-1].eq(by_itself).all()


def test_without_voices_every_row_keeps_its_speaker(folders, tmp_path):
    trainer = trainer_of(folders, str(tmp_path), own_history={"temperature": 1.0})
    inputs = trainer.data_collator([trainer.train_dataset[index] for index in range(3)])
    drawn = drawn_inputs(trainer, inputs, 0)
    assert torch.equal(drawn["own_history"].speaker_embedding[::4], drawn["speaker_embedding"])
    assert torch.equal(drawn["own_history"].speaker_target[1::4], inputs["speaker_target"])


def test_held_out_texts_are_spoken_and_judged(folders, tmp_path):
    """What the reward model thinks of draws is measured, not of codes predicted behind a recording's."""
    trainer = trainer_of(folders, str(tmp_path), predicted_losses={"policy": 1.0})
    first, again = trainer.evaluate(), trainer.evaluate()
    assert first == again and {"eval_predicted_loss_asr", "eval_predicted_loss_spk", "eval_loss_lm"} <= set(first)
    with torch.no_grad():
        trainer.composite.lm.end_head.bias.fill_(-100.0)  # it does not come to an end
    assert trainer.evaluate()["eval_predicted_loss_asr"] != first["eval_predicted_loss_asr"]


def test_what_does_not_fit_is_refused(folders, tmp_path):
    with pytest.raises(RecipeError, match=r"\['carol'\] are not built in; the model has \['ann', 'bob'\]"):
        trainer_of(folders, str(tmp_path), own_history={"voices": {"carol": 1.0}})
    with pytest.raises(RecipeError, match=r"give predicted_losses\.policy or predicted_losses\.asr a weight"):
        trainer_of(folders, str(tmp_path), predicted_losses={"flow": 1.0})
    for one in (None, {"draws": 1}):
        with pytest.raises(RecipeError, match=r"compares draws of one text: set own_history, \{draws: 4\}"):
            trainer_of(folders, str(tmp_path), own_history=one)
    settings = [{"temperature": 0.0}, {"longest": 1.0}, {"top_p": 2.0}, {"voices": {"ann": -1.0}}, {"draws": 0}]
    settings += [{"reward": {}}, {"reward": {"asr": 0.0}}, {"reward": {"arc": 1.0}}]
    for wrong in settings:
        with pytest.raises(RecipeError, match="own_history"):
            trainer_of(folders, str(tmp_path), own_history=wrong)
    with pytest.raises(RecipeError, match=r"Set arguments\.metric_for_best_model=predicted_loss_asr"):
        trainer_of(folders, str(tmp_path), arguments={"load_best_model_at_end": True})
