"""The three stages on a tiny data set: losses are logged, a stopped run resumes to the same ones, frozen is frozen."""

import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from safetensors.torch import load_file
from stages import STAGES, STEPS, Stop, make_folders, stage_recipe, trainer_losses
from transformers import AutoModel

from e2e_tts.modeling import E2ETTSModel
from e2e_tts.trainers.loss_log import named_losses, rows_of_loss, token_statistics
from e2e_tts.trainers.recipe import RecipeError
from e2e_tts.trainers.stage_trainers import SpeechTrainer, edit_distance
from e2e_tts.trainers.train import build_trainer

STOP = 3
LOGGED = {
    "joint": {"loss_lm", "loss_asr", "loss_spk", "loss_flow", "loss_prior"},
    "component": {"loss_lm", "loss_asr", "loss_spk", "loss_flow", "loss_prior"},
    "end_to_end": {"loss_lm", "loss_flow", "loss_prior", "loss_kl"}
    | {"predicted_loss_asr", "predicted_loss_spk", "predicted_loss_flow", "predicted_loss_prior"},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    return make_folders(tmp_path_factory.mktemp("stages"))


def trainer_of(stage: str, folders: dict[str, str], output: str, **changes) -> SpeechTrainer:
    return build_trainer(stage_recipe(stage, folders, **changes), output)


@pytest.mark.parametrize("stage", STAGES)
def test_stage(stage, folders, tmp_path):
    trainer = trainer_of(stage, folders, str(tmp_path))
    before = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    trainer.train()
    history = trainer_losses(trainer)
    assert list(history) == list(range(1, STEPS + 1))
    for losses in history.values():
        assert LOGGED[stage] <= set(losses)
        assert all(torch.isfinite(torch.tensor(value)) for value in losses.values())
    assert all({"token_entropy", "code_use"} <= set(entry) for entry in trainer.state.log_history if "loss" in entry)
    changed = {
        name.split(".")[0] for name, value in trainer.model.state_dict().items() if not torch.equal(value, before[name])
    }
    assert changed == set(STAGES[stage]["train"])
    metrics = trainer.evaluate()
    assert {f"eval_{name}" for name in LOGGED[stage]} <= set(metrics)
    if stage != "end_to_end":
        assert 0 <= metrics["eval_label_error_rate"] <= 20
    assert metrics == trainer.evaluate()


@pytest.mark.parametrize("stage", ["joint", "end_to_end"])
def test_a_stopped_run_resumes_to_the_same_losses(stage, folders, tmp_path):
    whole = trainer_of(stage, folders, str(tmp_path / "whole"))
    whole.train()
    stopped = trainer_of(stage, folders, str(tmp_path / "stopped"))
    stopped.add_callback(Stop(STOP))
    with pytest.raises(KeyboardInterrupt):
        stopped.train()
    resumed = trainer_of(stage, folders, str(tmp_path / "stopped"))
    resumed.train(resume_from_checkpoint=True)
    expected, got = trainer_losses(whole), trainer_losses(resumed)
    # The checkpoint is of step 2; step 3 was lost and is done again.
    assert list(got) == list(range(1, STEPS + 1))
    assert got == expected
    for (name, value), other in zip(whole.model.state_dict().items(), resumed.model.state_dict().values(), strict=True):
        assert torch.equal(value, other), name


def test_anchor_stays_the_lm_of_the_start(folders, tmp_path):
    fast = {"learning_rate": 2e-2, "warmup_steps": 0, "lr_scheduler_type": "constant"}
    trainer = trainer_of("end_to_end", folders, str(tmp_path), arguments={"max_steps": 2, **fast})
    trainer.train()
    start = AutoModel.from_pretrained(folders["start"]).lm
    resumed = trainer_of("end_to_end", folders, str(tmp_path), arguments={"max_steps": 3, **fast})
    resumed.train(resume_from_checkpoint=True)
    for name, value in start.state_dict().items():
        assert torch.equal(value, resumed.reference_lm.state_dict()[name]), name
    assert any(
        not torch.equal(value, resumed.model.lm.state_dict()[name]) for name, value in start.state_dict().items()
    )
    assert not any(parameter.requires_grad for parameter in resumed.reference_lm.parameters())
    assert trainer_losses(resumed)[1]["loss_kl"] == 0.0 and trainer_losses(resumed)[3]["loss_kl"] > 0.0


def test_checkpoints_load(folders, tmp_path):
    trainer = trainer_of("joint", folders, str(tmp_path), arguments={"max_steps": 2})
    trainer.train()
    trained = trainer.model.state_dict()
    loaded = AutoModel.from_pretrained(tmp_path / "checkpoint-2")
    assert isinstance(loaded, E2ETTSModel)
    assert set(loaded.state_dict()) == set(trained)
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, trained[name]), name
    assert torch.equal(loaded.encoder.quantizer.codebook, trainer.model.encoder.quantizer.codebook)
    lm = AutoModel.from_pretrained(tmp_path / "checkpoint-2" / "lm")
    assert torch.equal(lm.code_keys.inner.weight, trained["lm.code_keys.inner.weight"])
    assert torch.equal(lm.quantizer.codebook, trainer.model.lm.quantizer.codebook)
    stored = load_file(tmp_path / "checkpoint-2" / "encoder" / "model.safetensors")
    assert stored and not any("codebook" in name for name in stored)


def test_accumulated_batches_are_averaged(folders, tmp_path):
    trainer = trainer_of("joint", folders, str(tmp_path), arguments={"gradient_accumulation_steps": 2, "max_steps": 2})
    trainer.train()
    weights = {"loss_lm": 0.1, "loss_asr": 1.0, "loss_spk": 1.0, "loss_flow": 1.0, "loss_prior": 1.0}
    for step, losses in trainer_losses(trainer).items():
        total = sum(weight * losses[name] for name, weight in weights.items())
        total -= weights["loss_lm"] * losses["loss_lm"] * (1 - step / 4)  # the ramp
        assert losses["loss"] == pytest.approx(total, abs=2e-3)


@pytest.mark.parametrize(
    "stage, changes, frozen",
    [
        ("joint", {"losses": {"lm": 0.1, "asr": 1.0, "spk": 1.0, "flow": 1.0}}, {"reward.emotion_head"}),
        (
            "component",
            {"train": ["reward"], "losses": {"asr": 1.0}},
            {f"reward.{name}" for name in ("speaker_head", "emotion_head", "pooling.score")},
        ),
        ("component", {"train": ["reward"], "losses": {"ser": 1.0}}, {"reward.speaker_head", "reward.ctc_head"}),
        ("end_to_end", {"train": ["lm"], "losses": {}, "predicted_losses": {"asr": 1.0}, "kl": 0.0}, {"lm.end_head"}),
        ("end_to_end", {"train": ["lm"], "losses": {}, "predicted_losses": {"asr": 1.0}, "kl": 0.1}, set()),
    ],
)
def test_heads_without_a_loss_do_not_learn_and_all_else_does(stage, changes, frozen, folders, tmp_path):
    trainer = trainer_of(stage, folders, str(tmp_path), **changes, arguments={"max_steps": 1})
    trainer.train()
    reached = set(trainer.optimizer.state)
    for module in trainer.recipe.train:
        for name, parameter in getattr(trainer.composite, module).named_parameters():
            head = f"{module}.{name.rpartition('.')[0]}"
            assert (parameter in reached) is parameter.requires_grad is (head not in frozen), name


def test_the_weighted_loss_of_held_out_rows(folders, tmp_path):
    trainer = trainer_of("end_to_end", folders, str(tmp_path), arguments={"per_device_eval_batch_size": 2})
    metrics = trainer.evaluate()
    total = sum(weight * metrics[f"eval_{name}"] for name, weight in trainer.full_weights().items())
    assert metrics["eval_loss"] == pytest.approx(total) and "predicted_loss_asr" in trainer.full_weights()
    whole = trainer_of("end_to_end", folders, str(tmp_path)).evaluate()
    assert metrics == pytest.approx(whole, rel=1e-4, abs=1e-6)


def test_losses_are_means_over_the_batches_that_have_labels(folders, tmp_path):
    trainer = trainer_of("joint", folders, str(tmp_path), losses={"asr": 1.0, "ser": 1.0})
    model, batches = trainer.model.eval(), []
    for rows, labels in (((0, 1), [0, -100]), ((2, 3), [-100, -100])):
        inputs = trainer.data_collator([trainer.train_dataset[row] for row in rows])
        inputs = trainer.draw_inputs(inputs, 0) | {"emotion_labels": torch.tensor(labels)}
        with torch.no_grad():
            output = model(**inputs, **trainer.model_options(0))
        batches.append((named_losses(output), inputs, output))
    (first, *_), (second, *_) = batches
    assert second["loss_ser"] == 0.0 and [rows_of_loss("loss_ser", inputs) for _, inputs, _ in batches] == [1, 0]
    for batch in batches:
        trainer.loss_log.add(*batch)
    logged = trainer.loss_log.take(trainer.accelerator)
    assert logged["loss_ser"] == pytest.approx(first["loss_ser"], abs=1e-5)
    assert logged["loss_asr"] == pytest.approx((first["loss_asr"] + second["loss_asr"]) / 2, abs=1e-5)
    assert trainer.loss_log.take(trainer.accelerator) == {}
    trainer.loss_log.add(*batches[1])
    assert "loss_ser" not in trainer.loss_log.take(trainer.accelerator)


def test_arguments_of_the_loader_reach_it(folders, tmp_path):
    workers = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True, "dataloader_prefetch_factor": 3}
    loader = trainer_of("joint", folders, str(tmp_path), arguments=workers).get_train_dataloader()
    assert (loader.num_workers, loader.persistent_workers, loader.prefetch_factor) == (1, True, 3)
    assert loader.pin_memory is False  # there is no GPU
    alone = {"dataloader_persistent_workers": True}
    assert not trainer_of("joint", folders, str(tmp_path), arguments=alone).get_train_dataloader().persistent_workers


def test_text_dropout_hides_whole_texts_from_the_lm(folders, tmp_path):
    trainer = trainer_of("joint", folders, str(tmp_path), text_dropout=0.3)
    inputs = trainer.data_collator([trainer.train_dataset[index] for index in range(12)])
    seen = torch.stack([trainer.draw_inputs(inputs, step)["text_mask"] for step in range(40)])
    whole = (seen == inputs["text_mask"].bool()).all(dim=2)
    assert (whole | ~seen.any(dim=2)).all()
    assert 0.2 < 1 - whole.float().mean() < 0.4
    lm, encoded = trainer.model.lm.eval(), trainer.model.encoder(inputs["input_features"], inputs["feature_mask"])
    unseen = torch.zeros_like(inputs["text_mask"], dtype=torch.bool)
    rest = (encoded.codes, encoded.mask, encoded.ids, None, inputs["tokens_per_symbol"])
    loss = lm(inputs["text_ids"], unseen, *rest).loss
    torch.testing.assert_close(lm(inputs["text_ids"].flip(0), unseen, *rest).loss, loss)
    assert lm(inputs["text_ids"], inputs["text_mask"], *rest).loss != loss
    with pytest.raises(RecipeError, match="text_dropout is a share"):
        stage_recipe("joint", folders, text_dropout=1.5)


def test_history_dropout_hides_codes_from_later_predictions_alone(folders, tmp_path):
    trainer = trainer_of("component", folders, str(tmp_path), history_dropout=0.4, train=["lm"])
    model = trainer.model.train()
    inputs = trainer.draw_inputs(trainer.data_collator([trainer.train_dataset[index] for index in (0, 5, 7)]), 3)
    options = trainer.model_options(3)
    with torch.no_grad():
        dropped, again = model(**inputs, **options), model(**inputs, **options)
        whole = model(**inputs, **options | {"history_dropout": 0.0})
        evaluated = model.eval()(**inputs, **options)
    assert dropped.loss_lm == again.loss_lm != whole.loss_lm == evaluated.loss_lm
    # The first code has no history; the second has lost it in some utterances only.
    torch.testing.assert_close(dropped.lm_logits[:, 0], whole.lm_logits[:, 0])
    with torch.no_grad():
        encoded = model.encoder(inputs["input_features"], inputs["feature_mask"])
        given = (inputs["text_ids"], inputs["text_mask"], encoded.codes, encoded.mask, None, None)
        seen = torch.ones_like(encoded.mask)
        seen[:, 4] = False
        logits, hidden = (
            model.lm(*given, tokens_per_symbol=inputs["tokens_per_symbol"], history_mask=mask).logits
            for mask in (None, seen)
        )
    torch.testing.assert_close(hidden[:, :5], logits[:, :5])
    assert not torch.allclose(hidden[:, 5], logits[:, 5], atol=1e-4)
    with pytest.raises(RecipeError, match="history_dropout is a share of codes"):
        stage_recipe("component", folders, history_dropout=1.0)


def test_feature_masks_hide_sound_from_the_tokenizer_alone(folders, tmp_path):
    masks = {"times": 2, "time_frames": 8, "bands": 1, "band_bins": 6}
    trainer = trainer_of("joint", folders, str(tmp_path), feature_masks=masks)
    inputs = trainer.data_collator([trainer.train_dataset[index] for index in (0, 5, 7)])
    features, valid = inputs["input_features"].clone(), inputs["feature_mask"].bool()
    drawn = trainer.draw_inputs(inputs, 3)
    assert torch.equal(drawn["mel"], features) and torch.equal(inputs["input_features"], features)
    hidden = drawn["input_features"] != features
    assert not hidden[~valid].any()
    for row, mask, original in zip(drawn["input_features"], valid, features, strict=True):
        changed = (row != original)[mask]
        stretches, bands = changed.all(dim=1), changed.all(dim=0)
        assert stretches.sum() <= min(16, 0.2 * mask.sum()) and bands.sum() <= 6
        # Nothing else is touched, and what is hidden sounds like the mean.
        assert torch.equal(changed, stretches[:, None] | bands)
        torch.testing.assert_close(row[mask][changed], original[mask].mean().expand(int(changed.sum())))
    # An utterance has the same masks alone as in a batch; another step has others.
    alone = trainer.draw_inputs(trainer.data_collator([trainer.train_dataset[5]]), 3)["input_features"][0]
    torch.testing.assert_close(drawn["input_features"][1][valid[1]], alone)
    assert not torch.equal(trainer.draw_inputs(inputs, 4)["input_features"], drawn["input_features"])
    assert "mel" not in trainer_of("joint", folders, str(tmp_path)).draw_inputs(inputs, 3)
    with pytest.raises(ValueError, match="time_share"):
        stage_recipe("joint", folders, feature_masks={"time_share": 1.0})


def test_draws_are_keyed_by_run_step_and_utterance(folders, tmp_path):
    trainer = trainer_of("joint", folders, str(tmp_path))
    utterances = torch.arange(50)
    seeds = torch.cat([trainer.seeds(utterances, step) for step in range(20)])
    assert len(seeds.unique()) == 1000 and seeds.min() >= 0
    rows = [trainer.train_dataset[index] for index in (0, 1, 2)]
    drawn = trainer.draw_inputs(trainer.data_collator(rows), 5)
    again = trainer.draw_inputs(trainer.data_collator(rows[1:2]), 5)
    torch.testing.assert_close(drawn["speaker_embedding"][1], again["speaker_embedding"][0])
    torch.testing.assert_close(drawn["tokens_per_symbol"][1], again["tokens_per_symbol"][0])
    # The voice comes from another clip of the speaker.
    for row, voice in zip(rows, drawn["speaker_embedding"], strict=True):
        kept = zip(trainer.train_dataset.rows["source"][:], trainer.train_dataset.rows["speaker"][:], strict=True)
        own = (row["source"], row["speaker"])
        others = [i for i, clip in enumerate(kept) if clip == own and i != row["index"]]
        assert any(torch.equal(voice, trainer.embeddings[i]) for i in others)


def test_batches_can_be_shared_among_processes(folders, tmp_path):
    trainer = trainer_of("joint", folders, str(tmp_path))
    sampler = trainer.get_train_dataloader().batch_sampler
    even = trainer.accelerator.even_batches
    shards = [list(BatchSamplerShard(sampler, 2, process, even_batches=even)) for process in (0, 1)]
    batches = list(sampler)
    assert shards == [batches[0::2], batches[1::2]] and len(batches) == STEPS


@pytest.mark.parametrize(
    "stage, train, message",
    [
        ("component", ["encoder", "lm"], "take encoder out"),
        ("end_to_end", ["reward", "lm"], r"take \['reward'\] out"),
        ("end_to_end", ["encoder", "lm"], r"take \['encoder'\] out"),
    ],
)
def test_stages_refuse_to_train_what_they_freeze(stage, train, message, folders, tmp_path):
    with pytest.raises(ValueError, match=message):
        trainer_of(stage, folders, str(tmp_path), train=train)


def test_max_steps_is_needed(folders, tmp_path):
    with pytest.raises(ValueError, match="give --output_dir"):
        build_trainer(stage_recipe("joint", folders, arguments={"output_dir": str(tmp_path)}), str(tmp_path))
    with pytest.raises(ValueError, match="max_steps must be set"):
        trainer_of("joint", folders, str(tmp_path), arguments={"max_steps": -1})


def test_a_broken_loss_names_the_utterances(folders, tmp_path):
    trainer = trainer_of("joint", folders, str(tmp_path))
    with torch.no_grad():
        trainer.model.decoder.project_out.bias.fill_(float("nan"))
    with pytest.raises(FloatingPointError, match=r"not finite at step 0.*utterances \["):
        trainer.train()


def test_a_loss_that_the_model_does_not_give_is_named(folders, tmp_path):
    trainer = trainer_of("joint", folders, str(tmp_path), losses={"lm": 1.0, "asr": 1.0, "ser": 1.0})
    trainer.model.reward.emotion_head = None
    with pytest.raises(RecipeError, match=r"no loss_ser.*weight to 0"):
        trainer.train()


def test_what_a_stage_starts_from_must_be_there(folders, tmp_path):
    with pytest.raises(RecipeError, match=r"init: .*no_such_run cannot be loaded.*stage before"):
        trainer_of("component", folders, str(tmp_path), init=str(tmp_path / "no_such_run"))


def test_any_seed_can_be_trained_with(folders, tmp_path):
    seeds = [
        trainer_of("joint", folders, str(tmp_path), arguments={"seed": seed}).seeds(torch.arange(4), step=10**6)
        for seed in (0, 12345, 2**31)
    ]
    assert len({int(seed) for row in seeds for seed in row}) == 12
    assert all(0 <= int(seed) < 2**31 for row in seeds for seed in row)


def test_edit_distance_and_token_statistics():
    assert edit_distance([1, 2, 3], [1, 3]) == 1
    assert edit_distance([], [4, 4]) == 2 and edit_distance([1, 2], [2, 1]) == 2
    assert token_statistics(torch.tensor([5, 5, 5, 5])) == {"token_entropy": 2.0, "code_use": 1.0}
    assert token_statistics(torch.tensor([7, 0, 0, 0])) == {"token_entropy": 0.0, "code_use": 0.25}
