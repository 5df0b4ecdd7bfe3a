"""Trainer callbacks: intervals of a resumed run, collapse alarms, and samples of speech while a stage trains."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.utils import logging

from e2e_tts.modeling import E2ETTSModel

from .data.speech_data import Collator, SpeechDataset
from .recipe_parts import SafetyRecipe, SampleRecipe
from .safety import collapse_signs
from .speech_samples import write_samples

logger = logging.get_logger(__name__)


class StepsAsAsked(TrainerCallback):
    """Logs, saves and evaluates as often as the arguments say: a resumed run would go on as it was started."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        state.compute_steps(args, state.max_steps)


class CollapseAlarm(TrainerCallback):
    """Warns once of every sign of collapse while it lasts, and saves and stops if the recipe asks for that."""

    def __init__(self, settings: SafetyRecipe) -> None:
        self.settings = settings
        self.ringing: set[str] = set()

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> TrainerControl:
        signs = collapse_signs(state.log_history, self.settings)
        for name, message in signs.items():
            if name not in self.ringing and state.is_world_process_zero:
                advice = "Lower the weight of the LM loss or the tokenizer's learning rate."
                logger.warning(f"Collapse alarm at step {state.global_step}: {message} {advice}")
        self.ringing = set(signs)
        if signs and self.settings.stop_on_alarm:
            control.should_save = control.should_training_stop = True
        return control


class SpeechSamples(TrainerCallback):
    """Writes samples to output_dir/samples/step-N every so many steps (see `write_samples`).

    model: gives the composite, its weights being the ones that `weights` puts in place.
    """

    def __init__(
        self,
        settings: SampleRecipe,
        dataset: SpeechDataset,
        collator: Collator,
        model: Callable[[], E2ETTSModel],
        weights: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self.settings, self.dataset, self.collator = settings, dataset, collator
        self.model, self.weights = model, weights

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: object
    ) -> None:
        if state.global_step % self.settings.every or not state.is_world_process_zero:
            return
        folder = Path(args.output_dir) / "samples" / f"step-{state.global_step}"
        with self.weights():
            write_samples(self.model(), self.dataset, self.collator, folder, self.settings.count, self.settings.seed)
