"""A run's folder: whole checkpoints alone are taken, and only by the recipe that made them."""

import json
from dataclasses import asdict

import pytest

from e2e_tts.trainers.recipe import RecipeError, VocoderRecipe, load_recipe
from e2e_tts.trainers.run_folder import (
    check_recipe,
    flatten,
    last_whole_checkpoint,
    record_recipe,
    set_checkpoints_aside,
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


def test_a_fresh_run_never_meets_the_checkpoints_of_the_one_before(tmp_path):
    assert set_checkpoints_aside(tmp_path) is None
    add_checkpoint(tmp_path, 2000)
    assert set_checkpoints_aside(tmp_path) == tmp_path / "earlier-1"
    add_checkpoint(tmp_path, 100)
    assert last_whole_checkpoint(tmp_path) == str(tmp_path / "checkpoint-100")
    assert set_checkpoints_aside(tmp_path) == tmp_path / "earlier-2"
    assert last_whole_checkpoint(tmp_path) is None
    # Nothing is lost.
    assert (tmp_path / "earlier-1" / "checkpoint-2000" / "lm" / "model.safetensors").is_file()


@pytest.mark.parametrize("name", ["small_joint", "small_end_to_end", "small_finetune_voice", "small_vocoder"])
def test_a_run_goes_on_with_its_own_recipe_only(name, tmp_path):
    recipe = load_recipe(name)
    check_recipe(recipe, tmp_path)  # nothing known of the run
    record_recipe(recipe, tmp_path)
    check_recipe(recipe, tmp_path)
    check_recipe(load_recipe(name, ["arguments.max_steps=7", "arguments.save_steps=9"]), tmp_path)
    other = load_recipe(name, ["arguments.learning_rate=1e-5"])
    change = rf"arguments\.learning_rate is 1e-05, was {recipe.arguments['learning_rate']}"
    with pytest.raises(RecipeError, match=rf"{change}\. .*--output_dir.*--fresh"):
        check_recipe(other, tmp_path)


def test_nested_entries_have_joined_names():
    assert flatten({"a": {"b": 1, "c": {}}, "d": (1, 2)}) == {"a.b": 1, "a.c": {}, "d": [1, 2]}
    assert flatten(asdict(VocoderRecipe()))["crops.crop_seconds"] > 0
