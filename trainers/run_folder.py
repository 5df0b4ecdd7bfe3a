"""What a run keeps in its folder beside the weights: its recipe, its number of processes, and whole checkpoints."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import yaml
from transformers.trainer_utils import sort_checkpoints
from transformers.utils import logging

from .recipe import Recipe, RecipeError, VocoderRecipe

logger = logging.get_logger(__name__)

RECIPE_FILE = "resolved_recipe.yaml"
LAUNCH_FILE = "launch.json"
FINAL_FOLDER = "final"
LEFT_BEHIND = (FINAL_FOLDER, "samples", "bad_batch", "trainer_state.json")
ACCUMULATION = "arguments.gradient_accumulation_steps"
# What may be another when a run goes on: how long it runs, what it writes down on its way, how it evaluates, and what
# costs memory or time alone. Accumulation may change with the number of processes (see `check_processes`), and the
# vocoder's discriminators may begin later.
FREE_ARGUMENTS = (
    *("max_steps", "logging_steps", "save_steps", "save_total_limit", "report_to", "disable_tqdm", "run_name"),
    *("eval_strategy", "eval_steps", "eval_delay", "per_device_eval_batch_size"),
    *("activation_checkpointing", "gradient_checkpointing", "ddp_find_unused_parameters"),
    *(f"dataloader_{name}" for name in ("num_workers", "pin_memory", "persistent_workers", "prefetch_factor")),
    "gradient_accumulation_steps",
)
FREE = (
    *("samples", "safety", "data.eval_rows", "crops.eval_crops", "divergence_factor", "discriminator.start_step"),
    *(f"arguments.{name}" for name in FREE_ARGUMENTS),
)


def last_whole_checkpoint(output_dir: str | Path) -> str | None:
    """The newest checkpoint that is complete, or None.

    One that was being written or deleted when a run was killed is passed over: trainer_state.json is what a save ends
    with, and what a deletion may leave while weights are gone.
    """
    checkpoints = sort_checkpoints(str(output_dir))
    for checkpoint in reversed(checkpoints):
        folder = Path(checkpoint)
        index = folder / "model.safetensors.index.json"
        try:
            json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))
            weights = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values() if index.is_file() else ()
        except (OSError, ValueError):
            continue
        if all((folder / name).is_file() for name in weights):
            return checkpoint
    if checkpoints:
        logger.warning(f"None of the checkpoints in {output_dir} is complete: the run starts from its beginning.")
    return None


def set_aside(output_dir: str | Path, only: tuple[str, ...] | None = None) -> Path | None:
    """Moves what an earlier run has left to a folder of its own and returns it; None where there is nothing.

    Left in place, its checkpoints would be taken for ones of the new run, and its final/ for the new result should that
    run be stopped. only: names to move, by default checkpoints and `LEFT_BEHIND`.
    """
    names = (*map(Path, sort_checkpoints(str(output_dir))), *LEFT_BEHIND) if only is None else only
    found = [path for name in names if (path := Path(output_dir) / Path(name).name).exists()]
    if not found:
        return None
    number = 1
    while (aside := Path(output_dir) / f"earlier-{number}").exists():
        number += 1
    aside.mkdir()
    for path in found:
        path.rename(aside / path.name)
    return aside


def record_recipe(recipe: Recipe | VocoderRecipe, output_dir: str | Path, processes: int) -> None:
    """Writes the recipe, overrides included, and the number of processes to the run's folder."""
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    text = yaml.safe_dump(asdict(recipe), sort_keys=False, allow_unicode=True)
    (folder / RECIPE_FILE).write_text(text, encoding="utf-8")
    (folder / LAUNCH_FILE).write_text(json.dumps({"processes": processes}) + "\n", encoding="utf-8")


def check_recipe(recipe: Recipe | VocoderRecipe, output_dir: str | Path, processes: int) -> None:
    """Raises RecipeError where the run in a folder was started with another recipe: what is loaded from a checkpoint,
    learning rates among it, would win over the recipe without a word. See also `check_processes`."""
    file = Path(output_dir) / RECIPE_FILE
    if not file.is_file():
        return
    before, now = (flatten(values) for values in (yaml.safe_load(file.read_text(encoding="utf-8")), asdict(recipe)))
    # What discriminators are like means nothing as long as there are none.
    free = FREE if before.get("discriminator.start_step") is not None else (*FREE, "discriminator.")
    changed = [
        f"{name} is {now.get(name)}, was {before.get(name)}"
        for name in sorted({*before, *now})
        if before.get(name) != now.get(name) and not name.startswith(free)
    ]
    if changed:
        raise RecipeError(
            f"The run in {output_dir} was started with another recipe: {'; '.join(changed)}. Go on with the one it "
            "had, name another --output_dir, or start anew with --fresh."
        )
    check_processes(output_dir, before.get(ACCUMULATION, 1), now.get(ACCUMULATION, 1), processes)


def check_processes(output_dir: str | Path, accumulated_before: int, accumulated: int, processes: int) -> None:
    """Raises RecipeError where a step would be made of another number of batches than it was: it would be another
    step, and what has been read is skipped by the step, so that data would be read again or never."""
    file = Path(output_dir) / LAUNCH_FILE
    # Runs of earlier versions have not written it down.
    before = json.loads(file.read_text(encoding="utf-8"))["processes"] if file.is_file() else processes
    batches = before * accumulated_before
    if processes * accumulated == batches:
        return
    advice = f"Go on with {before} processes and {ACCUMULATION}={accumulated_before}"
    if batches % processes == 0:
        advice += f", or with {processes} and {ACCUMULATION}={batches // processes}"
    raise RecipeError(
        f"A step of the run in {output_dir} was made of {batches} batches (processes x accumulation), now it would be "
        f"of {processes * accumulated} ({processes} x {accumulated}). {advice}, name another --output_dir, or start "
        "anew with --fresh."
    )


def flatten(values: Any, name: str = "") -> dict[str, Any]:
    """Nested mappings as one, with keys joined by dots."""
    if not isinstance(values, dict) or not values:
        return {name: list(values) if isinstance(values, tuple) else values}
    return {
        key: value
        for part, inner in values.items()
        for key, value in flatten(inner, f"{name}.{part}" if name else str(part)).items()
    }
