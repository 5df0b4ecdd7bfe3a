"""Runs in processes of their own: killed at any moment they resume to the same losses, and two do the work of one."""

import json
import random
from pathlib import Path

import pytest
from processes import free_port, run, train, train_as_rank, train_until_killed
from safetensors.torch import load_file
from stages import LORA, STEPS, logged_losses, make_folders, recipe_values

from e2e_tts.trainers.run_folder import last_whole_checkpoint

EMA = {"ema": {"decoder": 0.9}}
# With dropout on, and every kind of state that a checkpoint has to hold.
KILLED = {
    "joint": ("joint", EMA, "training_step"),
    "component, while saving": ("component", EMA, "_save_optimizer_and_scheduler"),
    "component, LoRA": ("component", {**LORA, **EMA, "max_grad_norms": {"lm": 0.5}}, "training_step"),
    "end_to_end": ("end_to_end", {"ramp_steps": {"predicted_asr": 5}}, "training_step"),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    return make_folders(tmp_path_factory.mktemp("processes"))


@pytest.fixture(scope="module")
def even_folders(tmp_path_factory) -> dict[str, str]:
    """Without dropout, whose random state belongs to a process."""
    return make_folders(tmp_path_factory.mktemp("even"), dropout=0.0)


def command(folder: Path, name: str, values: dict) -> list[str]:
    recipe = folder / f"{name}.yaml"
    recipe.write_text(json.dumps(values))
    return ["--recipe", str(recipe), "--output_dir", str(folder / name)]


def history(folder: Path) -> list[dict]:
    """The log of a finished run, without its summary, which depends on the clock."""
    log = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    return [entry for entry in log if "train_runtime" not in entry]


@pytest.mark.parametrize("case", KILLED)
def test_a_killed_run_resumes_to_the_same_losses(case, folders, tmp_path):
    stage, changes, method = KILLED[case]
    values = recipe_values(stage, folders, **changes)
    # Checkpoints are written after steps 2, 4 and 6.
    step = 4 if "save" in method else random.Random(case).randrange(2, STEPS)
    killed = command(tmp_path, "killed", values)
    codes = run((train, (*command(tmp_path, "whole", values),)), (train_until_killed, (method, step, *killed)))
    assert codes == [0, -9]
    assert not (tmp_path / "killed" / "final").exists()
    last = last_whole_checkpoint(tmp_path / "killed")
    assert last.endswith("checkpoint-2" if step < 4 or "save" in method else "checkpoint-4")
    if "save" in method:
        assert (tmp_path / "killed" / "checkpoint-4").is_dir()
    assert run((train, (*killed,))) == [0]
    whole, resumed = history(tmp_path / "whole"), history(tmp_path / "killed")
    assert list(logged_losses(whole)) == list(range(1, STEPS + 1))
    assert resumed == whole
    files = sorted((tmp_path / "whole" / "final").rglob("*.safetensors"))
    assert files
    for file in files:
        weights = load_file(tmp_path / "killed" / "final" / file.relative_to(tmp_path / "whole" / "final"))
        for name, value in load_file(file).items():
            assert value.equal(weights[name]), name


@pytest.mark.parametrize("stage, changes", [("joint", EMA), ("component", {**LORA, "lora": {"rank": 4}})])
def test_two_processes_do_the_work_of_one(stage, changes, even_folders, tmp_path):
    """Equal to 1e-5 of a loss: gradients are summed in another order, nothing else differs."""
    one = recipe_values(stage, even_folders, **changes, arguments={"gradient_accumulation_steps": 2})
    # Not looked for, weights that no loss reaches would have the second step wait for them.
    two = recipe_values(stage, even_folders, **changes, arguments={"ddp_find_unused_parameters": False})
    pair, port = command(tmp_path, "two", two), free_port()
    codes = run(
        (train, (*command(tmp_path, "one", one),)),
        *((train_as_rank, (rank, 2, port, *pair)) for rank in range(2)),
    )
    assert codes == [0, 0, 0]
    alone, shared = logged_losses(history(tmp_path / "one")), logged_losses(history(tmp_path / "two"))
    assert list(alone) == list(shared) == list(range(1, STEPS + 1))
    for step, losses in alone.items():
        assert shared[step] == pytest.approx(losses, rel=1e-5, abs=2e-5), step
