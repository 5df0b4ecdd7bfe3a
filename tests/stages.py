"""Recipes of the stages on a tiny model and data set, for the tests that train."""

from pathlib import Path

from factories import (
    composite_settings,
    conformer_settings,
    encoder_settings,
    lm_settings,
    make_composite,
    make_dataset,
)
from transformers import Trainer, TrainerCallback

from e2e_tts.trainers.recipe import Recipe, parse_recipe

STAGES = {
    "joint": {
        "train": ["encoder", "reward", "lm", "decoder"],
        "losses": {"lm": 0.1, "asr": 1.0, "spk": 1.0, "flow": 1.0, "prior": 1.0},
        "ramp_steps": {"lm": 4},
        "rate_jitter": 0.1,
        "learning_rates": {"encoder": 5e-4},
    },
    "component": {"train": ["reward", "lm", "decoder"], "losses": {"lm": 1.0, "asr": 1.0, "flow": 1.0}},
    "end_to_end": {
        "train": ["lm", "decoder"],
        "losses": {"lm": 0.5, "flow": 1.0},
        "predicted_losses": {"asr": 1.0, "spk": 0.1, "flow": 1.0},
        "kl": 0.1,
    },
}
LORA = {"train": ["lm", "decoder"], "losses": {"lm": 1.0, "flow": 1.0}, "lora": {"rank": 4, "dropout": 0.1}}
STEPS = 6


class Stop(TrainerCallback):
    """Kills a run right after a step, as a machine would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def make_folders(root: Path, dropout: float = 0.1) -> dict[str, str]:
    """A tiny annotated data set and a tiny model. With dropout a resumed run must also go on with its random state."""
    conformer = conformer_settings(dropout=dropout, activation_dropout=dropout)
    settings = composite_settings(
        encoder_config=encoder_settings(encoder_config=conformer), lm_config=lm_settings(text_positions="aligned")
    )
    make_composite(**settings).save_pretrained(root / "start")
    return {"data": make_dataset(str(root / "data")), "start": str(root / "start")}


def recipe_values(stage: str, folders: dict[str, str], **changes) -> dict:
    """The recipe of a stage as a mapping; changes replace entries, those of `arguments` single ones."""
    values = {
        "trainer": stage,
        "init": folders["start"],
        "data": {
            "folders": [folders["data"]],
            "weights": {"first": 2.0, "second": 1.0},
            "seconds_per_batch": 2.0,
            "max_rows": 3,
            "eval_rows": 3,
        },
        "arguments": {
            "max_steps": STEPS,
            "learning_rate": 1e-3,
            "warmup_steps": 2,
            "logging_steps": 1,
            "save_steps": 2,
            "use_cpu": True,
            "disable_tqdm": True,
        },
        **STAGES[stage],
    }
    values["arguments"] |= changes.pop("arguments", {})
    return values | changes


def stage_recipe(stage: str, folders: dict[str, str], **changes) -> Recipe:
    return parse_recipe(recipe_values(stage, folders, **changes))


def logged_losses(history: list[dict]) -> dict[int, dict[str, float]]:
    """Losses and learning rate of every logged step."""
    return {
        entry["step"]: {name: value for name, value in entry.items() if "loss" in name or name == "learning_rate"}
        for entry in history
        if "loss" in entry
    }


def trainer_losses(trainer: Trainer) -> dict[int, dict[str, float]]:
    return logged_losses(trainer.state.log_history)
