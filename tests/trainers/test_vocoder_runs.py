"""A vocoder's run that goes on: with discriminators that begin later, and from the vocoder of another run."""

import json
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from factories import make_dataset, make_rows, vocoder_settings
from safetensors.torch import load_file

from e2e_tts.modeling import VocoderConfig, VocoderModel
from e2e_tts.trainers import doctor, train
from e2e_tts.trainers.recipe import load_recipe
from e2e_tts.trainers.vocoder_trainer import DISCRIMINATOR_WEIGHTS


def recipe_of(tmp_path: Path, **changes) -> list[str]:
    """The arguments that train a tiny vocoder, in tmp_path/run; changes replace entries of its recipe."""
    small = {"samples": 1600, "periods": [3], "period_channels": [4, 4], "fft_sizes": [128]}
    values = {
        "trainer": "vocoder",
        "folders": [str(tmp_path / "data")],
        "model": vocoder_settings(),
        "losses": {"fft_sizes": [256]},
        "discriminator": {**small, "spectrogram_channels": [4, 4]},
        "crops": {"crop_seconds": 0.2, "source_weights": {"first": 1.0}},
        "arguments": {"max_steps": 3, "save_steps": 1, "per_device_train_batch_size": 2, "use_cpu": True},
        **changes,
    }
    (tmp_path / "recipe.yaml").write_text(json.dumps(values))
    return ["--recipe", str(tmp_path / "recipe.yaml"), "--output_dir", str(tmp_path / "run")]


def test_discriminators_are_turned_on_from_the_checkpoint_on(tmp_path):
    make_dataset(str(tmp_path / "data"))
    command = [*recipe_of(tmp_path), "--max_steps"]
    train.main([*command, "2"])
    with pytest.raises(SystemExit, match=r"checkpoint-2 is past .*Set discriminator\.start_step=2 or later"):
        train.main([*command, "3", "--set", "discriminator.start_step=1"])
    train.main([*command, "3", "--set", "discriminator.start_step=2"])
    assert (tmp_path / "run" / "checkpoint-3" / DISCRIMINATOR_WEIGHTS).is_file()
    assert not (tmp_path / "run" / "checkpoint-2" / DISCRIMINATOR_WEIGHTS).exists()


def test_a_resumed_run_saves_and_logs_as_often_as_it_is_asked_to(tmp_path, caplog):
    make_dataset(str(tmp_path / "data"))
    command = recipe_of(tmp_path, crops={"crop_seconds": 0.2, "source_weights": {}})
    train.main([*command, "--max_steps", "1"])
    caplog.clear()
    train.main([*command, "--max_steps", "5", "--set", "arguments.save_steps=4", "arguments.logging_steps=2"])
    assert "no multiple" not in caplog.text
    saved = {path.name for path in (tmp_path / "run").glob("checkpoint-*")}
    assert saved == {"checkpoint-1", "checkpoint-4", "checkpoint-5"}
    state = json.loads((tmp_path / "run" / "trainer_state.json").read_text())
    assert [entry["step"] for entry in state["log_history"] if "loss" in entry and entry["step"] > 1] == [2, 4]
    train.main([*command, "--max_steps", "5", "--set", "arguments.save_steps=4", "arguments.logging_steps=3"])
    assert "save_steps=4 is no multiple of logging_steps=3" in caplog.text


def test_a_diverging_run_stops_keeps_the_batch_and_leaves_no_result(tmp_path):
    make_dataset(str(tmp_path / "data"))
    rates = {"max_steps": 9, "per_device_train_batch_size": 2, "use_cpu": True, "learning_rate": 1e12}
    with pytest.raises(SystemExit, match=r"not finite at step \d.*bad_batch"):
        train.main(recipe_of(tmp_path, arguments=rates))
    (folder,) = (tmp_path / "run" / "bad_batch").iterdir()
    assert load_file(folder / "batch.safetensors")["waveform"].shape == (2, 3200)
    assert not (tmp_path / "run" / "final").exists()


def test_without_held_out_rows_the_entry_that_helps_is_named(tmp_path):
    rows = Dataset.load_from_disk(make_dataset(str(tmp_path / "all")))
    rows.filter(lambda row: row["split"] == "train").save_to_disk(tmp_path / "data")
    with pytest.raises(SystemExit, match=r"train without any: crops\.eval_crops=0"):
        train.main(recipe_of(tmp_path, crops={"crop_seconds": 0.2, "eval_crops": 2}))


def test_a_vocoder_goes_on_from_another(tmp_path):
    make_dataset(str(tmp_path / "data"))
    torch.manual_seed(3)
    before = VocoderModel(VocoderConfig(**vocoder_settings(kernel_size=5)))
    before.save_pretrained(tmp_path / "before")
    still = {"max_steps": 1, "learning_rate": 0.0, "weight_decay": 0.0, "use_cpu": True, "save_strategy": "no"}
    train.main(recipe_of(tmp_path, model={}, init=str(tmp_path / "before"), arguments=still))
    after = VocoderModel.from_pretrained(tmp_path / "run" / "final")
    assert after.config.kernel_size == 5
    for name, value in before.state_dict().items():
        assert torch.equal(value, after.state_dict()[name]), name


@pytest.mark.parametrize("command", [train.main, doctor.main])
def test_a_vocoder_that_is_another_or_none_is_refused(command, tmp_path, capsys):
    make_dataset(str(tmp_path / "data"))
    VocoderModel(VocoderConfig(**vocoder_settings(kernel_size=5))).save_pretrained(tmp_path / "before")
    messages = {"before": "has kernel_size=5, not 7. Drop these", "absent": "no vocoder can be loaded from"}
    for name, message in messages.items():
        arguments = recipe_of(tmp_path, model={"hidden_size": 16, "kernel_size": 7}, init=str(tmp_path / name))
        with pytest.raises(SystemExit) as refusal:
            command(arguments[:2] if command is doctor.main else arguments)
        assert message in str(refusal.value) + capsys.readouterr().out


def test_a_source_that_is_not_held_out_is_learned_from_alone(tmp_path):
    make_dataset(str(tmp_path / "data"))
    teacher = Dataset.from_list([{**row, "source": "teacher"} for row in make_rows(3)])
    teacher.save_to_disk(tmp_path / "teacher")
    folders = [str(tmp_path / "data"), str(tmp_path / "teacher")]
    crops = {"crop_seconds": 0.2, "source_weights": {"first": 1.0, "teacher": 3.0}, "eval_crops": 2}
    recipe = load_recipe(recipe_of(tmp_path, folders=folders, crops=crops)[1])
    trainer = train.build_vocoder_trainer(recipe, str(tmp_path / "run"))
    assert len(trainer.train_dataset.groups) == 2 and len(trainer.eval_dataset.groups) == 1
    assert len(trainer.eval_dataset) == 2


def test_a_trained_vocoder_is_given_a_second_pass_that_changes_nothing_yet(tmp_path):
    make_dataset(str(tmp_path / "data"))
    torch.manual_seed(3)
    before = VocoderModel(VocoderConfig(**vocoder_settings()))
    before.save_pretrained(tmp_path / "before")
    still = {"max_steps": 1, "learning_rate": 0.0, "weight_decay": 0.0, "use_cpu": True, "save_strategy": "no"}
    second = {"refine_layers": 1, "refine_size": 8}
    train.main(recipe_of(tmp_path, model=second, init=str(tmp_path / "before"), arguments=still))
    after = VocoderModel.from_pretrained(tmp_path / "run" / "final")
    assert after.config.refine_layers == 1
    mel = torch.randn(1, 6, 80)
    with torch.no_grad():
        torch.testing.assert_close(after(mel), before(mel), atol=1e-5, rtol=1e-4)
    # What has one already is not changed by the way.
    with pytest.raises(SystemExit, match="has refine_layers=1, not 2"):
        more = {"refine_layers": 2, "refine_size": 8}
        train.main([*recipe_of(tmp_path, model=more, init=str(tmp_path / "run" / "final"), arguments=still), "--fresh"])
