"""A run's folder: whole checkpoints alone are taken, and only by the recipe that made them."""

import json
from dataclasses import asdict

import pytest

from e2e_tts.trainers.recipe import RecipeError, VocoderRecipe, load_recipe
from e2e_tts.trainers.run_folder import (
    ACCUMULATION,
    LAUNCH_FILE,
    check_recipe,
    flatten,
    last_whole_checkpoint,
    record_recipe,
    set_aside,
)


def add_checkpoint(folder, step: int, state: str | None = "{}", weights: bool = True) -> None:
    folder = folder / f"checkpoint-{step}"
    (folder / "lm").mkdir(parents=True)
    index = {"weight_map": {"lm.weight": "lm/model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    if weights:
        (folder / "lm" / "model.safetensors").touch()
    if state is not None:
        (folder / "trainer_state.json").write_text(state)


def test_only_whole_checkpoints_are_taken(tmp_path, caplog):
    assert last_whole_checkpoint(tmp_path / "nothing") is None and last_whole_checkpoint(tmp_path) is None
    add_checkpoint(tmp_path, 20, None)
    add_checkpoint(tmp_path, 30, '{"global_step": 3')
    add_checkpoint(tmp_path, 40, weights=False)
    assert last_whole_checkpoint(tmp_path) is None
    assert "None of the checkpoints" in caplog.text
    add_checkpoint(tmp_path, 9)
    add_checkpoint(tmp_path, 10)
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-10")


def test_a_fresh_run_never_meets_what_the_one_before_has_left(tmp_path):
    assert set_aside(tmp_path) is None
    add_checkpoint(tmp_path, 2000)
    (tmp_path / "final").mkdir()
    assert set_aside(tmp_path) == tmp_path / "earlier-1"
    add_checkpoint(tmp_path, 100)
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-100")
    assert set_aside(tmp_path) == tmp_path / "earlier-2"
    assert last_whole_checkpoint(tmp_path) is None
    # Nothing is lost, and an older result is not taken for the new one's.
    assert (tmp_path / "earlier-1" / "final").is_dir() and not (tmp_path / "final").exists()
    assert (tmp_path / "earlier-1" / "checkpoint-2000" / "lm" / "model.safetensors").is_file()


@pytest.mark.parametrize("name", ["small_joint", "small_end_to_end", "small_finetune_voice", "small_vocoder"])
def test_a_run_goes_on_with_its_own_recipe_only(name, tmp_path):
    recipe = load_recipe(name)
    check_recipe(recipe, tmp_path, 1)  # nothing known of the run
    record_recipe(recipe, tmp_path, 1)
    check_recipe(recipe, tmp_path, 1)
    harmless = ["max_steps=7", "save_steps=9", "eval_steps=3", "per_device_eval_batch_size=2"]
    harmless += ["dataloader_num_workers=2", "dataloader_pin_memory=false"]
    harmless += ["activation_checkpointing=true", "gradient_checkpointing=true"]
    check_recipe(load_recipe(name, [f"arguments.{entry}" for entry in harmless]), tmp_path, 1)
    other = load_recipe(name, ["arguments.learning_rate=1e-5"])
    change = rf"arguments\.learning_rate is 1e-05, was {recipe.arguments['learning_rate']}"
    with pytest.raises(RecipeError, match=rf"{change}\. .*--output_dir.*--fresh"):
        check_recipe(other, tmp_path, 1)


def test_a_step_keeps_its_number_of_batches(tmp_path):
    accumulating = {count: load_recipe("paper_joint", [f"{ACCUMULATION}={count}"]) for count in (1, 2, 3)}
    record_recipe(load_recipe("paper_joint"), tmp_path, 8)
    check_recipe(accumulating[1], tmp_path, 8)
    check_recipe(accumulating[2], tmp_path, 4)
    with pytest.raises(RecipeError, match=rf"8 batches.* of 4 \(4 x 1\).*8 processes.* or with 4 and {ACCUMULATION}=2"):
        check_recipe(accumulating[1], tmp_path, 4)
    with pytest.raises(RecipeError, match=rf"of 9 \(3 x 3\)\. Go on with 8 processes and {ACCUMULATION}=1, name ano"):
        check_recipe(accumulating[3], tmp_path, 3)
    record_recipe(accumulating[2], tmp_path, 4)
    check_recipe(accumulating[1], tmp_path, 8)
    # A run of a version that did not write its processes down.
    (tmp_path / LAUNCH_FILE).unlink()
    check_recipe(accumulating[2], tmp_path, 16)
    with pytest.raises(RecipeError, match="16 batches"):
        check_recipe(accumulating[1], tmp_path, 8)


def test_discriminators_may_begin_later(tmp_path):
    started, later = (load_recipe("small_vocoder", [f"discriminator.start_step={step}"]) for step in (600, 900))
    narrow = ["discriminator.period_channels=[4, 4, 4, 4]"]
    record_recipe(started, tmp_path, 1)
    check_recipe(later, tmp_path, 1)
    with pytest.raises(RecipeError, match=r"discriminator\.period_channels"):
        check_recipe(load_recipe("small_vocoder", narrow), tmp_path, 1)
    record_recipe(load_recipe("small_vocoder", ["discriminator.start_step=null"]), tmp_path, 1)
    check_recipe(load_recipe("small_vocoder", narrow), tmp_path, 1)


def test_nested_entries_have_joined_names():
    assert flatten({"a": {"b": 1, "c": {}}, "d": (1, 2)}) == {"a.b": 1, "a.c": {}, "d": [1, 2]}
    assert flatten(asdict(VocoderRecipe()))["crops.crop_seconds"] > 0
